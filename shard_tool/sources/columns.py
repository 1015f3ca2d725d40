"""What the columns of a table of images mean: the image, its class, its attributes, and what is merely carried along.

    image: struct<bytes, path>, or bytes     label: ClassLabel        bools: attributes      text, numbers: carried

Hugging Face writes the types of a dataset's columns into the schema of its parquet and arrow files.
"""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.carried import Notes, number_classes
from shard_tool.sources.protocol import Known, Wanted

USUAL_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "photo", "picture")
"""Names by which one of several columns of bytes is taken for the image."""
_CELEBA_NAMES = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry
Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
Wearing_Necktie Young
"""
CELEBA_ATTRIBUTES = frozenset(_CELEBA_NAMES.split())
"""Columns of these names are attributes, also where they hold numbers."""


@dataclass(frozen=True)
class Columns:
    """The columns of one table that are of interest."""

    image: str
    bytes_column: str
    """Name of the leaf that holds the encoded images."""
    path_column: str | None
    """Name of the leaf that holds their file names."""
    label: str | None
    classes: tuple[str, ...]
    """Names of the classes; empty where the labels themselves are the names."""
    attributes: tuple[str, ...]
    carried: tuple[str, ...]

    @classmethod
    def of(cls, schema: Any, wanted: Wanted, where: str) -> Self:
        """The columns of an Arrow `schema`; raises `UserError` where it has not what is wanted."""
        types = _huggingface_types(schema)
        image = _image_column(schema, wanted.image, where)
        nested = _is_struct(schema.field(image).type)
        names = [column.name for column in schema if column.name != image]
        for name in (wanted.label, *(wanted.attributes or ())):
            if name is not None and name not in names:
                raise UserError(f"{where} must have the column '{name}'; got {_show(names)}. Choose one of them.")
        named = [name for name in names if types.get(name, {}).get("_type") == "ClassLabel"]
        named = [name for name in named if name not in CELEBA_ATTRIBUTES]
        label = wanted.label or (named[0] if len(named) == 1 else None)
        classes = tuple(types.get(label, {}).get("names") or ()) if label else ()
        attributes = wanted.attributes
        if attributes is None:
            attributes = tuple(name for name in names if name != label and _is_attribute(schema.field(name)))
        rest = [name for name in names if name not in (label, *attributes) and _is_plain(schema.field(name).type)]
        path = f"{image}.path" if nested and _has_field(schema.field(image).type, "path") else None
        return cls(image, f"{image}.bytes" if nested else image, path, label, classes, attributes, tuple(rest))

    @property
    def origin(self) -> dict[str, str]:
        """What a set must record: from another column it would be another set."""
        return {"image_column": self.image}

    @property
    def facts(self) -> list[str]:
        """Names of the columns beside the image that are read."""
        return [*([self.label] if self.label else []), *self.attributes, *self.carried]


@dataclass
class Facts:
    """What a table says of its images, gathered batch after batch."""

    columns: Columns
    where: str
    notes: Notes = field(default_factory=Notes)
    _values: "array[int]" = field(default_factory=lambda: array("b"))
    _labels: list[int | str | None] = field(default_factory=list)

    def add(self, batch: Any) -> None:
        """Take in a record batch that has the columns `Columns.facts`."""
        columns = self.columns
        if columns.attributes:
            rows = [_attribute_values(batch.column(name).to_pylist(), name, self.where) for name in columns.attributes]
            self._values.frombytes(np.array(rows, np.int8).T.tobytes())
        if columns.label:
            self._labels.extend(batch.column(columns.label).to_pylist())
        if columns.carried:
            for row in batch.select(list(columns.carried)).to_pylist():
                self.notes.append(row)

    def known(self) -> Known:
        """Labels of all rows."""
        names = self.columns.attributes
        values = np.frombuffer(self._values, np.int8).reshape(-1, len(names)) if names else None
        if values is not None:
            values = np.where((values < 0).any(1, keepdims=True), np.int8(-1), values)
        classes, class_of = self._classes()
        return Known(self.where, names, values, classes, class_of)

    def carried(self, number: int) -> dict[str, object]:
        """The other columns of one row."""
        return {"original": self.notes[number]} if self.columns.carried else {}

    def _classes(self) -> tuple[tuple[str, ...], NDArray[np.int32] | None]:
        everything = np.arange(len(self._labels), dtype=np.int64)
        if not self.columns.classes:
            return number_classes(self._labels, everything)
        numbers = [-1 if label is None else int(label) for label in self._labels]
        return self.columns.classes, np.array(numbers, np.int32)


def row_names(base: str, first: int, count: int, width: int) -> Iterator[bytes]:
    """Paths for rows of the table `base`, which sort as their numbers do."""
    return (f"{base}#{number:0{width}}".encode() for number in range(first, first + count))


def stored_path(path: str) -> bytes:
    """A path that came with an image; of an absolute one, which says something of somebody's disk, the name."""
    path = path.replace("\\", "/").replace("\0", "_")
    return (path.rpartition("/")[2] if path.startswith("/") or path[1:3] == ":/" else path).encode()


def pyarrow_of(where: str) -> Any:
    """The package `pyarrow`, with its readers; `UserError` where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{where} must be read with pyarrow; got no such package. "
            "Install it with: pip install 'leanstream[parquet]'."
        ) from None
    return pyarrow


def _huggingface_types(schema: Any) -> dict[str, Any]:
    try:
        types = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return types if isinstance(types, dict) else {}


def _image_column(schema: Any, wanted: str | None, where: str) -> str:
    names = [column.name for column in schema]
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{where} must have the column '{wanted}'; got {_show(names)}. Choose one with --image.")
        kind = schema.field(wanted).type
        if not (_is_bytes(kind) or (_is_struct(kind) and _has_field(kind, "bytes"))):
            raise UserError(
                f"--image must name a column of encoded images; got '{wanted}' of type {kind}. Choose another."
            )
        return wanted
    structs = [column.name for column in schema if _is_struct(column.type) and _has_field(column.type, "bytes")]
    found = structs or [column.name for column in schema if _is_bytes(column.type)]
    usual = [name for name in USUAL_NAMES if name in found]
    if len(found) == 1 or usual:
        return found[0] if len(found) == 1 else usual[0]
    got = _show(found) if found else f"none among {_show(names)}"
    raise UserError(f"{where} must have one column of encoded images; got {got}. Name it with --image.")


def _attribute_values(values: list[Any], name: str, where: str) -> list[int]:
    meaning = {1: 1, 0: 0, -1: 0, None: -1}  # True and False are 1 and 0.
    try:
        return [meaning[value] for value in values]
    except (KeyError, TypeError):
        strange = next(value for value in values if value not in (0, 1, -1, None))
        raise UserError(
            f"attributes must be 0 or 1 (or -1 and 1); got {strange!r} in column '{name}' of {where}. "
            "Leave it out of --attributes."
        ) from None


def _show(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _is_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<")


def _has_field(kind: Any, name: str) -> bool:
    return any(kind.field(number).name == name for number in range(kind.num_fields))


def _is_bytes(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary")


def _is(kind: Any, *names: str) -> bool:
    return str(kind) in names


def _is_attribute(column: Any) -> bool:
    return _is(column.type, "bool") or (column.name in CELEBA_ATTRIBUTES and _is(column.type, *_INTEGERS))


def _is_plain(kind: Any) -> bool:
    return _is(kind, "string", "large_string", "bool", "float", "double", *_INTEGERS)


_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
