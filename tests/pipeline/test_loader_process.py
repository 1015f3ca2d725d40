"""The loader in a program: other processes, its end, requests to stop, and a damaged sample that is left out."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from pipeline import ShardSet, StreamingLoader
from pipeline.errors import ConfigError, ShardError, StoppedError, UserError
from pipeline.remote.transport import Patience
from tests.faults import FaultyServer
from tests.helpers import make_image, make_shard_set

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return make_shard_set(tmp_path / "set", shard_samples=4)


class Stream(IterableDataset):
    def __init__(self, loader: StreamingLoader | None, folder: Path) -> None:
        self.loader, self.folder = loader, folder

    def __iter__(self):
        loader = self.loader or StreamingLoader(self.folder, batch_size=4, threads=1)
        for batch in loader.epoch():
            yield batch.images


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_process_of_a_dataloader_is_told_what_to_do(shards, workers, used):
    with StreamingLoader(shards, batch_size=4, threads=1) as loader:
        if used:
            next(loader)
        data = DataLoader(Stream(loader, shards.folder), batch_size=None, num_workers=workers, timeout=60)
        with pytest.raises(UserError, match="Read it without worker processes"):
            next(iter(data))
        assert len(list(DataLoader(Stream(loader, shards.folder), batch_size=None))) in (9, 10), "none is fine"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_loader_that_is_made_in_a_worker_is_refused_too(shards):
    data = DataLoader(Stream(None, shards.folder), batch_size=None, num_workers=1, timeout=60)
    with pytest.raises(UserError, match="a worker process of a DataLoader"):
        next(iter(data))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_the_child_is_refused_and_the_parent_goes_on(shards):
    with StreamingLoader(shards, batch_size=4, threads=2) as loader:
        next(loader)

        def child(answers) -> None:
            try:
                next(loader)
            except UserError as error:
                answers.send(str(error))
            loader.close()  # Nothing to do in a child, and no wait for threads that it has not.

        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
        process.start()
        assert ours.poll(60)
        assert "a fork of process" in ours.recv()
        process.join(60)
        assert process.exitcode == 0
        next(loader)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_keys_of_a_batch_are_there_after_a_fork(shards):
    with StreamingLoader(shards, batch_size=40, threads=2) as loader:
        batch = next(loader)
        ours, theirs = multiprocessing.Pipe()
        loader._files._lock.acquire()  # As another thread may hold it at that moment.
        try:
            process = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(batch.keys))
            process.start()
        finally:
            loader._files._lock.release()
        assert ours.poll(60)
        assert ours.recv() == batch.keys
        process.join(60)


def test_a_copy_for_another_process_is_refused(shards):
    with (
        StreamingLoader(shards, batch_size=4, threads=1) as loader,
        pytest.raises(UserError, match="a copy for another"),
    ):
        pickle.dumps(loader)


def run(program: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(program)}"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout
    )


def test_a_script_that_fails_without_with_ends_at_once(shards, tmp_path):
    with FaultyServer(shards.folder) as server:
        server.always.update({f"train-{number:06d}.tar": "stalled" for number in range(3, 10)})
        done = run(
            """
            import time
            from pipeline import StreamingLoader
            loader = StreamingLoader(sys.argv[1], batch_size=4, threads=2, window=1, lanes=1, cache=sys.argv[2])
            next(loader)
            time.sleep(1)
            print(time.time(), flush=True)
            raise RuntimeError("a bug in my program")
            """,
            server.url,
            tmp_path / "cache",
        )
        ended = time.time()
    assert done.returncode == 1
    assert "a bug in my program" in done.stderr
    assert ended - float(done.stdout) < 10


def test_a_loader_that_is_forgotten_ends_its_threads(shards):
    before = threading.active_count()
    for _ in range(3):
        loader = StreamingLoader(shards, batch_size=4, threads=3)
        next(loader)
        del loader
    until = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_default_device_does_not_matter(shards):
    torch.set_default_device("meta")
    try:
        with StreamingLoader(shards, batch_size=4, threads=1, labels=True, noise=5, flip=True) as loader:
            batch = next(loader)
        tensors = (batch.images, batch.positions, batch.labels, batch.noise)
        assert {tensor.device.type for tensor in tensors} == {"cpu"}
    finally:
        torch.set_default_device(None)


def test_a_request_to_stop_is_heard_while_a_server_is_silent(shards, tmp_path):
    asked = threading.Event()
    patience = Patience(silence_s=120)
    with FaultyServer(shards.folder) as server:
        with StreamingLoader(
            server.url, batch_size=4, threads=2, cache=tmp_path / "cache", stop=asked.is_set, patience=patience
        ) as loader:
            expected = [next(loader).digests.tolist() for _ in range(10)]
        server.always.update({f"train-{number:06d}.tar": "stalled" for number in range(10)})
        loader = StreamingLoader(
            server.url, batch_size=4, threads=2, cache=tmp_path / "other", stop=asked.is_set, patience=patience
        )
        threading.Timer(1, asked.set).start()
        began = time.monotonic()
        with pytest.raises(StoppedError, match="from position 0 on"):
            next(loader)
        assert time.monotonic() - began < 5
        assert loader.position == 0
        asked.clear()
        server.always.clear()
        server.release.set()
        assert [next(loader).digests.tolist() for _ in range(10)] == expected, "whoever waited may wait again"
        server.release.clear()
        loader.close()


def test_closing_does_not_wait_for_a_silent_server(shards, tmp_path):
    with FaultyServer(shards.folder) as server:
        server.always.update({f"train-{number:06d}.tar": "stalled" for number in range(10)})
        loader = StreamingLoader(server.url, batch_size=4, threads=2, cache=tmp_path / "cache", stop=lambda: True)
        with pytest.raises(StoppedError):
            next(loader)
        began = time.monotonic()
        loader.close()
        assert time.monotonic() - began < 5


def damage(shards: ShardSet, name: str, row: int) -> None:
    """Change a byte within one image of a shard."""
    from pipeline.format import Index

    record = Index.from_bytes((shards.folder / f"{name}.index").read_bytes(), name).records[row]
    with open(shards.folder / f"{name}.tar", "r+b") as file:
        file.seek(int(record["image_offset"]) + 40)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


def test_a_damaged_sample_is_left_out_and_listed(shards):
    with StreamingLoader(shards, batch_size=10, threads=2, labels=True, noise=3, flip=True) as loader:
        whole = [next(loader) for _ in range(4)]
    damage(shards, "train-000002", 1)
    damage(shards, "train-000007", 3)
    with StreamingLoader(shards, batch_size=10, threads=2, labels=True, noise=3, flip=True, on_error="skip") as loader:
        found = [next(loader) for _ in range(4)]
        assert loader.position == 40
    skipped = [one for batch in found for one in batch.skipped]
    assert sorted((Path(one.shard).name, one.key) for one in skipped) == [
        ("train-000002.tar", "train/face-00009"),
        ("train-000007.tar", "train/face-00031"),
    ]
    assert all("another crc32" in one.reason for one in skipped)
    for before, after in zip(whole, found, strict=True):
        left_out = [one.position for one in after.skipped]
        kept = np.flatnonzero(~np.isin(before.positions.numpy(), left_out))
        assert len(after) == 10 - len(after.skipped)
        assert after.keys == tuple(before.keys[slot] for slot in kept)
        for name in ("images", "positions", "labels", "noise"):
            torch.testing.assert_close(getattr(after, name), getattr(before, name)[kept], rtol=0, atol=0)
        np.testing.assert_array_equal(after.digests, before.digests[kept])
        assert after.images.is_contiguous(memory_format=torch.channels_last)
        assert len(after.to("cpu", slice(1, 4))) == 3


def test_a_damaged_label_counts_as_a_damaged_sample(tmp_path):
    shards = make_shard_set(tmp_path / "set", shard_samples=4, attributes=("Smiling",))
    from pipeline.format import Index

    record = Index.from_bytes((shards.folder / "train-000001.index").read_bytes(), "").records[2]
    with open(shards.folder / "train-000001.tar", "r+b") as file:
        file.seek(int(record["json_offset"]))
        file.write(b"[")
    with StreamingLoader(shards, batch_size=40, threads=1, labels=True, on_error="skip") as loader:
        assert [one.key for one in next(loader).skipped] == ["train/face-00006"]
    with StreamingLoader(shards, batch_size=40, threads=1, on_error="skip") as loader:
        assert not next(loader).skipped, "nobody asked for labels"


def test_skipping_has_an_end(shards):
    for row in range(4):
        damage(shards, "train-000001", row)
    with StreamingLoader(shards, batch_size=1, threads=1, on_error="skip") as loader, pytest.raises(ShardError):
        list(loader.epoch())
    (shards.folder / "train-000003.tar").unlink()
    with (
        StreamingLoader(shards, batch_size=8, threads=1, on_error="skip") as loader,
        pytest.raises(ShardError, match=r"train-000003\.tar must exist"),
    ):
        list(loader.epoch())
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip'; got 'ignore'"):
        StreamingLoader(shards, batch_size=8, on_error="ignore")


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_after_everything_before_it(shards, threads):
    with StreamingLoader(shards, batch_size=2, threads=threads, window=1, lanes=1) as loader:
        whole = [next(loader).keys for _ in range(20)]
        shard_of = [int(key[-5:]) // 4 for key, _ in whole]
    victim = shard_of[12]
    (shards.folder / f"train-{victim:06d}.tar").unlink()
    with StreamingLoader(shards, batch_size=2, threads=threads, window=1, lanes=1) as loader:
        for keys in whole[: shard_of.index(victim)]:
            assert next(loader).keys == keys
        with pytest.raises(ShardError, match="must exist"):
            next(loader)
        assert loader.position == 2 * shard_of.index(victim)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "16"}, "batch_size must be a whole number; got '16'"),
        ({"batch_size": 16.0}, "batch_size must be a whole number; got 16.0"),
        ({"batch_size": None}, "batch_size must be a whole number; got None"),
        ({"batch_size": True}, "batch_size must be a whole number; got True"),
        ({"threads": "2"}, "threads must be a whole number; got '2'"),
        ({"start": None}, "start must be a whole number; got None"),
        ({"seed": "a"}, "seed must be a whole number; got 'a'"),
        ({"lanes": 1.5}, "lanes must be a whole number; got 1.5"),
        ({"lanes": 10**9}, "lanes must be at most 4096; got 1000000000"),
        ({"start": 1 << 63}, "start must be at most"),
        ({"split": ["train"]}, "split must be one of"),
        ({"split": None}, "split must be one of"),
    ],
)
def test_arguments_of_other_types_are_one_clear_line(shards, arguments, message):
    with pytest.raises(UserError, match=message):
        StreamingLoader(shards, **{"batch_size": 4, **arguments})


@pytest.mark.parametrize("state", [None, 5, "x", [], {}, {"position": None}, {"position": "3"}])
def test_what_is_no_state_is_one_clear_line(shards, state):
    with StreamingLoader(shards, batch_size=4, threads=1) as loader, pytest.raises(ConfigError, match="state_dict"):
        loader.load_state_dict(state)


def test_numbers_of_numpy_and_torch_are_numbers(shards):
    with (
        StreamingLoader(
            shards,
            batch_size=np.int64(4),
            start=np.int32(8),
            threads=np.uint8(1),
            seed=np.int64(3),
            rank=torch.tensor(0),
        ) as loader,
        StreamingLoader(shards, batch_size=4, start=8, threads=1, seed=3) as plain,
    ):
        assert next(loader).keys == next(plain).keys
        loader.load_state_dict({**loader.state_dict(), "position": np.int64(20)})
        assert type(loader.position) is int
        plain.load_state_dict(loader.state_dict())
        assert next(loader).keys == next(plain).keys
        assert make_image("train", 0, 16).shape == (16, 16, 3)
