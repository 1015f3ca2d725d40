from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from shard_tool.sources.opening import open_sources
from shard_tool.sources.protocol import Access
from tests.shard_tool.sources.packs import contents, files_of, tar_of, webdataset_of, zip_of
from tests.shard_tool.sources.tables import dataset_of, write_parquet

Make = Callable[..., str]
Hashes = Callable[[Path], dict[str, str]]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]

SMALL = ("--size", 16, "--shard-samples", 5)


def test_a_folder_a_zip_a_stream_and_a_table_are_one_source(photos: Path, tmp_path: Path) -> None:
    one, two = dict(files_of(photos / "a")), dict(files_of(photos / "b"))
    more = {f"more/{number}.jpg": bytes([number]) * 9 for number in range(5)}
    parquet = write_parquet(dataset_of(sorted((photos / "b").iterdir())[:3]), tmp_path / "c.parquet")
    source = open_sources(
        [
            str(photos / "a"),
            str(zip_of(photos / "b", tmp_path / "b.zip")),
            str(tar_of(more.items(), tmp_path / "d.tgz", "gz")),
            str(parquet),
        ]
    )
    rows = {f"c.parquet#{number}": data for number, data in enumerate(list(dict(sorted(two.items())).values())[:3])}
    assert contents(source) == {**one, **two, **more, **rows}
    assert source.access is Access.BY_CHUNK
    chunks = source.chunks()
    assert chunks[0] == 0
    assert chunks[-1] == len(source.listing) == 68
    assert (np.diff(chunks) > 0).all()
    assert source.ignored == {}


def test_names_come_in_front_only_where_paths_repeat(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    zips = [zip_of(photos / "a", tmp_path / "p.zip"), zip_of(photos / "a", tmp_path / "x" / "p.zip")]
    apart = open_sources([str(photos / "a"), str(photos / "b")])
    assert {path.count(b"/") for path in apart.listing} == {0}
    same = open_sources([*map(str, zips), str(photos / "a")])
    folders = [path.partition(b"/")[0] for path in same.listing]
    assert folders == [b"p"] * 30 + [b"p-2"] * 30 + [b"a"] * 30


def test_a_set_of_several_sources_is_the_same_every_time(
    photos: Path, tmp_path: Path, make: Make, hashes: Hashes, samples: Samples
) -> None:
    zip_of(photos / "b", tmp_path / "b.zip")
    for name, threads in (("one", 1), ("two", 3)):
        make([photos / "a", tmp_path / "b.zip"], tmp_path / name / "set", *SMALL, "--threads", threads)
    assert hashes(tmp_path / "one" / "set") == hashes(tmp_path / "two" / "set")
    assert len(samples(tmp_path / "one" / "set")) == 60


def test_a_glob_stands_for_files_in_order(photos: Path, tmp_path: Path) -> None:
    for name in ("c-1", "c-0", "d-0"):
        zip_of(photos / "a", tmp_path / f"{name}.zip")
    source = open_sources([str(tmp_path / "c-*.zip")])
    assert source.name == "c"
    assert [source.listing[0], source.listing[30]] == [b"c-0/00000.jpg", b"c-1/00000.jpg"]
    with pytest.raises(UserError, match=r"e-\*\.zip must stand for something"):
        open_sources([str(tmp_path / "e-*.zip")])


def test_a_name_with_brackets_that_exists_is_no_glob(photos: Path) -> None:
    (photos / "a").rename(photos / "a[1]")
    assert len(open_sources([str(photos / "a[1]")]).listing) == 30


def test_a_table_of_one_source_counts_for_all(photos: Path, tmp_path: Path, make: Make) -> None:
    lines = ["image_id,Male", *(f"{number:05d}.jpg,{-1 if number % 3 else 1}" for number in range(60))]
    (photos / "a" / "list_attr_celeba.csv").write_text("\n".join(lines))
    printed = make([photos / "a", photos / "b"], tmp_path / "set", *SMALL)
    assert "60 images" in printed


def test_sources_with_other_labels_are_refused(photos: Path, tmp_path: Path) -> None:
    labelled = webdataset_of(photos / "a", tmp_path / "a.tar", {"cls": lambda number: str(number % 2)})
    with pytest.raises(UserError, match=r"must have the same labels; got 2 classes in 'a' and none in 'b'"):
        open_sources([str(labelled), str(photos / "b")])


def test_classes_of_several_shards_get_one_numbering(photos: Path, tmp_path: Path) -> None:
    names = {"a": ("ape", "cat"), "b": ("bee", "cat")}
    for part, classes in names.items():
        webdataset_of(photos / part, tmp_path / f"{part}.tar", {"cls": lambda number, of=classes: of[number % 2]})
    source = open_sources([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])
    assert source.known.classes == ("ape", "bee", "cat")
    assert source.known.class_of is not None
    assert source.known.class_of[[0, 1, 30, 31]].tolist() == [0, 2, 1, 2]
