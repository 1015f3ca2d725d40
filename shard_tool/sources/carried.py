"""What lies beside the photos of an archive, for the json of their samples: WebDataset's json, cls and txt.

    000012.jpg   000012.json   000012.cls   000012.txt      neighbours in the tar, one key

A json of our own layout becomes attributes and labels again. Everything else is kept on disk until its sample is
written: memory is 8 bytes for each input.
"""

import json
import sys
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard_tool.sources.protocol import Known
from shard_tool.sources.scratch import Scratch

SIDECARS = ("json", "cls", "txt")
MAX_SIDECAR_BYTES = 1 << 20
"""Larger ones are no labels, and are passed over."""
_MOST_FIELDS = 256
"""Fields of all jsons together up to which every sample gets all of them, missing ones as null."""


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
        self._labels: list[int | str | None] = []
        self._fields: dict[str, None] = {}
        self._texts = False

    def add(self, photos: int, sidecars: Mapping[str, bytes]) -> None:
        """Note that the next `photos` inputs have these files beside them, by extension."""
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
        classes, class_of = number_classes(self._labels, order)
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

    def _read(self, sidecars: Mapping[str, bytes]) -> tuple[dict[str, object], Any, int | str | None]:
        note: dict[str, object] = {}
        attributes = label = None
        if "json" in sidecars:
            content = _parse(sidecars["json"])
            attributes, label = content.pop("attributes", None), content.get("label")
            if not _are_attributes(attributes):
                attributes = content.update({"attributes": attributes}) if attributes is not None else None
            if isinstance(label, int) and not isinstance(label, bool):
                del content["label"]
            else:
                label = None
            if content:
                note["original"] = content
                self._fields.update(dict.fromkeys(content))
        if "cls" in sidecars:
            text = sidecars["cls"].decode("utf-8", "replace").strip()
            label = int(text) if text.isdecimal() else sys.intern(text)
        if "txt" in sidecars:
            note["text"] = sidecars["txt"].decode("utf-8", "replace").strip()
            self._texts = True
        return note, attributes, label

    def _add_attributes(self, attributes: dict[str, int] | None) -> None:
        if attributes and self._attributes is None:
            self._attributes = tuple(attributes)
            self._values.extend([-1] * (len(attributes) * self._count))
        if self._attributes is not None:
            same = attributes is not None and attributes.keys() == set(self._attributes)
            row = [attributes[name] if same and attributes else -1 for name in self._attributes]
            self._values.extend(max(-1, value) for value in row)


def number_classes(
    labels: "list[int | str | None]", order: NDArray[np.int64]
) -> tuple[tuple[str, ...], NDArray[np.int32] | None]:
    """Class names and numbers: those that are numbers already keep them, names are numbered in sorted order."""
    if not labels:
        return (), None
    given = [label for label in labels if label is not None]
    if all(isinstance(label, int) for label in given):
        names = tuple(str(number) for number in range(max(int(label) for label in given) + 1))
        numbers: dict[Any, int] = {number: number for number in range(len(names))}
    else:
        names = tuple(sorted({str(label) for label in given}))
        numbers = {name: number for number, name in enumerate(names)}
        labels = [None if label is None else str(label) for label in labels]
    found = np.fromiter((-1 if label is None else numbers[label] for label in labels), np.int32, len(labels))
    return names, found[order]


def _parse(data: bytes) -> dict[str, Any]:
    """The json as an object; a text that is none is kept as it is."""
    try:
        content = json.loads(data)
    except ValueError:
        content = data.decode("utf-8", "replace")
    return content if isinstance(content, dict) else {"json": content}


def _are_attributes(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(number in (0, 1) for number in value.values())
