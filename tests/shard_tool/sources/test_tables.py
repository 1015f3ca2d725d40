import io
import json
import os
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.format import ShardSet
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import WHATEVER, Access, InputError, Wanted
from shard_tool.sources.ranges import LocalRanges
from shard_tool.sources.tables import ArrowSource, ParquetSource, holds_images
from tests.shard_tool.sources.packs import contents
from tests.shard_tool.sources.tables import dataset_of, write_parquet

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]

SMALL = ("--size", 16, "--shard-samples", 5)
TEXT, NUMBER, BOOL = (datasets.Value(name) for name in ("string", "int64", "bool"))
STRANGE_NAMES: list[Any] = [3, {"a": 1}, ["a", "a"], [1, 2], [[], {}]]
IMAGE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


def opened(path: Path, wanted: Wanted = WHATEVER) -> ParquetSource | ArrowSource:
    kind = ArrowSource if path.suffix == ".arrow" else ParquetSource
    return kind.open(LocalRanges(str(path)), path.stem, wanted)


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, **options)
        return path
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, **options)
    return path


def with_types(columns: dict[str, Any], types: Any, path: Path) -> Path:
    """A parquet file that says of its columns what Hugging Face would."""
    text = types if isinstance(types, bytes) else json.dumps({"info": {"features": types}}).encode()
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata({b"huggingface": text}), path)
    return path


def reasons(source: ParquetSource | ArrowSource) -> list[str]:
    """Of each row that has no image, empty for the others; by `read` and `read_through` alike."""
    count = len(source.listing)
    through = [data.reason if isinstance(data, InputError) else "" for data in source.read_through(range(count))]
    single = []
    for item in range(count):
        try:
            single.append("" * len(source.read(item)))
        except InputError as error:
            single.append(error.reason)
    assert single == through
    return through


@pytest.fixture
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


@pytest.fixture(params=["a.parquet", "a.arrow"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_row_groups_are_the_chunks_and_rows_keep_their_bytes(files: list[Path], tmp_path: Path) -> None:
    source = opened(write_parquet(dataset_of(files), tmp_path / "train-000.parquet"))
    assert source.access is Access.BY_CHUNK
    assert source.chunks().tolist() == [*range(0, 60, 7), 60]
    expected = {f"train-000.parquet#{number:02d}": path.read_bytes() for number, path in enumerate(files)}
    assert contents(source) == expected
    assert [*source.read_through([3, 20, 21, 59])] == [files[item].read_bytes() for item in (3, 20, 21, 59)]
    assert contents(pickle.loads(pickle.dumps(source))) == expected


def test_stored_names_are_the_paths_where_every_image_has_its_own(files: list[Path], tmp_path: Path) -> None:
    source = opened(write_parquet(dataset_of(files, names=True), tmp_path / "a.parquet"))
    assert [path.decode() for path in source.listing] == [path.name for path in files]
    twice = opened(write_parquet(dataset_of([*files, files[0]], names=True), tmp_path / "b.parquet"))
    assert twice.listing[60] == b"b.parquet#60"


def test_of_absolute_paths_and_windows_paths_the_names_are_kept(table: Path) -> None:
    paths = ["/home/me/1.jpg", "C:\\me\\2.jpg", "a\\3.jpg", "a/4.jpg"]
    source = opened(write(table, {"image": pyarrow.array([{"bytes": b"x", "path": path} for path in paths], IMAGE)}))
    assert [*source.listing] == [b"1.jpg", b"2.jpg", b"a/3.jpg", b"a/4.jpg"]


def test_globs_choose_rows_by_their_stored_paths(table: Path) -> None:
    rows = [{"bytes": b"%d" % number, "path": f"{'ab'[number % 2]}/{number}.jpg"} for number in range(10)]
    columns = {"image": pyarrow.array(rows, IMAGE), "label": [*range(10)], "hat": [row < 5 for row in range(10)]}
    source = opened(write(table, columns), Wanted(label="label", include=("a/*",), exclude=("*4.jpg",)))
    assert contents(source) == {f"a/{number}.jpg": b"%d" % number for number in (0, 2, 6, 8)}
    assert dict(source.ignored) == {"excluded": 6}
    assert source.known.class_of is not None
    assert source.known.values is not None
    assert source.known.class_of.tolist() == [0, 2, 6, 8]
    assert source.known.values.tolist() == [[1], [1], [0], [0]]
    with pytest.raises(UserError, match="--include and --exclude must leave photos"):
        opened(table, Wanted(include=("c/*",)))
    by_number = opened(write(table, {"image": [b"0", b"1"], "text": ["x", "y"]}), Wanted(exclude=("*#0",)))
    assert [*by_number.listing] == [table.name.encode() + b"#1"]
    assert by_number.carried(0) == {"original": {"text": "y"}}


def test_class_labels_attributes_and_other_columns(
    files: list[Path], tmp_path: Path, make: Make, samples: Samples
) -> None:
    dataset = dataset_of(
        files,
        label=([number % 3 for number in range(60)], datasets.ClassLabel(names=["ape", "bee", "cat"])),
        caption=([f"face {number}" for number in range(60)], TEXT),
        age=([None, *range(59)], NUMBER),
    )
    source = opened(write_parquet(dataset, tmp_path / "a.parquet"))
    assert source.known.classes == ("ape", "bee", "cat")
    assert source.known.class_of is not None
    assert source.known.class_of.tolist() == [number % 3 for number in range(60)]
    make(tmp_path / "a.parquet", tmp_path / "set", *SMALL)
    found = {key: json.loads(members["json"]) for key, members in samples(tmp_path / "set")}
    assert found["a_09"] == {
        "source": "a.parquet#09",
        "label": 0,
        "original": {"caption": "face 9", "age": 8},
    }
    assert ShardSet.open(tmp_path / "set").classes == ("ape", "bee", "cat")


def test_truth_values_and_celeba_names_are_attributes(
    files: list[Path], tmp_path: Path, make: Make, samples: Samples
) -> None:
    dataset = dataset_of(
        files,
        hat=([number % 2 == 0 for number in range(60)], BOOL),
        Male=([-1 if number % 3 else 1 for number in range(60)], NUMBER),
        celeb_id=(list(range(60)), NUMBER),
    )
    make(write_parquet(dataset, tmp_path / "a.parquet"), tmp_path / "set", *SMALL)
    assert ShardSet.open(tmp_path / "set").attributes == ("hat", "Male")
    found = {key: json.loads(members["json"]) for key, members in samples(tmp_path / "set")}
    assert found["a_06"]["attributes"] == {"hat": 1, "Male": 1}
    assert found["a_07"] == {
        "source": "a.parquet#07",
        "attributes": {"hat": 0, "Male": 0},
        "original": {"celeb_id": 7},
    }
    chosen = opened(tmp_path / "a.parquet", Wanted(attributes=("Male",)))
    assert chosen.known.attributes == ("Male",)
    with pytest.raises(UserError, match=r"attributes must be 0 or 1 .* got 2 in column 'celeb_id'"):
        opened(tmp_path / "a.parquet", Wanted(attributes=("celeb_id",)))


@pytest.mark.parametrize(
    ("values", "classes", "class_of"),
    [
        (["b", "a", None, "b", ""], ("a", "b"), [1, 0, -1, 1, -1]),
        ([2, 0, 1, None, -1], ("0", "1", "2"), [2, 0, 1, -1, -1]),
        ([1.0, 0.0, float("nan"), None, -1.0], ("0", "1"), [1, 0, -1, -1, -1]),
        ([True, False, None, True, True], ("0", "1"), [1, 0, -1, 1, 1]),
        (pyarrow.array(["b", "a", None, "b", "a"]).dictionary_encode(), ("a", "b"), [1, 0, -1, 1, 0]),
    ],
)
def test_a_label_column_of_numbers_or_names_is_chosen(
    table: Path, values: Any, classes: tuple[str, ...], class_of: list[int]
) -> None:
    known = opened(write(table, {"image": [b"x"] * 5, "who": values}), Wanted(label="who")).known
    assert known.classes == classes
    assert known.class_of is not None
    assert known.class_of.tolist() == class_of
    with pytest.raises(UserError, match="must have the column 'age'; got who"):
        opened(table, Wanted(label="age"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1_700_000_000, 1], "as ids have"),
        ([1.5, 1.0], r"must be whole numbers, or -1 for none; got 1\.5 in column 'who'"),
        ([[1, 2], [3]], r"one whole number or name a row; got list<\w+: int64> in column 'who'"),
        ([{"a": 1}, {"a": 2}], "one whole number or name a row; got struct<a: int64>"),
        (pyarrow.array([0, 1], pyarrow.timestamp("s")), r"got timestamp\[m?s\]"),
        ([-1, None], "column 'who' of .* must hold labels; got none in any row"),
        (pyarrow.nulls(2), "must hold labels"),
    ],
)
def test_labels_that_are_no_classes_are_refused(table: Path, values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(write(table, {"image": [b"x", b"y"], "who": values}), Wanted(label="who"))


def test_hidden_labels_of_named_classes_are_none_and_those_without_a_name_refused(tmp_path: Path) -> None:
    types = {"label": {"_type": "ClassLabel", "names": ["ape", "bee"]}}
    hidden = opened(with_types({"image": [b"x"] * 3, "label": [-1, 1, None]}, types, tmp_path / "a.parquet"))
    assert hidden.known.classes == ("ape", "bee")
    assert hidden.known.class_of is not None
    assert hidden.known.class_of.tolist() == [-1, 1, -1]
    with pytest.raises(UserError, match="below 2, one for each name, or -1 for none; got 2 in column 'label'"):
        opened(with_types({"image": [b"x"], "label": [2]}, types, tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    "types",
    [
        *(b"\xff", b"[]", b"{}", b'{"info": 1}', b'{"info": {"features": []}}', b"[" * 100_000),
        *({"label": [{"dtype": "int64"}]}, {"label": "ClassLabel"}, {"label": {"_type": "ClassLabel"}}),
        *({"label": {"_type": "ClassLabel", "names": names}} for names in STRANGE_NAMES),
    ],
)
def test_types_that_make_no_sense_are_passed_over(tmp_path: Path, types: Any) -> None:
    path = with_types({"image": [b"x"], "label": [0]}, types, tmp_path / "a.parquet")
    assert opened(path, Wanted(label="label")).known.classes == ("0",)


def test_a_plain_column_of_bytes_is_found_or_named(files: list[Path], tmp_path: Path) -> None:
    images = [path.read_bytes() for path in files]
    path = write(tmp_path / "a.parquet", {"jpg": images}, row_group_size=9)
    assert list(contents(opened(path)).values()) == images
    path = write(tmp_path / "b.parquet", {"left": images, "right": images[::-1]})
    with pytest.raises(UserError, match=r"one column of encoded images; got left, right\. Name it with --image"):
        opened(path)
    assert opened(path, Wanted(image="right")).read(0) == images[-1]
    with pytest.raises(UserError, match="one column of encoded images; got none among age"):
        opened(write(tmp_path / "c.parquet", {"age": [1, 2]}))
    with pytest.raises(UserError, match="one column of encoded images; got no 'middle', but left, right"):
        opened(path, Wanted(image="middle"))


def test_a_column_of_sounds_is_not_taken_for_the_images(tmp_path: Path) -> None:
    sound = pyarrow.array([{"bytes": b"sound", "path": None}], IMAGE)
    picture = pyarrow.array([{"bytes": b"picture", "path": None}], IMAGE)
    types = {"audio": {"_type": "Audio"}, "scan": {"_type": "Image"}}
    path = with_types({"audio": sound, "scan": picture}, types, tmp_path / "a.parquet")
    assert opened(path).read(0) == b"picture"


@pytest.mark.parametrize(
    ("values", "content"),
    [
        (["/9j/4AAQSkZJRg=="], r"text \(paths, addresses or base64\)"),
        ([[b"x", b"y"]], "lists of images"),
        ([[{"bytes": b"x", "path": "x.jpg"}]], "lists of images"),
        (pyarrow.array([[255, 216]], pyarrow.list_(pyarrow.uint8())), "lists of numbers: list<"),
        (pyarrow.array([[[[1]]]], pyarrow.list_(pyarrow.list_(pyarrow.list_(pyarrow.uint8())))), "lists of numbers"),
        ([{"path": "x.jpg"}], "struct<path: string>"),
        ([{"bytes": "text"}], "struct<bytes: string>"),
        ([7], "numbers"),
    ],
)
def test_a_column_of_something_else_is_refused_with_what_it_holds(table: Path, values: Any, content: str) -> None:
    path = write(table, {"image": values, "age": [3]})
    for wanted in (WHATEVER, Wanted(image="image")):
        with pytest.raises(UserError, match=f"one column of encoded images; got 'image', which holds {content}"):
            opened(path, wanted)


def test_which_parquet_files_hold_images_is_known_by_their_columns(files: list[Path], tmp_path: Path) -> None:
    found = {"url": ["http://a"], "caption": ["a"], "status": ["success"], "width": [1], "sizes": [[1, 2]]}
    assert not holds_images(str(write(tmp_path / "a.parquet", found)))
    assert holds_images(str(write(tmp_path / "b.parquet", {**found, "jpg": [b"x"]})))
    assert holds_images(str(write_parquet(dataset_of(files), tmp_path / "c.parquet")))
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="must be a whole parquet file"):
        holds_images(str(tmp_path / "d.parquet"))


def test_a_missing_image_is_a_rejection(
    files: list[Path], table: Path, make: Make, rejections: Callable[[Path], dict[str, str]]
) -> None:
    whole = {"bytes": files[0].read_bytes(), "path": "a"}
    rows = [whole, None, {"bytes": b"", "path": "b"}, {"bytes": None, "path": "c"}, whole]
    assert reasons(opened(write(table, {"image": pyarrow.array(rows, IMAGE)}))) == [
        "",
        *["no image in the row"] * 3,
        "",
    ]
    write(table, {"image": [files[0].read_bytes(), None, b""]})
    make(table, table.parent / "set", *SMALL)
    assert set(rejections(table.parent / "set").values()) == {"no image in the row"}


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.null()])
def test_a_table_of_paths_only_is_refused(table: Path, kind: Any) -> None:
    image = pyarrow.struct({"bytes": kind, "path": pyarrow.string()})
    rows = [{"bytes": None, "path": f"{number}.jpg"} for number in range(100)]
    with pytest.raises(UserError, match="must hold its images; got their paths only"):
        opened(write(table, {"image": pyarrow.array(rows, image)}))


def test_numbers_that_json_has_not_are_carried_as_null(table: Path) -> None:
    source = opened(write(table, {"image": [b"x"] * 3, "score": [float("nan"), float("inf"), 0.5]}))
    assert [source.carried(item)["original"] for item in range(3)] == [{"score": None}, {"score": None}, {"score": 0.5}]


def test_any_number_of_threads_gives_the_same_bytes(
    files: list[Path], tmp_path: Path, make: Make, hashes: Hashes
) -> None:
    write_parquet(dataset_of(files, names=True), tmp_path / "a.parquet")
    for threads in (1, 3):
        make(tmp_path / "a.parquet", tmp_path / str(threads) / "set", *SMALL, "--threads", threads)
    assert hashes(tmp_path / "1" / "set") == hashes(tmp_path / "3" / "set")


def test_files_of_one_dataset_have_the_splits_of_their_names(
    files: list[Path], tmp_path: Path, make: Make, samples: Samples
) -> None:
    data = tmp_path / "faces" / "data"
    data.mkdir(parents=True)
    for name, part in (("train-00000-of-00002", files[:20]), ("train-00001-of-00002", files[20:40])):
        write_parquet(dataset_of(part), data / f"{name}.parquet")
    write_parquet(dataset_of(files[40:]), data / "validation-00000-of-00001.parquet")
    make(tmp_path / "faces", tmp_path / "set", *SMALL)
    opened_set = ShardSet.open(tmp_path / "set")
    assert {split: found.total for split, found in opened_set.splits.items()} == {"train": 40, "val": 20}
    assert "validation-00000-of-00001_03" in {key for key, _ in samples(tmp_path / "set", "val-*.tar")}


def test_one_large_row_group_is_never_held_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    images = [noise.bytes(100_000) for _ in range(300)]
    path = write(tmp_path / "a.parquet", {"image": images}, row_group_size=300, write_batch_size=10)
    source = opened(path)
    before = pyarrow.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    try:
        for number, data in enumerate(source.read_through(range(300))):
            assert data == images[number]
            peak = max(peak, pyarrow.total_allocated_bytes() - before)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000, "of 30 MB"


def test_a_damaged_row_group_rejects_its_rows_and_a_changed_file_stops_the_build(tmp_path: Path) -> None:
    images = [np.random.default_rng(number).bytes(2000) for number in range(30)]
    path = write(tmp_path / "a.parquet", {"image": images}, row_group_size=10, write_page_checksum=True)
    place = path.read_bytes().index(images[15][:50])
    source = opened(path)
    listed = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 100)
    os.utime(path, ns=(listed.st_atime_ns, listed.st_mtime_ns))  # As if it had been so when it was listed.
    found = reasons(source)
    assert found == [""] * 10 + ["damaged in the table"] * 10 + [""] * 10
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(OSError, match="has changed since it was listed"):
        next(source.read_through([15]))


def test_a_file_that_was_cut_off_is_one_line(files: list[Path], tmp_path: Path) -> None:
    path = write_parquet(dataset_of(files), tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="must be a whole parquet file"):
        opened(path)
    with pytest.raises(UserError, match="must have rows"):
        opened(write(tmp_path / "b.parquet", {"image": pyarrow.array([], pyarrow.binary())}))
    with pytest.raises(UserError, match="must have rows"):
        opened(write(tmp_path / "b.arrow", {"image": pyarrow.array([], pyarrow.binary())}))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damage_anywhere_is_an_error_or_a_rejection(tmp_path: Path, suffix: str) -> None:
    rows = [{"bytes": b"image %d" % number, "path": f"{number}.jpg"} for number in range(20)]
    columns = {"image": pyarrow.array(rows, IMAGE), "label": [*range(20)], "text": [f"text {row}" for row in range(20)]}
    whole = write(tmp_path / f"a.{suffix}", columns).read_bytes()
    noise = np.random.default_rng(0)
    path = tmp_path / f"b.{suffix}"
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(noise.integers(4, len(whole)))] = int(noise.integers(256))
        path.write_bytes(damaged)
        try:
            reasons(opened(path, Wanted(label="label")))
        except UserError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_parquet_file_is_refused(tmp_path: Path, plaintext_footer: bool) -> None:
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[misc, name-defined]
        def wrap_key(self, key: bytes, name: str) -> bytes:
            return key.hex().encode()

    table = pyarrow.table({"image": [b"x"], "age": [1]})
    configuration = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys={"key": ["image"]}, plaintext_footer=plaintext_footer
    )
    properties = encryption.CryptoFactory(lambda _: Keys()).file_encryption_properties(
        encryption.KmsConnectionConfig(), configuration
    )
    path = tmp_path / "a.parquet"
    with parquet.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=r"that pyarrow can read; got .*crypt.* Write it again without encryption"):
        opened(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for read in (opened, lambda path: holds_images(str(path))):
        with pytest.raises(UserError, match=r"pip install 'leanstream\[parquet\]'"):
            read(path)


def test_a_saved_dataset_is_read_in_place(files: list[Path], tmp_path: Path) -> None:
    dataset_of(files).save_to_disk(str(tmp_path / "faces"), num_shards=2)
    source = open_sources([str(tmp_path / "faces")])
    expected = [path.read_bytes() for path in files]
    assert list(contents(source).values()) == expected
    assert source.listing.sizes.tolist() == [len(data) for data in expected]
    assert source.listing[0] == b"data-00000-of-00002.arrow#00"
    assert source.name == "faces"
    assert list(contents(pickle.loads(pickle.dumps(source))).values()) == expected
    second = open_sources([str(tmp_path / "faces")], Wanted(include=("data-00001*",)))
    assert list(contents(second).values()) == expected[len(expected) // 2 :]


def test_a_set_of_a_saved_dataset_with_names_is_that_of_its_photos(
    files: list[Path], tmp_path: Path, make: Make, samples: Samples
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in files:
        (flat / path.name).write_bytes(path.read_bytes())
    make(flat, tmp_path / "folder", *SMALL)
    dataset_of(files, names=True).save_to_disk(str(tmp_path / "faces"))
    make(tmp_path / "faces", tmp_path / "table", *SMALL)
    assert sorted(samples(tmp_path / "folder")) == sorted(samples(tmp_path / "table"))


def test_splits_of_a_dataset_are_those_of_the_set(files: list[Path], tmp_path: Path, make: Make) -> None:
    label = datasets.ClassLabel(names=["a", "b"])
    parts = {"train": files[:40], "validation": files[40:55], "test": files[55:]}
    datasets.DatasetDict(
        {name: dataset_of(part, label=([n % 2 for n in range(len(part))], label)) for name, part in parts.items()}
    ).save_to_disk(str(tmp_path / "faces"))
    make(tmp_path / "faces", tmp_path / "set", *SMALL)
    opened_set = ShardSet.open(tmp_path / "set")
    assert {split: found.total for split, found in opened_set.splits.items()} == {"train": 40, "val": 15, "test": 5}
    assert opened_set.classes == ("a", "b")
    make(tmp_path / "faces", tmp_path / "one", *SMALL, "--split", "validation", "--val-fraction", 0)
    assert ShardSet.open(tmp_path / "one").splits["train"].total == 15
    with pytest.raises(UserError, match=r"must be one of the dataset's, train, validation, test; got 'dev'"):
        open_sources([str(tmp_path / "faces")], Wanted(split="dev"))


def test_one_arrow_file_is_a_source(files: list[Path], tmp_path: Path) -> None:
    dataset_of(files).save_to_disk(str(tmp_path / "faces"))
    (arrow,) = (tmp_path / "faces").glob("*.arrow")
    assert list(contents(open_sources([str(arrow)])).values()) == [path.read_bytes() for path in files]


def test_an_arrow_file_with_a_footer_is_read_and_a_compressed_one_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [b"x" * 1000, b"y" * 1000]})
    for name, compression in (("a.arrow", None), ("b.arrow", "zstd")):
        options = pyarrow.ipc.IpcWriteOptions(compression=compression)
        with pyarrow.ipc.new_file(str(tmp_path / name), table.schema, options=options) as writer:
            writer.write_table(table)
    assert list(contents(opened(tmp_path / "a.arrow")).values()) == [b"x" * 1000, b"y" * 1000]
    with pytest.raises(UserError, match="must be uncompressed"):
        opened(tmp_path / "b.arrow")


def test_an_arrow_file_that_was_cut_off_is_one_line(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [b"x" * 100] * 10})
    file = io.BytesIO()
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
        between = file.tell()
        writer.write_table(table)
    path = tmp_path / "a.arrow"
    for end in (between, between + 100, len(file.getvalue()) - 1):
        path.write_bytes(file.getvalue()[:end])
        with pytest.raises(UserError, match="must be a whole arrow file"):
            opened(path)


def test_an_arrow_file_that_becomes_shorter_stops_the_build(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", {"image": [b"x" * 100] * 10})
    source = opened(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(OSError, match="has changed since it was listed"):
        source.read(9)


@pytest.mark.parametrize(
    "state",
    [
        *("{", "[]", "{}", "3", "[" * 100_000, '{"_data_files": 3}', '{"_data_files": [{}]}'),
        *('{"_data_files": [{"filename": "../a.arrow"}]}', '{"_data_files": [{"filename": 3}]}'),
        '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": [{"filename": "i.arrow"}]}',
    ],
)
def test_a_saved_dataset_that_makes_no_sense_is_one_line(files: list[Path], tmp_path: Path, state: str) -> None:
    dataset_of(files).save_to_disk(str(tmp_path / "faces"))
    (tmp_path / "faces" / "state.json").write_text(state)
    with pytest.raises(UserError, match="must be JSON of a saved dataset"):
        open_sources([str(tmp_path / "faces")])


def test_a_saved_dataset_that_lacks_a_file_is_one_line(files: list[Path], tmp_path: Path) -> None:
    dataset_of(files).save_to_disk(str(tmp_path / "faces"), num_shards=2)
    (tmp_path / "faces" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"all files of its dataset; got no data-00001-of-00002\.arrow"):
        open_sources([str(tmp_path / "faces")])
    (tmp_path / "faces" / "state.json").write_text('{"_data_files": []}')
    with pytest.raises(UserError, match="must be a saved dataset; got no file of it"):
        open_sources([str(tmp_path / "faces")])
