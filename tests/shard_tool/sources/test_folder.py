import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from shard_tool.sources.folder import FolderSource
from shard_tool.sources.listing import printable
from shard_tool.sources.protocol import CHUNK_FILES


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def paths(folder: Path) -> list[str]:
    return [printable(path) for path in FolderSource.open(folder).listing]


def test_photos_are_listed_by_the_bytes_of_their_paths(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "B.JPG", "a/z.png", "a.webp", "ä.jpeg", "a b.jpg")
    assert paths(tmp_path) == sorted(paths(tmp_path), key=str.encode)
    assert paths(tmp_path) == ["B.JPG", "a b.jpg", "a.webp", "a/z.png", "b.jpg", "ä.jpeg"]


def test_other_files_are_counted_and_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.md", "sub/clip.mp4", "jpg", "list_attr_celeba.csv", ".hidden/b.jpg", "._a.jpg")
    source = FolderSource.open(tmp_path)
    assert [printable(path) for path in source.listing] == ["._a.jpg", "a.jpg"]
    assert source.ignored == 3


def test_a_listing_gives_back_paths_and_sizes(tmp_path: Path) -> None:
    touch(tmp_path, "one.jpg", "folder/three.jpg")
    source = FolderSource.open(tmp_path)
    assert [source.read(item) for item in range(2)] == [b"folder/three.jpg", b"one.jpg"]
    assert source.listing.sizes.tolist() == [16, 7]


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "raw/a/one.jpg", "elsewhere/two.jpg")
    (tmp_path / "raw/a/loop").symlink_to(tmp_path / "raw")
    (tmp_path / "raw/again").symlink_to(tmp_path / "raw/a")
    (tmp_path / "raw/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw/linked2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw/broken.jpg").symlink_to(tmp_path / "nowhere")
    assert paths(tmp_path / "raw") == ["a/one.jpg", "linked/two.jpg"]


def test_a_pipe_with_the_name_of_a_photo_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    assert paths(tmp_path) == ["a.jpg"]


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"bytes")
    source = FolderSource.open(tmp_path)
    assert source.listing[0] == name
    assert source.read(0) == b"bytes"
    assert printable(name) == "caf\ufffd.jpg"


def test_chunks_cover_every_item_once(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number:03d}.jpg" for number in range(130)))
    assert FolderSource.open(tmp_path).chunks().tolist() == [*range(0, 130, CHUNK_FILES), 130]


def test_a_source_without_photos_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        FolderSource.open(tmp_path / "nowhere")
    touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="got 1 other files"):
        FolderSource.open(tmp_path)
    with pytest.raises(UserError, match="a file"):
        FolderSource.open(tmp_path / "notes.txt")


def test_tables_are_found_inside_and_up_to_two_folders_above(tmp_path: Path) -> None:
    touch(tmp_path, "t.csv", "x/t.csv", "x/y/z/t.csv", "x/y/z/p.jpg", "x/y/z/deep/p.jpg", "x/y/z/deep/t.csv")
    found = FolderSource.open(tmp_path / "x/y/z").side_files("t.csv")
    folders = [Path(file.where).parent.relative_to(tmp_path.resolve()).as_posix() for file in found]
    assert folders == ["x/y/z", "x/y/z/deep", "x"]
    assert [file.inside for file in found] == [True, True, False]
