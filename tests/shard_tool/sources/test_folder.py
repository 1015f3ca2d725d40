import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from shard_tool.sources.folder import FolderSource
from shard_tool.sources.listing import printable
from shard_tool.sources.protocol import CHUNK_FILES, Wanted


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
    assert [printable(path) for path in source.listing] == ["a.jpg"]
    assert source.ignored == {"not an image": 3, "table": 1, "hidden": 2}


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
    assert paths(tmp_path / "raw") == ["a/one.jpg", "linked/two.jpg"]


def test_links_that_lead_nowhere_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "ok.jpg", "file")
    for name, end in (
        ("a.jpg", "/mnt/gone/a.jpg"),
        ("self.jpg", "self.jpg"),
        ("dir", "/mnt/gone"),
        ("x.jpg", "file/x"),
    ):
        (tmp_path / name).symlink_to(end)
    source = FolderSource.open(tmp_path)
    assert [*source.listing] == [b"ok.jpg"]
    assert source.ignored == {"broken link": 4, "not an image": 1}


def test_pipes_and_sockets_with_the_name_of_a_photo_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    monkeypatch.chdir(tmp_path)  # The path of a socket may have some hundred bytes.
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("c.jpg")
        source = FolderSource.open(tmp_path)
    assert [*source.listing] == [b"a.jpg"]
    assert source.ignored == {"not a regular file": 2}


def test_a_photo_that_goes_while_it_is_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    scan = os.scandir

    def slow(folder: str) -> Any:
        found = list(scan(folder))
        (tmp_path / "b.jpg").unlink(missing_ok=True)
        return contextlib.nullcontext(found)

    monkeypatch.setattr(os, "scandir", slow)
    assert FolderSource.open(tmp_path).ignored == {"gone while it was listed": 1}


def test_a_folder_that_may_not_be_listed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    scan = os.scandir

    def locked(folder: str) -> Any:
        if folder.endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"listing .* must succeed; got 'Permission denied' .*locked\. Give yourself"):
        FolderSource.open(tmp_path)


def test_what_systems_put_beside_photos_is_counted(tmp_path: Path) -> None:
    folders = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "System Volume Information", "lost+found")
    touch(
        tmp_path, "a.jpg", *(f"{folder}/a.jpg" for folder in folders), ".thumbnails/a.jpg", "Thumbs.db", "desktop.ini"
    )
    source = FolderSource.open(tmp_path)
    assert [*source.listing] == [b"a.jpg"]
    assert source.ignored == {"system folder": 6, "hidden": 1, "not an image": 2}


@pytest.mark.parametrize("data", [b"", b"short", b"a photo that has grown in the meantime"])
def test_a_photo_of_another_size_than_listed_is_an_error(tmp_path: Path, data: bytes) -> None:
    touch(tmp_path, "raw/photo.jpg")
    source = FolderSource.open(tmp_path / "raw")
    (tmp_path / "raw/photo.jpg").write_bytes(data)
    with pytest.raises(OSError, match=rf"has {len(data)} bytes, 13 when it was listed"):
        source.read(0)


def test_a_photo_that_has_gone_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "raw/photo.jpg")
    source = FolderSource.open(tmp_path / "raw")
    (tmp_path / "raw/photo.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0)


def test_files_without_an_extension_are_photos_by_their_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "0a1b").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    touch(tmp_path, "README", "notes.md")
    source = FolderSource.open(tmp_path)
    assert [*source.listing] == [b"0a1b"]
    assert source.ignored == {"not an image": 2}
    touch(tmp_path, "a.jpg")
    assert paths(tmp_path) == ["a.jpg"]


def test_photos_are_included_and_excluded_by_globs(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.PNG", "x/a.jpg", "x/y/c.jpg", "z/c.jpg")

    def taken(*include: str, exclude: tuple[str, ...] = ()) -> list[str]:
        found = FolderSource.open(tmp_path, Wanted(include=include, exclude=exclude))
        assert len(found.listing) + sum(found.ignored.values()) == 5
        return [printable(path) for path in found.listing]

    assert taken("*.png") == ["b.PNG"]
    assert taken("a.jpg") == ["a.jpg", "x/a.jpg"]
    assert taken("./x/*.jpg") == ["x/a.jpg"]
    assert taken("x/**", "z/") == ["x/a.jpg", "x/y/c.jpg", "z/c.jpg"]
    assert taken("**/[!a].jpg") == ["x/y/c.jpg", "z/c.jpg"]
    assert taken("*.jpg", exclude=("x/",)) == ["a.jpg", "z/c.jpg"]
    assert taken(exclude=("?.jpg",)) == ["b.PNG"]
    with pytest.raises(UserError, match=r"--include and --exclude must leave photos in .*; got none, and 5 files"):
        taken("*.gif")


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


def test_a_source_without_photos_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        FolderSource.open(tmp_path / "nowhere")
    touch(tmp_path, *(f"{number}.CR2" for number in range(12)), "a.jxl", "a.csv", "noext")
    with pytest.raises(
        UserError, match=r"no images that can be read; got 12 \.cr2 \(camera raw\), 1 \.jxl \(JPEG XL\), .*1 'table'"
    ):
        FolderSource.open(tmp_path)


def test_tables_are_found_inside_and_up_to_two_folders_above(tmp_path: Path) -> None:
    touch(tmp_path, "t.csv", "x/t.csv", "x/y/z/t.csv", "x/y/z/p.jpg", "x/y/z/deep/p.jpg", "x/y/z/deep/t.csv")
    found = FolderSource.open(tmp_path / "x/y/z").side_files("t.csv")
    folders = [Path(file.where).parent.relative_to(tmp_path.resolve()).as_posix() for file in found]
    assert folders == ["x/y/z", "x/y/z/deep", "x"]
    assert [file.inside for file in found] == [True, True, False]


def test_celebas_folders_of_tables_are_found_beside_its_photos(tmp_path: Path) -> None:
    touch(tmp_path, "CelebA/Img/raw/1.jpg", "CelebA/Anno/t.csv", "CelebA/Eval/t.csv")
    for folder in ("CelebA/Img", "CelebA/Img/raw"):
        found = FolderSource.open(tmp_path / folder).side_files("t.csv")
        assert [Path(file.where).parent.name for file in found] == ["Anno", "Eval"]
        with found[0].open() as file:
            assert file.read() == b"CelebA/Anno/t.csv"
