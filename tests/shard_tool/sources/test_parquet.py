import json
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
from shard_tool.sources.parquet import ParquetSource
from shard_tool.sources.protocol import WHATEVER, Access, Wanted
from shard_tool.sources.ranges import LocalRanges
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


def opened(path: Path, wanted: Wanted = WHATEVER) -> ParquetSource:
    return ParquetSource.open(LocalRanges(str(path)), path.stem, wanted)


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.fixture
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


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


def test_a_label_column_of_numbers_or_names_is_chosen(files: list[Path], tmp_path: Path) -> None:
    dataset = dataset_of(files[:4], who=(["b", "a", None, "b"], TEXT), number=([2, 0, 1, 2], NUMBER))
    path = write_parquet(dataset, tmp_path / "a.parquet")
    by_name, by_number = opened(path, Wanted(label="who")).known, opened(path, Wanted(label="number")).known
    assert by_name.class_of is not None
    assert by_number.class_of is not None
    assert (by_name.classes, by_name.class_of.tolist()) == (("a", "b"), [1, 0, -1, 1])
    assert (by_number.classes, by_number.class_of.tolist()) == (("0", "1", "2"), [2, 0, 1, 2])
    with pytest.raises(UserError, match="must have the column 'age'; got who, number"):
        opened(path, Wanted(label="age"))


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


def test_a_missing_image_is_a_rejection(
    files: list[Path], tmp_path: Path, make: Make, rejections: Callable[[Path], dict[str, str]]
) -> None:
    write(tmp_path / "a.parquet", {"image": [files[0].read_bytes(), None, b""]})
    make(tmp_path / "a.parquet", tmp_path / "set", *SMALL)
    assert rejections(tmp_path / "set") == {"a.parquet#1": "empty file", "a.parquet#2": "empty file"}


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
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000, "of 30 MB"


def test_a_file_that_was_cut_off_is_one_line(files: list[Path], tmp_path: Path) -> None:
    path = write_parquet(dataset_of(files), tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="must be whole parquet"):
        opened(path)
    with pytest.raises(UserError, match="must have rows"):
        opened(write(tmp_path / "b.parquet", {"image": pyarrow.array([], pyarrow.binary())}))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'leanstream\[parquet\]'"):
        opened(path)
