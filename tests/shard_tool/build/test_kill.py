"""`make-shards` killed anywhere, and run again, gives the bytes of a build that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Pixels = Callable[..., Image.Image]

ROOT = Path(__file__).parents[3]
KILLS = 20

# Dies at the n-th rename, when what it renames is there and its new name is not: where a program can be caught.
DIES_AT_A_RENAME = """
import os, signal, sys
rename, left = os.replace, int(sys.argv.pop(1))
def replace(*paths):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
os.replace = replace
from shard_tool.cli import main
sys.exit(main())
"""


def test_twenty_kills_at_random_moments(tmp_path: Path, picture: Pixels, make: Make, hashes: Hashes) -> None:
    source = tmp_path / "raw"
    source.mkdir()
    for number in range(40):
        picture(number, (200, 200)).save(source / f"{number:05d}.jpg", quality=90)
    for number in range(40, 1500):
        (source / f"{number:05d}.jpg").write_bytes((source / f"{number % 40:05d}.jpg").read_bytes())
    options = ("--shard-samples", "50", "--size", "64")
    make(source, tmp_path / "whole" / "set", *options)
    expected = hashes(tmp_path / "whole" / "set")

    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        out = tmp_path / str(rounds) / "set"
        while kills < KILLS and not (out / "shardset.json").exists():
            threads = ("--threads", str(moments.choice((1, 2, 4))))
            kills += killed(source, out, (*options, *threads), moments.uniform(0, 0.5))
        make(source, out, *options)
        assert hashes(out) == expected
    assert (out / "shardset.json").exists()


def killed(source: Path, out: Path, options: tuple[str, ...], seconds: float) -> bool:
    """Start a build and kill it that long after it has begun to work; False where it was faster."""
    command = [sys.executable, "-m", "shard_tool", "make-shards", str(source), "--out", str(out), *options, "--quiet"]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        while not (out / ".build" / "plan.json").exists() and process.poll() is None:
            time.sleep(0.002)
        try:
            process.wait(seconds)  # A random moment, not a wait for anything.
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("options", "step"),
    [
        (("--shard-samples", "8", "--val-fraction", "0.3"), 1),
        (("--shard-size", "20KB", "--drop-duplicates", "--keep-order"), 5),
    ],
)
def test_a_kill_at_every_rename(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, options: tuple[str, ...], step: int
) -> None:
    options = (*options, "--size", "16", "--limit", "40")
    make(photos, tmp_path / "whole" / "set", *options)
    expected = hashes(tmp_path / "whole" / "set")
    code, number = -signal.SIGKILL, 0
    while code == -signal.SIGKILL:
        number += step
        out = tmp_path / str(number) / "set"
        script = [sys.executable, "-c", DIES_AT_A_RENAME, str(number)]
        code = subprocess.run(
            [*script, "make-shards", str(photos), "--out", str(out), *options, "--quiet"], cwd=ROOT, check=False
        ).returncode
        make(photos, out, *options)
        assert hashes(out) == expected, f"killed at rename {number}"
    assert code == 0
    assert number > 15
