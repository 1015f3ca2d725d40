"""`--out s3://...`: built in a small local folder, uploaded, verified; the bytes are those of a local build."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TransportError
from pipeline.format import Shard
from pipeline.remote.transport import Patience, filesystem
from shard_tool.build.bucket import Bucket, _etags, place_of
from shard_tool.build.journal import GroupRecord, Journal
from shard_tool.build.place import Folder
from shard_tool.cli import main
from tests.shard_tool.conftest import content

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Remote = Callable[[str], dict[str, str]]

ROOT = Path(__file__).parents[3]
SMALL = ("--size", 16, "--shard-samples", 5)

# aiobotocore and the event loop of fsspec close their sockets when they are collected.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


def test_a_bucket_gets_the_bytes_of_a_local_build(
    s3: str, photos: Path, tmp_path: Path, make: Make, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(photos, tmp_path / "set", *SMALL)
    printed = make(photos, f"{s3}/one/set", *SMALL)
    assert f"{s3}/one/set is complete: 60 images" in printed
    assert content(f"{s3}/one/set") == hashes(tmp_path / "set")
    assert not list(Path("shards/.staging").iterdir()), "nothing is left of what was staged"
    assert "already complete" in make(photos, f"{s3}/one/set", *SMALL)


def test_a_damaged_set_in_a_bucket_is_restored(
    s3: str, photos: Path, tmp_path: Path, make: Make, refuse: Refuse, hashes: Hashes
) -> None:
    staging, url = ("--staging", tmp_path / "staging"), f"{s3}/two/set"
    make(photos, tmp_path / "set", *SMALL, *staging)
    make(photos, url, *SMALL, *staging)
    assert "size 24 (was built with 16)" in refuse(photos, url, *SMALL, *staging, "--size", 24)
    files, root = filesystem(url)
    files.rm_file(f"{root}/train-000001.tar")
    files.pipe_file(f"{root}/train-000002.tar", b"\0" * files.info(f"{root}/train-000002.tar")["size"])
    assert "had damage in train-000001, train-000002; 2 of 2 are as they were" in make(photos, url, *SMALL, *staging)
    assert content(url) == hashes(tmp_path / "set")


def test_a_file_that_is_sent_in_parts_is_known_by_its_etag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shard_tool.build.bucket.PART_BYTES", 4)
    (tmp_path / "file").write_bytes(b"aaaabbbbcc")
    digests = b"".join(hashlib.md5(part).digest() for part in (b"aaaa", b"bbbb", b"cc"))
    whole = hashlib.md5(b"aaaabbbbcc").hexdigest()
    assert _etags(tmp_path / "file") == {whole, f"{hashlib.md5(digests).hexdigest()}-3"}


def test_a_build_that_is_killed_again_and_again(
    s3: str, photos: Path, tmp_path: Path, make: Make, hashes: Hashes
) -> None:
    make(photos, tmp_path / "set", *SMALL)
    expected = hashes(tmp_path / "set")
    url, staging = f"{s3}/killed/set", tmp_path / "staging"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    command = [sys.executable, "-m", "shard_tool", "make-shards", str(photos), "--out", url, "--staging", str(staging)]
    kills = 0
    while "shardset.json" not in content(url) and kills < 8:
        with subprocess.Popen([*command, *map(str, SMALL), "--quiet"], cwd=ROOT, start_new_session=True) as process:
            while not list(staging.glob("*/lock")) and process.poll() is None:
                time.sleep(0.005)
            try:
                process.wait(moments.uniform(0, 0.2 + 0.2 * kills))  # A random moment, not a wait for anything.
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
    # Another machine may go on: nothing is needed of the first one's disk.
    make(photos, url, *SMALL, "--staging", tmp_path / "elsewhere")
    assert content(url) == expected
    assert kills


def test_another_machine_goes_on_where_the_first_one_stopped(
    photos: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"memory://{tmp_path.name}/set"
    monkeypatch.setattr("shard_tool.sources.protocol.CHUNK_FILES", 5)
    record = Journal.record
    records: list[int] = []

    def stop(self: Journal, group: GroupRecord) -> None:
        record(self, group)
        records.append(group.number)
        self.place.settle()
        if group.number == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "record", stop)
    command = ["make-shards", str(photos), "--out", url, *map(str, SMALL), "--quiet", "--staging"]
    assert main([*command, str(tmp_path / "first machine")]) == 130
    assert "shardset.json" not in content(url)
    assert main([*command, str(tmp_path / "second machine")]) == 0
    assert records == [0, 1, 2]
    assert "shardset.json" in content(url)
    capsys.readouterr()


def test_what_waits_for_its_upload_is_bounded(
    photos: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    take = Bucket.take

    def watching(self: Bucket, folder: Path, shard: Shard) -> None:
        take(self, folder, shard)
        most.append(sum(1 for _ in self.workshop.glob("*.tar")))

    monkeypatch.setattr("shard_tool.build.bucket.STAGED_BYTES", 1)
    monkeypatch.setattr(Bucket, "take", watching)
    make(photos, f"memory://{tmp_path.name}/set", *SMALL, "--staging", tmp_path / "staging")
    assert len(most) > 8
    assert max(most) <= 1


@pytest.mark.parametrize("damage", ["cut off", "other bytes"])
def test_an_upload_that_arrives_damaged_is_sent_again(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    make(photos, tmp_path / "set", *SMALL)
    put, damaged = MemoryFileSystem.put_file, list[str]()

    def damaging(self: Any, local: str, path: str, **options: object) -> None:
        put(self, local, path, **options)
        if path not in damaged and path.endswith("2.tar"):
            damaged.append(path)
            data = self.cat_file(path)
            self.pipe_file(path, data[:-1] if damage == "cut off" else data[:-1] + b"x")

    monkeypatch.setattr(MemoryFileSystem, "put_file", damaging)
    monkeypatch.setattr("pipeline.remote.transport.time.sleep", lambda seconds: None)
    url = f"memory://{tmp_path.name}/{damage}/set"
    make(photos, url, *SMALL, "--staging", tmp_path / "staging")
    assert damaged
    assert content(url) == hashes(tmp_path / "set")


def test_a_server_that_takes_nothing_ends_the_build_and_a_rerun_goes_on(
    photos: Path, tmp_path: Path, make: Make, refuse: Refuse, hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def failing(self: Any, local: str, path: str, **options: object) -> None:
        raise OSError("no space in the bucket")

    make(photos, tmp_path / "set", *SMALL)
    url, staging = f"memory://{tmp_path.name}/full/set", ("--staging", tmp_path / "staging")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", failing)
        patch.setattr("pipeline.remote.transport.retrying.__kwdefaults__", _defaults())
        error = refuse(photos, url, *SMALL, *staging, code=1)
    assert "no space in the bucket" in error
    assert "shardset.json" not in content(url)
    make(photos, url, *SMALL, *staging)
    assert content(url) == hashes(tmp_path / "set")


def _defaults() -> dict[str, Any]:
    from pipeline.remote.transport import retrying

    assert retrying.__kwdefaults__ is not None
    return {**retrying.__kwdefaults__, "patience": Patience(attempts=2, first_wait_s=0.001)}


def test_a_place_that_cannot_be_written_is_refused(photos: Path, refuse: Refuse) -> None:
    assert "must be a place that can be written" in refuse(photos, "https://example.org/set", *SMALL)


def test_something_else_in_the_bucket_is_left_alone(photos: Path, tmp_path: Path, refuse: Refuse) -> None:
    import fsspec

    url = f"memory://{tmp_path.name}/mine"
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/mine/precious.txt", b"mine")
    assert "which holds precious.txt" in refuse(photos, url, *SMALL, "--staging", tmp_path)
    assert list(content(url)) == ["precious.txt"]


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    place = place_of(f"file://{tmp_path}/set", tmp_path)
    assert isinstance(place, Folder)
    assert place.path == tmp_path / "set"
    assert issubclass(TransportError, Exception)
