"""A build of every kind of source, killed at random moments and run again, gives the bytes of one that was not."""

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

from tests.shard_tool.sources.packs import tar_of, webdataset_of, zip_of
from tests.shard_tool.sources.tables import dataset_of, write_parquet

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Pixels = Callable[..., Image.Image]

ROOT = Path(__file__).parents[3]
OPTIONS = ("--shard-samples", "40", "--size", "48")
PHOTOS = 360
KILLS = 2

# Streams are cut into blocks that are small enough for a test.
COMMAND = """
import sys
from shard_tool.sources import tars
tars.SHORT_PHOTOS = tars.BLOCK_PHOTOS = 50
from shard_tool.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, picture: Pixels) -> Path:
    """The same photos as a zip, a tar, a compressed tar, WebDataset shards and parquet."""
    folder = tmp_path_factory.mktemp("packed")
    raw = folder / "raw"
    raw.mkdir()
    for number in range(20):
        picture(number, (120, 120)).save(raw / f"{number:05d}.jpg", quality=90)
    for number in range(20, PHOTOS):
        (raw / f"{number:05d}.jpg").write_bytes((raw / f"{number % 20:05d}.jpg").read_bytes())
    zip_of(raw, folder / "a.zip")
    tar_of(raw, folder / "a.tar")
    tar_of(raw, folder / "a.tar.gz", "gz")
    (folder / "wds").mkdir()
    for number in range(2):
        webdataset_of(raw, folder / "wds" / f"part-{number}.tar", {"txt": lambda number: f"face {number}"})
    write_parquet(dataset_of(sorted(raw.iterdir())), folder / "a.parquet", row_group=30)
    return folder


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "wds", "a.parquet"])
def test_kills_at_random_moments(name: str, packed: Path, tmp_path: Path, hashes: Hashes) -> None:
    run(packed / name, tmp_path / "whole" / "set")
    expected = hashes(tmp_path / "whole" / "set")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        out = tmp_path / str(rounds) / "set"
        while kills < KILLS and not (out / "shardset.json").exists():
            kills += killed(packed / name, out, moments.uniform(0, 0.4))
        run(packed / name, out)
        assert hashes(out) == expected


def command(source: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", COMMAND, "make-shards", str(source), "--out", str(out), *OPTIONS, "--quiet"]


def run(source: Path, out: Path) -> None:
    subprocess.run(command(source, out), cwd=ROOT, check=True)


def killed(source: Path, out: Path, seconds: float) -> bool:
    """Start a build and kill it that long after it has begun to work; False where it was faster."""
    with subprocess.Popen(command(source, out), cwd=ROOT, start_new_session=True) as process:
        while not (out / ".build" / "plan.json").exists() and process.poll() is None:
            time.sleep(0.002)
        try:
            process.wait(seconds)  # A random moment, not a wait for anything.
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL
