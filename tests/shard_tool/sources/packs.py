"""The same photos packed in every way that a source may come."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shard_tool.sources.protocol import InputError, Source


def files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Relative path and content of every file below `folder`, in no sorted order."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.name[::-1]):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def zip_of(folder: Path, out: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """`folder` as a zip."""
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in files_of(folder):
            archive.writestr(name, data)
    return out


def tar_of(entries: Iterable[tuple[str, bytes]] | Path, out: Path, compression: str = "", **options: Any) -> Path:
    """Entries, or the files of a folder, as a tar."""
    entries = files_of(entries) if isinstance(entries, Path) else entries
    with tarfile.open(out, f"w:{compression}", **options) as archive:
        for name, data in entries:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out


def webdataset_of(folder: Path, out: Path, extras: dict[str, Any] | None = None) -> Path:
    """The photos of `folder` as a WebDataset shard; `extras` has for an extension a function of the photo's number."""
    entries = []
    for number, (name, data) in enumerate(sorted(files_of(folder))):
        key = f"{number:06d}"
        entries.append((f"{key}.jpg", data))
        for extension, make in (extras or {"json": lambda number: {"was": number}}).items():
            value = make(number)
            entries.append((f"{key}.{extension}", (value if isinstance(value, str) else json.dumps(value)).encode()))
        assert name
    return tar_of(entries, out)


def contents(source: Source) -> dict[str, bytes]:
    """Every path of a source and what is read there; by `read` and by `read_through` alike."""
    count = len(source.listing)
    through = [data for data in source.read_through(range(count)) if not isinstance(data, InputError)]
    single = [source.read(item) for item in range(count)]
    assert through == single
    return {path.decode(): data for path, data in zip(source.listing, single, strict=True)}
