import io
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import InputError, Wanted
from shard_tool.sources.ranges import LocalRanges
from shard_tool.sources.zips import ZipSource
from tests.shard_tool.sources.packs import contents, files_of, zip_of

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Rejections = Callable[[Path], dict[str, str]]

SMALL = ("--size", 16, "--shard-samples", 5)


def opened(path: Path, **wanted: tuple[str, ...]) -> ZipSource:
    return ZipSource.open(LocalRanges(str(path)), path.stem, Wanted(**wanted))  # type: ignore[arg-type]


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
    paths = {name: [part for part in name.split("/") if part not in ("", ".", "..")] for name in named}
    hidden = [name for name, parts in paths.items() if any(part.startswith(".") for part in parts)]
    expected = {
        "/".join(paths[name]): data for name, data in named.items() if name not in hidden and "/../" not in name
    }
    if expected and not any("/../" in name for name in named):
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
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
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


def with_names(path: Path, names: list[bytes], flags: int = 0, extra: Callable[[bytes], bytes] | None = None) -> Path:
    """A zip of photos with these names, as bytes; the content of each is its number."""
    local = central = b""
    for number, name in enumerate(names):
        data, field = b"%d" % number, extra(name) if extra else b""
        shared = struct.pack(
            "<HHHHLLLHH", flags, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), len(field)
        )
        central += b"PK\1\2" + struct.pack("<BBH", 20, 3, 20) + shared + struct.pack("<HHHLL", 0, 0, 0, 0, len(local))
        central += name + field
        local += b"PK\3\4" + struct.pack("<H", 20) + shared + name + field + data
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(names), len(names), len(central), len(local), 0)
    path.write_bytes(local + central + end)
    return path


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("cp932", ["写真/表参道.jpg", "顔/カメラ.jpg", "ソ連/1\uff5e2.jpg", "ﾃｽﾄの顔.jpg"]),
        ("gbk", ["照片/你好.jpg", "照片/人脸识别.jpg", "北京\uff08一\uff09.jpg"]),
        ("cp437", ["größe.jpg", "Müller/é.jpg", "Ängström.jpg"]),
        ("utf-8", ["größe.jpg", "写真.jpg", "照片.jpg"]),
    ],
)
def test_names_in_the_code_page_of_the_archive(tmp_path: Path, page: str, names: list[str]) -> None:
    source = opened(with_names(tmp_path / "a.zip", [*(name.encode(page) for name in names), b"ascii.jpg"]))
    assert set(contents(source)) == {*names, "ascii.jpg"}


def test_the_unicode_path_field_counts_where_its_crc_fits(tmp_path: Path) -> None:
    def field(name: bytes) -> bytes:
        crc32 = zlib.crc32(b"old.jpg" if name == b"\x84.jpg" else name)
        body = struct.pack("<BL", 1, crc32) + "顔.jpg".encode()
        return struct.pack("<HH", 1, 1) + b"x" + struct.pack("<HH", 0x7075, len(body)) + body

    assert set(contents(opened(with_names(tmp_path / "a.zip", [b"\x8a\xe7.jpg", b"\x84.jpg"], extra=field)))) == {
        *("顔.jpg", "ä.jpg"),
    }


@settings(max_examples=100, deadline=None)
@given(st.sets(st.binary(min_size=1, max_size=6), min_size=1, max_size=6), st.sampled_from([0, 1 << 11]))
def test_no_two_names_of_one_code_page_become_one(
    tmp_path_factory: pytest.TempPathFactory, names: set[bytes], flags: int
) -> None:
    # As bytes that are no UTF-8, and no parts of paths.
    raw = [b"\xff" + name.translate(None, b"\0/\\") + b"_.jpg" for name in names]
    path = with_names(tmp_path_factory.mktemp("zip") / "a.zip", sorted(set(raw)), flags)
    assert len(opened(path).listing) == len(set(raw))


def test_paths_are_those_of_an_unpacked_zip(tmp_path: Path) -> None:
    names = ["./1.jpg", "f/./2.jpg", "/3.jpg", "f//4.jpg", "f/../5.jpg", "../6.jpg", "C:\\f\\7.jpg", "f\\8.jpg"]
    path = with_names(tmp_path / "a.zip", [name.encode() for name in names])
    paths = ["1.jpg", "f/2.jpg", "3.jpg", "f/4.jpg", "5.jpg", "6.jpg", "f/7.jpg", "f/8.jpg"]
    assert contents(opened(path)) == {path: b"%d" % number for number, path in enumerate(paths)}


def test_photos_and_what_is_ignored_are_all_files(tmp_path: Path) -> None:
    names = ["a/b.jpg", "__MACOSX/a/._b.jpg", ".hid/c.jpg", "._d.jpg", "notes.txt", "list_a.csv", "deep.ZIP", "b.tar"]
    path = with_names(
        tmp_path / "a.zip", [name.encode() for name in [*names, "a/", "x/b.jpg", "a/b.jpg", "list_a.csv"]]
    )
    source = opened(path, exclude=("x/",))
    assert contents(source) == {"a/b.jpg": b"10"}
    assert source.ignored == {
        **{"system folder": 1, "hidden": 2, "not an image": 1, "table": 1, "archive": 2, "excluded": 1},
        **{"older entry of the same path": 2},
    }
    assert len(source.listing) + sum(source.ignored.values()) == 11


def test_symbolic_links_are_what_they_point_to(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        links = [("1.jpg", "f/2.jpg"), ("f/2.jpg", "../blobs/3"), ("lost.jpg", "gone"), ("out.jpg", "../f/2.jpg")]
        for name, target in [*links, ("circle.jpg", "circle.jpg")]:
            link = zipfile.ZipInfo(name)
            link.external_attr = 0o120777 << 16
            archive.writestr(link, target)
        archive.writestr("blobs/3", b"photo", zipfile.ZIP_DEFLATED)
    source = opened(tmp_path / "a.zip")
    assert contents(source) == {"1.jpg": b"photo", "f/2.jpg": b"photo"}
    assert source.ignored == {"not an image": 1, "broken link": 3}


def test_an_encrypted_zip_is_one_line(tmp_path: Path) -> None:
    path = with_names(tmp_path / "a.zip", [b"1.jpg", b"2.jpg"], flags=1)
    with pytest.raises(UserError, match="must be readable without a password; got 2 photos, all encrypted"):
        opened(path)


def test_a_part_of_a_split_zip_is_one_line(tmp_path: Path) -> None:
    assert shutil.which("zip"), "Info-ZIP is on every machine that checks this"
    (tmp_path / "a.jpg").write_bytes(os.urandom(150_000))
    os.system(f"cd {tmp_path} && zip -q -s 64k a.zip a.jpg")
    for name in ("a.zip", "a.z01"):
        with pytest.raises(UserError, match=r"got a part of several. Join them: zip -s 0 .*/a\.zip --out"):
            opened(tmp_path / name)


def test_a_zip_that_changes_after_its_listing_is_no_rejection(tmp_path: Path) -> None:
    path = with_names(tmp_path / "a.zip", [b"1.jpg", b"2.jpg"])
    source = opened(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(OSError, match="has changed since it was listed"):
        source.read(1)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
def test_a_damaged_zip_is_read_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.jpg", "é.jpg", "list_a.csv"):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(name.encode())
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "a.jpg")
    data = bytearray(path.read_bytes())
    for at, new in damage:
        data[at : at + len(new)] = new
    path.write_bytes(data)
    try:
        source = opened(path)
    except UserError:
        return
    assert len([*source.read_through(range(len(source.listing)))]) == len(source.listing)


def test_members_that_cannot_be_had_are_rejections(photos: Path, tmp_path: Path, make: Make) -> None:
    jpeg = next(data for name, data in files_of(photos) if name.endswith("00000.jpg"))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, method in (("bz2", 12), ("good", 0), ("locked", 0), ("lzma", 14), ("rotten", 0), ("torn", 8)):
            archive.writestr(f"{name}.jpg", jpeg, method)
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"locked.jpg") - 46
    data[entry + 8] |= 1
    for damaged in (b"rotten.jpg", b"torn.jpg"):
        data[data.find(damaged) + 200] ^= 0xFF
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
    with pytest.raises(UserError, match=r"must hold photos .* got 1 \.txt, 1 \.doc\."):
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
        source = ZipSource.open(file, "a", Wanted())
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source.listing) == 20_000
    assert kept < 20_000 * 60
    assert peak < 20_000 * 100 + 3_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_table_is_unpacked_as_it_is_read(tmp_path: Path, method: int) -> None:
    text = b"".join(b"%06d.jpg,1,-1,0\n" % number for number in range(600_000))
    path = write(tmp_path / "a.zip", {"a.jpg": b"x", "list.csv": text}, compression=method)
    (table,) = opened(path).side_files("list.csv")
    tracemalloc.start()
    try:
        with table.open() as file:
            assert all(line == b"%06d.jpg,1,-1,0\n" % number for number, line in enumerate(file))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_table_that_is_damaged_or_locked_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": b"x", "list.csv": b"a,1\n" * 99})
    data = bytearray(path.read_bytes())
    data[data.find(b"a,1\n")] ^= 1
    path.write_bytes(data)
    (table,) = opened(path).side_files("list.csv")
    with pytest.raises(
        UserError, match=r"a\.zip/list\.csv must be readable; got 'damaged in the archive: its crc32 is another'"
    ):
        table.open().read()
    data[data.rfind(b"list.csv") - 46 + 8] |= 1
    path.write_bytes(data)
    (table,) = opened(path).side_files("list.csv")
    with pytest.raises(UserError, match="got 'encrypted in the archive"):
        table.open()
