from pathlib import Path

import pytest

from pipeline.errors import UserError
from shard_tool.labels import ATTRIBUTES_FILE, PARTITION_FILE, find_attributes, find_partition
from shard_tool.source import FolderSource, printable


def source(folder: Path, *names: str) -> FolderSource:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo")
    return FolderSource.open(folder)


def attributes(folder: Path, text: str, *names: str) -> dict[str, dict[str, int] | None]:
    (folder / ATTRIBUTES_FILE).write_text(text, encoding="utf-8")
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
    (tmp_path / PARTITION_FILE).write_text("image_id,partition\n1.jpg,0\n2.jpg,1\n3.jpg,2\n")
    table = find_partition(source(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg", "4.jpg"))
    assert table is not None
    assert table.values[table.row_of[:3], 0].tolist() == [0, 1, 2]
    assert table.missing == 1


def test_a_folder_without_tables_has_no_labels(tmp_path: Path) -> None:
    opened = source(tmp_path / "x/y/z", "1.jpg")
    assert find_attributes(opened) is None
    assert find_partition(opened) is None


def test_a_table_above_about_other_photos_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ATTRIBUTES_FILE).write_text("image_id,Male\nother.jpg,1\n")
    assert find_attributes(source(tmp_path / "images", "1.jpg")) is None


def test_two_tables_inside_are_an_error(tmp_path: Path) -> None:
    opened = [source(tmp_path, "a/1.jpg", "b/1.jpg")]
    for folder in "ab":
        (tmp_path / folder / ATTRIBUTES_FILE).write_text("image_id,Male\n1.jpg,1\n")
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
    (tmp_path / ATTRIBUTES_FILE).write_bytes(b"image_id,Male\n\xff\xfe.jpg,1\n")
    with pytest.raises(UserError, match="must be UTF-8"):
        find_attributes(source(tmp_path, "1.jpg"))


def test_a_partition_of_another_value_is_an_error(tmp_path: Path) -> None:
    (tmp_path / PARTITION_FILE).write_text("image_id,partition\n1.jpg,3\n")
    with pytest.raises(UserError, match="must hold 0, 1, 2 only; got '3'"):
        find_partition(source(tmp_path, "1.jpg"))
