import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.format import SPLITS, ShardSet
from shard_tool.build.keys import name_hash
from shard_tool.build.labels import NOT_LISTED, Table, find_attributes, find_labels, find_partition
from shard_tool.build.tables import parse_table
from shard_tool.sources.folder import FolderSource
from shard_tool.sources.listing import printable

Make = Callable[..., str]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Labels = dict[str, Any]
Splits = dict[str, str]


def source(folder: Path, *names: str) -> FolderSource:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo")
    return FolderSource.open(folder)


def attributes(folder: Path, text: str, *names: str) -> dict[str, dict[str, int] | None]:
    (folder / "list_attr_celeba.csv").write_text(text, encoding="utf-8")
    opened = source(folder, *names)
    table = find_attributes(opened)
    assert table is not None
    rows = (
        None if row < 0 else dict(zip(table.columns, table.values[row].tolist(), strict=True)) for row in table.row_of
    )
    return dict(zip(map(printable, opened.listing), rows, strict=True))


def test_attributes_are_matched_by_file_name(tmp_path: Path) -> None:
    text = "image_id,Male,Smiling\n000002.jpg,-1,1\n000001.jpg,1,-1\n"
    assert attributes(tmp_path, text, "x/000001.jpg", "x/000002.jpg", "x/000003.jpg") == {
        "x/000001.jpg": {"Male": 1, "Smiling": 0},
        "x/000002.jpg": {"Male": 0, "Smiling": 1},
        "x/000003.jpg": None,
    }


def test_a_path_in_the_table_goes_before_a_file_name(tmp_path: Path) -> None:
    text = "image_id,Male\n1.jpg,0\nb/1.jpg,1\n"
    assert attributes(tmp_path, text, "a/1.jpg", "b/1.jpg") == {"a/1.jpg": {"Male": 0}, "b/1.jpg": {"Male": 1}}


def test_spaces_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeffimage_id, Male \r\n\r\n1.jpg, 1\r\n"
    assert attributes(tmp_path, text, "1.jpg") == {"1.jpg": {"Male": 1}}


def test_partitions_are_numbers_of_splits(tmp_path: Path) -> None:
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,0\n2.jpg,1\n3.jpg,2\n")
    table = find_partition(source(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg", "4.jpg"))
    assert table is not None
    assert table.values[table.row_of[:3], 0].tolist() == [0, 1, 2]
    assert table.missing == 1


def test_a_folder_without_tables_has_no_labels(tmp_path: Path) -> None:
    opened = source(tmp_path / "x/y/z", "1.jpg")
    assert find_attributes(opened) is None
    assert find_partition(opened) is None


def test_a_table_above_about_other_photos_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "list_attr_celeba.csv").write_text("image_id,Male\nother.jpg,1\n")
    assert find_attributes(source(tmp_path / "images", "1.jpg")) is None


def test_two_tables_inside_are_an_error(tmp_path: Path) -> None:
    opened = [source(tmp_path, "a/1.jpg", "b/1.jpg")]
    for folder in "ab":
        (tmp_path / folder / "list_attr_celeba.csv").write_text("image_id,Male\n1.jpg,1\n")
    opened = [FolderSource.open(tmp_path)]
    with pytest.raises(UserError, match="must hold one list_attr_celeba"):
        find_attributes(opened[0])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must begin with a line of column names"),
        ("image_id\n1.jpg\n", "must begin with a line of column names"),
        ("image_id,Male,Male\n1.jpg,1,1\n", "a name twice in line 1"),
        ("image_id,Male\n1.jpg,1\n2.jpg\n", "1 in line 3"),
        ("image_id,Male\n1.jpg,1\n2.jpg,1,1\n", "3 in line 3"),
        ("image_id,Male\n1.jpg,yes\n", "got 'yes' in line 2"),
        ("image_id,Male\n9.jpg,1\n", "none of their names"),
        ("image_id,Male\n", "none of their names"),
    ],
)
def test_a_malformed_table_names_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        attributes(tmp_path, text, "1.jpg")


def test_a_table_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list_attr_celeba.csv").write_bytes(b"image_id,Male\n\xff\xfe.jpg,1\n")
    with pytest.raises(UserError, match="must be UTF-8"):
        find_attributes(source(tmp_path, "1.jpg"))


def test_a_partition_of_another_value_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,3\n")
    with pytest.raises(UserError, match="must hold 0, 1, 2 only in column 'partition'; got '3'"):
        find_partition(source(tmp_path, "1.jpg"))


def labelled(folder: Path, text: str, *names: str, file_name: str = "table.csv") -> tuple[Labels, Splits]:
    """What `--labels` makes of a table beside the photos: by path, the attributes or the class, and the split."""
    opened = source(folder / "images", *names)
    (folder / file_name).write_text(text, encoding="utf-8")
    return by_path(opened, *find_labels(opened, str(folder / file_name)))


def by_path(opened: FolderSource, labels: Table | None, partition: Table | None) -> tuple[Labels, Splits]:
    paths = list(map(printable, opened.listing))
    found: Labels = {}
    splits: Splits = {}
    for path, row in zip(paths, [] if labels is None else labels.row_of.tolist(), strict=labels is not None):
        if labels is not None and row != NOT_LISTED:
            values = labels.values[row].tolist()
            found[path] = (
                labels.classes[values[0]] if labels.classes else dict(zip(labels.columns, values, strict=True))
            )
    for path, row in zip(paths, [] if partition is None else partition.row_of.tolist(), strict=partition is not None):
        if partition is not None and row != NOT_LISTED:
            splits[path] = SPLITS[partition.values[row, 0]]
    return found, splits


CELEBA_LIST = "3\nMale Smiling\n1.jpg  1 -1\n2.jpg -1 -1\n3.jpg -1  1\n"


def test_celebas_own_lists_are_found_like_kaggles(tmp_path: Path) -> None:
    opened = source(tmp_path / "CelebA/images", "1.jpg", "2.jpg", "4.jpg")
    (tmp_path / "CelebA/list_attr_celeba.txt").write_text(CELEBA_LIST)
    (tmp_path / "CelebA/images/list_eval_partition.txt").write_text("1.jpg 0\n2.jpg 2\n4.jpg 1\n")
    opened = FolderSource.open(tmp_path / "CelebA/images")
    assert by_path(opened, *find_labels(opened, None)) == (
        {"1.jpg": {"Male": 1, "Smiling": 0}, "2.jpg": {"Male": 0, "Smiling": 0}},
        {"1.jpg": "train", "2.jpg": "test", "4.jpg": "val"},
    )


def test_kaggles_table_goes_before_celebas_own(tmp_path: Path) -> None:
    (tmp_path / "list_attr_celeba.txt").write_text(CELEBA_LIST)
    assert attributes(tmp_path, "image_id,Young\n1.jpg,1\n", "1.jpg") == {"1.jpg": {"Young": 1}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("4" + CELEBA_LIST[1:], "as its first line says, 4; got 3"),
        (CELEBA_LIST.replace("Male ", ""), "must have 2 columns in every line; got 3 in line 3"),
        (CELEBA_LIST.replace("2.jpg -1 -1", "2.jpg -1"), "must have 3 columns in every line; got 2 in line 4"),
        (CELEBA_LIST.replace("  1\n", "  2\n"), "in column 'Smiling'; got '2' in line 5"),
        (CELEBA_LIST.replace("Male", "Smiling"), "a name twice in line 2"),
        ("3\n", "as its first line says, 3; got 0"),
    ],
)
def test_a_malformed_list_of_celeba_names_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "list_attr_celeba.txt").write_text(text)
    with pytest.raises(UserError, match=complaint):
        find_attributes(source(tmp_path, "1.jpg", "2.jpg", "3.jpg"))


def test_celebas_identities_are_classes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    text = "1.jpg 2880\n2.jpg 17\n3.jpg 2880\n"
    found, _ = labelled(tmp_path, text, "1.jpg", "2.jpg", "3.jpg", file_name="identity_CelebA.txt")
    assert found == {"1.jpg": "2880", "2.jpg": "17", "3.jpg": "2880"}
    table, _ = find_labels(FolderSource.open(tmp_path / "images"), str(tmp_path / "identity_CelebA.txt"))
    assert table is not None
    assert table.classes == ("17", "2880")


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_any_table_holds_attributes_and_splits(tmp_path: Path, between: str) -> None:
    text = "file,Glasses,Hat,split\n1.jpg,true,0,Train\nx/2.png,False,1,validation\n3.jpg,1,-1,2\n"
    found, splits = labelled(tmp_path, text.replace(",", between), "1.jpg", "x/2.png", "3.jpg", "4.jpg")
    assert found == {
        "1.jpg": {"Glasses": 1, "Hat": 0},
        "x/2.png": {"Glasses": 0, "Hat": 1},
        "3.jpg": {"Glasses": 1, "Hat": 0},
    }
    assert splits == {"1.jpg": "train", "x/2.png": "val", "3.jpg": "test"}


@pytest.mark.parametrize("column", ["emotion", "label", "class"])
def test_one_column_of_words_is_classes_sorted_by_name(tmp_path: Path, column: str) -> None:
    found, splits = labelled(tmp_path, f"file\t{column}\n1.jpg\tsad\n2.jpg\thappy, very\n", "1.jpg", "2.jpg")
    assert (found, splits) == ({"1.jpg": "sad", "2.jpg": "happy, very"}, {})


def test_a_column_of_bits_is_classes_where_it_is_called_label(tmp_path: Path) -> None:
    for column, expected in (
        ("label", {"1.jpg": "1", "2.jpg": "0"}),
        ("Hat", {"1.jpg": {"Hat": 1}, "2.jpg": {"Hat": 0}}),
    ):
        assert labelled(tmp_path, f"file,{column}\n1.jpg,1\n2.jpg,0\n", "1.jpg", "2.jpg")[0] == expected


def test_a_table_may_hold_splits_alone(tmp_path: Path) -> None:
    for text in ("file,partition\n1.jpg,0\n2.jpg,2\n", "1.jpg train\n2.jpg test\n"):
        assert labelled(tmp_path, text, "1.jpg", "2.jpg") == ({}, {"1.jpg": "train", "2.jpg": "test"})


def test_names_without_extensions_fit_where_none_fits_with_them(tmp_path: Path) -> None:
    for text in ("file,Hat\n1,1\na/v1.2,0\n", "file,Hat\n1.jpg,1\na/v1.2.jpg,0\n"):
        assert labelled(tmp_path, text, "1.png", "a/v1.2.png")[0] == {"1.png": {"Hat": 1}, "a/v1.2.png": {"Hat": 0}}


def test_names_may_be_windows_paths_or_begin_with_a_dot(tmp_path: Path) -> None:
    found, _ = labelled(tmp_path, "file,Hat\na\\1.jpg,1\n./b/1.jpg,0\n", "a/1.jpg", "b/1.jpg")
    assert found == {"a/1.jpg": {"Hat": 1}, "b/1.jpg": {"Hat": 0}}


def test_many_classes_keep_their_names(tmp_path: Path) -> None:
    names = [f"{number:03d}.jpg" for number in range(400)]
    text = "file,person\n" + "".join(f"{name},p{number}\n" for number, name in enumerate(names))
    assert labelled(tmp_path, text, *names)[0] == {name: f"p{number}" for number, name in enumerate(names)}


def test_a_line_that_stands_twice_does_no_harm(tmp_path: Path) -> None:
    assert labelled(tmp_path, "file,Hat\n1.jpg,1\n1.jpg,1\n", "1.jpg")[0] == {"1.jpg": {"Hat": 1}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,Hat\n1.jpg,1\n\n1.jpg,0\n", "got lines 2 and 4, which name the same photo and differ"),
        ("file,Hat\n9.jpg,1\n", "must name the photos in its first column"),
        ("file,Hat,gender\n1.jpg,1,Male\n", "in column 'gender'; got 'Male' in line 2"),
        ("file,split\n1.jpg,holdout\n", "in column 'split'; got 'holdout' in line 2"),
        ("file,emotion\n1.jpg,sad\n2.jpg,\n", "must name a class in every line; got none in line 3"),
        ("1.jpg,1,0\n", "got the photo '1.jpg' in line 1"),
        ("file,Hat,\n1.jpg,1,0\n", "must have a name for each attribute"),
        ('file,Hat\n"1.jpg,1\n', "must have 2 columns in every line; got 1 in line 2"),
    ],
)
def test_a_malformed_table_of_ones_own_names_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        labelled(tmp_path, text, "1.jpg", "2.jpg")


def test_a_table_that_is_missing_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be 'folders' or the path of a table; got nowhere\.csv"):
        find_labels(source(tmp_path, "1.jpg"), "nowhere.csv")


def folders(folder: Path, *names: str) -> tuple[Labels, Splits]:
    opened = source(folder, *names)
    return by_path(opened, *find_labels(opened, "folders"))


def test_first_folders_are_classes(tmp_path: Path) -> None:
    found, splits = folders(tmp_path, "dog/a/1.jpg", "cat/1.jpg", "cat/train/2.jpg", "loose.jpg")
    assert found == {"dog/a/1.jpg": "dog", "cat/1.jpg": "cat", "cat/train/2.jpg": "cat"}
    assert splits == {}


def test_a_folder_around_all_others_is_no_class(tmp_path: Path) -> None:
    assert folders(tmp_path, "pets/all/dog/1.jpg", "pets/all/cat/1.jpg")[0] == {
        "pets/all/dog/1.jpg": "dog",
        "pets/all/cat/1.jpg": "cat",
    }


def test_folders_named_after_splits_are_splits(tmp_path: Path) -> None:
    found, splits = folders(tmp_path, "x/train/dog/1.jpg", "x/train/cat/2.jpg", "x/Valid/dog/3.jpg", "x/test/cat/4.jpg")
    assert list(found.values()) == ["dog", "cat", "cat", "dog"]
    assert splits == {
        "x/train/dog/1.jpg": "train",
        "x/train/cat/2.jpg": "train",
        "x/Valid/dog/3.jpg": "val",
        "x/test/cat/4.jpg": "test",
    }


def test_folders_of_one_class_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in at least two folders; got 0"):
        folders(tmp_path, "dog/1.jpg", "dog/2.jpg")


@given(st.permutations(["a/1.jpg", "a/2.jpg", "b/1.jpg", "c.jpg"]), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_order_of_lines_changes_nothing(names: list[str], bits: list[bool]) -> None:
    lines = "".join(f"{name},{'' if bit else '-'}1\r\n" for name, bit in zip(names, bits, strict=True))
    parsed = parse_table(io.BytesIO(b"file,Hat\r\n" + lines.encode()), "t.csv", lambda name: False)
    assert parsed.translate(0, {"1": 1, "-1": 0}).tolist() == bits
    assert parsed.names.tolist() == [name_hash(name.encode()) for name in names]
    assert parsed.lines.tolist() == [2, 3, 4, 5]


def test_classes_go_from_the_folders_to_the_samples(photos: Path, tmp_path: Path, make: Make, samples: Samples) -> None:
    for encoding in ("jpeg", "raw"):
        out = tmp_path / f"set-{encoding}"
        make(photos, out, "--size", 16, "--labels", "folders", "--encode", encoding, "--val-fraction", 0.2)
        opened = ShardSet.open(out)
        assert (opened.classes, opened.attributes) == (("a", "b"), ())
        for key, members in samples(out):
            meta = json.loads(members["json"])
            assert meta == {"source": f"{key}.jpg", "label": "ab".index(key[0])}
        (part,) = opened.parts
        assert part["settings"]["labels"] == "folders"
        assert [sum(counts) for counts in zip(*part["positives"].values(), strict=True)] == [30, 30]
        assert {split: sum(counts) for split, counts in part["positives"].items()} == {
            split: content.total for split, content in opened.splits.items()
        }
    assert len({len(members["json"]) for _, members in samples(tmp_path / "set-raw")}) == 1


def test_photos_that_the_table_does_not_name_are_rejected(
    photos: Path, tmp_path: Path, make: Make, rejections: Callable[[Path], dict[str, str]]
) -> None:
    (tmp_path / "mine.csv").write_text(
        "file,mood\n" + "".join(f"{number:05d},m{number % 12}\n" for number in range(58))
    )
    make(photos, tmp_path / "set", "--size", 16, "--labels", tmp_path / "mine.csv", "--encode", "raw")
    assert rejections(tmp_path / "set") == {"a/00058.jpg": "not in mine.csv", "b/00059.jpg": "not in mine.csv"}
    assert len(ShardSet.open(tmp_path / "set").classes) == 12


def test_labels_need_the_json(photos: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    assert "must be stored in each sample's json" in refuse(
        photos, tmp_path / "set", "--labels", "folders", "--no-json"
    )


def test_other_labels_are_another_set(photos: Path, tmp_path: Path, make: Make, refuse: Callable[..., str]) -> None:
    make(photos, tmp_path / "set", "--size", 16)
    assert "labels folders (was built with none)" in refuse(
        photos, tmp_path / "set", "--size", 16, "--labels", "folders"
    )
