"""`train.run.main` in this process: resume, refusals, requests to stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import train.run
from pipeline.format import ShardSet
from train.checkpoint import generations
from train.run import main
from train.runfolder import RunFolder
from train.session import Session
from train.update import Update

PNG = b"\x89PNG"


class Run:
    """One run folder, and the command line that belongs to it."""

    def __init__(self, toml: Path, shards: ShardSet, folder: Path) -> None:
        self.arguments = [str(toml), "--data.shards", str(shards.folder), "--run.dir", str(folder)]
        self.path = folder
        self.folder = RunFolder(folder)

    def __call__(self, *more: str) -> int:
        return main([*self.arguments, *more])

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.folder.summary_file.read_bytes()))

    @property
    def events(self) -> list[str]:
        return [record["event"] for record in self.folder.read_ledger()]


@pytest.fixture
def run(tmp_path: Path, tiny_toml: Path, faces: ShardSet) -> Run:
    return Run(tiny_toml, faces, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> Run:
    """A finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    toml = folder / "tiny.toml"
    toml.write_text(
        "[model]\nwidths = [8, 8, 8, 8]\nlatent = 4\n[optim]\nwarmup_images = 64\n[checkpoint]\nkeep = 9\n[train]\n"
        "batch_size = 16\ntotal_images = 96\nthreads = 2\nlog_every_updates = 1\nprior_images = 32"
    )
    made = Run(toml, faces, folder / "run")
    assert made() == 0
    return made


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run at image 48, as if it had been killed: its newest generations are gone."""
    again = Run(Path(finished.arguments[0]), finished_shards(finished), tmp_path / "copy")
    shutil.copytree(finished.path, again.path)
    shutil.rmtree(again.folder.final)
    for path in generations(again.folder.checkpoints):
        if int(path.name) > 48:
            shutil.rmtree(path)
    assert [int(path.name) for path in generations(again.folder.checkpoints)] == [48]
    return again


def finished_shards(finished: Run) -> ShardSet:
    return ShardSet.open(finished.arguments[2])


@contextmanager
def after_update(number: int, act: Callable[[Session], None]) -> Iterator[None]:
    """Call `act` in the loop after the update of that number."""
    original = train.loop._log

    def log(session: Session, status: Any, update: Update) -> None:
        original(session, status, update)
        if session.state.updates == number:
            act(session)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.loop._log", log)
        yield


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_run_leaves_its_folder_with_everything_in_it(finished: Run) -> None:
    assert sorted(path.name for path in finished.path.iterdir()) == [
        "checkpoints",
        "config.toml",
        "curves.png",
        "final",
        "grids",
        "ledger.jsonl",
        "lock",
        "logs",
        "metrics.jsonl",
        "summary.json",
    ]
    grids = sorted(finished.folder.grids.iterdir())
    # 40 images an epoch, 16 an update: epochs end at 48, 80, and the run at 96.
    assert [path.name for path in grids] == [f"{position:012d}.png" for position in (48, 80, 96)]
    assert all(path.read_bytes().startswith(PNG) for path in grids)
    summary = finished.summary
    assert (summary["finished"], summary["position"], summary["updates"]) == (True, 96, 6)
    assert len(summary["weights_sha256"]) == 64
    assert summary["peak_pss_bytes"] > 10**7
    assert 0 <= summary["data_wait_share"] < 1
    assert summary["scores"]["val"]["images"] == 12
    assert {"images_per_s", "peak_gpu_bytes", "planned_bytes", "wall_s", "total_wall_s"} <= set(summary)
    assert finished.events == ["start", "saved", "saved", "saved", "finished"]
    records = finished.folder.read_metrics()
    assert [record["position"] for record in records if "loss" in record] == [16, 32, 48, 64, 80, 96]
    assert [record["epoch"] for record in records if "scores" in record] == [1, 2]


def test_the_saved_config_is_resolved_and_loads(finished: Run) -> None:
    config = train.config.load_config(finished.folder.config_file)
    assert (config.data.window, config.data.lanes, config.train.micro_batch) == (64, 1, "auto")
    assert config.model.latent == 4


def test_a_finished_run_says_so_and_exits_0(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = finished.folder.read_ledger()
    assert finished() == 0
    assert f"{finished.path} is finished at image 96" in capsys.readouterr().out
    assert finished.folder.read_ledger() == before


def test_a_run_goes_on_from_its_checkpoint_to_the_same_weights(finished: Run, copy: Run) -> None:
    assert copy() == 0
    assert copy.summary["weights_sha256"] == finished.summary["weights_sha256"]
    resumed = [record for record in copy.folder.read_ledger() if record["event"] == "resume"]
    assert [(record["position"], record["changes"]) for record in resumed] == [(48, [])]
    for kind in ("loss", "scores"):
        ours, theirs = (
            [record for record in folder.read_metrics() if kind in record] for folder in (copy.folder, finished.folder)
        )
        assert [record["position"] for record in ours] == [record["position"] for record in theirs]
        key = "loss" if kind == "loss" else "scores"
        assert [record[key] for record in ours] == [record[key] for record in theirs]


def test_a_run_that_was_killed_before_its_model_was_written_writes_it(copy: Run, finished: Run) -> None:
    shutil.rmtree(copy.path)
    shutil.copytree(finished.path, copy.path)
    shutil.rmtree(copy.folder.final)
    assert copy() == 0
    assert (copy.folder.final / "config.json").exists()
    assert copy.summary["weights_sha256"] == finished.summary["weights_sha256"]


def test_a_damaged_newest_generation_is_passed_over_and_the_reason_is_told(
    copy: Run, finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = copy.folder.checkpoints / f"{80:012d}"
    shutil.copytree(finished.folder.checkpoints / f"{80:012d}", newest)
    os.truncate(newest / "ema.safetensors", 100)
    assert copy() == 0
    out = capsys.readouterr().out
    assert f"checkpoint passed over: {newest / 'ema.safetensors'} must match its manifest" in out
    assert "at image 48" in out
    assert [record["reason"] for record in copy.folder.read_ledger() if record["event"] == "passed over"]
    assert copy.summary["weights_sha256"] == finished.summary["weights_sha256"]


def test_without_any_whole_generation_it_stops_and_names_the_way_out(
    copy: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(copy.folder.checkpoints / f"{48:012d}" / "state.json", 10)
    assert copy() == 1
    assert "must hold one whole generation" in error_line(capsys)
    assert copy("--run.fresh") == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--run.seed", "1"], "run.seed was 0, now 1"),
        (["--loss.objective", "mse"], "loss.objective was optimal_sigma, now mse"),
        (["--model.latent", "5"], "model.latent was 4, now 5"),
        (["--data.window", "2"], "data.window was 64, now 2"),
    ],
)
def test_another_identity_is_refused_with_old_and_new(
    copy: Run, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = copy.folder.read_ledger()
    assert copy(*arguments) == 2
    assert line in error_line(capsys)
    assert copy.folder.read_ledger() == before


def test_other_data_than_the_checkpoints_is_refused(
    copy: Run, shard_set: Callable[..., ShardSet], capsys: pytest.CaptureFixture[str]
) -> None:
    other = shard_set(samples={"train": 40, "val": 12}, size=32, seed=1)
    assert copy("--data.shards", str(other.folder)) == 2
    line = error_line(capsys)
    assert f"got other data in {other.folder} than {copy.arguments[2]} had" in line
    assert f"--train.init-from {copy.path} --run.name NEW" in line


def test_the_same_data_elsewhere_is_the_same_run(copy: Run, finished: Run, tmp_path: Path) -> None:
    shutil.copytree(copy.arguments[2], tmp_path / "moved")
    assert copy("--data.shards", str(tmp_path / "moved")) == 0
    assert copy.summary["weights_sha256"] == finished.summary["weights_sha256"]


def test_another_schedule_is_told_and_recorded(copy: Run, finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy("--optim.learning-rate", "5e-4", "--train.total-images", "128") == 0
    assert copy.summary["position"] == 128
    assert "changed: optim.learning_rate was 0.001, now 0.0005; exact from here on" in capsys.readouterr().out
    resumed = next(record for record in copy.folder.read_ledger() if record["event"] == "resume")
    assert resumed["changes"] == [
        "optim.learning_rate was 0.001, now 0.0005",
        "train.total_images was 96, now 128",
    ]


def test_the_micro_batch_is_used_again_unless_given(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert copy("--train.micro-batch", "5", "--train.total-images", "64") == 0
    capsys.readouterr()
    assert copy("--train.total-images", "80") == 0
    assert "4 micro-batches of 5" in capsys.readouterr().out


def test_a_micro_batch_that_memory_made_smaller_is_used_again_unless_given(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out_of_memory_and_stop(session: Session) -> None:
        session.state.micro_batch = 4
        os.kill(os.getpid(), signal.SIGTERM)

    with after_update(2, run_out_of_memory_and_stop):
        assert run() == 0
    assert run("--train.total-images", "64") == 0
    assert "4 micro-batches of 4" in capsys.readouterr().out
    assert run("--train.micro-batch", "16", "--train.total-images", "80") == 0
    assert "1 micro-batches of 16" in capsys.readouterr().out


def test_fresh_sets_the_old_folder_aside(copy: Run, finished: Run) -> None:
    assert copy("--run.fresh") == 0
    assert (copy.path.with_name("copy.old-1") / "checkpoints").exists()
    assert copy.events[0] == "start"
    assert copy.summary["weights_sha256"] == finished.summary["weights_sha256"]


def test_a_folder_in_use_is_refused_also_for_a_fresh_start(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with copy.folder.locked():
        assert copy() == 2
        assert f"got a live run in it (process {os.getpid()})" in error_line(capsys)
        assert copy("--run.fresh") == 2
        assert "got a live run" in error_line(capsys)
    assert copy.path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_once_and_the_same_command_goes_on(
    run: Run, finished: Run, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with after_update(2, lambda _: os.kill(os.getpid(), number)):
        assert run() == 0
    out = capsys.readouterr().out
    assert f"stopped by {number.name}" in out
    assert int(generations(run.folder.checkpoints)[0].name) in (32, 48)
    assert (run.summary["finished"], run.folder.final.exists()) == (False, False)
    assert run() == 0
    assert run.summary["weights_sha256"] == finished.summary["weights_sha256"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_update_ends_the_run_at_once(
    copy: Run, number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train.run.make_plan

    def plan(*args: Any) -> Any:
        os.kill(os.getpid(), number)
        return original(*args)

    monkeypatch.setattr(train.run, "make_plan", plan)
    before = copy.folder.read_ledger()
    assert copy() == 0
    assert f"stopped by {number.name} before the first update; the same command goes on" in capsys.readouterr().out
    assert copy.folder.read_ledger() == before
    assert [int(path.name) for path in generations(copy.folder.checkpoints)] == [48]


def test_max_minutes_saves_and_exits_with_75_until_the_run_is_done(run: Run, finished: Run) -> None:
    codes = [run("--run.max-minutes", "1e-9")]
    while codes[-1] == 75 and len(codes) < 10:
        codes.append(run("--run.max-minutes", "1e-9"))
    assert codes == [75] * 5 + [0]
    assert [record["position"] for record in run.folder.read_ledger() if record["event"] == "resume"] == [
        16,
        32,
        48,
        64,
        80,
    ]
    assert run.summary["weights_sha256"] == finished.summary["weights_sha256"]


def test_a_full_disk_stops_the_run_with_one_line_and_the_older_checkpoint_stands(
    run: Run, finished: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train.checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if "80.partial" in str(path):
            raise train.checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")
        original(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(train.checkpoint, "save_file", full)
        assert run() == 2
    assert "got 'No space left on device'" in error_line(capsys)
    assert [int(path.name) for path in generations(run.folder.checkpoints)] == [48]
    assert run() == 0
    assert run.summary["weights_sha256"] == finished.summary["weights_sha256"]


def test_epochs_that_end_too_soon_after_a_save_do_not_save(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.loop.EPOCH_SAVE_INTERVAL_S", 3600.0)
    assert run() == 0
    assert [int(path.name) for path in generations(run.folder.checkpoints)] == [96]
    assert len(list(run.folder.grids.iterdir())) == 3


def test_milestones_stay(run: Run) -> None:
    more = ["--checkpoint.keep", "1", "--checkpoint.milestone-images", "40"]
    assert run(*more) == 0
    assert [int(path.name) for path in generations(run.folder.checkpoints)] == [96, 80, 48]


def test_a_set_without_held_out_images_still_gets_grids(
    tiny_toml: Path, tmp_path: Path, shard_set: Callable[..., ShardSet]
) -> None:
    made = Run(tiny_toml, shard_set(samples={"train": 40}, size=32), tmp_path / "run")
    assert made("--train.total-images", "48") == 0
    assert len(list(made.folder.grids.iterdir())) == 1
    assert made.summary["scores"] == {}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_without_shards_it_takes_the_only_set_there_is(
    count: int,
    tiny_toml: Path,
    tmp_path: Path,
    faces: ShardSet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(count):
        shutil.copytree(faces.folder, tmp_path / "shards" / f"set-{number}")
    code = main([str(tiny_toml), "--train.total-images", "16"])
    if count == 1:
        assert code == 0
        assert "shards: shards/set-0, the only set under shards/" in capsys.readouterr().out
        assert (tmp_path / "runs" / "tiny-tiny" / "final" / "config.json").exists()
    else:
        assert code == 2
        assert ("got none" if not count else "got 2: shards/set-0, shards/set-1") in error_line(capsys)


def test_a_size_that_the_model_cannot_take_is_one_line(
    tiny_toml: Path, tmp_path: Path, shard_set: Callable[..., ShardSet], capsys: pytest.CaptureFixture[str]
) -> None:
    assert Run(tiny_toml, shard_set(size=24), tmp_path / "run")() == 2
    assert "got 24. Make the shards with --size 64" in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.toml"], "missing.toml must exist"),
        (["--data.shards", "missing"], "missing must be a finished shard set; got no such folder"),
        (["--train.mixed-precision", "fp16"], "fp16 must have a CUDA GPU"),
    ],
)
def test_a_persons_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in error_line(capsys)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    script = Path(train.run.__file__)
    command = [sys.executable, str(script), "--data.shards", "missing"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert plain.returncode == 2
    assert plain.stderr.startswith("error: ")
    assert plain.stderr.count("\n") == 1
    debug = subprocess.run([*command, "--debug"], cwd=tmp_path, capture_output=True, text=True)
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr
    assert "UserError: missing must be a finished shard set" in debug.stderr


def test_a_run_folder_that_cannot_be_written_is_one_line(
    tiny_toml: Path, faces: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert Run(tiny_toml, faces, tmp_path / "file" / "run")() == 2
    assert "making the run folder" in error_line(capsys)


def test_a_batch_larger_than_an_epoch_trains_every_image_equally(run: Run) -> None:
    assert run("--train.batch-size", "100", "--train.total-images", "200") == 0
    newest = generations(run.folder.checkpoints)[0]
    audit = json.loads((newest / "state.json").read_bytes())["audit"]
    assert list(audit) == ["0", "1", "2", "3", "4"]
    assert len(set(audit.values())) == 1


def test_the_keras_model_trains_and_resumes(run: Run) -> None:
    arguments = [
        "--model.kind",
        "keras",
        "--loss.objective",
        "mse",
        "--optim.eps",
        "1e-7",
        "--optim.schedule",
        "constant",
    ]
    assert run(*arguments, "--train.total-images", "64") == 0
    assert run(*arguments, "--train.total-images", "96") == 0
    longer = run.summary["weights_sha256"]
    assert run(*arguments, "--train.total-images", "96", "--run.fresh") == 0
    assert run.summary["weights_sha256"] == longer


def test_a_path_with_brackets_is_shown_as_it_is(
    tiny_toml: Path, faces: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Run(tiny_toml, faces, tmp_path / "[red]" / "[/x]")
    assert made("--train.total-images", "16") == 0
    assert f"results in {made.path}" in capsys.readouterr().out
