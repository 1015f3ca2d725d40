import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from shard_tool.display import show_added, show_progress

ROOT = Path(__file__).parents[2]


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("shard_tool.display.time", clock)
    return clock


def test_a_plain_line_comes_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("making shards", 4000) as report:
        # What an earlier run has finished comes first, and is nothing that this run is fast at.
        report(1000, 10)
        for done in range(1100, 2300, 100):
            clock.now += 1
            report(done, 12)
    assert capsys.readouterr().err.splitlines() == [
        "making shards: 1,500 of 4,000, 100 images/s, 25 s left, 12 rejected",
        "making shards: 2,000 of 4,000, 100 images/s, 20 s left, 12 rejected",
    ]


def test_quiet_shows_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("making shards", 10, quiet=True) as report:
        clock.now += 100
        report(5, 0)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(photos: Path, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "shard_tool", "make-shards", str(photos), "--out", str(tmp_path / "set")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [*command, "--size", "16"], cwd=ROOT, stderr=terminal, stdout=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                chunk = os.read(controller, 4096)
            except OSError:  # The other end has closed.
                break
            if not chunk:
                break
            shown += chunk
    os.close(controller)
    assert process.returncode == 0
    assert b"60 of 60" in shown
    assert b"images/s" in shown
    assert b"0 rejected" in shown


def test_bytes_are_added_up_in_a_plain_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with show_added("indexing", 400_000_000, unit="MB") as report:
        for _ in range(11):
            clock.now += 1
            report(20_000_000, 0)
    assert capsys.readouterr().err.splitlines() == [
        "indexing: 100 of 400 MB, 20 MB/s, 15 s left",
        "indexing: 200 of 400 MB, 20 MB/s, 10 s left",
    ]
