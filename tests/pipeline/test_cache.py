"""The disk cache: its limit, who may evict what, and what a SIGKILL leaves behind."""

import errno
import fcntl
import hashlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline import Dataset, StreamingLoader
from pipeline.errors import ConfigError, ShardError, StoppedError, UserError
from pipeline.format import Shard, ShardSet, Split, index_bytes
from pipeline.order import Order
from pipeline.remote.cache import Claim, DiskCache, NoRoomError, default_folder
from pipeline.remote.fetch import fetch
from pipeline.remote.transport import Patience
from pipeline.shards.dataset import Shards
from pipeline.shards.open_shards import check_cache_limit
from tests.faults import FaultyServer
from tests.helpers import make_shard_set

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = Patience(attempts=3, deadline_s=30, silence_s=30, first_wait_s=0.001)


def made_up(number: int, size: int = 1000) -> tuple[Shard, bytes]:
    """A shard of four samples and the bytes that stand for its tar."""
    data = bytes([number]) * size
    return Shard(f"train-{number:06d}", 4, size, hashlib.sha256(data).hexdigest()), data


def fill(cache: DiskCache, number: int, size: int = 1000) -> int:
    shard, data = made_up(number, size)
    claim = cache.claim(shard)
    assert claim is not None
    with claim:
        claim.write(data, 0)
        return claim.finish(bytes(index_bytes(4)))


def open_claim(cache: DiskCache, number: int, stopped: threading.Event | None = None) -> Claim:
    claim = cache.claim(made_up(number)[0], stopped=stopped)
    assert claim is not None
    return claim


def copy_of(folder: Path, shard: Shard) -> Path:
    return folder / f"leanstream-{shard.sha256}.tar"


def cost(size: int = 1000) -> int:
    return size + index_bytes(4)


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("leanstream-*"))


# The limit, and what may be evicted


class CacheMachine(RuleBasedStateMachine):
    """Any sequence of fills, reads, evictions, damage and deaths keeps the promises."""

    SIZES = (500, 1000, 1700, 2500)

    def __init__(self) -> None:
        super().__init__()
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self.scratch.name) / "cache"
        self.limit = 6000
        self.pins: list[tuple[int, int]] = []
        self.claims: dict[int, Claim] = {}

    @initialize()
    def start(self) -> None:
        self.folder.mkdir()
        self.strangers = {
            "notes.txt": b"mine",
            "leanstream-abc.tar": b"not a sha256",
            f"leanstream-{'a' * 64}.tar.bak": b"mine too",
            f"{'b' * 64}.tar": b"and mine",
        }
        for name, data in self.strangers.items():
            (self.folder / name).write_bytes(data)
        (self.folder / f"leanstream-{'c' * 64}.tar").symlink_to(self.folder / "notes.txt")
        (self.folder / f"leanstream-{'d' * 64}.index").mkdir()
        self.cache = DiskCache(self.folder, self.limit)

    def shard(self, number: int) -> tuple[Shard, bytes]:
        return made_up(number, self.SIZES[number % len(self.SIZES)])

    @rule(number=st.integers(0, 9), spared=st.sets(st.integers(0, 9), max_size=3))
    def claim(self, number: int, spared: set[int]) -> None:
        before = self.whole()
        try:
            claim = self.cache.claim(self.shard(number)[0], {self.shard(other)[0].sha256 for other in spared})
        except NoRoomError:
            assert self.whole() == before, "nothing was evicted in vain"
            return
        assert (claim is None) == (number in self.claims or number in before)
        assert before & spared <= self.whole()
        if claim is not None:
            self.claims[number] = claim

    @rule(data=st.data(), finish=st.booleans())
    def end_claim(self, data: st.DataObject, finish: bool) -> None:
        if self.claims:
            number = data.draw(st.sampled_from(sorted(self.claims)))
            with self.claims.pop(number) as claim:
                claim.write(self.shard(number)[1], 0)
                if finish:
                    self.pins.append((number, claim.finish(bytes(index_bytes(4)))))

    @rule(data=st.data())
    def die_while_filling(self, data: st.DataObject) -> None:
        if self.claims:
            claim = self.claims.pop(data.draw(st.sampled_from(sorted(self.claims))))
            claim._tar.close()  # All that is left of a killed process: its locks are gone.

    @rule(number=st.integers(0, 9))
    def pin(self, number: int) -> None:
        expected = number in self.whole()
        pinned = self.cache.pin(self.shard(number)[0])
        assert (pinned is not None) == expected
        if pinned is not None:
            self.pins.append((number, pinned))

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.pins:
            os.close(self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))[1])

    @rule(data=st.data(), suffix=st.sampled_from(["tar", "index"]), cut=st.booleans())
    def damage(self, data: st.DataObject, suffix: str, cut: bool) -> None:
        free = sorted(self.whole() - {number for number, _ in self.pins})
        if free:
            path = self.folder / f"{self.cache.stem(self.shard(data.draw(st.sampled_from(free)))[0])}.{suffix}"
            os.truncate(path, path.stat().st_size // 2) if cut else path.unlink()

    @rule()
    def open_again(self) -> None:
        self.cache = DiskCache(self.folder, self.limit)

    def whole(self) -> set[int]:
        """Numbers of the shards that are there in full."""
        found = set()
        for number in range(10):
            shard, data = self.shard(number)
            tar = self.folder / f"{self.cache.stem(shard)}.tar"
            index = tar.with_suffix(".index")
            sizes = [path.stat().st_size for path in (tar, index) if path.exists()]
            if sizes == [shard.bytes, index_bytes(4)]:
                assert tar.read_bytes() == data
                found.add(number)
        return found

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "cache"):
            return
        regular = [path for path in self.folder.glob(f"leanstream-{'?' * 64}.*") if path.is_file()]
        ours = [path for path in regular if path.name not in self.strangers and not path.is_symlink()]
        assert sum(path.stat().st_size for path in ours) <= self.limit
        assert {number for number, _ in self.pins} <= self.whole()
        for number, pinned in self.pins:
            assert os.pread(pinned, 10_000, 0) == self.shard(number)[1]
        for name, data in self.strangers.items():
            assert (self.folder / name).read_bytes() == data
        assert (self.folder / f"leanstream-{'c' * 64}.tar").is_symlink()
        assert (self.folder / f"leanstream-{'d' * 64}.index").is_dir()

    def teardown(self) -> None:
        for _, pinned in self.pins:
            os.close(pinned)
        for claim in self.claims.values():
            claim.__exit__(None, None, None)
        self.scratch.cleanup()


TestCacheKeepsItsPromises = CacheMachine.TestCase
TestCacheKeepsItsPromises.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_the_least_recently_used_goes_first(tmp_path):
    cache = DiskCache(tmp_path, 3 * cost())
    for number in range(3):
        os.close(fill(cache, number))
    used = cache.pin(made_up(0)[0])
    assert used is not None
    os.close(used)
    os.close(fill(cache, 3))
    os.close(fill(cache, 4))
    assert [copy_of(tmp_path, made_up(number)[0]).exists() for number in range(5)] == [1, 0, 0, 1, 1]


def test_a_lower_limit_evicts_nothing_before_the_cache_is_shrunk(tmp_path):
    cache = DiskCache(tmp_path, 3 * cost())
    for number in range(3):
        os.close(fill(cache, number))
    smaller = DiskCache(tmp_path, cost())
    assert held(tmp_path) == 3 * cost()
    smaller.shrink()
    assert [copy_of(tmp_path, made_up(number)[0]).exists() for number in range(3)] == [False, False, True]
    assert held(tmp_path) == cost()


def test_shrinking_keeps_what_is_in_use(tmp_path):
    cache = DiskCache(tmp_path, 3 * cost())
    pinned = fill(cache, 0)
    os.close(fill(cache, 1))
    with open_claim(cache, 2):
        DiskCache(tmp_path, 1).shrink()
        assert [copy_of(tmp_path, made_up(number)[0]).exists() for number in range(2)] == [True, False]
        assert held(tmp_path) == 2 * cost()
    os.close(pinned)
    DiskCache(tmp_path, 1).shrink()
    assert held(tmp_path) == 0


def test_many_shards_are_evicted_with_few_open_files(tmp_path):
    cache = DiskCache(tmp_path, 1 << 20)
    for number in range(100):
        os.close(fill(cache, number))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, before[1]))
    try:
        DiskCache(tmp_path, cost()).shrink()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert held(tmp_path) == cost()


def test_a_held_folder_lock_is_waited_for_until_a_stop(tmp_path):
    cache, stopped = DiskCache(tmp_path, 10_000), threading.Event()
    claim = open_claim(cache, 0, stopped)
    with open(tmp_path / "leanstream.lock", "ab") as lock, ThreadPoolExecutor(2) as threads:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = [
            threads.submit(cache.claim, made_up(1)[0], (), stopped),
            threads.submit(claim.finish, bytes(index_bytes(4))),
        ]
        stopped.set()
        for wait in waits:
            with pytest.raises(StoppedError):
                wait.result(60)
        with claim:
            pass
        assert held(tmp_path) == 0, "whoever gives up needs no lock"


def test_half_of_what_is_free_is_the_default(tmp_path, monkeypatch):
    class Usage:
        free = 10_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    cache = DiskCache(tmp_path)
    assert cache.limit_bytes == 5000
    os.close(fill(cache, 0, 2000))
    Usage.free -= cost(2000)
    assert DiskCache(tmp_path).limit_bytes == 5000, "what the cache holds counts as free"


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "leanstream"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache/leanstream"


def test_a_person_without_a_home_is_told_what_to_set(shards, monkeypatch, tmp_path):
    remote = replace(shards, location="https://host/set")

    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(UserError, match=r"disk cache must have a folder.*Set HOME or XDG_CACHE_HOME, or name a cache"):
        Dataset((remote,), (1,)).open_cache()
    named = Dataset((remote,), (1,), tmp_path).open_cache()
    assert named is not None
    assert named.folder == tmp_path
    assert Dataset((shards,), (1,)).open_cache() is None


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"using .*file/cache as a cache must succeed"):
        DiskCache(tmp_path / "file/cache")


def test_a_full_disk_is_a_plain_message_and_leaves_nothing(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path, 10_000)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"as a cache must succeed.*No space left on device.*Free some space"):
        fill(cache, 0)
    assert held(tmp_path) == 0


# Sets through a cache


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return make_shard_set(
        tmp_path / "set", samples={"train": 96}, shard_samples=4, encoding="raw", attributes=(), size=24
    )


@pytest.fixture
def server(shards: ShardSet) -> Iterator[FaultyServer]:
    with FaultyServer(shards.folder) as running:
        yield running


def figure(error: Exception) -> int:
    """The bytes that a refusal asks for."""
    return int(str(error).split("together, ")[1].split(" bytes")[0].replace(",", ""))


def shard_cost(shards: ShardSet) -> int:
    shard = shards.split("train")[0]
    return shard.bytes + index_bytes(shard.samples)


def load(where, batches, **settings) -> list:
    with StreamingLoader(where, **({"batch_size": 4, "threads": 2, "patience": PATIENCE} | settings)) as loader:
        return list(itertools.islice(loader, batches))


@pytest.mark.parametrize("lanes", [1, 2])
def test_three_epochs_fit_through_a_cache_that_holds_a_part_of_the_set(shards, server, tmp_path, monkeypatch, lanes):
    limit, most = 22 * shard_cost(shards), 0
    create = Claim.__init__

    def watched(self: Claim, *arguments: object) -> None:
        nonlocal most
        create(self, *arguments)  # type: ignore[arg-type]
        most = max(most, held(tmp_path / "cache"))  # Only a claim makes the folder grow; its lock is held.

    monkeypatch.setattr(Claim, "__init__", watched)
    order = {"window": 2, "lanes": lanes, "prefetch": 1}
    batches = load(server.url, 72, cache=tmp_path / "cache", cache_bytes=limit, **order)
    for one, other in zip(batches, load(shards, 72, **order), strict=True):
        assert one.images.equal(other.images)
    assert limit - shard_cost(shards) < most <= limit, "full, and not more"
    assert held(tmp_path / "cache") <= limit


def test_two_loaders_share_a_cache_that_holds_little_more_than_both_need(shards, server, tmp_path):
    settings = {"window": 1, "lanes": 2, "prefetch": 1, "world_size": 2, "cache": tmp_path / "cache"}
    expected = {
        p: i for b in load(shards, 48, window=1, lanes=2) for p, i in zip(b.positions.tolist(), b.images, strict=True)
    }
    limit = 14 * shard_cost(shards)

    def run(rank: int) -> list:
        return load(server.url, 48, rank=rank, cache_bytes=limit, **settings)

    with ThreadPoolExecutor(2) as both:
        for batches in both.map(run, range(2)):
            for batch in batches:
                for position, image in zip(batch.positions.tolist(), batch.images, strict=True):
                    assert image.equal(expected[position])
    assert held(tmp_path / "cache") <= limit


def test_a_limit_below_what_is_open_together_is_refused_with_the_figure(shards, server, tmp_path):
    order = {"window": 2, "lanes": 2, "batch_size": 4, "prefetch": 1}
    with pytest.raises(
        ConfigError, match=r"cache_bytes must hold the \d+ shards.*got 1,000 for .*smaller window"
    ) as caught:
        StreamingLoader(server.url, cache=tmp_path / "cache", cache_bytes=1000, **order)
    needed = figure(caught.value)
    with pytest.raises(ConfigError):
        StreamingLoader(server.url, cache=tmp_path / "cache", cache_bytes=needed - 1, **order)
    assert len(load(server.url, 72, cache=tmp_path / "cache", cache_bytes=needed, **order)) == 72
    with pytest.raises(ConfigError, match="cache_bytes must be at least 1; got 0"):
        load(server.url, 1, cache=tmp_path / "cache", cache_bytes=0)


def test_the_limit_that_is_asked_for_is_enough_for_any_order(shards, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(60):
        counts = rng.integers(1, 9, rng.integers(2, 30))
        order = Order(
            counts, seed=int(rng.integers(100)), window=int(rng.integers(1, 4)), lanes=int(rng.integers(1, 5))
        )
        ahead = int(rng.integers(1, 40))
        rows = [
            {"name": str(n), "samples": c, "bytes": 1024 * c, "sha256": "0" * 64} for n, c in enumerate(counts.tolist())
        ]
        split = Split.of(rows)
        cache, together = DiskCache(tmp_path, 1), Shards([(shards, split)], lambda _: True)
        with pytest.raises(ConfigError) as caught:
            check_cache_limit(cache, together, order, lanes=order.lanes, ahead=ahead)
        needed = figure(caught.value) - 3 * max(1024 * c + index_bytes(c) for c in counts.tolist())
        for begin in range(0, 3 * order.total, 3):
            now = order.needed(begin, begin + ahead, range(order.lanes)).now
            assert sum(int(split.bytes[n]) + index_bytes(int(split.samples[n])) for n in now) <= needed


@pytest.mark.parametrize("suffix", ["tar", "index"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_a_copy_that_vanished_or_was_cut_is_fetched_again(shards, server, tmp_path, suffix, damage):
    expected = load(server.url, 24, cache=tmp_path / "cache")
    victim = sorted((tmp_path / "cache").glob(f"*.{suffix}"))[3]
    victim.unlink() if damage == "gone" else os.truncate(victim, 0 if damage == "empty" else 100)
    before = server.requests.count("shardset.json"), sum(name.endswith(".tar") for name in server.requests)
    for one, other in zip(load(server.url, 24, cache=tmp_path / "cache"), expected, strict=True):
        assert one.images.equal(other.images)
    assert sum(name.endswith(".tar") for name in server.requests) == before[1] + 1


def test_a_flipped_bit_in_a_copy_names_the_shard_and_the_copy(shards, server, tmp_path):
    load(server.url, 24, cache=tmp_path / "cache")
    victim = tmp_path / "cache" / f"leanstream-{shards.split('train')[5].sha256}.tar"
    data = bytearray(victim.read_bytes())
    data[1024] ^= 1
    victim.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{server.url}/train-000005.tar.*crc32.*Delete {victim}, and it is fetched"):
        load(server.url, 24, cache=tmp_path / "cache")
    victim.unlink()
    load(server.url, 24, cache=tmp_path / "cache")


def test_a_damaged_index_of_a_copy_is_fetched_again(shards, server, tmp_path):
    load(server.url, 24, cache=tmp_path / "cache")
    victim = tmp_path / "cache" / f"leanstream-{shards.split('train')[5].sha256}.index"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(data)
    load(server.url, 24, cache=tmp_path / "cache")
    assert server.requests.count("train-000005.tar") == 2


# Other processes

PROGRAM = """
import os, sys
from pathlib import Path
from pipeline.remote.cache import DiskCache
from pipeline.remote.fetch import fetch
from pipeline.format import ShardSet
from pipeline.remote.transport import Patience

shards = ShardSet.open(sys.argv[1])
cache = DiskCache(Path(sys.argv[2]), int(sys.argv[3]))
for shard in list(shards.split("train"))[: int(sys.argv[4])]:
    os.close(fetch(shards, shard, cache, patience=Patience()))
"""


def start(url: str, folder: Path, limit: int, count: int) -> subprocess.Popen[str]:
    """Another process that fetches the first shards of a set, one after the other."""
    arguments = [sys.executable, "-c", PROGRAM, url, str(folder), str(limit), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_second_process_waits_for_the_first_ones_download(shards, server, tmp_path):
    server.plan["train-000001.tar"] = ["stalled midway"]
    limit = 100 * shard_cost(shards)
    first = start(server.url, tmp_path / "cache", limit, 3)
    assert server.stalled.wait(60)
    second = start(server.url, tmp_path / "cache", limit, 3)
    try:
        while server.requests.count("shardset.json") < 2:  # The second one has begun.
            assert second.poll() is None
        cache = DiskCache(tmp_path / "cache", limit)
        assert cache.claim(shards.split("train")[1]) is None, "somebody else fetches it"
        server.release.set()
        assert first.wait(60) == 0
        assert second.wait(60) == 0
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert [name for name in server.requests if name.endswith(".tar")] == [f"train-{n:06d}.tar" for n in range(3)]


def test_a_killed_process_leaves_what_is_whole_and_nothing_else_counts(shards, server, tmp_path):
    folder, limit = tmp_path / "cache", 100 * shard_cost(shards)
    server.plan["train-000002.tar"] = ["stalled midway"]
    process = start(server.url, folder, limit, 5)
    assert server.stalled.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    process.communicate()
    partial = folder / f"leanstream-{shards.split('train')[2].sha256}.tar.partial"
    assert partial.stat().st_size == shards.split("train")[2].bytes, "it counts in full from the start"
    server.release.set()
    DiskCache(folder, limit)
    assert held(folder) == 2 * shard_cost(shards)
    assert not list(folder.glob("*.partial"))
    before = len(server.requests)
    batches = load(server.url, 24, cache=folder, cache_bytes=limit)
    for one, other in zip(batches, load(shards, 24), strict=True):
        assert one.images.equal(other.images)
    fetched = {name for name in server.requests[before:] if name.endswith(".tar")}
    assert fetched == {f"train-{n:06d}.tar" for n in range(2, 24)}


def test_a_process_takes_over_from_one_that_is_killed_while_it_waits(shards, server, tmp_path):
    server.plan["train-000000.tar"] = ["stalled midway"]
    folder, limit = tmp_path / "cache", 100 * shard_cost(shards)
    process = start(server.url, folder, limit, 1)
    assert server.stalled.wait(60)
    cache, shard = DiskCache(folder, limit), shards.split("train")[0]
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(fetch, ShardSet.open(server.url), shard, cache, patience=PATIENCE)
        assert cache.claim(shard) is None
        assert not waiting.done()
        process.kill()
        process.communicate()
        os.close(waiting.result(60))
    assert server.requests.count("train-000000.tar") == 2
    server.release.set()


def test_random_kills_never_leave_more_than_the_limit_nor_wrong_bytes(shards, server, tmp_path):
    folder, limit = tmp_path / "cache", 10 * shard_cost(shards)
    rng = np.random.default_rng(3)
    for _ in range(3):
        with FaultyServer(shards.folder) as own:
            first = list(shards.split("train"))[:12]
            names = [shard.name for shard in first if not copy_of(folder, shard).exists()]
            stalled = rng.choice(names)  # What an earlier round has fetched would not be asked for.
            own.plan[f"{stalled}.{rng.choice(['tar', 'index'])}"] = ["stalled midway"]
            processes = [start(own.url, folder, limit, 12) for _ in range(2)]
            assert own.stalled.wait(60)
            for process in processes:
                process.kill()
                process.communicate()
        assert held(folder) <= limit
        for shard in shards.split("train"):
            path = copy_of(folder, shard)
            if path.exists():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
    load(server.url, 24, window=1, lanes=1, prefetch=1, cache=folder, cache_bytes=limit)


def test_a_shard_that_another_process_reads_is_not_evicted(tmp_path):
    cache = DiskCache(tmp_path, cost())
    os.close(fill(cache, 0))
    path = tmp_path / f"{cache.stem(made_up(0)[0])}.tar"
    program = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print('held', flush=True); input()"
    )
    reader = subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"held\n"
        with pytest.raises(NoRoomError):
            cache.claim(made_up(1)[0])
        reader.communicate(b"\n", 60)
        os.close(fill(cache, 1))
        assert not path.exists()
    finally:
        reader.kill()
        reader.communicate()


def test_waiting_for_room_ends_with_the_figures(shards, server, tmp_path):
    """Another loader holds the whole cache; the deadline is over at once."""
    patience = Patience(attempts=1, deadline_s=0.2, silence_s=5, first_wait_s=0.001)
    cache = DiskCache(tmp_path / "cache", 10 * shard_cost(shards))
    remote = ShardSet.open(server.url)
    pins = [fetch(remote, shard, cache, patience=PATIENCE) for shard in list(shards.split("train"))[:10]]
    with pytest.raises(
        UserError, match=r"cache_bytes must hold the shards that are open together.*are in use. Raise it"
    ):
        load(
            server.url,
            24,
            window=1,
            lanes=1,
            prefetch=1,
            cache=cache.folder,
            cache_bytes=cache.limit_bytes,
            patience=patience,
        )
    for pin in pins:
        fcntl.flock(pin, fcntl.LOCK_UN)
        os.close(pin)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
