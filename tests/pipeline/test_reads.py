import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards import reads
from pipeline.shards.reads import LinuxReader, Places, Reader, make_reader


def linux_reader() -> Reader:
    try:
        return LinuxReader()
    except OSError as error:
        pytest.skip(f"this system has no io_submit: {error}")


READERS = pytest.mark.parametrize("make", [Reader, linux_reader])


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], list[bytes]]:
    """Three open files and what is in them."""
    folder = tmp_path_factory.mktemp("files")
    bytes_of = [np.random.default_rng(seed).bytes(5000 + 700 * seed) for seed in range(3)]
    descriptors = []
    for number, data in enumerate(bytes_of):
        (folder / str(number)).write_bytes(data)
        descriptors.append(os.open(folder / str(number), os.O_RDONLY))
    return descriptors, bytes_of


def read(reader: Reader, descriptors: list[int], offsets: list[int], sizes: list[int]) -> tuple[list[int], list[bytes]]:
    """Counts, and the bytes at each place, with a gap of one byte between the places."""
    starts = np.cumsum([0, *(size + 1 for size in sizes)])
    target = np.full(starts[-1], 0xEE, np.uint8)
    places = Places(np.array(descriptors), np.array(offsets), np.array(sizes), starts[:-1])
    counts = reader.read(places, target)
    gaps = starts[1:] - 1
    assert (target[gaps] == 0xEE).all(), "nothing but the places is written to"
    return counts.tolist(), [target[a : a + n].tobytes() for a, n in zip(starts.tolist(), sizes, strict=False)]


@READERS
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4000), st.integers(0, 900)), min_size=1, max_size=40))
def test_every_place_gets_its_bytes(content, make, wanted) -> None:
    files, data = content
    counts, found = read(make(), [files[f] for f, _, _ in wanted], [o for _, o, _ in wanted], [n for _, _, n in wanted])
    assert counts == [n for _, _, n in wanted]
    assert found == [data[f][o : o + n] for f, o, n in wanted]


@READERS
@pytest.mark.parametrize("count", [255, 256, 257, 1000])
def test_more_reads_than_one_call_takes(content, make, count) -> None:
    files, data = content
    offsets = [(17 * number) % 4900 for number in range(count)]
    reader = make()
    for _ in range(2):
        counts, found = read(reader, [files[0]] * count, offsets, [50] * count)
        assert counts == [50] * count
        assert found == [data[0][offset : offset + 50] for offset in offsets]


@READERS
def test_the_end_of_a_file_gives_fewer_bytes(content, make) -> None:
    files, data = content
    end = len(data[0])
    counts, found = read(make(), [files[0]] * 3, [end - 10, end, 0], [50, 50, 50])
    assert counts == [10, 0, 50]
    assert found[0][:10] == data[0][-10:]


@READERS
def test_a_failed_read_is_told_apart_and_the_others_succeed(content, tmp_path: Path, make) -> None:
    files, data = content
    write_only = os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT)
    try:
        counts, found = read(make(), [files[0], write_only, files[1]], [0, 0, 0], [9, 9, 9])
    finally:
        os.close(write_only)
    assert counts == [9, -errno.EBADF, 9]
    assert [found[0], found[2]] == [data[0][:9], data[1][:9]]


def test_a_machine_without_the_call_reads_one_by_one(content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads.platform, "machine", lambda: "z80")
    assert isinstance(make_reader(), Reader)


@pytest.mark.skipif(sys.platform != "linux", reason="io_submit is Linux's")
def test_a_reader_whose_call_is_refused_later_goes_on_one_by_one(content, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = linux_reader()
    files, data = content

    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(reads, "_call", refuse)
    assert read(reader, [files[0]] * 2, [3, 4], [5, 6]) == ([5, 6], [data[0][3:8], data[0][4:10]])


def test_a_reader_gives_back_what_it_took() -> None:
    limit = Path("/proc/sys/fs/aio-max-nr")
    if not limit.exists() or int(limit.read_text()) > 1 << 20:
        pytest.skip("the system does not say how many reads it allows at once, or it allows too many to run out of")
    linux_reader()
    for _ in range(int(limit.read_text()) // 256 + 1):
        LinuxReader()  # Raises where the ones before are still held.
