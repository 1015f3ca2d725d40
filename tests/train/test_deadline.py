"""`run.max_minutes` holds for the whole process: the last save, and the write behind it, are over by then."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import train.run
from pipeline.format import ShardSet
from tests.train.test_run import Run
from train.checkpoint import generations

UPDATE_S, WRITE_S, VALIDATION_S = 7.0, 20.0, 9.0
LIMIT_S = 120.0


class Clock:
    """A `time` whose `monotonic` goes on only when somebody says how long something took."""

    def __init__(self) -> None:
        self._began, self.passed = time.monotonic(), 0.0

    def monotonic(self) -> float:
        return self._began + self.passed

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Updates, writes and validations take the times above, and nothing else takes any."""
    clock = Clock()
    for name in ("run", "loop", "saving", "session", "checkpoint"):
        monkeypatch.setattr(sys.modules[f"train.{name}"], "time", clock)

    def slow(where: str, seconds: float, result: Any = None) -> None:
        original = result or getattr(sys.modules[where.rpartition(".")[0]], where.rpartition(".")[2])

        def call(*args: Any, **more: Any) -> Any:
            # No update beside a write: else as many pass meanwhile as a slow disk lets.
            for thread in threading.enumerate():
                if thread.name == "checkpoint" and thread is not threading.current_thread():
                    thread.join()
            clock.passed += seconds
            return original(*args, **more)

        monkeypatch.setattr(where, call)

    slow("train.loop.apply_update", UPDATE_S)
    slow("train.checkpoint.write_generation", WRITE_S)
    slow("train.loop.validate", VALIDATION_S, lambda _: "validated")
    return clock


@pytest.fixture
def run(tmp_path: Path, tiny_toml: Path, faces: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("train.loop.EPOCH_SAVE_INTERVAL_S", 1e9)
    made = Run(tiny_toml, faces, tmp_path / "run")
    made.arguments += ["--train.total-images", "1600", "--run.max-minutes", str(LIMIT_S / 60)]
    return made


def test_the_process_has_ended_when_the_minutes_are_over(run: Run, clock: Clock) -> None:
    assert run("--checkpoint.save-every-minutes", "0.5") == 75
    assert LIMIT_S / 2 < clock.passed <= LIMIT_S
    position = run.summary["position"]
    assert int(generations(run.folder.checkpoints)[0].name) == position > 0
    saved = [record for record in run.folder.read_ledger() if record["event"] == "saved"]
    assert len(saved) > 1
    assert all(WRITE_S <= record["write_s"] <= WRITE_S + UPDATE_S for record in saved)
    # The next process has no save of its own to go by: what the ledger has of earlier ones counts.
    before = clock.passed
    assert run("--checkpoint.save-every-minutes", "60") == 75
    assert LIMIT_S / 2 < clock.passed - before <= LIMIT_S
    assert run.summary["position"] > position


def test_minutes_that_are_too_few_for_anything_still_bring_the_run_on(run: Run, clock: Clock) -> None:
    for updates in (1, 2):
        assert run("--run.max-minutes", "0.01") == 75
        assert run.summary["updates"] == updates


def test_a_validation_that_a_stop_left_out_is_made_up_for(
    run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch ends with the third update, image 48 of 40."""
    seen: list[int] = []
    monkeypatch.setattr(train.run.sys.modules["train.loop"], "validate", lambda session: seen.append(session.epoch))
    for _ in range(3):
        assert run("--run.max-minutes", "0.01") == 75
    assert (run.summary["position"], seen) == (48, [])
    assert run("--run.max-minutes", "0.01") == 75
    assert seen == [1]
