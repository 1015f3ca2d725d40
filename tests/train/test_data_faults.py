"""What a run does when its data do not come, are damaged, or are gone."""

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import train.loop
import train.run
from pipeline import Dataset
from pipeline.format import ShardSet
from pipeline.order import Order
from tests.faults import FaultyServer
from tests.train.conftest import TINY
from tests.train.test_processes import torchrun
from tests.train.test_run import Run, after_update
from train.audit import audit, read_progress
from train.audit import main as audit_main
from train.checkpoint import generations
from train.session import Session

IN_TURN = ["--data.window", "1"]
"""Shard after shard: five of 8 samples; batches of 16 images need two."""


@pytest.fixture
def shards(faces: ShardSet, tmp_path: Path) -> ShardSet:
    """A set of the test's own."""
    return ShardSet.open(shutil.copytree(faces.folder, tmp_path / "set"))


@pytest.fixture
def run(tiny_toml: Path, tmp_path: Path, shards: ShardSet) -> Run:
    made = Run(tiny_toml, shards, tmp_path / "run")
    made.arguments += IN_TURN
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> str:
    """The weights that the run ends with when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.toml").write_text(TINY)
    made = Run(folder / "tiny.toml", faces, folder / "run")
    assert made(*IN_TURN) == 0
    return str(made.summary["weights_sha256"])


def tar_at(shards: ShardSet, position: int, lanes: int = 1) -> Path:
    """The tar that holds the sample of a position."""
    number, _ = place_of(shards, position, lanes)
    return shards.folder / f"{shards.split('train')[number].name}.tar"


def place_of(shards: ShardSet, position: int, lanes: int = 1) -> tuple[int, int]:
    found = Order(shards.split("train").samples, window=1, lanes=lanes).locate(np.array([position]))
    return int(found[0][0]), int(found[1][0])


def saved(run: Run) -> list[int]:
    return [int(path.name) for path in generations(run.folder.checkpoints)]


def at_batch(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `act` when the loop asks for the batch of this number, from 1."""
    original, calls = train.loop._next_batch, []

    def next_batch(loader: object) -> object:
        calls.append(loader)
        if len(calls) == number:
            act()
        return original(loader)  # type: ignore[arg-type]

    monkeypatch.setattr(train.loop, "_next_batch", next_batch)


@pytest.mark.parametrize("by", ["SIGTERM", "SIGINT", "run.max_minutes"])
def test_who_is_asked_to_stop_while_a_server_is_silent_saves_and_ends(
    run: Run,
    shards: ShardSet,
    undisturbed: str,
    by: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, over = tar_at(shards, 32).name, threading.Event()
    original = train.loop._is_time_up

    def ask() -> None:
        """Once the server is silent, which it is for 30 s."""
        server.stalled.wait()
        over.set() if by == "run.max_minutes" else os.kill(os.getpid(), getattr(signal, by))

    monkeypatch.setattr(train.loop, "_is_time_up", lambda *args, **more: over.is_set() or original(*args, **more))
    monkeypatch.setattr(train.loop, "_LEAST_WAIT_S", 0.0)
    at_batch(3, threading.Thread(target=ask).start, monkeypatch)
    with FaultyServer(shards.folder) as server:
        server.always[name] = "stalled"
        far = ["--data.shards", server.url, "--data.cache", str(tmp_path / "cache")]
        assert run(*far) == (75 if by == "run.max_minutes" else 0)
        # The first request is still unanswered: nobody waited for the server's end.
        assert server.requests.count(name) == 1
        assert f"{by}{' is over' * (by == 'run.max_minutes')}: saved at image 32" in capsys.readouterr().out
        assert saved(run) == [32]
        assert not run.summary["finished"]
        server.always.clear()
        server.release.set()
        over.clear()
        assert run(*far) == 0
    assert run.summary["weights_sha256"] == undisturbed


def test_a_stop_while_the_first_batch_is_waited_for_saves_nothing(
    run: Run, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_batch(1, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    with FaultyServer(shards.folder) as server:
        server.always[tar_at(shards, 0).name] = "stalled"
        assert run("--data.shards", server.url, "--data.cache", str(tmp_path / "cache")) == 0
    assert "stopped by SIGTERM: nothing to save before the first update" in capsys.readouterr().out
    assert saved(run) == []


def flip_image(tar: Path) -> None:
    """Damage the first sample's image."""
    data = bytearray(tar.read_bytes())
    data[1000] ^= 0xFF
    tar.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, flip_image, lambda tar: os.truncate(tar, 700)])
def test_an_error_of_the_data_saves_first_and_the_same_command_goes_on(
    run: Run, shards: ShardSet, undisturbed: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tar = tar_at(shards, 32)
    whole = tar.read_bytes()
    damage(tar)
    assert run() == 1
    shown = capsys.readouterr()
    assert (
        "ended by an error of the data: saved at image 32; once they are right, the same command goes on" in shown.out
    )
    assert shown.err.startswith("error: ")
    assert str(tar) in shown.err
    assert shown.err.count("\n") == 1
    assert saved(run) == [32]
    tar.write_bytes(whole)
    assert run() == 0
    assert run.summary["weights_sha256"] == undisturbed


def test_an_error_before_the_first_update_leaves_no_checkpoint(
    run: Run, shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    tar_at(shards, 0).unlink()
    assert run() == 1
    assert "nothing to save before the first update" in capsys.readouterr().out
    assert saved(run) == []


def test_a_suspect_state_is_not_saved_for_an_error_of_the_data(
    run: Run, shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    def look_wrong(session: Session) -> None:
        session.state.health.bad_updates = 1

    tar_at(shards, 32).unlink()
    with after_update(2, look_wrong):
        assert run() == 1
    assert "not saved, as the last losses look wrong" in capsys.readouterr().out
    assert saved(run) == []


def damaged_positions(shards: ShardSet, tar: Path) -> list[int]:
    """Positions of the first sample of a tar, in the 96 images of a run."""
    located = Order(shards.split("train").samples, window=1, lanes=1).locate(np.arange(96))
    number = list(shards.split("train").names).index(tar.stem.encode())
    return [position for position, place in enumerate(zip(*located, strict=True)) if place == (number, 0)]


def test_a_damaged_sample_is_left_out_and_accounted_for(
    run: Run, shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = tar_at(shards, 32)
    flip_image(tar)
    positions = damaged_positions(shards, tar)
    assert len(positions) in (2, 3)
    assert run("--data.on-error", "skip") == 0
    out = capsys.readouterr().out
    assert out.count("warning: ") == 1
    assert f"sample 'train/face-{8 * int(tar.stem[-6:]):05d}' of {tar} must be as it was written" in out
    assert f"left out as damaged: {len(positions)} samples, named in {run.path / 'ledger.jsonl'}" in out
    notes = [record for record in run.folder.read_ledger() if record["event"] == "skipped"]
    assert [record["position"] for record in notes] == positions
    assert {record["shard"] for record in notes} == {str(tar)}
    assert all("face-" in record["key"] and "crc32" in record["reason"] for record in notes)
    assert run.summary["skipped"] == len(positions)

    # Its index still says what the sample was.
    assert audit_main([str(run.path)]) == 0
    said = (
        f"each of {96 - len(positions)} samples was trained exactly once in its place; {len(positions)} were left out"
    )
    assert said in capsys.readouterr().out
    assert run.folder.read_ledger()[-1]["skipped"] == len(positions)
    shutil.rmtree(run.folder.checkpoints)
    progress, dataset = read_progress(run.folder), Dataset.open(shards)
    assert progress.skipped == tuple(positions)
    for wrong in ((), (*positions, 5), positions[1:], (*positions[1:], 5), (*positions, 99)):
        lines = list(audit(replace(progress, skipped=tuple(wrong)), dataset))
        assert not all(line.ok for line in lines), wrong
    trained_all_the_same = next(iter(audit(replace(progress, skipped=(*positions, 5)), dataset))).fault
    assert trained_all_the_same == (None, place_of(shards, 5))
    not_trained = next(iter(audit(replace(progress, skipped=tuple(positions[1:])), dataset))).fault
    assert not_trained == (place_of(shards, positions[0]), None)


def test_what_was_left_out_is_kept_over_a_resume(run: Run, shards: ShardSet) -> None:
    tar = tar_at(shards, 0)
    flip_image(tar)
    positions = damaged_positions(shards, tar)
    skip = ["--data.on-error", "skip", "--optim.schedule", "constant"]
    for length in ("48", "96"):
        assert run(*skip, "--train.total-images", length) == 0
    assert run.summary["skipped"] == len(positions)
    assert audit_main([str(run.path)]) == 0
    halves = run.summary["weights_sha256"]
    assert run(*skip, "--run.fresh") == 0
    assert run.summary["weights_sha256"] == halves
    assert run("--data.on-error", "raise", "--run.fresh") == 1


def start_two(run: Run, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*torchrun(2), *run.arguments, "--optim.schedule", "constant", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LANES = ["--data.lanes", "2", "--train.mixed-precision", "no"]
"""Each of two processes reads shards that the other one does not, but for the one in the middle."""


def tar_of_second(shards: ShardSet) -> Path:
    """The tar that only the second process needs, and only from its second batch on."""
    located = Order(shards.split("train").samples, window=1, lanes=2).locate(np.arange(40))[0]
    numbers = [number for number in located[17:32:2].tolist() if number not in [*located[::2], *located[:16]]]
    return shards.folder / f"{shards.split('train')[numbers[0]].name}.tar"


def test_a_stop_reaches_two_processes_of_which_one_waits_for_data(run: Run, shards: ShardSet, tmp_path: Path) -> None:
    tar = tar_of_second(shards)
    with FaultyServer(shards.folder) as server:
        server.always[tar.name] = "stalled"
        process = start_two(run, *LANES, "--data.shards", server.url, "--data.cache", str(tmp_path / "cache"))
        assert server.stalled.wait(60)
        assert wait_for(lambda: len(run.folder.read_metrics()) == 1, process)
        log = (run.folder.logs / "rank-1.log").read_text()
        os.kill(int(re.findall(r"pid (\d+)", log)[0]), signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped by a signal to another process: saved at image 16" in out
    assert saved(run) == [16]
    assert audit_main([str(run.path), "--shards", str(shards.folder)]) == 0


def test_an_error_of_one_processs_data_saves_what_both_have(
    run: Run, shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = tar_of_second(shards)
    whole = tar.read_bytes()
    tar.unlink()
    process = start_two(run, *LANES)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ended by an error of the data: saved at image 16" in out
    assert f"error: {tar} must exist" in err
    assert "error: all processes must have data; got an error of another one" in err
    assert saved(run) == [16]
    tar.write_bytes(whole)
    flip_image(tar)
    process = start_two(run, *LANES, "--data.on-error", "skip")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    notes = [record["position"] for record in run.folder.read_ledger() if record["event"] == "skipped"]
    assert notes
    assert f"left out as damaged: {len(notes)} samples" in out
    assert any(position % 2 for position in notes)
    assert audit_main([str(run.path)]) == 0
    assert f"{len(notes)} were left out as damaged" in capsys.readouterr().out


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> bool:
    """Look again and again while the process lives."""
    while not happened():
        if process.poll() is not None:
            return False
        threading.Event().wait(0.05)
    return True
