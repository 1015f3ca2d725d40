import bz2
import gzip
import io
import lzma
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from shard_tool.sources import tars
from shard_tool.sources.protocol import Access, Wanted
from shard_tool.sources.tars import StreamSource
from tests.shard_tool.sources.packs import contents, tar_of, webdataset_of

Make = Callable[..., str]
Refuse = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]

SMALL = ("--size", 16, "--shard-samples", 5)
FILES = {f"{number:02d}.jpg": bytes([number]) * (100 + number) for number in range(20)}


def opened(path: Path, compression: str = "gz") -> StreamSource:
    return StreamSource.open(str(path), compression, "a", Wanted())


@pytest.fixture
def long_streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Streams of more than 6 photos are read in blocks of 3; the list gets a line each time one is opened."""
    monkeypatch.setattr(tars, "SHORT_PHOTOS", 6)
    monkeypatch.setattr(tars, "BLOCK_PHOTOS", 3)
    opens: list[str] = []
    unpacked = tars._unpacked

    def counting(raw: io.RawIOBase, compression: str, where: str) -> object:
        opens.append(where)
        return unpacked(raw, compression, where)

    monkeypatch.setattr(tars, "_unpacked", counting)
    return opens


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_every_compression_gives_the_samples_of_the_folder(
    photos: Path, tmp_path: Path, make: Make, samples: Samples, compression: str
) -> None:
    lines = ["image_id,Male", *(f"{number:05d}.jpg,{-1 if number % 3 else 1}" for number in range(60))]
    (photos / "list_attr_celeba.csv").write_text("\n".join(lines))
    make(photos, tmp_path / "folder", *SMALL)
    make(tar_of(photos, tmp_path / f"raw.tar.{compression}", compression), tmp_path / "stream", *SMALL)
    assert sorted(samples(tmp_path / "folder")) == sorted(samples(tmp_path / "stream"))


def test_zstandard_is_unpacked_by_pyarrow(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    plain = tar_of(FILES.items(), tmp_path / "a.tar").read_bytes()
    with pyarrow.CompressedOutputStream(str(tmp_path / "a.tar.zst"), "zstd") as out:
        out.write(plain)
    assert contents(opened(tmp_path / "a.tar.zst", "zst")) == FILES


def zstandard(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return bytes(pyarrow.compress(data, "zstd", asbytes=True))


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard,
}


@pytest.mark.parametrize("compression", PACK)
def test_several_compressed_streams_and_several_tars_are_one(tmp_path: Path, compression: str) -> None:
    pack = PACK[compression]
    plain = tar_of(list(FILES.items())[:10], tmp_path / "a.tar").read_bytes()
    more = tar_of(list(FILES.items())[10:], tmp_path / "b.tar").read_bytes()
    for data in (pack(plain[:5000]) + pack(plain[5000:] + more), pack(plain) + pack(more)):
        (tmp_path / "a.xx").write_bytes(data)
        assert contents(opened(tmp_path / "a.xx", compression)) == FILES


@pytest.mark.parametrize("compression", PACK)
def test_other_bytes_behind_a_compressed_tar_are_an_error(tmp_path: Path, compression: str) -> None:
    plain = tar_of(FILES.items(), tmp_path / "a.tar").read_bytes()
    for behind in (b"something else", PACK[compression](plain)[1:]):
        (tmp_path / "a.xx").write_bytes(PACK[compression](plain) + behind)
        with pytest.raises(UserError, match="must be a whole tar"):
            opened(tmp_path / "a.xx", compression)


def test_the_order_is_that_of_the_stream_and_of_equal_names_the_last_counts(tmp_path: Path) -> None:
    entries = [("b.jpg", b"b"), ("a.jpg", b"old"), ("c.jpg", b"c"), ("a.jpg", b"new!")]
    source = opened(tar_of(entries, tmp_path / "a.tgz", "gz"))
    assert contents(source) == {"b.jpg": b"b", "c.jpg": b"c", "a.jpg": b"new!"}
    assert [*source.listing] == [b"b.jpg", b"c.jpg", b"a.jpg"]


def test_a_short_stream_is_one_chunk_and_a_long_one_is_cut_into_blocks(tmp_path: Path, long_streams: list[str]) -> None:
    long = opened(tar_of(FILES.items(), tmp_path / "long.tgz", "gz"))
    assert long.access is Access.ONE_PASS
    assert long.chunks().tolist() == [0, 3, 6, 9, 12, 15, 18, 20]
    short = opened(tar_of(list(FILES.items())[:6], tmp_path / "short.tgz", "gz"))
    assert short.access is Access.BY_CHUNK
    assert short.chunks().tolist() == [0, 6]


def test_groups_of_a_long_stream_are_read_in_one_pass(tmp_path: Path, long_streams: list[str]) -> None:
    source = opened(tar_of(FILES.items(), tmp_path / "a.tgz", "gz"))
    found = [data for items in ([0, 1, 5], [6, 9], [12, 19]) for data in source.read_through(items)]
    assert found == [list(FILES.values())[item] for item in (0, 1, 5, 6, 9, 12, 19)]
    assert len(long_streams) == 2, "one pass for the listing, one for the photos"
    assert next(iter(source.read_through([3]))) == FILES["03.jpg"]
    assert pickle.loads(pickle.dumps(source)).read(4) == FILES["04.jpg"]


def test_a_build_of_a_long_stream_reads_it_twice(
    photos: Path, tmp_path: Path, make: Make, samples: Samples, hashes: Hashes, long_streams: list[str]
) -> None:
    path = webdataset_of(photos, tmp_path / "a.tar", {"txt": lambda number: f"face {number}"})
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    for threads in (1, 3):
        make(tmp_path / "a.tar.gz", tmp_path / str(threads) / "set", *SMALL, "--threads", threads)
    assert len(long_streams) == 4
    assert hashes(tmp_path / "1" / "set") == hashes(tmp_path / "3" / "set")
    found = samples(tmp_path / "1" / "set")
    assert sorted(key for key, _ in found) == [f"{number:06d}" for number in range(60)]


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_stream_that_was_cut_off_is_one_line(tmp_path: Path, refuse: Refuse, compression: str, share: float) -> None:
    noise = random.Random(0)
    path = tar_of([(f"{n}.jpg", noise.randbytes(9000)) for n in range(9)], tmp_path / "a.tar.xx", compression)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "must be a whole tar" in refuse(path, tmp_path / "set")


def test_a_stream_that_is_damaged_is_one_line(tmp_path: Path, refuse: Refuse) -> None:
    path = tar_of(FILES.items(), tmp_path / "a.tar.gz", "gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # Its checksum.
    path.write_bytes(data)
    assert "must be a whole tar" in refuse(path, tmp_path / "set")


def test_a_compressed_file_that_is_no_tar_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"no tar" * 1000))
    with pytest.raises(UserError, match="must be a whole tar"):
        opened(tmp_path / "a.gz")
