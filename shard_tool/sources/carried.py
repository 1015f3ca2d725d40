"""What archives have in common: paths and links of their members, and what lies beside the photos.

    000012.jpg   000012.json   000012.cls   000012.txt      neighbours in the tar, one key, as in WebDataset

A json of our own layout becomes attributes and labels again. Everything else is kept on disk until its sample is
written: memory is 8 bytes for each input.
"""

import json
import posixpath
import re
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.protocol import MOST_CLASSES, Known
from shard_tool.sources.ranges import Scratch

SIDECARS = (".json", ".cls", ".txt")
MAX_SIDECAR_BYTES = 1 << 20
"""Larger ones are no labels, and are passed over."""
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
        self._count = 0
        self._attributes: tuple[str, ...] | None = None
        self._values = array("b")
        self._labels: list[Label] = []
        self._fields: dict[str, None] = {}
        self._texts = False

    def add(self, photos: int, sidecars: Mapping[str, bytes]) -> None:
        """Note that the next `photos` inputs have these files beside them, by one of `SIDECARS`."""
        note, attributes, label = self._read(sidecars)
        for _ in range(photos):
            self._notes.append(note)
            self._add_attributes(attributes)
            if label is not None and not self._labels:
                self._labels = [None] * self._count
            if label is not None or self._labels:
                self._labels.append(label)
            self._count += 1

    def known(self, where: str, order: NDArray[np.int64]) -> Known:
        """Labels of the inputs, where input i is the photo number `order[i]` of those that were added."""
        names = self._attributes or ()
        values = np.frombuffer(self._values, np.int8).reshape(-1, len(names))[order] if names else None
        remedy = "Leave out the files that hold them: --exclude '*.cls', or '*.json'"
        classes, class_of = number_classes(self._labels, order, where, remedy)
        return Known(where, names, values, classes, class_of)

    def carried(self, number: int) -> dict[str, object]:
        """What is left of the sidecars of photo `number`; the same fields for every photo."""
        note = self._notes[number] if self._count else {}
        found: dict[str, object] = {"text": note.get("text")} if self._texts else {}
        if self._fields:
            original = note.get("original", {})
            pad = dict.fromkeys(self._fields) if len(self._fields) <= _MOST_FIELDS else {}
            found["original"] = {**pad, **original}
        return found

    def _read(self, sidecars: Mapping[str, bytes]) -> tuple[dict[str, object], Any, Label]:
        note: dict[str, object] = {}
        attributes = label = None
        if ".json" in sidecars:
            content = _parse(sidecars[".json"])
            attributes = content.pop("attributes") if _are_attributes(content.get("attributes")) else None
            if (label := label_of(content.get("label"))) is not None:
                del content["label"]
            if content:
                note["original"] = content
                self._fields.update(dict.fromkeys(content))
        if ".cls" in sidecars:
            label = label_of(_text(sidecars[".cls"]))
        if ".txt" in sidecars:
            note["text"] = _text(sidecars[".txt"])
            self._texts = True
        return note, attributes, label

    def _add_attributes(self, attributes: dict[str, int] | None) -> None:
        if attributes and self._attributes is None:
            self._attributes = tuple(attributes)
            self._values.extend([-1] * (len(attributes) * self._count))
        if self._attributes is not None:
            same = attributes is not None and attributes.keys() == set(self._attributes)
            row = [attributes[name] if same and attributes else -1 for name in self._attributes]
            self._values.extend(map(int, row))


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


def _are_attributes(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(number in (0, 1) for number in value.values())
