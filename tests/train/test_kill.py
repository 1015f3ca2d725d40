"""What a real process survives: kill -9, the launcher's death, a closed pipe."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import train.run
from pipeline.format import ShardSet
from tests.helpers import make_shard_set
from train.checkpoint import generations
from train.runfolder import RunFolder

ROOT = Path(train.run.__file__).resolve().parents[1]
SCRIPT = str(ROOT / "train" / "run.py")
ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch", "--quiet", SCRIPT]
ALONE = [sys.executable, SCRIPT]
TOML = """
[model]
widths = [8, 16, 16, 16]
latent = 8
[train]
batch_size = 16
total_images = 9600
threads = 1
log_every_updates = 1
prior_images = 16
[checkpoint]
save_every_minutes = 0.002
"""


class Trainer:
    """A training process in a process group of its own, and its run folder."""

    def __init__(self, launcher: list[str], arguments: list[str], folder: Path, stdout: int = subprocess.PIPE) -> None:
        self.folder = RunFolder(folder)
        self.process = subprocess.Popen(
            [*launcher, *arguments, "--run.dir", str(folder)],
            start_new_session=True,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Poll until the condition holds (True) or the process has ended (False)."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        return True

    def kill_all(self) -> None:
        """SIGKILL to the whole group, and to the end of it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        wait_until_free(self.folder)

    def finish(self) -> tuple[int, str]:
        """Exit code and output."""
        out, _ = self.process.communicate()
        return self.process.returncode, out


def wait_until_free(folder: RunFolder) -> None:
    """Return when no process holds the folder's lock."""
    with open(folder.path / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def positions(folder: RunFolder, event: str) -> list[int]:
    return [record["position"] for record in folder.read_ledger() if record["event"] == event]


def has_saved(folder: RunFolder, resumes: int) -> bool:
    """Whether the process that made the ledger's resume of this number has saved, and a generation is there."""
    events = [record["event"] for record in folder.read_ledger()]
    if events.count("resume") != resumes or "start" not in events:
        return False
    last = len(events) - 1 - events[::-1].index("resume" if resumes else "start")
    return "saved" in events[last:] and bool(generations(folder.checkpoints))


def inside_save(folder: RunFolder) -> bool:
    return any(folder.checkpoints.glob("*.partial"))


def summary(folder: RunFolder) -> dict[str, Any]:
    return dict(json.loads(folder.summary_file.read_bytes()))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("kill")
    (folder / "tiny.toml").write_text(TOML)
    shards: ShardSet = make_shard_set(folder / "faces", samples={"train": 1024, "val": 8}, shard_samples=128, size=32)
    return [str(folder / "tiny.toml"), "--data.shards", str(shards.folder)]


@pytest.fixture(scope="module")
def uninterrupted(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run that nobody disturbed."""
    trainer = Trainer(ALONE, arguments, tmp_path_factory.mktemp("whole") / "run")
    code, out = trainer.finish()
    assert code == 0, out
    return str(summary(trainer.folder)["weights_sha256"])


@pytest.fixture
def start(arguments: list[str], tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    """Start a trainer; whatever the test leaves of it is killed."""
    with ExitStack() as stack:

        def make(launcher: list[str], stdout: int = subprocess.PIPE, *more: str) -> Trainer:
            trainer = Trainer(launcher, [*arguments, *more], tmp_path / "run", stdout)
            stack.callback(end, trainer)
            return trainer

        yield make


def end(trainer: Trainer) -> None:
    if trainer.process.poll() is None:
        trainer.kill_all()


def test_kill_9_at_random_moments_and_inside_saves_changes_nothing(
    start: Callable[..., Trainer], uninterrupted: str
) -> None:
    rng = random.Random(0)
    kills = inside = 0
    folder: RunFolder | None = None
    while kills < 10 or inside < 2:
        trainer = start(ACCELERATE if kills % 5 == 4 else ALONE)
        folder = trainer.folder
        resumes = len(positions(folder, "resume"))
        wanted = trainer.wait_for(lambda: has_saved(folder, resumes + 1 if kills else 0))  # noqa: B023
        if kills % 2:
            wanted = wanted and trainer.wait_for(lambda: inside_save(folder))  # noqa: B023
        else:
            lines = len(folder.read_metrics()) + rng.randint(0, 15)
            wanted = wanted and trainer.wait_for(lambda: len(folder.read_metrics()) >= lines)  # noqa: B023
        assert wanted, "the run ended before it was killed: make it longer"
        trainer.kill_all()
        kills += 1
        inside += inside_save(folder)
    code, out = start(ACCELERATE).finish()
    assert code == 0, out
    assert folder is not None
    resumed = positions(folder, "resume")
    assert len(resumed) == kills
    assert min(resumed) > 0
    assert resumed == sorted(resumed)
    assert summary(folder)["weights_sha256"] == uninterrupted
    for kind in ("loss", "scores"):
        places = [record["position"] for record in folder.read_metrics() if kind in record]
        assert places == sorted(set(places))
    assert [record["position"] for record in folder.read_metrics() if "loss" in record] == list(range(16, 9601, 16))
    assert not list(folder.checkpoints.glob("*.partial"))


def test_when_only_the_launcher_is_killed_the_trainer_saves_and_ends_by_itself(
    start: Callable[..., Trainer],
) -> None:
    trainer = start(ACCELERATE)
    assert trainer.wait_for(lambda: len(trainer.folder.read_metrics()) > 3)
    pid = int((trainer.folder.path / "lock").read_text())
    assert pid != trainer.process.pid
    os.kill(trainer.process.pid, signal.SIGKILL)
    wait_until_free(trainer.folder)
    _, out = trainer.finish()
    assert "stopped by SIGTERM: saved at image" in out
    saved = summary(trainer.folder)
    assert not saved["finished"]
    assert int(generations(trainer.folder.checkpoints)[0].name) == saved["position"]


def test_a_closed_pipe_does_not_stop_the_training(start: Callable[..., Trainer]) -> None:
    """As in `train/run.py | head`."""
    reading, writing = os.pipe()
    trainer = start(ALONE, writing, "--train.total-images", "320")
    os.close(writing)
    os.close(reading)
    assert trainer.process.wait() == 0
    assert summary(trainer.folder)["finished"]
