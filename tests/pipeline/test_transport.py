"""Shard sets behind a URL: the batches are those of a clean local run, or the error says why there are none."""

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs

from pipeline import StreamingLoader
from pipeline.errors import LeanstreamError, ShardError, TransportError, UserError
from pipeline.format import ShardSet
from pipeline.remote.transport import Patience, read_chunks
from pipeline.shards.dataset import Dataset
from tests.faults import FAULTS, FaultyServer
from tests.helpers import make_image, make_key, make_shard_set

VICTIM = "train-000002"
PATIENT = Patience(attempts=6, deadline_s=60, silence_s=10, first_wait_s=0.001, longest_wait_s=0.01)
HASTY = replace(PATIENT, attempts=2)


def patience_for(fault: str, patience: Patience) -> Patience:
    """Only where a silent server is what is tested, little silence is enough."""
    return replace(patience, silence_s=0.4) if fault.startswith("stalled") else patience


@pytest.fixture(autouse=True)
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default cache is in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return make_shard_set(tmp_path / "set", encoding="raw")


@pytest.fixture
def server(shards: ShardSet) -> Iterator[FaultyServer]:
    with FaultyServer(shards.folder) as running:
        yield running


def load(where, batches: int = 10, **settings) -> list:
    settings = {"batch_size": 8, "threads": 2, "patience": PATIENT} | settings
    with StreamingLoader(where, **settings) as loader:
        return list(itertools.islice(loader, batches))


def assert_same(batches: list, others: list) -> None:
    for one, other in zip(batches, others, strict=True):
        assert one.positions.equal(other.positions)
        assert one.images.equal(other.images)
        assert np.array_equal(one.digests, other.digests)


def fetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("fetch", "decode"))]


# Without faults


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("order", [{}, {"window": 1, "lanes": 2}])
def test_the_batches_of_a_url_are_those_of_the_folder(shards, ranges, order):
    with FaultyServer(shards.folder, ranges=ranges) as server:
        assert_same(load(server.url, labels=True, **order), load(shards, labels=True, **order))
        assert server.requests.count("shardset.json") == 1
        for number in range(5):
            assert server.requests.count(f"train-{number:06d}.tar") == 1, "two epochs, and each shard fetched once"
    assert not fetch_threads()


def test_keys_can_be_asked_for_when_the_loader_is_closed(server, shards):
    for batch, other in zip(load(server.url), load(shards), strict=True):
        assert batch.keys == other.keys


def test_keys_of_shards_that_were_evicted_are_fetched_again(server, shards, tmp_path):
    batches = load(server.url, cache=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    assert batches[0].keys == load(shards)[0].keys


def test_a_second_run_fetches_nothing(server, shards):
    load(server.url)
    before = len(server.requests)
    assert_same(load(server.url), load(shards))
    assert server.requests[before:] == ["shardset.json"]


def test_another_place_with_the_same_shards_shares_the_copies(server, shards):
    load(server.url)
    with FaultyServer(shards.folder) as mirror:
        load(mirror.url)
        assert mirror.requests == ["shardset.json"]


def test_a_set_without_indices_is_scanned_once(server, shards):
    expected = load(shards)
    for path in shards.folder.glob("*.index"):
        path.unlink()
    assert_same(load(server.url), expected)
    before = len(server.requests)
    assert_same(load(server.url), expected)
    assert server.requests[before:] == ["shardset.json"]
    assert not list(shards.folder.glob("*.index"))


def test_ranks_that_divide_the_lanes_fetch_their_own_shards(tmp_path):
    shards = make_shard_set(tmp_path / "many", samples={"train": 64}, shard_samples=2, encoding="raw", attributes=())
    fetched = []
    for rank in range(2):
        with FaultyServer(shards.folder) as server:
            load(server.url, 8, rank=rank, world_size=2, window=2, lanes=4, cache=tmp_path / str(rank))
            fetched.append({name for name in server.requests if name.endswith(".tar")})
    assert len(fetched[0] | fetched[1]) == 32
    # One epoch, and the first windows of the next.
    assert sum(map(len, fetched)) <= 32 + 4 + 2 * 2 * 4


def test_a_folder_is_read_through_a_cache_where_asked(shards, tmp_path):
    expected = load(shards)
    assert_same(load(shards, cache=tmp_path / "cache"), expected)
    for path in shards.folder.glob("*.tar"):
        path.unlink()
    assert_same(load(shards, cache=tmp_path / "cache"), expected)
    opened = Dataset.open(shards.folder, cache=tmp_path / "cache")
    assert_same(load(opened), expected)
    with pytest.raises(ShardError, match="must exist"):
        load(shards)


def test_true_stands_for_the_default_folder(shards, tmp_path):
    load(shards, cache=True)
    assert len(list((tmp_path / "cache-home/leanstream").glob("*.tar"))) == 5


def test_a_file_url_is_a_folder(shards):
    opened = ShardSet.open(f"file://{shards.folder}")
    assert opened.folder == shards.folder
    assert_same(load(f"file://{shards.folder}/"), load(shards))


def test_a_set_behind_a_url_has_no_folder(server):
    with pytest.raises(UserError, match=r"must be on this machine; got http://.*Copy it here"):
        _ = ShardSet.open(server.url).folder


def test_buckets_are_read_like_folders(shards, monkeypatch):
    from moto.server import ThreadedMotoServer

    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem.clear_instance_cache()
        from pipeline.remote.transport import filesystem

        system, _ = filesystem("s3://faces", PATIENT)
        system.mkdir("faces")
        for path in shards.folder.iterdir():
            system.pipe_file(f"faces/tiny/{path.name}", path.read_bytes())
        assert_same(load("s3://faces/tiny"), load(shards))
        system.pipe_file("faces/whole", bytes(2 * 4096))
        monkeypatch.setattr("pipeline.remote.transport.CHUNK_BYTES", 4096)
        assert list(read_chunks("s3://faces/whole", 0)) == [bytes(4096)] * 2, (
            "the end of a file of unknown size is found"
        )
        system.rm_file(f"faces/tiny/{VICTIM}.tar")
        with pytest.raises(ShardError, match=rf"fetch: s3://faces/tiny/{VICTIM}\.tar must exist"):
            load("s3://faces/tiny", cache=shards.folder.parent / "other")
        with pytest.raises(UserError, match=r"s3://faces/none must be a finished shard set; got no shardset.json"):
            load("s3://faces/none")
        system.pipe_file(f"faces/tiny/{VICTIM}.tar", b"short")
        with pytest.raises(ShardError, match=rf"fetch: s3://faces/tiny/{VICTIM}\.tar must have \d+ bytes; got the end"):
            load("s3://faces/tiny", cache=shards.folder.parent / "other", patience=HASTY)
    finally:
        moto.stop()


@pytest.fixture
def bucket(tmp_path: Path, shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A server that s3:// means, with the set at s3://faces/tiny."""
    shutil.copytree(shards.folder, tmp_path / "buckets/faces/tiny")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with FaultyServer(tmp_path / "buckets") as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield running
    s3fs.S3FileSystem.clear_instance_cache()


# With faults


@pytest.mark.parametrize("fault", ["busy", "truncated", "stalled midway"])
def test_a_bucket_that_fails_for_a_while_leaves_no_trace(bucket, shards, fault):
    for name in ("shardset.json", f"{VICTIM}.tar", f"{VICTIM}.index"):
        bucket.plan[f"faces/tiny/{name}"] = [fault, fault]
    assert_same(load("s3://faces/tiny", 5, patience=patience_for(fault, PATIENT)), load(shards, 5))
    assert bucket.requests.count(f"faces/tiny/{VICTIM}.tar") == 3


def test_a_bucket_that_fails_for_good_is_named(bucket):
    bucket.always[f"faces/tiny/{VICTIM}.tar"] = "truncated"
    with pytest.raises(TransportError, match=rf"^fetch: s3://faces/tiny/{VICTIM}\.tar must be .* at attempt 2\."):
        load("s3://faces/tiny", patience=HASTY)
    assert not fetch_threads()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "wrong bytes"])
def test_whatever_passes_leaves_no_trace(server, shards, fault):
    for name in ("shardset.json", f"{VICTIM}.tar", f"{VICTIM}.index", "train-000000.tar"):
        if fault != "short" or name.endswith(".tar"):  # Nobody can tell that half a small file is not all of it.
            server.plan[name] = [fault, fault]
    assert_same(load(server.url, patience=patience_for(fault, PATIENT)), load(shards))
    assert server.requests.count(f"{VICTIM}.tar") >= 3
    assert not fetch_threads()


@pytest.mark.parametrize("name", [f"{VICTIM}.tar", f"{VICTIM}.index"])
def test_wrong_bytes_are_fetched_again(server, shards, name):
    server.plan[name] = ["wrong bytes", "busy", "wrong bytes"]
    assert_same(load(server.url), load(shards))
    assert server.requests.count(name) == 4


def test_a_random_mixture_of_faults_leaves_no_trace(shards):
    expected = load(shards, window=2, lanes=2)
    faults = [fault for fault in FAULTS if not fault.startswith("stalled") and fault not in ("short", "wrong bytes")]
    for seed in range(5):
        with FaultyServer(shards.folder) as server:
            drawn = np.random.default_rng(seed).choice([*faults, "", ""], 40).tolist()
            server.plan["*"] = drawn
            patience = Patience(attempts=50, deadline_s=60, silence_s=1, first_wait_s=0.001, longest_wait_s=0.002)
            cache = shards.folder.parent / f"cache-{seed}"
            assert_same(load(server.url, window=2, lanes=2, patience=patience, cache=cache), expected)


@pytest.mark.parametrize(
    ("fault", "error", "cause"),
    [
        ("busy", TransportError, "503"),
        ("reset", TransportError, "Server disconnected|reset|ServerDisconnected"),
        ("reset midway", TransportError, "reset|payload|Payload"),
        ("truncated", TransportError, "payload|Payload"),
        ("short", ShardError, r"must have \d+ bytes; got the end at byte \d+ of \d+ in 2 attempts"),
        ("stalled", TransportError, "Timeout"),
        ("stalled midway", TransportError, "Timeout"),
        ("wrong bytes", ShardError, "must have the sha256"),
    ],
)
def test_what_does_not_pass_is_an_error_that_names_stage_address_attempts_and_cause(server, fault, error, cause):
    server.always[f"{VICTIM}.tar"] = fault
    with pytest.raises(error, match=cause) as caught:
        load(server.url, patience=patience_for(fault, HASTY))
    assert str(caught.value).startswith(f"fetch: {server.url}/{VICTIM}.tar must ")
    if error is TransportError:
        assert "attempt 2" in str(caught.value)
    assert not fetch_threads()


@pytest.mark.parametrize("fault", ["busy", "stalled", "truncated"])
def test_a_description_that_cannot_be_had_is_an_error(server, fault):
    server.always["shardset.json"] = fault
    with pytest.raises(TransportError, match=rf"^{server.url}/shardset.json must be available within 2 attempts"):
        load(server.url, patience=patience_for(fault, HASTY))


def test_a_description_that_is_cut_in_half_is_an_error(server):
    server.always["shardset.json"] = "short"
    with pytest.raises(ShardError, match=r"shardset.json must be JSON"):
        load(server.url)


def test_a_server_without_a_set_says_so(server):
    with pytest.raises(UserError, match=rf"{server.url}/none must be a finished shard set; got no shardset.json there"):
        load(f"{server.url}/none/")


def test_a_server_that_is_not_there_is_an_error(server):
    with FaultyServer(server.folder) as gone:
        url = gone.url
    with pytest.raises(TransportError, match=r"shardset.json must be available within 2 attempts"):
        load(url, patience=HASTY)


def test_a_missing_shard_is_named(server, shards):
    (shards.folder / f"{VICTIM}.tar").unlink()
    with pytest.raises(ShardError, match=rf"fetch: {server.url}/{VICTIM}\.tar must exist; got no such file"):
        load(server.url)
    assert server.requests.count(f"{VICTIM}.tar") == 1, "another attempt would not find it either"


def test_the_index_of_another_shard_is_named(server, shards):
    shutil.copy(shards.folder / "train-000001.index", shards.folder / f"{VICTIM}.index")
    with pytest.raises(ShardError, match=rf"{server.url}/{VICTIM}\.index must be as shardset.json describes it"):
        load(server.url)


def test_an_index_that_is_too_long_is_not_read_whole(shards, tmp_path):
    os.truncate(shards.folder / f"{VICTIM}.index", 1 << 40)  # More than any memory; on the disk it is a hole.
    with pytest.raises(ShardError, match=rf"fetch: {shards.folder}/{VICTIM}\.index must be whole"):
        load(shards, cache=tmp_path / "cache")


def test_a_bucket_that_knows_no_ranges_is_named(tmp_path, shards, monkeypatch, bucket):
    bucket.ranges = False
    monkeypatch.setattr("pipeline.remote.transport.CHUNK_BYTES", 4096)
    with pytest.raises(TransportError, match=r"\d+ bytes instead of 4096"):
        load("s3://faces/tiny", patience=HASTY)


def test_a_shard_of_another_set_is_named(server, shards, tmp_path):
    make_shard_set(tmp_path / "other", encoding="raw", seed=1)
    for suffix in ("tar", "index"):
        shutil.copy(tmp_path / f"other/{VICTIM}.{suffix}", shards.folder)
    with pytest.raises(ShardError, match=rf"{server.url}/{VICTIM}\.index must be as shardset.json"):
        load(server.url)
    (shards.folder / f"{VICTIM}.index").unlink()
    with pytest.raises(ShardError, match=rf"{server.url}/{VICTIM}\.tar must have the sha256"):
        load(server.url)


@pytest.mark.parametrize("damage", ["flip", "cut", "longer"])
def test_a_damaged_shard_is_named_before_a_sample_of_it_is_used(server, shards, damage):
    path = shards.folder / f"{VICTIM}.tar"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    path.write_bytes(data[:3000] if damage == "cut" else data)
    if damage == "longer":
        path.write_bytes(bytes(512) + data)
    with pytest.raises(ShardError, match=rf"fetch: {server.url}/{VICTIM}\.tar must have"):
        load(server.url, patience=HASTY)


def test_a_slow_drive_that_fails_at_times_is_tried_again(shards, tmp_path, monkeypatch):
    failures = iter([OSError(5, "Input/output error"), OSError(107, "Transport endpoint is not connected")])

    def flaky(path: Any, *mode: Any) -> Any:
        if os.fspath(path).endswith(f"set/{VICTIM}.index"):
            for error in failures:
                raise error
        return open(path, *mode)

    monkeypatch.setattr("pipeline.remote.transport.open", flaky, raising=False)
    assert_same(load(shards, cache=tmp_path / "cache"), load(shards))
    assert next(failures, None) is None


# Ends


def test_a_loader_closes_while_a_download_stalls(server, tmp_path):
    server.always[f"{VICTIM}.tar"] = "stalled midway"
    loader = StreamingLoader(server.url, batch_size=8, threads=2)
    raised: list[BaseException] = []

    def read() -> None:
        try:
            for _ in loader:
                pass
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert server.stalled.wait(30)
    loader.close()
    thread.join(30)
    assert isinstance(raised[0], LeanstreamError)
    assert "loader must be open" in str(raised[0])
    assert not fetch_threads(), "the server has not answered yet"
    assert not list((tmp_path / "cache-home/leanstream").glob("*.partial"))


def test_a_stalled_prefetch_does_not_hold_up_the_batches(tmp_path):
    shards = make_shard_set(tmp_path / "many", samples={"train": 48}, shard_samples=4, encoding="raw", attributes=())
    settings = {"window": 2, "lanes": 1, "batch_size": 2, "prefetch": 1}
    with StreamingLoader(shards, **settings) as loader:
        order = loader.order
        first = set(order.window_shards(order.window_at(0, 0)).tolist())
        second = order.window_shards(order.window_at(8, 0)).tolist()
    with FaultyServer(shards.folder) as server:
        for number in second:
            server.always[f"train-{number:06d}.tar"] = "stalled midway"
        with StreamingLoader(server.url, **settings) as loader:
            for batch in itertools.islice(loader, 2):
                assert {int(key[-5:]) // 4 for key in batch.keys} <= first
            assert server.stalled.wait(30), "the next window is fetched ahead"
            server.always.clear()
            server.release.set()
            keys = [key for batch in itertools.islice(loader, 22) for key in batch.keys]
    assert len(keys) == 44


def test_a_hundred_samples_from_afar_are_the_photos_that_were_packed(server):
    for batch in load(server.url):
        numbers = [int(key[-5:]) for key in batch.keys]
        assert batch.keys == tuple(make_key("train", number) for number in numbers)
        expected = np.stack([make_image("train", number, 16) for number in numbers])
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)
