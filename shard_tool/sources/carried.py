"""What archives have in common: paths and links of their members, and what lies beside the photos.

    000012.jpg   000012.json   000012.cls   000012.txt      neighbours in the tar, one key, as in WebDataset

A json of our own layout becomes attributes and labels again. Everything else is kept on disk until its sample is
written: memory is 8 bytes for each input.
"""

import functools
import json
import posixpath
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.listing import compact
from shard_tool.sources.protocol import MOST_CLASSES, Known, SideFile
from shard_tool.sources.ranges import Scratch

SIDECARS = (".json", ".cls", ".txt")
MAX_SIDECAR = 1 << 20
"""Bytes; larger ones are no labels, and are passed over."""
_MOST_FIELDS = 256
"""Fields of all jsons together up to which every sample gets all of them, missing ones as null."""

Label = int | str | None


def clean_path(path: str) -> str:
    """`path` below the folder that the archive is unpacked into: without `.`, `..`, a drive, or a slash in front."""
    parts: list[str] = []
    for part in path.replace("\0", "_").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts[1:] if len(parts) > 1 and re.fullmatch("[A-Za-z]:", parts[0]) else parts)


def link_target(path: str, target: str) -> str:
    """The path that the symbolic link at `path` points to; empty where that lies outside of the archive."""
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return "" if joined.split("/")[0] in ("", "..") else joined


def follow(links: Mapping[str, str], path: str) -> str:
    """The path at the end of a chain of `links`; empty for a circle."""
    for _ in range(40):  # As many as Linux follows.
        if path not in links:
            return path
        path = links[path]
    return ""


def side_files(
    where: str, tables: Iterable[str], file_name: str, open_table: Callable[[str], BinaryIO]
) -> list[SideFile]:
    """Those of the `tables` in an archive that are called `file_name`, the least deep first."""
    found = [path for path in tables if path.rpartition("/")[2] == file_name]
    found.sort(key=lambda path: (path.count("/"), path))
    return [SideFile(f"{where}/{path}", True, functools.partial(open_table, path), path) for path in found]


class Notes:
    """One small dictionary for each input, on disk."""

    def __init__(self) -> None:
        self._ends = array("Q")
        self._scratch = Scratch()

    def append(self, note: Mapping[str, object]) -> None:
        """The note of the next input."""
        if note:
            self._scratch.append(json.dumps(note, ensure_ascii=False, separators=(",", ":")).encode())
        self._ends.append(self._scratch.size)

    def __getitem__(self, number: int) -> dict[str, Any]:
        first = self._ends[number - 1] if number else 0
        text = self._scratch.read(first, self._ends[number] - first)
        return json.loads(text) if text else {}


class Collector:
    """Gathers the sidecars of one archive while it is listed, photo after photo."""

    def __init__(self) -> None:
        self._notes = Notes()
        self._labels: list[Label] = []
        self._attributes: tuple[str, ...] = ()
        self._values = array("b")
        self._fields: dict[str, None] = {}
        self._texts = False

    def add(self, photos: int, sidecars: Mapping[str, bytes]) -> None:
        """Note that the next `photos` inputs have these files beside them, by one of `SIDECARS`."""
        content = _parse(sidecars.get(".json", b"{}"))
        attributes: dict[str, int] = {}
        given = content.get("attributes")
        if given and isinstance(given, dict) and all(number in (0, 1) for number in given.values()):
            attributes = content.pop("attributes")
        if (label := label_of(content.get("label"))) is not None:
            del content["label"]
        if ".cls" in sidecars:
            label = label_of(_text(sidecars[".cls"]))
        note: dict[str, object] = {"original": content} if content else {}
        self._fields.update(dict.fromkeys(content))
        if ".txt" in sidecars:
            note["text"] = _text(sidecars[".txt"])
            self._texts = True
        if not self._attributes:
            self._attributes = tuple(attributes)
            self._values.extend([-1] * (len(attributes) * len(self._labels)))
        same = attributes.keys() == set(self._attributes)
        row = [int(attributes[name]) if same else -1 for name in self._attributes]
        for _ in range(photos):
            self._notes.append(note)
            self._labels.append(label)
            self._values.extend(row)

    def known(self, where: str, order: NDArray[np.int64]) -> Known:
        """Labels of the inputs, where input i is the photo number `order[i]` of those that were added."""
        names = self._attributes
        values = np.frombuffer(self._values, np.int8).reshape(-1, len(names))[order] if names else None
        remedy = "Leave out the files that hold them: --exclude '*.cls', or '*.json'"
        classes, class_of = number_classes(self._labels, order, where, remedy)
        self._order = compact(order.astype(np.uint64))
        del self._labels, self._values  # As large as what is made of them.
        return Known(where, names, values, classes, class_of)

    def carried(self, item: int) -> dict[str, object]:
        """What is left of the sidecars of one input; the same fields for every one."""
        note = self._notes[int(self._order[item])]
        found: dict[str, object] = {"text": note.get("text")} if self._texts else {}
        if self._fields:
            pad = dict.fromkeys(self._fields) if len(self._fields) <= _MOST_FIELDS else {}
            found["original"] = {**pad, **note.get("original", {})}
        return found


def label_of(value: object) -> Label:
    """What a source gives as the class of a photo: a number (also as text, truth value or 3.0) or a name; else None."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if re.fullmatch(r"[+-]?\d{1,18}", value) else sys.intern(value) or None
    return int(value) if isinstance(value, int | float) and value == value // 1 else None


def number_classes(
    labels: Iterable[object],
    order: NDArray[np.int64],
    where: str = "",
    remedy: str = "Name another column with --label, or none",
) -> tuple[tuple[str, ...], NDArray[np.int32] | None]:
    """Class names and numbers: those that are numbers already keep them, names are numbered in sorted order.

    A photo whose number is negative, as some write for "unknown", has no class: -1. Raises `UserError`, with `remedy`,
    where the labels are no classes.
    """
    labels = list(labels)
    found = [None if isinstance(label, int) and label < 0 else label for label in map(label_of, labels)]
    given = {label for label in found if label is not None}
    highest = max((label for label in given if isinstance(label, int)), default=0)
    got = f"{len(given):,} names, as ids have" if len(given) > MOST_CLASSES else ""
    got = f"the number {highest:,}, as ids have" if highest >= MOST_CLASSES else got
    got = next((str(label) for label in labels if isinstance(label, float) and label % 1), got)
    if got:
        raise UserError(
            f"the labels{' in ' * bool(where)}{where} must be classes, at most {MOST_CLASSES:,}; got {got}. {remedy}."
        )
    if not given:
        return (), None
    if any(isinstance(label, str) for label in given):
        names = tuple(sorted(map(str, given)))
        number_of: Mapping[Label, int] = {name: number for number, name in enumerate(names)}
        numbers = [-1 if label is None else number_of[str(label)] for label in found]
    else:
        names = tuple(map(str, range(highest + 1)))
        numbers = [-1 if label is None else int(label) for label in found]
    return names, np.array(numbers, np.int32)[order]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace").strip()


def _parse(data: bytes) -> dict[str, Any]:
    """The json as an object that every reader accepts; a text that is none is kept as it is."""
    try:
        content = json.loads(data, parse_constant=lambda name: None)
        if b"\\u" in data:  # Half of a surrogate pair is valid JSON, and no text.
            content = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        content = data.decode("utf-8", "replace")
    return content if isinstance(content, dict) else {"json": content}
