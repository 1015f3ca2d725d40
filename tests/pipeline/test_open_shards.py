"""Opening and fetching ahead: what comes first, what is let go, what happens to a failure."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import Dataset, StreamingLoader
from pipeline.errors import ShardError, UserError
from pipeline.format import ShardSet
from pipeline.order import Order
from pipeline.remote.cache import DiskCache
from pipeline.remote.transport import Patience
from pipeline.shards import open_shards
from pipeline.shards.open_shards import Lookahead, OpenShards
from pipeline.shards.shard import ShardFile
from tests.faults import FaultyServer
from tests.helpers import make_shard_set

PATIENCE = Patience(attempts=2, deadline_s=30, silence_s=10, first_wait_s=0.001)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return make_shard_set(tmp_path / "set", samples={"train": 48}, shard_samples=4, encoding="raw", attributes=())


@pytest.fixture
def server(shards: ShardSet) -> Iterator[FaultyServer]:
    with FaultyServer(shards.folder) as running:
        yield running


@pytest.fixture
def remote(server: FaultyServer, tmp_path: Path) -> Iterator[Callable[..., OpenShards]]:
    """Makes `OpenShards` over the server's set."""
    made: list[OpenShards] = []

    def make(limit: int = 100) -> OpenShards:
        opened = Dataset.open(server.url)
        cache = DiskCache(tmp_path / "cache", 1 << 30)
        made.append(OpenShards(opened.split("train"), limit, cache, PATIENCE))
        return made[-1]

    yield make
    for files in made:
        files.close()


def finish(files: OpenShards) -> None:
    """Wait until there is nothing more to fetch or to open."""
    while threads := list(files._threads):
        for thread in threads:
            thread.join(60)


def fetched(server: FaultyServer) -> list[int]:
    return [int(name[6:12]) for name in server.requests if name.endswith(".tar")]


def test_shards_are_opened_several_at_a_time(shards, monkeypatch):
    """On a mounted drive an `open` may take a second; here none ends before four have begun."""
    together = threading.Barrier(4, timeout=60)
    create = ShardFile.__init__

    def slow(self: ShardFile, *arguments: object) -> None:
        together.wait()
        create(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardFile, "__init__", slow)
    files = OpenShards(Dataset.open(shards).split("train"), 100, None, PATIENCE)
    assert [file.name for file in files.open([3, 1, 2, 0])] == [f"train-{number:06d}" for number in (3, 1, 2, 0)]
    files.close()


def test_a_shard_that_two_threads_want_is_opened_once(shards, monkeypatch):
    opened: list[str] = []
    gate, create = threading.Event(), ShardFile.__init__

    def counted(self: ShardFile, folder: Path, shard, *more: object) -> None:
        opened.append(shard.name)
        assert gate.wait(60)
        create(self, folder, shard, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardFile, "__init__", counted)
    files = OpenShards(Dataset.open(shards).split("train"), 100, None, PATIENCE)
    found: list[ShardFile] = []
    readers = [threading.Thread(target=lambda: found.extend(files.open([5]))) for _ in range(4)]
    for reader in readers:
        reader.start()
    gate.set()
    for reader in readers:
        reader.join(60)
    assert opened == ["train-000005"]
    assert len(set(map(id, found))) == 1
    files.close()


def test_what_is_needed_now_is_fetched_before_what_is_needed_soon(remote, server, monkeypatch):
    monkeypatch.setattr(open_shards, "_FETCHING", 1)
    files = remote()
    files.expect([7, 2, 5], [1, 9])
    finish(files)
    assert fetched(server) == [7, 2, 5, 1, 9]
    assert len(files._files) == 3, "what is needed soon is on the disk, and may be evicted"


def test_what_somebody_waits_for_comes_first(remote, server, monkeypatch):
    monkeypatch.setattr(open_shards, "_FETCHING", 1)
    server.plan["train-000007.tar"] = ["stalled midway"]
    files = remote()
    files.expect([7, 2, 5], [1, 9])
    assert server.stalled.wait(60)
    reader = threading.Thread(target=files.open, args=([9],))
    reader.start()
    while 9 not in files._opening:  # It has asked.
        pass
    server.release.set()
    reader.join(60)
    finish(files)
    assert fetched(server) == [7, 9, 2, 5, 1]


def test_what_has_left_the_windows_is_let_go_at_once(remote, tmp_path):
    files = remote()
    files.expect([0, 1], [2, 3])
    finish(files)
    files.expect([2, 3], [4, 5])
    finish(files)
    assert sorted(files._files) == [2, 3]
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")]
    assert len(sizes) == 6
    _, shard = files._shards[8]
    small = DiskCache(tmp_path / "cache", 3 * (shard.bytes + 1000))
    claim = small.claim(shard)
    assert claim is not None, "all but the two that are open may be evicted"
    with claim:
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_a_window_that_is_fetched_ahead_costs_no_second_request(remote, server):
    files = remote()
    files.expect([0], [1, 2])
    finish(files)
    files.expect([1, 2], [3])
    files.open([1, 2])
    finish(files)
    assert sorted(fetched(server)) == [0, 1, 2, 3]


def test_a_failure_ahead_is_met_when_the_shard_is_needed(remote, server):
    server.always["train-000004.tar"] = "wrong bytes"
    files = remote()
    files.expect([0], [4])
    finish(files)
    files.expect([4], [5])
    with pytest.raises(ShardError, match=r"train-000004\.tar must have the sha256"):
        files.open([4])
    server.always.clear()
    assert files.open([4], late=True)[0].name == "train-000004", "a late look tries again"


def test_a_closed_loader_opens_nothing_but_for_a_late_look(remote):
    files = remote()
    files.open([1])
    files.close()
    assert len(files._files) == 0
    with pytest.raises(UserError, match="loader must be open"):
        files.open([1])
    assert files.open([1, 1], late=True)[0].key(0) == "train/face-00004"
    assert len(files._files) == 0


def test_nothing_is_expected_again_until_the_answer_changes():
    told: list[tuple[list[int], list[int]]] = []

    class Listener:
        def expect(self, now: list[int], soon: list[int]) -> None:
            told.append((now, soon))

    order = Order(np.full(12, 4), seed=1, window=2, lanes=2)
    look = Lookahead(Listener(), order, 0, 1)  # type: ignore[arg-type]
    for begin in range(0, 96, 2):
        look(begin, begin + 4)
    assert len(told) < 30, "windows hold 16 positions: entering and leaving each is told, and no more"
    for (now, soon), (later, _) in itertools.pairwise(told):
        assert set(later) <= set(now) | set(soon), "whatever is needed was announced"


def test_a_folder_is_not_read_ahead(shards):
    with StreamingLoader(shards, batch_size=4, window=1, lanes=1, prefetch=1) as loader:
        next(loader)
        assert len(loader._files._files) <= 3
