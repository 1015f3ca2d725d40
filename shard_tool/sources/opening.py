"""What a path or URL is, by its content: the one place that knows all kinds of sources.

folder | zip | tar | tar.gz ... | parquet | arrow | a folder of those | a URL of those | hf://datasets/USER/NAME
"""

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, describe_os_error
from pipeline.files import is_url
from pipeline.machine import release_memory
from shard_tool.sources.folder import FolderSource
from shard_tool.sources.protocol import WHATEVER, Source, Wanted, split_in_name
from shard_tool.sources.ranges import LocalRanges, Ranges, open_ranges
from shard_tool.sources.several import SeveralSources
from shard_tool.sources.streams import StreamSource
from shard_tool.sources.tars import TarSource
from shard_tool.sources.zips import ZipSource

ARCHIVE_EXTENSIONS = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".parquet", ".arrow")
"""Files with these extensions are looked for in a folder that holds no photos."""
_BEGINNINGS = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"PAR1": "parquet",
    b"\xff\xff\xff\xff": "arrow",
    b"ARROW1": "arrow",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
_COMPRESSED = ("gz", "bz2", "xz", "zst")
_REMEDIES = {
    "7z": "Unpack it (7z x FILE) and name the folder",
    "rar": "Unpack it (unrar x FILE) and name the folder",
    "": "Name a folder of photos, a zip, a tar, or parquet files",
}


def open_sources(names: Sequence[str], wanted: Wanted = WHATEVER) -> Source:
    """The source behind one or more paths, globs and URLs; raises `UserError` where one of them is none."""
    parts = [part for name in names for where in _expand(name) for part in _open(where, wanted)]
    source = parts[0] if len(parts) == 1 else SeveralSources.join(_with_splits(parts))
    release_memory()
    return source


def _expand(name: str) -> list[str]:
    """The places that a glob stands for, sorted; a name that exists is never one."""
    if not glob.has_magic(name) or os.path.lexists(name):
        return [name]
    if is_url(name):
        from shard_tool.sources.remote import expand  # Loads fsspec.

        found = expand(name)
    else:
        found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise UserError(f"{name} must stand for something; got no file of such a name. Check the path.")
    return found


def _open(where: str, wanted: Wanted) -> list[Source]:
    if is_url(where):
        from shard_tool.sources.remote import open_remote  # Loads fsspec.

        return open_remote(where, wanted, open_file)
    path = Path(where)
    if not path.exists():
        raise UserError(f"the source must be there; got no such folder or file: {path}. Check the path.")
    if not path.is_dir():
        return [open_file(where, wanted)]
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        from shard_tool.sources.arrow import open_dataset_folder

        return open_dataset_folder(path, wanted)
    archives = _archives_of(path)
    return [open_file(str(archive), wanted) for archive in archives] or [FolderSource.open(path)]


def _archives_of(folder: Path) -> list[Path]:
    """The archives and tables in a folder that holds no photos, in the order of their paths."""
    if not any(path.name.lower().endswith(ARCHIVE_EXTENSIONS) for path in folder.rglob("*")):
        return []
    if FolderSource.holds_photos(folder):
        return []
    found = [path for path in folder.rglob("*") if path.name.lower().endswith(ARCHIVE_EXTENSIONS) and path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def open_file(where: str, wanted: Wanted) -> Source:
    """The source in one file, on this machine or behind a URL."""
    try:
        file = open_ranges(where)
        kind = kind_of(file)
    except FileNotFoundError:
        raise UserError(f"the source must be there; got nothing at {where}. Check the address.") from None
    except OSError as error:
        raise describe_os_error(error, f"reading {where}") from error
    name = name_of(where)
    if kind == "zip":
        return ZipSource.open(file, name)
    if kind == "tar" and isinstance(file, LocalRanges):
        return TarSource.open(file, name)
    if kind == "tar" or kind in _COMPRESSED:
        return StreamSource.open(where, kind if kind in _COMPRESSED else "", name)
    if kind == "parquet":
        from shard_tool.sources.parquet import ParquetSource

        return ParquetSource.open(file, name, wanted)
    if kind == "arrow" and isinstance(file, LocalRanges):
        from shard_tool.sources.arrow import ArrowSource

        return ArrowSource.open(file, name, wanted)
    raise UserError(
        f"the source must be a folder, a zip, a tar or a table of photos; got {where}, "
        f"{f'a {kind} file' if kind else 'something else'}. {_REMEDIES.get(kind, _REMEDIES[''])}."
    )


def kind_of(file: Ranges) -> str:
    """What the file is, by its first bytes; empty where that is unknown."""
    start = file.read(0, 512)
    if start[257:262] == b"ustar":
        return "tar"
    kind = next((kind for magic, kind in _BEGINNINGS.items() if start.startswith(magic)), "")
    return kind or ("tar" if file.where.endswith(".tar") else "")


def name_of(where: str) -> str:
    """The last part of a path or URL, without the extensions of archives."""
    name = os.path.basename(re.sub(r"[?#].*", "", where) if is_url(where) else os.path.abspath(where))
    extension = max((one for one in ARCHIVE_EXTENSIONS if name.lower().endswith(one)), key=len, default="")
    return name[: len(name) - len(extension)] or name


def _with_splits(parts: list[Source]) -> list[Source]:
    """`parts` with the splits that their names speak of (`train-000.tar`, `val-000.tar`), where all do and differ."""
    splits = [split_in_name(part.name) for part in parts]
    if -1 in splits or len(set(splits)) < 2 or any(part.known.split_of is not None for part in parts):
        return parts
    return [_in_split(part, split) for part, split in zip(parts, splits, strict=True)]


def _in_split(part: Source, split: int) -> Source:
    known = dataclasses.replace(part.known, split_of=np.full(len(part.listing), split, np.int8))
    return dataclasses.replace(part, known=known)  # type: ignore[type-var]
