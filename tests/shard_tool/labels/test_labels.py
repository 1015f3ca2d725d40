import contextlib
import dataclasses
import json
import os
import pickle
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.format import SPLITS, ShardSet
from shard_tool.labels.find import Labels, find_labels
from shard_tool.labels.tables import NOT_LISTED, Table
from shard_tool.sources.folder import FolderSource
from shard_tool.sources.listing import printable

Make = Callable[..., str]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Found = dict[str, Any]
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
    table = find_labels(opened, None).labels
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
    table = find_labels(source(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg", "4.jpg"), None).partition
    assert table is not None
    assert table.values[table.row_of[:3], 0].tolist() == [0, 1, 2]
    assert table.row_of[3] == NOT_LISTED
    assert table.why_missing(3) == "not in list_eval_partition.csv"


def test_a_folder_without_tables_has_no_labels(tmp_path: Path) -> None:
    opened = source(tmp_path / "x/y/z", "1.jpg")
    assert find_labels(opened, None) == (None, None, None, ())


def test_a_table_above_about_other_photos_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "list_attr_celeba.csv").write_text("image_id,Male\nother.jpg,1\n")
    assert find_labels(source(tmp_path / "images", "1.jpg"), None).labels is None


def test_two_tables_inside_are_an_error(tmp_path: Path) -> None:
    source(tmp_path, "a/1.jpg", "b/1.jpg")
    for folder in "ab":
        (tmp_path / folder / "list_attr_celeba.csv").write_text("image_id,Male\n1.jpg,1\n")
    opened = FolderSource.open(tmp_path)
    with pytest.raises(UserError, match="must hold one list_attr_celeba"):
        find_labels(opened, None)


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
    with pytest.raises(UserError, match="must be lines of text in UTF-8"):
        find_labels(source(tmp_path, "1.jpg"), None)


def test_a_partition_of_another_value_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n1.jpg,3\n")
    with pytest.raises(UserError, match="must hold 0, 1, 2 only in column 'partition'; got '3'"):
        find_labels(source(tmp_path, "1.jpg"), None)


def labelled(folder: Path, text: str, *names: str, file_name: str = "table.csv") -> tuple[Found, Splits]:
    """What `--labels` makes of a table beside the photos: by path, the attributes or the class, and the split."""
    opened = source(folder / "images", *names)
    (folder / file_name).write_text(text, encoding="utf-8")
    return by_path(opened, *find_labels(opened, str(folder / file_name))[:2])


def by_path(opened: FolderSource, labels: Table | None, partition: Table | None) -> tuple[Found, Splits]:
    paths = list(map(printable, opened.listing))
    found: Found = {}
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
    assert by_path(opened, *find_labels(opened, None)[:2]) == (
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
        find_labels(source(tmp_path, "1.jpg", "2.jpg", "3.jpg"), None)


def test_celebas_identities_are_classes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    text = "1.jpg 2880\n2.jpg 17\n3.jpg 2880\n"
    found, _ = labelled(tmp_path, text, "1.jpg", "2.jpg", "3.jpg", file_name="identity_CelebA.txt")
    assert found == {"1.jpg": "2880", "2.jpg": "17", "3.jpg": "2880"}
    table = find_labels(FolderSource.open(tmp_path / "images"), str(tmp_path / "identity_CelebA.txt")).labels
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
        ("file,Hat\n1.jpg,1\n\n1.jpg,0\n", "got line 2 and line 4, which name the same photo and differ"),
        ("file,Hat\n9.jpg,1\n", "must name the photos in its first column"),
        ("file,Hat,gender\n1.jpg,1,Male\n", "in column 'gender'; got 'Male' in line 2"),
        ("file,split\n1.jpg,holdout\n", "in column 'split'; got 'holdout' in line 2"),
        ("file,emotion\n1.jpg,\n2.jpg,\n", "must have 'emotion' for some photo; got none"),
        ("1.jpg,1,0\n", "got the photo '1.jpg' in line 1"),
        ("file,Hat,\n1.jpg,1,0\n", "must have a name for each attribute"),
        ('file,Hat\n"1.jpg,1\n', "must be csv; got 'unexpected end of data' in line 2"),
    ],
)
def test_a_malformed_table_of_ones_own_names_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        labelled(tmp_path, text, "1.jpg", "2.jpg")


def test_a_table_that_is_missing_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be 'folders' or the path of a table; got nowhere\.csv"):
        find_labels(source(tmp_path, "1.jpg"), "nowhere.csv")


def folders(folder: Path, *names: str) -> tuple[Found, Splits]:
    opened = source(folder, *names)
    return by_path(opened, *find_labels(opened, "folders")[:2])


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
    with pytest.raises(UserError, match="in two folders or more; got one, 'dog'"):
        folders(tmp_path, "dog/1.jpg", "dog/2.jpg")


def test_a_folder_named_after_a_split_is_no_class_beside_loose_photos(tmp_path: Path) -> None:
    found, splits = folders(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "loose.jpg")
    assert list(found.values()) == ["cat", "dog", "cat"]
    assert sorted(splits.values()) == ["train", "train", "val"]


def test_folders_of_splits_beside_folders_of_classes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got both: 'extra', 'train', 'val'"):
        folders(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg", "extra/3.jpg")
    assert folders(tmp_path / "x", "train/1.jpg", "car/2.jpg")[0] == {"train/1.jpg": "train", "car/2.jpg": "car"}


def test_photos_in_no_folder_have_no_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two folders or more; got none"):
        folders(tmp_path, "1.jpg", "2.jpg")


def test_folders_are_compared_in_composed_characters(tmp_path: Path) -> None:
    found, _ = folders(tmp_path, "Café/1.jpg", unicodedata.normalize("NFD", "Café/2.jpg"), "Bar/3.jpg")
    assert sorted(found.values()) == ["Bar", "Café", "Café"]


def test_folders_that_are_not_utf8_are_classes_of_their_own(tmp_path: Path) -> None:
    folders(tmp_path, os.fsdecode(b"\xe8/1.jpg"), os.fsdecode(b"\xe9/2.jpg"), "a/3.jpg")
    opened = find_labels(FolderSource.open(tmp_path), "folders").labels
    assert opened is not None
    assert len(opened.classes) == 3


def texts(folder: Path, text: str | bytes, *names: str, file_name: str = "table.csv") -> Labels:
    opened = source(folder / "images", *names)
    (folder / file_name).write_bytes(text.encode() if isinstance(text, str) else text)
    return find_labels(opened, str(folder / file_name))


HEADERS = {
    "image,label\nimage.jpg,cat\nb.jpg,dog\n": {"image.jpg": "cat", "b.jpg": "dog"},
    "image,split\nimage.jpg,train\nb.jpg,val\n": {},
    "image,Smiling\nimage.jpg,1\nb.jpg,0\n": {"image.jpg": {"Smiling": 1}, "b.jpg": {"Smiling": 0}},
    "image,Male,Smiling\nimage.jpg,1,0\nb.jpg,0,1\n": {
        "image.jpg": {"Male": 1, "Smiling": 0},
        "b.jpg": {"Male": 0, "Smiling": 1},
    },
    "image,mood\nimage,sad\nb,glad\n": {"image.jpg": "sad", "b.jpg": "glad"},
    "ID,label\nimage,sad\nb,glad\n": {"image.jpg": "sad", "b.jpg": "glad"},
    "image,sad\nb,glad\na/id,sad\n": {"image.jpg": "sad", "b.jpg": "glad", "a/id.jpg": "sad"},
    "image.jpg,sad\nb.jpg,glad\n": {"image.jpg": "sad", "b.jpg": "glad"},
    "gone.jpg,sad\nb.jpg,glad\n": {"b.jpg": "glad"},
    "gone,sad\nb,glad\nimage,sad\n": {"b.jpg": "glad", "image.jpg": "sad"},
    "000009,sad\nb,glad\nimage,mad\n": {"b.jpg": "glad", "image.jpg": "mad"},
    "7,sad\n8,glad\n": {"7.jpg": "sad"},
    "subject,mood\nimage,sad\nb,glad\n": {"image.jpg": "sad", "b.jpg": "glad"},
}


@pytest.mark.parametrize("text", HEADERS)
def test_a_first_line_is_names_of_columns_or_a_photo_by_what_it_says(tmp_path: Path, text: str) -> None:
    assert labelled(tmp_path, text, "image.jpg", "b.jpg", "a/id.jpg", "7.jpg")[0] == HEADERS[text]


@pytest.mark.parametrize(
    "text", ["image,sad\nb,glad\n", "image,sad\n", "b,mood\nimage.jpg,sad\n", "b,sad\na/id,glad\n", "7,mood\nb.jpg,1\n"]
)
def test_a_first_line_that_may_be_both_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        UserError, match=r"which may also be a photo, in line 1\. Write a name for each column above it"
    ):
        labelled(tmp_path, text, "image.jpg", "b.jpg", "7.jpg")


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("name", ["é/ü.jpg", "ü.jpg", "é/ü", "É/Ü.JPG"])
def test_names_match_whether_composed_or_not(tmp_path: Path, form: Any, other: Any, name: str) -> None:
    path = unicodedata.normalize(form, "é/ü.jpg")
    text = unicodedata.normalize(other, f"file,Hat\n{name},1\n")
    assert labelled(tmp_path, text, path)[0] == {path: {"Hat": 1}}


def test_another_case_fits_where_it_is_unique(tmp_path: Path) -> None:
    found, _ = labelled(tmp_path, "file,Hat\nIMG_1.JPG,1\nA/img_2.jpg,0\n", "IMG_1.jpg", "a/IMG_2.jpg")
    assert found == {"IMG_1.jpg": {"Hat": 1}, "a/IMG_2.jpg": {"Hat": 0}}
    found, _ = labelled(tmp_path / "x", "file,Hat\na.jpg,1\nA.jpg,0\n", "a.jpg", "A.jpg")
    assert found == {"a.jpg": {"Hat": 1}, "A.jpg": {"Hat": 0}}
    with pytest.raises(UserError, match=r"got 'a\.JPG' in line 2, which may be 'A\.jpg' or 'a\.jpg'"):
        labelled(tmp_path / "y", "file,Hat\na.JPG,1\n", "a.jpg", "A.jpg")


@pytest.mark.parametrize("name", ["1.jpg", "1", "1.JPG"])
def test_a_name_that_fits_photos_of_two_folders_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"in line 2, which may be 'a/1\.jpg' or 'b/1\.jpg'"):
        labelled(tmp_path, f"file,Hat\n{name},1\n", "a/1.jpg", "b/1.jpg")


def test_a_name_that_is_a_path_is_no_name_in_another_folder(tmp_path: Path) -> None:
    assert labelled(tmp_path, "file,Hat\n1.jpg,1\n", "1.jpg", "b/1.jpg")[0] == {"1.jpg": {"Hat": 1}}


@pytest.mark.parametrize(
    "text",
    ["file,Hat\na/1.jpg,1\n1.jpg,0\n", "file,mood\n1.png,sad\n1.gif,glad\n", "file,Hat\na/1.jpg,1\n.\\a\\1.jpg,0\n"],
)
def test_two_rows_that_differ_about_one_photo_are_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="got line 2 and line 3, which name the same photo and differ"):
        labelled(tmp_path, text, "a/1.jpg")


def test_rows_that_name_no_photo_are_counted(tmp_path: Path) -> None:
    text = "file,Hat\n1.jpg,1\n8.jpg,1\n"
    table = tmp_path / "table.csv"
    assert texts(tmp_path, text, "1.jpg").notes == (
        f"rows of {table} that name no photo: 1, the first '8.jpg' in line 3",
    )
    text += "9.jpg,1\n"
    assert texts(tmp_path, text, "1.jpg").notes == (
        f"rows of {table} that name no photo: 2, the first '8.jpg' in line 3",
    )


@pytest.mark.parametrize("form", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_excels_encodings_are_read(tmp_path: Path, form: str) -> None:
    text = '"file"\t "mood" \r\n" é 1.jpg "\t"sad, very"\r\n\t\r\n'
    marked = ("\ufeff" if form == "utf-16-le" else "") + text
    found = texts(tmp_path, marked.encode(form), "é 1.jpg")
    assert found.labels is not None
    assert found.labels.classes == ("sad, very",)


@pytest.mark.parametrize(
    "text", ["sep=;\r\nfile;mood\r\n1.jpg;a,b\r\n", ',,\nfile,mood\n,\n1.jpg,"a,b" \n', "file,mood\r1.jpg,'a'\r"]
)
def test_what_spreadsheets_write_is_read(tmp_path: Path, text: str) -> None:
    assert set(labelled(tmp_path, text, "1.jpg")[0].values()) <= {"a,b", "'a'"}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "must begin with a line of column names"),
        (b"\n\n", "must begin with a line of column names"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "must be lines of text in UTF-8; got other bytes in line 1"),
        ("file,mood\n1.jpg,très\n".encode("latin-1"), "got other bytes in line 2. Save it as UTF-8 csv"),
        ("file,mood\n1.jpg,sad\n".encode("utf-16-le"), "got other bytes in line 1"),
        (b"\xff\xfefile,mood", "must be lines of text in UTF-8; got truncated data"),
        (b"file,mood\n1.jpg,s\0d\n", "got other bytes in line 2"),
        (b"x" * (1 << 21), "got one of a MiB in line 1"),
        (b"file,mood\n1.jpg," + b"x" * (1 << 18) + b"\n", "field larger than field limit .* in line 2"),
        (b'file,mood\n1.jpg,"sad\n2.jpg,glad\n', "must be csv; got 'unexpected end of data' in line"),
        (b"9" * 5000 + b"\n", "must begin with a line of column names"),
        (b"9" * 5000 + b",1\n1.jpg," + b"9" * 5000 + b"\n", "numbers that look like ids"),
        (b"7\n", "as its first line says, 7; got 0"),
        (b",\n,\n", "must begin with a line of column names"),
    ],
)
def test_any_file_is_a_table_or_the_users_error(tmp_path: Path, data: bytes, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        texts(tmp_path, data, "1.jpg", "2.jpg")


@given(
    st.binary(max_size=200) | st.text('1.jpg,;\t\n"0-', max_size=60).map(str.encode),
    st.sampled_from(["csv", "jsonl", "json"]),
)
def test_no_file_breaks_it(data: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(UserError):
        texts(Path(folder), data, "1.jpg", "a/1.jpg", file_name=f"table.{kind}")


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the path of a table; got .*, a folder"):
        find_labels(source(tmp_path, "1.jpg"), str(tmp_path))


@pytest.mark.parametrize("names", [("sad", "glad", ""), ("0", "3", "-1"), ("0.0", "3.0", ""), ("a", "b", "-1")])
def test_minus_one_and_nothing_are_no_class(tmp_path: Path, names: tuple[str, str, str]) -> None:
    text = "file,label\n" + "".join(f"{number}.jpg,{name}\n" for number, name in enumerate(names))
    table = texts(tmp_path, text, "0.jpg", "1.jpg", "2.jpg", "3.jpg").labels
    assert table is not None
    assert table.classes == tuple(sorted({name.partition(".")[0] for name in names[:2]}))
    assert table.row_of.tolist()[2:] == [NOT_LISTED, NOT_LISTED]
    assert (table.why_missing(2), table.why_missing(3)) == ("no label in table.csv", "not in table.csv")


def test_a_column_of_minus_one_alone_names_no_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must hold classes in column 'label'; got none in any line"):
        texts(tmp_path, "file,label\n1.jpg,-1\n2.jpg,-1\n", "1.jpg", "2.jpg")


def test_one_and_minus_one_alone_are_two_classes(tmp_path: Path) -> None:
    found, _ = labelled(tmp_path, "file,label\n1.jpg,1\n2.jpg,-1\n", "1.jpg", "2.jpg")
    assert found == {"1.jpg": "1", "2.jpg": "-1"}


def test_an_attribute_or_split_that_is_empty_is_none(tmp_path: Path) -> None:
    found = texts(tmp_path, "file,Hat,Tie,split\n1.jpg,1,,train\n2.jpg,0,1,\n", "1.jpg", "2.jpg")
    assert found.labels is not None
    assert found.partition is not None
    assert found.labels.why_missing(0) == "no label in table.csv"
    assert found.partition.why_missing(1) == "no split in table.csv"
    assert [found.labels.row_of[1], found.partition.row_of[0]] == [1, 0]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (["1700000000", "3"], "numbers that look like ids, as 1700000000"),
        (["0.25", "0.5"], "numbers with a fraction"),
        ([f"x{number}" for number in range(10_001)], "10,001 words that look like ids"),
    ],
)
def test_ids_and_measurements_are_no_classes(tmp_path: Path, values: list[str], complaint: str) -> None:
    text = "file,label\n" + "".join(f"{number}.jpg,{value}\n" for number, value in enumerate(values))
    with pytest.raises(UserError, match=f"must hold classes in column 'label'; got {complaint}"):
        texts(tmp_path, text, "1.jpg", "2.jpg")


def test_many_classes_of_several_photos_are_no_ids(tmp_path: Path) -> None:
    text = "".join(f"{number}.jpg {number % 10_177}\n" for number in range(20_400))
    table = texts(tmp_path, text, "1.jpg", "2.jpg").labels
    assert table is not None
    assert len(table.classes) == 10_177


def beside(folder: Path, tables: dict[str, str], *names: str) -> tuple[FolderSource, Labels]:
    """A source with tables inside that are found by themselves."""
    for path, text in tables.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    opened = dataclasses.replace(source(folder, *names), tables=tuple(sorted(tables)))
    return opened, find_labels(opened, None)


def everything(opened: FolderSource, found: Labels) -> dict[str, tuple[object, object]]:
    """By path, the label and what is carried along."""
    labels, _ = by_path(opened, *found[:2])
    paths = map(printable, opened.listing)
    return {
        path: (labels.get(path), found.carried(item) if found.carried is not None else None)
        for item, path in enumerate(paths)
    }


METADATA = {
    "metadata.csv": 'file_name,label,caption,score\n1.jpg,cat,"a cat, sitting",0.5\na/2.jpg,dog,a dog,1\n',
    "metadata.jsonl": '{"file_name": "1.jpg", "label": "cat", "caption": "a cat, sitting", "score": 0.5}\n\n'
    '{"file_name": "a/2.jpg", "label": "dog", "caption": "a dog", "score": 1}\n',
}


@pytest.mark.parametrize("file_name", METADATA)
def test_metadata_of_hugging_face_gives_classes_and_more(tmp_path: Path, file_name: str) -> None:
    score: dict[str, object] = (
        {"1.jpg": 0.5, "a/2.jpg": 1} if file_name.endswith("l") else {"1.jpg": "0.5", "a/2.jpg": "1"}
    )
    found = everything(*beside(tmp_path, {file_name: METADATA[file_name]}, "1.jpg", "a/2.jpg", "a/3.jpg"))
    assert found == {
        "1.jpg": ("cat", {"text": "a cat, sitting", "original": {"score": score["1.jpg"]}}),
        "a/2.jpg": ("dog", {"text": "a dog", "original": {"score": score["a/2.jpg"]}}),
        "a/3.jpg": (None, {"text": None, "original": {"score": None}}),
    }


def test_metadata_may_hold_attributes_in_any_column(tmp_path: Path) -> None:
    text = '{"Hat": true, "file_name": "1.jpg", "box": [1, 2]}\n{"file_name": "2.jpg", "Hat": false, "box": 1e999}\n'
    assert everything(*beside(tmp_path, {"metadata.jsonl": text}, "1.jpg", "2.jpg")) == {
        "1.jpg": ({"Hat": 1}, {"original": {"box": [1, 2]}}),
        "2.jpg": ({"Hat": 0}, {"original": {"box": None}}),
    }


def test_metadata_of_captions_alone_leaves_no_photo_out(tmp_path: Path) -> None:
    opened, found = beside(tmp_path, {"metadata.csv": "text,file_name\nhello,1.jpg\n"}, "1.jpg", "2.jpg")
    assert found.labels is None
    assert everything(opened, found) == {"1.jpg": (None, {"text": "hello"}), "2.jpg": (None, {"text": None})}


def test_what_is_carried_goes_to_other_processes(tmp_path: Path) -> None:
    _, found = beside(tmp_path, {"metadata.csv": METADATA["metadata.csv"]}, "1.jpg", "a/2.jpg")
    assert found.carried is not None
    assert pickle.loads(pickle.dumps(found.carried))(1) == found.carried(1)


def test_metadata_of_each_folder_is_about_that_folder(tmp_path: Path) -> None:
    tables = {
        "train/metadata.csv": "file_name,label\n1.jpg,cat\n",
        "test/x/metadata.jsonl": '{"file_name": "1.jpg", "label": "dog", "note": "n"}\n{"file_name": "2.jpg"}\n',
    }
    opened, found = beside(tmp_path, tables, "train/1.jpg", "test/x/1.jpg", "test/x/2.jpg", "test/1.jpg")
    assert {path: label for path, (label, _) in everything(opened, found).items()} == {
        "train/1.jpg": "cat",
        "test/x/1.jpg": "dog",
        "test/x/2.jpg": None,
        "test/1.jpg": None,
    }
    assert found.labels is not None
    reasons = {printable(path): found.labels.why_missing(item) for item, path in enumerate(opened.listing)}
    assert reasons["test/x/2.jpg"] == "no label in metadata.csv"
    assert reasons["test/1.jpg"] == "not in metadata.csv"


def test_a_table_in_a_folder_and_one_above_must_agree(tmp_path: Path) -> None:
    tables = {"a/metadata.csv": "file_name,label\n1.jpg,cat\n", "metadata.csv": "file_name,label\na/1.jpg,dog\n"}
    with pytest.raises(UserError, match=r"got line 2 of .*metadata\.csv and line 2 of .*metadata\.csv, which name the"):
        beside(tmp_path, tables, "a/1.jpg")


def test_a_file_that_only_has_the_name_is_passed_over_with_a_note(tmp_path: Path) -> None:
    tables = {"metadata.csv": "camera,lens\na,b\n", "metadata.jsonl": "[1]\n", "dataset.json": '{"images": []}'}
    _, found = beside(tmp_path, tables, "1.jpg")
    assert found[:3] == (None, None, None)
    assert [note.partition(":")[0] for note in found.notes] == ["passed over"] * 3


def test_celebas_attributes_go_before_metadata(tmp_path: Path) -> None:
    tables = {"metadata.csv": METADATA["metadata.csv"], "list_attr_celeba.csv": "image_id,Hat\n1.jpg,1\n"}
    opened, found = beside(tmp_path, tables, "1.jpg", "a/2.jpg")
    assert everything(opened, found)["1.jpg"] == ({"Hat": 1}, {"text": "a cat, sitting", "original": {"score": "0.5"}})


def test_stylegans_dataset_gives_classes(tmp_path: Path) -> None:
    text = '{"labels": [["00000/img0.png", 6], ["00000/img1.png", 10], ["00000/img2.png", null]]}'
    opened, found = beside(tmp_path, {"dataset.json": text}, *(f"00000/img{number}.png" for number in range(4)))
    assert by_path(opened, *found[:2])[0] == {"00000/img0.png": "6", "00000/img1.png": "10"}
    assert found.labels is not None
    assert found.labels.why_missing(2) == "no label in dataset.json"


def test_metadata_whose_labels_are_empty_has_none(tmp_path: Path) -> None:
    text = '{"labels": [["1.png", null], ["2.png", -1]]}'
    assert beside(tmp_path, {"dataset.json": text}, "1.png", "2.png")[1].labels is None
    text = "file_name,split,text\n1.png,,a\n2.png,,b\n"
    assert beside(tmp_path, {"metadata.csv": text}, "1.png", "2.png")[1][:2] == (None, None)


def test_stylegans_dataset_without_labels_says_nothing(tmp_path: Path) -> None:
    assert beside(tmp_path, {"dataset.json": '{"labels": null}'}, "1.png")[1] == (None, None, None, ())


@pytest.mark.parametrize("label", ["[0.5, 1]", "0.5"])
def test_vectors_and_measurements_are_carried_along_where_nobody_asked(tmp_path: Path, label: str) -> None:
    text = f'{{"labels": [["1.png", {label}]]}}'
    opened, found = beside(tmp_path, {"dataset.json": text}, "1.png")
    assert everything(opened, found) == {"1.png": (None, {"original": {"label": json.loads(label)}})}
    assert "is carried along, and no label: it has" in found.notes[0]
    with pytest.raises(UserError, match="must hold classes in column 'label'"):
        find_labels(opened, str(tmp_path / "dataset.json"))


@pytest.mark.parametrize(
    ("file_name", "text", "complaint"),
    [
        ("metadata.jsonl", '{"file_name": "1.jpg"}\n{"file_name":\n', "got '{\"file_name\":' in line 2"),
        (
            "metadata.jsonl",
            '{"file_name": "1.jpg"}\n{"text": "x"}\n',
            "with a text 'file_name' in every line; got .* line 2",
        ),
        ("metadata.jsonl", '{"file_name": "1.jpg"}\n{"file_name": "2.jpg", "text": "\\ud800"}\n', "line 2"),
        ("metadata.jsonl", '{"file_name": "1.jpg"}\n' + "[" * 5000 + "\n", "line 2"),
        ("metadata.csv", "file_name,text\n1.jpg,a,b\n", "must have 2 columns in every line; got 3 in line 2"),
        ("dataset.json", '{"labels": [["1.jpg", 1], ["2.jpg"]]}', r"got \['2.jpg'\] in entry 2"),
    ],
)
def test_malformed_metadata_names_the_line(tmp_path: Path, file_name: str, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        beside(tmp_path, {file_name: text}, "1.jpg", "2.jpg")


def test_a_table_of_hugging_face_may_be_named(tmp_path: Path) -> None:
    found = texts(tmp_path, METADATA["metadata.csv"].replace("label", "mood"), "1.jpg", "a/2.jpg")
    assert found.labels is None
    assert found.carried is not None
    assert found.carried(1) == {"text": "a dog", "original": {"mood": "dog", "score": "1"}}
    mood = texts(tmp_path, '{"file_name": "1.jpg", "mood": "sad"}\n', "1.jpg", file_name="mine.jsonl").labels
    assert mood is not None
    assert mood.classes == ("sad",)


@given(st.permutations(["a/1.jpg", "a/2.jpg", "b/1.jpg", "c.jpg"]), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_order_of_lines_changes_nothing(names: list[str], bits: list[bool]) -> None:
    lines = "".join(f"{name},{'' if bit else '-'}1\r\n" for name, bit in zip(names, bits, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        found, _ = labelled(Path(folder), f"file,Hat\r\n{lines}", *names)
    assert found == {name: {"Hat": int(bit)} for name, bit in zip(names, bits, strict=True)}


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
