import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import InputError
from shard_tool.sources.ranges import LocalRanges
from shard_tool.sources.zips import ZipSource
from tests.shard_tool.sources.packs import contents, files_of, zip_of

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Rejections = Callable[[Path], dict[str, str]]

SMALL = ("--size", 16, "--shard-samples", 5)


def opened(path: Path) -> ZipSource:
    return ZipSource.open(LocalRanges(str(path)), path.stem)


def write(path: Path, files: dict[str, bytes], **options: object) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_the_bytes_of_its_folder(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, compression: int
) -> None:
    lines = ["image_id,Male,Young", *(f"{number:05d}.jpg,{-1 if number % 3 else 1},1" for number in range(60))]
    (photos / "list_attr_celeba.csv").write_text("\n".join(lines))
    make(photos, tmp_path / "folder" / "set", *SMALL)
    make(zip_of(photos, tmp_path / "raw.zip", compression), tmp_path / "zip" / "set", *SMALL)
    assert hashes(tmp_path / "folder" / "set") == hashes(tmp_path / "zip" / "set")


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.text("aä/ b.", min_size=1, max_size=8), st.binary(max_size=50), min_size=1, max_size=12),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.binary(max_size=30),
    st.binary(max_size=30),
)
def test_members_are_those_of_zipfile(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], method: int, before: bytes, comment: bytes
) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    named = {f"x{name}y.jpg": data for name, data in files.items()}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.comment = comment
        for name, data in named.items():
            archive.writestr(name, data)
    # What a self-extracting archive has in front.
    path.write_bytes(before + path.read_bytes())
    hidden = [name for name in named if any(part.startswith(".") for part in name.split("/")[:-1])]
    expected = {name.removeprefix("./"): data for name, data in named.items() if name not in hidden}
    if expected:
        assert contents(opened(path)) == expected


def test_zip64_offsets_sizes_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 300)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    files = {f"{number}.jpg": bytes([number]) * 200 * (number + 1) for number in range(9)}
    path = write(tmp_path / "a.zip", files)
    assert struct.pack("<L", 0xFFFFFFFF) in path.read_bytes()
    assert contents(opened(path)) == files


def test_more_members_than_the_count_can_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {f"{number}.jpg": b"data" for number in range(5)})
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\x05\x06")
    data[end + 8 : end + 12] = struct.pack("<2H", 2, 2)  # As after 65,536 more, without Zip64.
    path.write_bytes(data)
    assert len(opened(path).listing) == 5


def test_a_zip_that_was_written_to_a_pipe(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        archive.writestr("a.jpg", b"one" * 99)
        archive.writestr("b.jpg", b"two")
    (tmp_path / "a.zip").write_bytes(pipe.data)
    assert contents(opened(tmp_path / "a.zip")) == {"a.jpg": b"one" * 99, "b.jpg": b"two"}


def test_names_in_the_old_code_page_in_utf8_and_with_backslashes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"1234567890.jpg": b"a", "abcdefghij.jpg": b"b", "ABCDEFGHIJ.jpg": b"c"})
    data = path.read_bytes()
    data = data.replace(b"1234567890.jpg", "größe\u00e9".encode("cp437").ljust(10, b"_") + b".jpg")
    data = data.replace(b"abcdefghij.jpg", "größe".encode().ljust(10, b"_") + b".jpg")
    data = data.replace(b"ABCDEFGHIJ.jpg", b"dir\\ABCDEF.jpg")
    # The last one was made on DOS, where a backslash divides folders.
    entry = data.rfind(b"PK\x01\x02")
    path.write_bytes(data[: entry + 5] + b"\0" + data[entry + 6 :])
    assert set(contents(opened(path))) == {"größeé____.jpg", "größe___.jpg", "dir/ABCDEF.jpg"}


def test_folders_and_what_macos_adds_are_passed_over(tmp_path: Path) -> None:
    files = {"a/": b"", "a/b.jpg": b"x", "__MACOSX/a/._b.jpg": b"x", ".hid/c.jpg": b"x", "notes.txt": b"x"}
    source = opened(write(tmp_path / "a.zip", files))
    assert [*source.listing] == [b"a/b.jpg"]
    assert source.ignored == 1


def test_of_equal_names_the_last_counts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"old")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.jpg", b"new!")
    assert contents(opened(tmp_path / "a.zip")) == {"a.jpg": b"new!"}


def test_members_that_cannot_be_had_are_rejections(photos: Path, tmp_path: Path, make: Make) -> None:
    jpeg = next(data for name, data in files_of(photos) if name.endswith("00000.jpg"))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, method in (("bz2", 12), ("good", 0), ("locked", 0), ("lzma", 14), ("rotten", 0), ("torn", 8)):
            archive.writestr(f"{name}.jpg", jpeg, method)
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"locked.jpg") - 46
    data[entry + 8] |= 1
    for name in (b"rotten.jpg", b"torn.jpg"):
        data[data.find(name) + 200] ^= 0xFF
    path.write_bytes(data)
    make(path, tmp_path / "set", "--size", 16)
    lines = (tmp_path / "set" / "rejected.jsonl").read_text()
    assert '"path": "bz2.jpg", "reason": "compression not supported", "detail": "bzip2; unpack' in lines
    assert '"path": "lzma.jpg", "reason": "compression not supported", "detail": "LZMA; unpack' in lines
    assert '"path": "locked.jpg", "reason": "encrypted in the archive"' in lines
    assert '"path": "rotten.jpg", "reason": "damaged in the archive"' in lines
    assert '"path": "torn.jpg", "reason": "damaged in the archive"' in lines
    assert lines.count("\n") == 5


def test_a_member_that_unpacks_to_more_than_it_says_takes_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<L", 1000)
    path.write_bytes(data)
    source = opened(path)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="damaged"):
            source.read(0)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [0.3, 0.8, 0.999])
def test_a_download_that_broke_off_is_one_line(tmp_path: Path, cut: float) -> None:
    path = write(tmp_path / "a.zip", {f"{number}.jpg": bytes(500) for number in range(50)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(UserError, match="must be a whole zip"):
        opened(path)


def test_a_zip_of_other_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got 2 other files"):
        opened(write(tmp_path / "a.zip", {"a.txt": b"", "b.doc": b""}))


def test_an_unpickled_zip_opens_its_file_again(photos: Path, tmp_path: Path) -> None:
    source = open_sources([str(zip_of(photos, tmp_path / "a.zip"))])
    before = contents(source)
    assert contents(pickle.loads(pickle.dumps(source))) == before


def test_memory_is_a_few_bytes_for_each_member(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {f"folder/sub folder/{number:06d}.jpg": b"" for number in range(20_000)})
    file = LocalRanges(str(path))
    tracemalloc.start()
    try:
        source = ZipSource.open(file, "a")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source.listing) == 20_000
    assert kept < 20_000 * 60
    assert peak < 20_000 * 100 + 3_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_table_is_unpacked_as_it_is_read(tmp_path: Path, method: int) -> None:
    text = b"".join(b"%06d.jpg,1,-1,0\n" % number for number in range(200_000))
    path = write(tmp_path / "a.zip", {"a.jpg": b"x", "list.csv": text}, compression=method)
    (table,) = opened(path).side_files("list.csv")
    tracemalloc.start()
    try:
        with table.open() as file:
            assert all(line == b"%06d.jpg,1,-1,0\n" % number for number, line in enumerate(file))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_table_that_is_damaged_or_locked_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": b"x", "list.csv": b"a,1\n" * 99})
    data = bytearray(path.read_bytes())
    data[data.find(b"a,1\n")] ^= 1
    path.write_bytes(data)
    (table,) = opened(path).side_files("list.csv")
    with pytest.raises(UserError, match=r"a\.zip/list\.csv must be readable; got 'another crc32'"):
        table.open().read()
    data[data.rfind(b"list.csv") - 46 + 8] |= 1
    path.write_bytes(data)
    (table,) = opened(path).side_files("list.csv")
    with pytest.raises(UserError, match="got 'encrypted in the archive"):
        table.open()
