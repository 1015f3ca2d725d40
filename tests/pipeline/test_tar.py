import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.format import Index, Shard
from pipeline.tar import BLOCK, ShardWriter, member_name, scan_tar, split_member_name, tar_header

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


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with ShardWriter(tmp_path, "train-000000") as writer:
            writer.add("key", b"image", "jpg")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
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
