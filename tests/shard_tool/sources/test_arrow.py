import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.format import ShardSet
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Wanted
from tests.shard_tool.sources.packs import contents
from tests.shard_tool.sources.tables import dataset_of

datasets = pytest.importorskip("datasets")

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]

SMALL = ("--size", 16, "--shard-samples", 5)


@pytest.fixture
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


def test_a_saved_dataset_is_read_in_place(files: list[Path], tmp_path: Path) -> None:
    dataset_of(files).save_to_disk(str(tmp_path / "faces"), num_shards=2)
    source = open_sources([str(tmp_path / "faces")])
    expected = [path.read_bytes() for path in files]
    assert list(contents(source).values()) == expected
    assert source.listing.sizes.tolist() == [len(data) for data in expected]
    assert source.listing[0] == b"data-00000-of-00002.arrow#00"
    assert source.name == "faces"
    assert list(contents(pickle.loads(pickle.dumps(source))).values()) == expected


def test_a_set_of_a_saved_dataset_with_names_is_that_of_its_photos(
    files: list[Path], tmp_path: Path, make: Make, samples: Samples, make_folder: Callable[..., Path]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in files:
        (flat / path.name).write_bytes(path.read_bytes())
    make(flat, tmp_path / "folder", *SMALL)
    dataset_of(files, names=True).save_to_disk(str(tmp_path / "faces"))
    make(tmp_path / "faces", tmp_path / "table", *SMALL)
    assert sorted(samples(tmp_path / "folder")) == sorted(samples(tmp_path / "table"))


def test_splits_of_a_dataset_are_those_of_the_set(
    files: list[Path], tmp_path: Path, make: Make, samples: Samples
) -> None:
    label = datasets.ClassLabel(names=["a", "b"])
    parts = {"train": files[:40], "validation": files[40:55], "test": files[55:]}
    datasets.DatasetDict(
        {name: dataset_of(part, label=([n % 2 for n in range(len(part))], label)) for name, part in parts.items()}
    ).save_to_disk(str(tmp_path / "faces"))
    make(tmp_path / "faces", tmp_path / "set", *SMALL)
    opened = ShardSet.open(tmp_path / "set")
    assert {split: found.total for split, found in opened.splits.items()} == {"train": 40, "val": 15, "test": 5}
    assert opened.classes == ("a", "b")
    make(tmp_path / "faces", tmp_path / "one", *SMALL, "--split", "validation", "--val-fraction", 0)
    assert ShardSet.open(tmp_path / "one").splits["train"].total == 15
    with pytest.raises(UserError, match=r"must be one of the dataset's, train, validation, test; got 'dev'"):
        open_sources([str(tmp_path / "faces")], Wanted(split="dev"))


def test_one_arrow_file_is_a_source(files: list[Path], tmp_path: Path) -> None:
    dataset_of(files).save_to_disk(str(tmp_path / "faces"))
    (arrow,) = (tmp_path / "faces").glob("*.arrow")
    assert list(contents(open_sources([str(arrow)])).values()) == [path.read_bytes() for path in files]


def test_a_file_that_was_cut_off_and_one_without_images_are_one_line(files: list[Path], tmp_path: Path) -> None:
    dataset_of(files).save_to_disk(str(tmp_path / "faces"))
    (arrow,) = (tmp_path / "faces").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-5000])
    with pytest.raises(UserError, match="must be a whole arrow file"):
        open_sources([str(tmp_path / "faces")])
    (tmp_path / "faces" / "state.json").write_text("{")
    with pytest.raises(UserError, match="must be JSON of a saved dataset"):
        open_sources([str(tmp_path / "faces")])
