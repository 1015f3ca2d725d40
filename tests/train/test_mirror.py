"""The copy on a drive: what it keeps, what brings a run back, and drives that are full, gone, slow or lying."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import train.mirror
from pipeline.errors import CheckpointError, UserError
from pipeline.format import ShardSet
from tests.train.test_run import Run, after_update, error_line
from train.checkpoint import Generation, find_newest, generations, verify, write_generation
from train.mirror import Mirror
from train.runfolder import RunFolder
from train.session import Session


def generation(position: int, run: str = "this") -> Generation:
    return Generation({"model": {"weight": torch.full((64,), float(position))}}, {"position": position, "run": run})


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """A mounted drive."""
    path = tmp_path / "drive"
    path.mkdir()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder with a few files and no checkpoint yet."""
    folder = RunFolder(tmp_path / "local" / "faces")
    folder.grids.mkdir(parents=True)
    folder.write_config("[run]\nseed = 1\n")
    folder.note("start")
    folder.append_metrics({"position": 16, "loss": 1.0})
    (folder.grids / "000000000016.png").write_bytes(b"picture")
    return folder


def open_mirror(drive: Path, folder: RunFolder, run: str | None = "this") -> Mirror:
    mirror = Mirror(str(drive), folder, every_minutes=10)
    mirror.claim(run)
    return mirror


def save(folder: RunFolder, position: int, run: str = "this") -> Path:
    return write_generation(folder.checkpoints, generation(position, run))


def positions(path: Path) -> list[int]:
    return [int(each.name) for each in generations(path / "checkpoints")]


def test_the_copy_holds_the_two_newest_generations_and_all_the_small_files(drive: Path, folder: RunFolder) -> None:
    mirror = open_mirror(drive, folder)
    for position in (16, 32, 48):
        save(folder, position)
        folder.append_metrics({"position": position, "loss": 0.5})
        folder.note("saved", position=position)
        assert "warning" not in mirror.finish(position)
    assert mirror.path == drive / "faces"
    assert positions(mirror.path) == [48, 32]
    for path in generations(mirror.path / "checkpoints"):
        verify(path)
    for name in ("metrics.jsonl", "ledger.jsonl", "config.toml", "grids/000000000016.png"):
        assert (mirror.path / name).read_bytes() == (folder.path / name).read_bytes(), name


def test_metrics_that_were_cut_back_are_copied_anew(drive: Path, folder: RunFolder) -> None:
    for position in (16, 32, 48):
        folder.append_metrics({"position": position})
    save(folder, 16)
    assert "warning" not in open_mirror(drive, folder).finish(16)
    folder.cut_metrics(16)
    folder.append_metrics({"position": 20})
    mirror = open_mirror(drive, folder)
    assert "warning" not in mirror.finish(16)
    assert (mirror.path / "metrics.jsonl").read_bytes() == (folder.path / "metrics.jsonl").read_bytes()


def test_a_file_is_empty_when_it_is_removed(drive: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trash of a drive keeps what a file had, and counts it."""
    sizes: list[int] = []
    original = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if drive in self.parents and self.name != "mirror.json":
            sizes.append(self.stat().st_size)
        original(self, missing_ok)

    mirror = open_mirror(drive, folder)
    monkeypatch.setattr(Path, "unlink", unlink)
    for position in (16, 32, 48, 64):
        save(folder, position)
        mirror.finish(position)
    assert positions(mirror.path) == [64, 48]
    assert sizes == [0] * 6


def test_a_lost_run_folder_comes_back_with_everything(drive: Path, folder: RunFolder) -> None:
    mirror = open_mirror(drive, folder)
    save(folder, 16)
    folder.final.mkdir()
    (folder.final / "config.json").write_text("{}")
    mirror.finish(16)
    before = {path.relative_to(folder.path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    shutil.rmtree(folder.path)
    assert open_mirror(drive, folder, None).bring_back() == (16, [])
    after = {path.relative_to(folder.path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert after == before


def test_a_run_folder_that_is_behind_is_brought_up_and_keeps_its_own_history(
    drive: Path, folder: RunFolder, tmp_path: Path
) -> None:
    """As on the first of two machines, after the second had gone on from the mirror."""
    save(folder, 16)
    mirror = open_mirror(drive, folder)
    mirror.finish(16)
    elsewhere = RunFolder(tmp_path / "other machine" / "faces")
    second = Mirror(str(drive), elsewhere, 10)
    assert second.bring_back()[0] == 16
    second.claim("this")
    save(elsewhere, 32)
    elsewhere.note("resume", position=16)
    elsewhere.append_metrics({"position": 32})
    second.finish(32)
    folder.note("only here")
    assert Mirror(str(drive), folder, 10).bring_back() == (32, [])
    assert positions(folder.path) == [32, 16]
    assert [record["event"] for record in folder.read_ledger()] == ["start", "resume", "only here"]
    assert [record["position"] for record in folder.read_metrics()] == [16, 32]


def test_a_run_folder_that_is_further_needs_nothing(drive: Path, folder: RunFolder) -> None:
    save(folder, 16)
    open_mirror(drive, folder).finish(16)
    save(folder, 32)
    before = (folder.path / "ledger.jsonl").read_bytes()
    assert Mirror(str(drive), folder, 10).bring_back() == (None, [])
    assert (folder.path / "ledger.jsonl").read_bytes() == before


def test_damaged_generations_of_either_side_are_passed_over(drive: Path, folder: RunFolder) -> None:
    mirror = open_mirror(drive, folder)
    for position in (16, 32):
        save(folder, position)
        mirror.finish(position)
    os.truncate(mirror.path / "checkpoints" / f"{32:012d}" / "model.safetensors", 3)
    for path in generations(folder.checkpoints):
        os.truncate(path / "state.json", 1)
    position, remarks = Mirror(str(drive), folder, 10).bring_back()
    assert position == 16
    assert len(remarks) == 2
    found, _ = find_newest(folder.checkpoints)
    assert found is not None
    assert int(found.name) == 16


def test_a_mirror_without_a_whole_generation_is_an_error_only_where_the_run_has_none(
    drive: Path, folder: RunFolder
) -> None:
    save(folder, 16)
    mirror = open_mirror(drive, folder)
    mirror.finish(16)
    os.truncate(mirror.path / "checkpoints" / f"{16:012d}" / "state.json", 1)
    position, remarks = Mirror(str(drive), folder, 10).bring_back()
    assert (position, len(remarks)) == (None, 1)
    shutil.rmtree(folder.path)
    with pytest.raises(CheckpointError, match="must hold one whole generation"):
        Mirror(str(drive), folder, 10).bring_back()
    assert not folder.checkpoints.exists()


def test_a_bringing_back_that_is_interrupted_begins_again(
    drive: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, 16)
    open_mirror(drive, folder).finish(16)
    shutil.rmtree(folder.path)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.mirror, "verify", die)
        with pytest.raises(KeyboardInterrupt):
            Mirror(str(drive), folder, 10).bring_back()
    assert generations(folder.checkpoints) == []
    assert Mirror(str(drive), folder, 10).bring_back() == (16, [])


def test_the_mirror_of_another_run_is_refused(drive: Path, folder: RunFolder) -> None:
    save(folder, 16)
    open_mirror(drive, folder).finish(16)
    shutil.rmtree(folder.checkpoints)
    save(folder, 8, run="another")
    with pytest.raises(UserError, match=r"must be the copy of .*; got that of another run, started on .* at 20"):
        Mirror(str(drive), folder, 10).bring_back()


def test_a_folder_with_checkpoints_that_is_no_mirror_is_refused(drive: Path, folder: RunFolder) -> None:
    write_generation(drive / "faces" / "checkpoints", generation(16))
    with pytest.raises(UserError, match=r"must be a mirror; got a folder with checkpoints and no mirror\.json"):
        Mirror(str(drive), folder, 10).bring_back()


def test_a_drive_that_is_not_mounted_is_refused(tmp_path: Path, folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.mirror must be a folder that exists.*Mount the drive"):
        Mirror(str(tmp_path / "missing"), folder, 10)
    assert not (tmp_path / "missing").exists()


def test_a_run_is_not_its_own_mirror(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"must be another place than the run's own"):
        Mirror(str(folder.path.parent), folder, 10)


def test_who_takes_the_mirror_over_is_warned_and_the_other_one_stops_writing(
    drive: Path, folder: RunFolder, tmp_path: Path
) -> None:
    first = Mirror(str(drive), folder, 10)
    assert first.claim("this") == ("this", None)
    save(folder, 16)
    first.start(16)
    while first.busy:
        threading.Event().wait(0.001)
    elsewhere = RunFolder(tmp_path / "other machine" / "faces")
    second = Mirror(str(drive), elsewhere, 10)
    assert second.bring_back()[0] == 16
    run, warning = second.claim(None)
    assert run == "this"
    assert warning is not None
    assert "wrote to the mirror" in warning
    save(folder, 32)
    assert "got it taken over from" in first.finish(32)["warning"]
    assert first.taken_over
    assert not first.is_due()
    assert positions(first.path) == [16]
    assert "another process" in first.finish(32)["warning"]
    assert "warning" not in second.finish(16)


def test_a_mirror_that_was_left_in_order_gives_no_warning(drive: Path, folder: RunFolder) -> None:
    save(folder, 16)
    open_mirror(drive, folder).finish(16)
    assert Mirror(str(drive), folder, 10).claim("this") == ("this", None)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_drive_is_told_and_tried_again_and_keeps_what_it_had(
    drive: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = open_mirror(drive, folder)
    save(folder, 16)
    mirror.finish(16)
    save(folder, 32)
    with monkeypatch.context() as patch:
        patch.setattr(train.mirror.shutil, "copyfileobj", full)
        assert "got 'No space left on device'" in mirror.finish(32)["warning"]
    assert positions(mirror.path) == [16]
    assert "warning" not in mirror.finish(32)
    assert positions(mirror.path) == [32, 16]


def test_a_drive_that_lies_is_found_out_by_reading_back(
    drive: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = open_mirror(drive, folder)
    save(folder, 16)
    mirror.finish(16)
    save(folder, 32)
    original = train.mirror._copy_file

    def lie(source: Path, target: Path) -> None:
        original(source, target)
        if target.suffix == ".safetensors":
            os.truncate(target, target.stat().st_size - 1)

    monkeypatch.setattr(train.mirror, "_copy_file", lie)
    assert "must match its manifest" in mirror.finish(32)["warning"]
    assert positions(mirror.path) == [16]


def test_a_drive_that_is_gone_is_not_made_anew(drive: Path, folder: RunFolder) -> None:
    mirror = open_mirror(drive, folder)
    save(folder, 16)
    drive.rename(drive.with_name("unmounted"))
    assert "Mount the drive again" in mirror.finish(16)["warning"]
    assert not drive.exists()
    assert not mirror.taken_over
    drive.with_name("unmounted").rename(drive)
    assert "warning" not in mirror.finish(16)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A mount that answers only once the event is set."""
    answered = threading.Event()
    original = train.mirror._copy_file

    def wait(source: Path, target: Path) -> None:
        answered.wait(60)
        original(source, target)

    monkeypatch.setattr(train.mirror, "_copy_file", wait)
    yield answered
    answered.set()


def test_a_drive_that_hangs_holds_nothing_up(drive: Path, folder: RunFolder, hanging: threading.Event) -> None:
    mirror = open_mirror(drive, folder)
    save(folder, 16)
    assert mirror.is_due()
    mirror.start(16)
    assert mirror.busy
    assert mirror.copying == {16}
    assert not mirror.is_due()
    assert mirror.poll() is None
    assert "gave no answer" in mirror.finish(16, patience_s=0.01)["warning"]
    hanging.set()
    assert "warning" not in mirror.finish(16)
    assert mirror.copying == set()


# ---- whole runs


@pytest.fixture
def run(tmp_path: Path, tiny_toml: Path, faces: ShardSet, drive: Path) -> Run:
    made = Run(tiny_toml, faces, tmp_path / "local" / "faces")
    made.arguments += ["--checkpoint.mirror", str(drive)]
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> str:
    """Of the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(
        "[model]\nwidths = [8, 8, 8, 8]\nlatent = 4\n[optim]\nwarmup_images = 64\n[train]\n"
        "batch_size = 16\ntotal_images = 96\nthreads = 2\nlog_every_updates = 1\nprior_images = 32"
    )
    whole = Run(folder / "tiny.toml", faces, folder / "run")
    assert whole() == 0
    return str(whole.summary["weights_sha256"])


def stop(_: Session) -> None:
    os.kill(os.getpid(), 15)


def test_the_same_command_on_a_new_machine_goes_on_from_the_mirror(
    run: Run, drive: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with after_update(4, stop):
        assert run() == 0
    metrics, ledger = run.folder.read_metrics(), run.folder.read_ledger()
    stopped = run.summary["position"]
    shutil.rmtree(run.path)
    assert run() == 0
    assert f"brought back from the mirror {drive / 'faces'}: image {stopped:,}" in capsys.readouterr().out
    assert run.summary["weights_sha256"] == weights
    assert [record["position"] for record in run.folder.read_metrics() if "loss" in record] == list(range(16, 97, 16))
    assert run.folder.read_metrics()[: len(metrics)] == metrics
    events = [record["event"] for record in ledger]
    assert run.events[: events.index("saved") + 1] == events[: events.index("saved") + 1]
    assert "brought back" in run.events
    # And once more, now that it is finished.
    shutil.rmtree(run.path)
    assert run() == 0
    assert "is finished at image 96" in capsys.readouterr().out
    assert (run.folder.final / "model.safetensors").exists()


@pytest.mark.parametrize("fault", ["full", "gone"])
def test_a_mirror_that_fails_does_not_stop_the_training(
    run: Run, drive: Path, weights: str, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def go(_: Session) -> None:
        drive.rename(drive.with_name("unmounted"))

    def nothing(_: Session) -> None:
        pass

    if fault == "full":
        monkeypatch.setattr(train.mirror.shutil, "copyfileobj", full)
    with after_update(1, go if fault == "gone" else nothing):
        assert run() == 0
    assert "warning: the mirror is behind" in capsys.readouterr().out
    assert "mirror failed" in run.events
    assert run.summary["weights_sha256"] == weights


def test_a_fresh_start_sets_the_copy_aside_too(run: Run, drive: Path) -> None:
    assert run("--train.total-images", "32") == 0
    assert run("--train.total-images", "32", "--run.fresh") == 0
    assert sorted(path.name for path in drive.iterdir()) == ["faces", "faces.old-1"]
    identities = [json.loads((drive / name / "mirror.json").read_bytes())["run"] for name in ("faces", "faces.old-1")]
    assert len(set(identities)) == 2


def test_another_run_of_the_same_name_may_not_use_the_mirror(
    run: Run, drive: Path, capsys: pytest.CaptureFixture[str], shard_set: Callable[..., ShardSet]
) -> None:
    assert run("--train.total-images", "32") == 0
    run.path.rename(run.path.with_name("kept"))
    before = {path: path.read_bytes() for path in drive.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run("--run.seed", "1") == 2
    assert "run.seed was 0, now 1" in error_line(capsys)
    assert {path: path.read_bytes() for path in drive.rglob("*") if path.is_file()} == before
