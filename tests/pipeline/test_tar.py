import hashlib
import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.format import Index, Shard
from pipeline.tar import BLOCK, Sample, ShardWriter, labels_of, member_name, scan_tar, split_member_name, tar_header

SAMPLES = [("a/one", b"first image", b'{"source":"a/one.jpg"}'), ("two", b"x" * 600, b'{"source":"two.jpg"}')]


def write(folder: Path, name: str = "train-000000", samples: list[tuple[str, bytes, bytes]] = SAMPLES) -> Shard:
    writer = ShardWriter(folder, name)
    for key, image, meta in samples:
        writer.add(key, image, "jpg", meta)
    shard = writer.close()
    assert shard is not None
    return shard


def test_the_bytes_of_a_shard_and_its_index_are_pinned(tmp_path: Path) -> None:
    shard = write(tmp_path)
    index = (tmp_path / "train-000000.index").read_bytes()
    assert shard.sha256 == "a2f9ff7299b5e6589e6bcbd180b4a0b4dcd0db2fa650669472cb269657918b83"
    assert hashlib.sha256(index).hexdigest() == "d7f2ede952ab1ad00dac5a5cdbe7c458bb5e614857e54f90d99313978bef5f9b"
    assert index[:8] == b"LEANIDX\0"


def test_a_shard_is_plain_ustar_with_constant_metadata(tmp_path: Path) -> None:
    write(tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
        contents = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    assert [member.name for member in members] == ["a/one.jpg", "a/one.json", "two.jpg", "two.json"]
    assert contents == [data for _, image, meta in SAMPLES for data in (image, meta)]
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, m.pax_headers == {}) for m in members} == {
        (0, 0, 0, 0o644, "", True)
    }
    assert (tmp_path / "train-000000.tar").stat().st_size % tarfile.RECORDSIZE == 0


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30), st.integers(0, 2**34))
def test_a_header_is_the_one_that_tarfile_makes(name: str, size: int) -> None:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, 0o644, 0
    try:
        expected = header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError:
        with pytest.raises(ValueError, match=r"name is too long|overflow"):
            tar_header(name, size)
    else:
        assert tar_header(name, size) == expected


def test_an_index_leads_to_every_byte(tmp_path: Path) -> None:
    shard = write(tmp_path)
    data = (tmp_path / "train-000000.tar").read_bytes()
    index = Index.from_bytes((tmp_path / "train-000000.index").read_bytes(), "train-000000.index")
    assert (index.tar_bytes, index.tar_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert shard == Shard("train-000000", 2, len(data), index.tar_sha256)
    for record, (_, image, meta) in zip(index.records, SAMPLES, strict=True):
        at, size = int(record["image_offset"]), int(record["image_size"])
        assert data[at : at + size] == image
        at, size = int(record["json_offset"]), int(record["json_size"])
        assert data[at : at + size] == meta


samples_strategy = st.lists(
    st.tuples(
        st.from_regex(r"[a-z0-9_-]{1,9}(/[a-z0-9_-]{1,9})?", fullmatch=True),
        st.binary(max_size=1500),
        st.binary(max_size=600),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda sample: sample[0],
)


@given(samples_strategy)
def test_a_scan_of_the_tar_gives_the_index_that_was_written(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, bytes, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("scan")
    write(folder, samples=samples)
    written = Index.from_bytes((folder / "train-000000.index").read_bytes(), "index")
    scanned = scan_tar(folder / "train-000000.tar")
    assert scanned.to_bytes() == written.to_bytes()


def test_a_scan_equals_the_index_with_and_without_json(tmp_path: Path) -> None:
    write(tmp_path, "with")
    write(tmp_path, "without", [(key, image, b"") for key, image, _ in SAMPLES])
    for name in ("with", "without"):
        assert scan_tar(tmp_path / f"{name}.tar").to_bytes() == (tmp_path / f"{name}.index").read_bytes()


@pytest.mark.parametrize("cut", [1, BLOCK + 5, 2000])
def test_a_tar_that_was_cut_off_is_an_error(tmp_path: Path, cut: int) -> None:
    write(tmp_path)
    path = tmp_path / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ShardError, match=r"train-000000\.tar must"):
        scan_tar(path)


def test_a_file_that_is_no_tar_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ShardError, match="must be a whole tar"):
        scan_tar(tmp_path / "x.tar")


def test_a_sample_without_an_image_is_an_error(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        header = tarfile.TarInfo("key.json")
        header.size = 2
        tar.addfile(header, io.BytesIO(b"{}"))
    with pytest.raises(ShardError, match="none for 'key'"):
        scan_tar(tmp_path / "x.tar")


def test_a_shard_that_is_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train-000000")
    writer.add("key", b"image", "jpg")
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_shard_without_samples_is_no_file(tmp_path: Path) -> None:
    assert ShardWriter(tmp_path, "train-000000").close() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b.c.jpg", ("a/b", "c.jpg")), ("a.b/c.jpg", ("a.b/c", "jpg")), ("plain", ("plain", ""))],
)
def test_a_key_ends_at_the_first_dot_of_the_last_part(name: str, expected: tuple[str, str]) -> None:
    assert split_member_name(name) == expected


member_names = st.lists(
    st.builds(
        "{}.{}".format,
        st.text(st.characters(codec="utf-8", exclude_characters="\0./", exclude_categories=("Cs", "Cc")), min_size=1)
        | st.integers(1, 1200).map(lambda size: "x" * size),
        st.sampled_from(["jpg", "txt"]),
    ),
    min_size=1,
    max_size=5,
)


@given(member_names, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.booleans())
def test_the_name_of_a_member_is_found_from_its_data(names: list[str], kind: int, clock: bool) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for number, name in enumerate(names):
            header = tarfile.TarInfo(name)
            header.size = 700 * number
            header.mtime = 1.5 if clock and kind == tarfile.PAX_FORMAT else 0
            tar.addfile(header, io.BytesIO(bytes([number]) * header.size))
    data = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == names
    for member in members:
        assert member_name(lambda offset, size: data[offset : offset + size], member.offset_data) == member.name


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def foreign(names: list[str], kind: int = tarfile.PAX_FORMAT, **fields: object) -> bytes:
    """A tar that `tarfile` wrote, with a clock in it, as others write them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, pax_headers={"comment": "of all"}) as tar:
        folder = tarfile.TarInfo("faces")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            header = tarfile.TarInfo(name)
            header.size, header.mtime = 300 * number, 0 if kind == tarfile.USTAR_FORMAT else 1.5
            for field, value in fields.items():
                setattr(header, field, value)
            tar.addfile(header, io.BytesIO(bytes([65 + number]) * header.size))
    return buffer.getvalue()


def scan(folder: Path, data: bytes) -> list[tuple[str, int, int]]:
    """Key, offset and size of every image of the tar."""
    path = folder / "x.tar"
    path.write_bytes(data)
    keys: list[str] = []
    index = scan_tar(path, see=lambda sample: keys.append(sample.key))
    assert (index.tar_bytes, index.tar_sha256) == (len(data), hashlib.sha256(data).hexdigest())
    return [
        (key, int(row["image_offset"]), int(row["image_size"])) for key, row in zip(keys, index.records, strict=True)
    ]


@settings(max_examples=60)
@given(
    st.sets(st.text(st.characters(codec="utf-8", exclude_characters="\0./", exclude_categories=("Cc",)), min_size=1)
            | st.integers(90, 1200).map(lambda size: "x" * size), min_size=1, max_size=5),
    st.sampled_from(FORMATS[1:]),
)  # fmt: skip
def test_foreign_tars_are_read_as_tarfile_reads_them(
    tmp_path_factory: pytest.TempPathFactory, stems: set[str], kind: int
) -> None:
    data = foreign([f"faces/{stem}.jpg" for stem in stems], kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name.removesuffix(".jpg"), m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    assert scan(tmp_path_factory.mktemp("foreign"), data) == expected


def test_names_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe" + b"x" * 120)
    for kind in FORMATS[1:]:
        assert [key for key, _, _ in scan(tmp_path, foreign([f"{name}.jpg"], kind))] == [name]


def header(name: str = "a.jpg", size: int = 0, kind: bytes = tarfile.REGTYPE, **raw: bytes) -> bytes:
    """A tar header with a right checksum, whatever it says; `raw` are bytes from an offset (`at124`) on."""
    made = tarfile.TarInfo(name)
    made.size, made.type = size, kind
    block = bytearray(made.tobuf(tarfile.GNU_FORMAT))
    for place, value in raw.items():
        at = int(place.removeprefix("at"))
        block[at : at + len(value)] = value
    return with_checksum(block)


def with_checksum(block: bytes | bytearray) -> bytes:
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes, size: int | None = None, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A PAX entry of these records."""
    return header("pax", len(records) if size is None else size, kind) + records + bytes(-len(records) % BLOCK)


IMAGE = header(size=5) + b"image".ljust(BLOCK, b"\0")
END = bytes(2 * BLOCK)
NEGATIVE = b"\xff" * 10 + b"\xfe\x00"  # -512: back to the header itself.


@pytest.mark.parametrize(
    "data",
    [
        header(at124=NEGATIVE),
        header("a.txt", at124=NEGATIVE),
        header("a.txt", at124=b"\x80" + b"\xff" * 11),
        header(at124=b"\x80" + b"\xff" * 11),
        header(at124=b"\x80\0\0\0" + b"\x7f" + b"\xff" * 7),
        header(at124=b"\x80\0\0\0" + b"\x80" + b"\0" * 7),
        header(size=1 << 32),
        header("pax", at124=NEGATIVE, kind=tarfile.XHDTYPE),
        header("long", at124=b"\x80" + b"\xff" * 11, kind=tarfile.GNUTYPE_LONGNAME),
        header("long", 6 << 30, tarfile.GNUTYPE_LONGNAME),
        header("all", 6 << 30, tarfile.XGLTYPE),
        pax(b"13 size=-512\n"),
        pax(b"12 size=abc\n"),
        pax(b"32 size=99999999999999999999999\n"),
        pax(b"21 size=999999999999\n"),
        pax(b"0 size=1\n"),
        pax(b"9999 path=b.jpg\n"),
        pax(b"99999999999999 path=b.jpg\n"),
        pax(b"no record"),
        pax(b"9" * (1 << 19)),
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n30 GNU.sparse.name=holes.jpg\n\n\n"),
        pax(b"19 \xff\xfe\xffGNU=\xff\xff\xff\xff\xff\n" * 2, size=1 << 21),
        header(kind=tarfile.GNUTYPE_SPARSE, at482=b"\1"),
        header(size=5, at148=b"9"),
        b"",
    ],
)
def test_whatever_a_header_claims_is_compared_with_the_length_of_the_tar(tmp_path: Path, data: bytes) -> None:
    tracemalloc.start()
    try:
        # Behind a good one, so that the damage is found on the way.
        with pytest.raises(ShardError, match=r"x\.tar must be a whole tar; got '.+' near byte \d+\. Build or copy"):
            scan(tmp_path, header("good.jpg") + data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_checksum_that_is_wrong_is_an_error(tmp_path: Path) -> None:
    wrong = bytearray(IMAGE + IMAGE + END)
    wrong[2 * BLOCK] ^= 1
    with pytest.raises(ShardError, match="got 'bad checksum' near byte 1536"):
        scan(tmp_path, bytes(wrong))


def test_a_member_larger_than_any_image_is_an_error_though_the_tar_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(header(size=6 << 30))
    os.truncate(path, 7 << 30)  # Nothing but holes.
    with pytest.raises(ShardError, match="got 'a sample of 6442450944 bytes'"):
        scan_tar(path)


def test_thousands_of_long_names_in_a_row_are_one_name(tmp_path: Path) -> None:
    def long(name: bytes) -> bytes:
        return header("long", len(name), tarfile.GNUTYPE_LONGNAME) + name.ljust(BLOCK, b"\0")

    names = long(b"first.jpg") + long(b"other.jpg") * 5_000 + header("link", 0, tarfile.GNUTYPE_LONGLINK)
    assert scan(tmp_path, names + IMAGE + END) == [("first", len(names) + BLOCK, 5)]
    path = pax(b"19 path=b.jpg\0.txt\n")
    assert scan(tmp_path, path + IMAGE + END) == [("b", len(path) + BLOCK, 5)]


def test_links_and_folders_have_no_content_whatever_they_say(tmp_path: Path) -> None:
    data = header("d", 700, tarfile.DIRTYPE) + header("l", 1 << 33, tarfile.LNKTYPE) + IMAGE + END
    assert scan(tmp_path, data) == [("a", 3 * BLOCK, 5)]


def test_a_json_that_is_nothing_but_brackets_has_no_labels() -> None:
    assert labels_of(b"[" * 200_000) == {}


INTERESTING = [
    b"\0" * 12,
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    NEGATIVE,
    b"77777777777\0",
    b"-0000001000\0",
    b"xLKSgX5",
    b"9" * 12,
]


@settings(max_examples=400)
@given(
    st.sampled_from(FORMATS),
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from([0, 100, 124, 136, 148, 156, 157, 257, 345, 482, 483, 504]) | st.integers(0, BLOCK - 1),
            st.sampled_from(INTERESTING) | st.binary(min_size=1, max_size=12),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 40) | st.just(1000),
)
def test_a_tar_that_was_changed_anywhere_gives_an_index_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, kind: int, changes: list[tuple[int, int, bytes, bool]], blocks: int
) -> None:
    long = "x" * (60 if kind == tarfile.USTAR_FORMAT else 300)
    data = bytearray(foreign(["a.jpg", "a.json", f"{long}.png", f"{long}.cls", "read.me"], kind))
    starts = [
        at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar" or data[at + 156] in b"xL"
    ]
    for number, place, value, right in changes:
        at = starts[number % len(starts)]
        data[at + place : at + place + len(value)] = value
        if right:
            data[at : at + BLOCK] = with_checksum(data[at : at + BLOCK])
    path = tmp_path_factory.mktemp("changed") / "x.tar"
    path.write_bytes(data[: blocks * BLOCK])
    seen: list[Sample] = []
    try:
        index = scan_tar(path, see=seen.append)
    except ShardError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert [row["image_size"] for row in index.records] == [len(sample.image) for sample in seen]
    read: Callable[[int, int], bytes] = lambda offset, size: bytes(data[offset : offset + size])  # noqa: E731
    for offset in (start + BLOCK for start in starts):
        try:
            member_name(read, offset)
        except tarfile.TarError:
            pass
