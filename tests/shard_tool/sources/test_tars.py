import gzip
import io
import json
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.format import ShardSet
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import InputError, Source, Wanted
from shard_tool.sources.ranges import LocalRanges
from shard_tool.sources.tars import StreamSource, TarSource
from tests.shard_tool.sources.packs import contents, tar_of, webdataset_of

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Folder = Callable[..., Path]

SMALL = ("--size", 16, "--shard-samples", 5)
LONG = "long/" * 30


def opened(path: Path, **wanted: tuple[str, ...]) -> TarSource:
    return TarSource.open(LocalRanges(str(path)), path.stem, Wanted(**wanted))  # type: ignore[arg-type]


def both(path: Path) -> dict[str, bytes]:
    """What is in the tar: read in place, and from its compressed stream."""
    packed = path.with_suffix(".tar.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    source, stream = opened(path), StreamSource.open(str(packed), "gz", "a", Wanted())
    assert source.ignored == stream.ignored
    found = contents(source)
    assert contents(stream) == found
    return found


Made = tuple[str, bytes, str] | tuple[str, bytes]


def tar_with(path: Path, *entries: Made, form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of files (name, content) and of other members (name, type, target)."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data, *target in entries:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = (data, target[0], 0) if target else (b"0", "", len(data))
            tar.addfile(member, None if target else io.BytesIO(data))
    return path


def metas(found: list[tuple[str, dict[str, bytes]]]) -> dict[str, dict[str, object]]:
    return {key: json.loads(members["json"]) for key, members in found}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_gives_the_bytes_of_its_folder(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, form: int
) -> None:
    lines = ["image_id,Male", *(f"{number:05d}.jpg,{-1 if number % 3 else 1}" for number in range(60))]
    (photos / "list_attr_celeba.csv").write_text("\n".join(lines))
    make(photos, tmp_path / "folder" / "set", *SMALL)
    make(tar_of(photos, tmp_path / "raw.tar", format=form), tmp_path / "tar" / "set", *SMALL)
    assert hashes(tmp_path / "folder" / "set") == hashes(tmp_path / "tar" / "set")


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.text("aä/ ", min_size=1, max_size=8), st.binary(max_size=1500), min_size=1, max_size=12),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from(["", "./", LONG]),
)
def test_every_photo_is_found_under_its_name(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], form: int, prefix: str
) -> None:
    named = {f"{prefix}x{name}y.jpg": data for name, data in files.items()}
    path = tar_of(named.items(), tmp_path_factory.mktemp("tar") / "a.tar", format=form)
    expected = {
        "/".join(part for part in name.split("/") if part not in ("", ".")): data for name, data in named.items()
    }
    assert contents(opened(path)) == expected


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_photos_and_what_is_ignored_are_all_files(tmp_path: Path, form: int) -> None:
    files: list[Made] = [
        *(("__MACOSX/a.jpg", b""), ("a.jpg", b"a"), (".git/b.jpg", b""), ("._a.jpg", b""), ("notes.md", b"")),
        *(("a.json", b"{}"), ("c.cls", b"1"), ("list_attr.csv", b"x"), ("deep.zip", b""), ("b.txt", bytes(2 << 20))),
        *(("b.jpg", b"b"), ("a.jpg", b"new"), ("pipe.jpg", tarfile.FIFOTYPE, "-"), ("lost.jpg", b"2", "gone.jpg")),
    ]
    path = tar_with(tmp_path / "a.tar", ("folder.jpg", tarfile.DIRTYPE, "-"), *files, form=form)
    assert both(path) == {"a.jpg": b"new", "b.jpg": b"b"}
    source = opened(path)
    assert source.ignored == {
        **{"system folder": 1, "hidden": 2, "not an image": 1, "sidecar": 1, "sidecar without a photo beside it": 1},
        **{"table": 1, "archive": 1, "sidecar too large": 1, "older entry of the same path": 1, "special file": 1},
        **{"broken link": 1},
    }
    assert len(source.listing) + sum(source.ignored.values()) == len(files)


def test_paths_are_those_of_an_unpacked_tar(tmp_path: Path) -> None:
    names = ["./1.jpg", "f/./2.jpg", "/3.jpg", "f//4.jpg", "f/../5.jpg", "../6.jpg", "C:/7.jpg", "././f/.//8.jpg"]
    path = tar_with(tmp_path / "a.tar", *((name, name.encode()) for name in names))
    paths = ["1.jpg", "f/2.jpg", "3.jpg", "f/4.jpg", "5.jpg", "6.jpg", "7.jpg", "f/8.jpg"]
    assert both(path) == {path: name.encode() for path, name in zip(paths, names, strict=True)}


def test_links_are_what_they_point_to(tmp_path: Path) -> None:
    path = tar_with(
        tmp_path / "a.tar",
        *(("f/a.jpg", b"old"), ("f/hard.jpg", tarfile.LNKTYPE, "./f/a.jpg"), ("f/a.jpg", b"new")),
        *(("f/soft.jpg", tarfile.SYMTYPE, "a.jpg"), ("up.jpg", tarfile.SYMTYPE, "f/../f/soft.jpg")),
        *(("blobs/1", b"blob"), ("hub/x.png", tarfile.SYMTYPE, "../blobs/1"), ("deep/y.png", b"2", "../later.jpg")),
        *(("hub/x.cls", tarfile.LNKTYPE, "one.cls"), ("one.cls", b"1"), ("later.jpg", b"later")),
        *(("circle.jpg", tarfile.SYMTYPE, "circle.jpg"), ("out.jpg", tarfile.SYMTYPE, "../f/a.jpg")),
        *(("root.jpg", tarfile.SYMTYPE, "/f/a.jpg"), ("gone.jpg", tarfile.LNKTYPE, "gone")),
    )
    assert both(path) == {
        **{"f/a.jpg": b"new", "f/hard.jpg": b"old", "f/soft.jpg": b"new", "up.jpg": b"new", "hub/x.png": b"blob"},
        **{"deep/y.png": b"later", "later.jpg": b"later"},
    }
    assert opened(path).ignored["broken link"] == 4


def test_what_macos_puts_between_the_files_of_a_sample_parts_them_not(tmp_path: Path) -> None:
    files = [("._a.jpg", b""), ("a.jpg", b"a"), ("._a.cls", b""), ("a.cls", b"4"), ("._b.cls", b""), ("b.cls", b"5")]
    source = opened(tar_with(tmp_path / "a.tar", *files, ("._b.jpg", b""), ("b.jpg", b"b")))
    assert source.known.class_of.tolist() == [4, 5]  # type: ignore[union-attr]


def test_a_label_that_is_a_hard_link_is_read(tmp_path: Path) -> None:
    files: list[Made] = [("a.jpg", b"a"), ("a.cls", b"4"), ("b.jpg", b"b"), ("b.cls", tarfile.LNKTYPE, "a.cls")]
    path = tar_with(tmp_path / "a.tar", *files)
    both(path)
    assert opened(path).known.class_of.tolist() == [4, 4]  # type: ignore[union-attr]


def test_sparse_files_are_rejections(tmp_path: Path) -> None:
    (tmp_path / "hole.jpg").write_bytes(b"x" * 4096)
    os.truncate(tmp_path / "hole.jpg", 1 << 20)
    (tmp_path / "whole.jpg").write_bytes(b"whole")
    for form in ("gnu", "pax"):
        path = tmp_path / f"{form}.tar"
        os.system(f"cd {tmp_path} && tar -S --format={form} -cf {path.name} hole.jpg whole.jpg")
        source = opened(path)
        assert [*source.listing] == [b"hole.jpg", b"whole.jpg"]
        with pytest.raises(InputError, match="sparse file in the archive"):
            source.read(0)
        bad, whole = source.read_through(range(2))
        assert isinstance(bad, InputError)
        assert whole == b"whole"
        packed = tmp_path / f"{form}.tar.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        whole, bad = StreamSource.open(str(packed), "gz", "a", Wanted()).read_through(range(2))
        assert isinstance(bad, InputError)
        assert whole == b"whole"


def test_a_size_in_a_pax_record_counts(tmp_path: Path) -> None:
    path = tar_with(tmp_path / "a.tar", ("a.jpg", bytes(600)), ("b.jpg", b"b"))
    data = bytearray(path.read_bytes())
    header = tarfile.TarInfo("a.jpg")
    header.pax_headers = {"size": "600"}
    buffer = header.tobuf(tarfile.PAX_FORMAT)
    assert tarfile.TarInfo.frombuf(buffer[-512:], "utf-8", "strict").size == 0
    path.write_bytes(buffer + data[512:])
    assert both(path) == {"a.jpg": bytes(600), "b.jpg": b"b"}


def test_a_tar_of_the_seventh_edition_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.jpg").write_bytes(b"a")
    os.system(f"cd {tmp_path} && tar --format=v7 -cf a.tar f")
    assert b"ustar" not in (tmp_path / "a.tar").read_bytes()
    assert both(tmp_path / "a.tar") == {"f/a.jpg": b"a"}


def test_tars_behind_each_other_are_one(tmp_path: Path) -> None:
    first = tar_with(tmp_path / "1.tar", ("1.jpg", b"1"), ("both.jpg", b"old"))
    second = tar_with(tmp_path / "2.tar", ("2.jpg", b"2"), ("both.jpg", b"new"))
    path = tmp_path / "a.tar"
    path.write_bytes(first.read_bytes() + second.read_bytes() + bytes(1 << 16) + b"\0")
    assert both(path) == {"1.jpg": b"1", "2.jpg": b"2", "both.jpg": b"new"}


@pytest.mark.parametrize("behind", [b"x", b"signature" * 100, bytes(511) + b"x"])
def test_other_bytes_behind_the_end_are_an_error(tmp_path: Path, behind: bytes) -> None:
    path = tar_with(tmp_path / "a.tar", ("1.jpg", b"1"))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + behind)
    with pytest.raises(UserError, match=f"something else behind its end, from byte {size:,} on"):
        opened(path)


def with_size(path: Path, size: bytes) -> Path:
    """Give the first member of a tar that size, as its 12 bytes are written."""
    data = bytearray(path.read_bytes())
    data[124:136] = size.ljust(12, b"\0")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80\0\0\0\x7f" + b"\xff" * 7, b"77777777777", b"-1", b"9"]
)
@pytest.mark.parametrize("name", ["a.jpg", "a.json", "list_a.csv", "a.md", "long/" * 60 + "a.jpg"])
def test_a_size_that_cannot_be_is_one_line(tmp_path: Path, size: bytes, name: str) -> None:
    path = with_size(tar_with(tmp_path / "a.tar", (name, bytes(3000) + b"x" * 3000), ("b.jpg", b"b")), size)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="must be a whole tar"):
            opened(path)
        with pytest.raises(UserError, match="must be a whole tar"):
            StreamSource.open(str(path), "", "a", Wanted())
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12_000), st.binary(min_size=1, max_size=40)), min_size=1, max_size=3))
def test_a_damaged_tar_is_read_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]]
) -> None:
    path = tar_with(
        tmp_path_factory.mktemp("tar") / "a.tar",
        *((LONG + "a.jpg", b"a"), ("a.json", b"{}"), ("é.jpg", tarfile.LNKTYPE, LONG + "a.jpg"), ("list_a.csv", b"1")),
        form=tarfile.PAX_FORMAT,
    )
    data = bytearray(path.read_bytes())
    for at, new in damage:
        data[at : at + len(new)] = new
        header = at // 512 * 512
        data[header + 148 : header + 156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    path.write_bytes(data)
    try:
        source = opened(path)
    except UserError:
        return
    assert len([*source.read_through(range(len(source.listing)))]) == len(source.listing)


def test_memory_is_a_few_bytes_for_each_member(tmp_path: Path) -> None:
    files = ((f"folder/sub folder/{number:06d}.jpg", b"x") for number in range(10_000))
    path = tar_of(files, tmp_path / "a.tar")
    tracemalloc.start()
    try:
        source = opened(path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(source.listing) == 10_000
    assert kept < 10_000 * 60
    assert peak < 10_000 * 100 + 3_000_000


def test_a_tar_that_changes_after_its_listing_is_no_rejection(tmp_path: Path) -> None:
    path = tar_with(tmp_path / "a.tar", ("a.jpg", b"1"), ("b.jpg", b"2"))
    source, stream = opened(path), StreamSource.open(str(path), "", "a", Wanted())
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(0, 0))
    for one in (source, stream):
        with pytest.raises(OSError, match="has changed since it was listed"):
            one.read(0)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        pickle.loads(pickle.dumps(source)).read(0)


def test_include_and_exclude_are_of_photos_and_exclude_of_labels(tmp_path: Path) -> None:
    files = [("f/a.jpg", b"a"), ("f/a.cls", b"1700000000"), ("g/b.jpg", b"b"), ("g/b.cls", b"1")]
    path = tar_with(tmp_path / "a.tar", *files)
    with pytest.raises(
        UserError, match=r"got the number 1,700,000,000, as ids have\. Leave out the files .* --exclude"
    ):
        opened(path)
    source = opened(path, exclude=("*.cls",), include=("f/*",))
    assert [*source.listing] == [b"f/a.jpg"]
    assert source.known.class_of is None
    assert source.ignored == {"excluded": 3}


@pytest.mark.parametrize("blocks", [1, 2, 2.5])
def test_a_tar_that_was_cut_off_is_one_line(tmp_path: Path, blocks: float) -> None:
    path = tar_of([(f"{number}.jpg", bytes(512)) for number in range(3)], tmp_path / "a.tar")
    path.write_bytes(path.read_bytes()[: int(1024 * blocks)])
    with pytest.raises(UserError, match="must be a whole tar"):
        opened(path)


def test_an_unpickled_tar_opens_its_file_again(photos: Path, tmp_path: Path) -> None:
    source = open_sources([str(webdataset_of(photos, tmp_path / "a.tar"))])
    again: Source = pickle.loads(pickle.dumps(source))
    assert contents(again) == contents(source)
    assert [again.carried(item) for item in range(60)] == [source.carried(item) for item in range(60)]


def test_what_a_webdataset_says_of_its_photos_is_carried_along(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    extras = {
        "json": lambda number: {"id": number, "who": "ä"} if number % 2 else {"id": number, "url": "x"},
        "txt": lambda number: f"face {number}\n",
    }
    make(webdataset_of(photos, tmp_path / "a.tar", extras), tmp_path / "set", *SMALL)
    found = metas(samples(tmp_path / "set"))
    assert found["000003"] == {
        "source": "000003.jpg",
        "text": "face 3",
        "original": {"id": 3, "who": "ä", "url": None},
    }
    assert all(set(meta["original"]) == {"id", "who", "url"} for meta in found.values())  # type: ignore[call-overload]
    assert len(found) == 60


def test_raw_samples_with_carried_fields_keep_one_stride(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    extras = {"txt": lambda number: "ä" * number}
    make(webdataset_of(photos, tmp_path / "a.tar", extras), tmp_path / "set", *SMALL, "--encode", "raw")
    texts = [members["json"] for _, members in samples(tmp_path / "set")]
    assert len({len(text) for text in texts}) == 1
    assert {len(json.loads(text)["text"]) for text in texts} == set(range(60))


def test_our_own_shards_give_their_attributes_and_splits_again(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    rows = [(f"{number:05d}.jpg", -1 if number % 3 else 1, number % 3) for number in range(60)]
    (photos / "list_attr_celeba.csv").write_text("image_id,Male\n" + "".join(f"{n},{v}\n" for n, v, _ in rows))
    (photos / "list_eval_partition.csv").write_text("image_id,partition\n" + "".join(f"{n},{p}\n" for n, _, p in rows))
    make(photos, tmp_path / "first", "--size", 48, "--shard-samples", 7)
    make(tmp_path / "first", tmp_path / "second", "--size", 16)
    first, second = ShardSet.open(tmp_path / "first"), ShardSet.open(tmp_path / "second")
    assert first.attributes == second.attributes == ("Male",)
    assert first.parts[0]["positives"] == second.parts[0]["positives"]
    for split in ("train", "val", "test"):
        before = metas(samples(tmp_path / "first", f"{split}-*.tar"))
        after = metas(samples(tmp_path / "second", f"{split}-*.tar"))
        assert before.keys() == after.keys()
        for key, meta in after.items():
            assert meta["attributes"] == before[key]["attributes"]
            assert meta["original"] == {"source": before[key]["source"]}


def test_photos_without_the_attributes_of_the_others_are_left_out(
    photos: Path, tmp_path: Path, make: Make, samples: Samples
) -> None:
    extras = {"json": lambda number: {"attributes": {"Male": number % 2}} if number != 5 else {"note": "none"}}
    make(webdataset_of(photos, tmp_path / "a.tar", extras), tmp_path / "set", *SMALL)
    found = metas(samples(tmp_path / "set"))
    assert len(found) == 59
    assert all(meta["attributes"] == {"Male": int(key[-1]) % 2} for key, meta in found.items())
    assert (
        '"path": "000005.jpg", "reason": "no label in the source"' in (tmp_path / "set" / "rejected.jsonl").read_text()
    )


def test_a_broken_json_is_carried_as_text(photos: Path, tmp_path: Path) -> None:
    source = opened(webdataset_of(photos, tmp_path / "a.tar", {"json": lambda number: "{" if number == 2 else "[1]"}))
    assert source.carried(2) == {"original": {"json": "{"}}
    assert source.carried(3) == {"original": {"json": [1]}}


@pytest.mark.parametrize(
    ("label", "names", "numbers"),
    [
        (lambda number: str(number % 3), ("0", "1", "2"), [0, 1, 2, 0]),
        (lambda number: ["cat", "ape"][number % 2], ("ape", "cat"), [1, 0, 1, 0]),
        (lambda number: ["-1", "1", "0", "\n"][number], ("0", "1"), [-1, 1, 0, -1]),
        (lambda number: ["cat", "3", "03", "-7"][number], ("3", "cat"), [1, 0, 0, -1]),
    ],
)
@pytest.mark.parametrize("kind", ["cls", "CLS", "json", "Json"])
def test_labels_beside_the_photos_are_classes(
    make_folder: Folder,
    tmp_path: Path,
    label: Callable[[int], str],
    names: tuple[str, ...],
    numbers: list[int],
    kind: str,
) -> None:
    value = label if kind.lower() == "cls" else lambda number: {"label": label(number)}
    source = opened(webdataset_of(make_folder(tmp_path / "raw", 4), tmp_path / "a.tar", {kind: value}))
    assert source.known.classes == names
    assert source.known.class_of is not None
    assert source.known.class_of.tolist() == numbers


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([True, False, None], ("0", "1"), [1, 0, -1]),
        ([2.0, 1, "0"], ("0", "1", "2"), [2, 1, 0]),
        ([0.5, [1], 1], ("0", "1"), [-1, -1, 1]),
        (["a", 1, -1], ("1", "a"), [1, 0, -1]),
        ([-1, -1, None], (), None),
    ],
)
def test_labels_of_every_type_are_classes_or_none(
    tmp_path: Path, labels: list[object], names: tuple[str, ...], numbers: list[int] | None
) -> None:
    files = [
        (f"{n}.{e}", d) for n, x in enumerate(labels) for e, d in (("jpg", b"x"), ("json", json.dumps({"label": x})))
    ]
    source = opened(tar_of([(n, d.encode() if isinstance(d, str) else d) for n, d in files], tmp_path / "a.tar"))
    found = source.known.class_of
    assert source.known.classes == names
    assert (None if found is None else found.tolist()) == numbers


@pytest.mark.parametrize("label", [1 << 20, 5_000_000, 10**30])
def test_ids_are_no_classes(tmp_path: Path, label: int) -> None:
    files = [("a.jpg", b"x"), ("a.json", json.dumps({"label": label}).encode())]
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"must be classes, at most 1,048,576; got the number [\d,]+, as ids have"):
            opened(tar_of(files, tmp_path / "a.tar"))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ['{"a": "\\ud83d"}', '{"a": NaN}', "[" * 100_000, '{"attributes": {"Male": 1.0}}'])
def test_a_strange_json_is_carried_as_valid_text(tmp_path: Path, text: str) -> None:
    source = opened(tar_of([("a.jpg", b"x"), ("a.json", text.encode())], tmp_path / "a.tar"))
    json.dumps(source.carried(0), allow_nan=False, ensure_ascii=False).encode()


def test_several_shards_are_one_source_with_their_names_where_keys_repeat(
    make_folder: Folder, tmp_path: Path, make: Make, samples: Samples
) -> None:
    (tmp_path / "wds").mkdir()
    for name, count in (("train-000", 12), ("train-001", 9), ("validation-000", 5)):
        webdataset_of(make_folder(tmp_path / name, count), tmp_path / "wds" / f"{name}.tar")
    make(tmp_path / "wds", tmp_path / "set", *SMALL)
    train, val = (metas(samples(tmp_path / "set", f"{split}-*.tar")) for split in ("train", "val"))
    assert (len(train), len(val)) == (21, 5)
    assert train["train-001/000003"]["source"] == "train-001/000003.jpg"
    assert set(val) == {f"validation-000/{number:06d}" for number in range(5)}
