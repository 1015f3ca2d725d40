"""What the columns of a table of images mean: the image, its class, its attributes, and what is merely carried along.

    image: struct<bytes, path>, or bytes     label: ClassLabel        bools: attributes      text, numbers: carried

Hugging Face writes the types of a dataset's columns into the schema of its parquet and arrow files.
"""

import json
from array import array
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from shard_tool.sources.carried import Notes, label_of, number_classes
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


class Columns(NamedTuple):
    """The columns of one table that are of interest."""

    image: str
    bytes_leaf: str
    """Where the encoded images are: the column, or a field of it."""
    path_leaf: str | None
    """Where their file names are."""
    label: str | None
    classes: tuple[str, ...]
    """Names of the classes; empty if the labels themselves are the names."""
    attributes: tuple[str, ...]
    carried: tuple[str, ...]

    @classmethod
    def of(cls, schema: Any, wanted: Wanted, where: str) -> Self:
        """The columns of an Arrow `schema`; raises `UserError` if it has not what is wanted."""
        if len(set(schema.names)) < len(schema.names):
            raise UserError(f"{where} must have columns of different names; got {_show(schema.names)}. Rename them.")
        types = _huggingface_types(schema)
        image = _image_column(schema, wanted.image, where)
        kinds = {column.name: _kind(column.type) for column in schema if column.name != image}
        for name in (wanted.label, *(wanted.attributes or ())):
            if name is not None and name not in kinds:
                raise UserError(f"{where} must have the column '{name}'; got {_show([*kinds])}. Choose one of them.")
        named = {name: types[name] for name in kinds if types.get(name, {}).get("_type") == "ClassLabel"}
        likely = [name for name in named if name not in CELEBA_ATTRIBUTES and kinds[name] == "whole"]
        label = wanted.label or (likely[0] if len(likely) == 1 else None)
        if label and kinds[label] not in (*_PLAIN, "null"):
            raise UserError(
                f"labels must be one whole number or name a row; got {schema.field(label).type!s:.60} in column "
                f"'{label}' of {where}. Choose another with --label."
            )
        classes = named[label].get("names") if label in named and kinds[label] == "whole" else None
        if not isinstance(classes, list) or len({name for name in classes if isinstance(name, str)}) < len(classes):
            classes = []
        attributes = wanted.attributes
        if attributes is None:
            celeba = {name for name in CELEBA_ATTRIBUTES if kinds.get(name) == "whole"}
            attributes = tuple(name for name in kinds if name != label and (name in celeba or kinds[name] == "truth"))
        rest = tuple(name for name in kinds if name not in (label, *attributes) and kinds[name] in _PLAIN)
        fields = _fields(schema.field(image).type)
        leaf, path_leaf = f"{image}.bytes" if fields else image, f"{image}.path"
        path = path_leaf if fields.get("path") == "text" else None
        return cls(image, leaf, path, label, tuple(classes), attributes, rest)

    @property
    def facts(self) -> list[str]:
        """Names of the columns beside the image that are read."""
        return [*([self.label] if self.label else []), *self.attributes, *self.carried]

    def images(self, batch: Any) -> Any:
        """The encoded images of a record batch, as an Arrow array; null where there is none."""
        column = batch.column(self.image)
        if self.bytes_leaf == self.image:
            return column
        return column.flatten()[column.type.get_field_index("bytes")]


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
            self._labels.extend(map(self._label, batch.column(columns.label).to_pylist()))
        if columns.carried:
            for row in batch.select(list(columns.carried)).to_pylist():
                unknown = {key: None for key, value in row.items() if isinstance(value, float) and not isfinite(value)}
                self.notes.append({**row, **unknown})  # JSON has no word for them.

    def known(self, rows: NDArray[np.int64]) -> Known:
        """Labels of `rows`."""
        names, classes, class_of = self.columns.attributes, self.columns.classes, None
        values = np.frombuffer(self._values, np.int8).reshape(-1, len(names))[rows] if names else None
        if values is not None:
            values = np.where((values < 0).any(1, keepdims=True), np.int8(-1), values)
        if classes:
            numbers = (label if isinstance(label, int) else -1 for label in self._labels)
            class_of = np.fromiter((max(-1, number) for number in numbers), np.int32, len(self._labels))[rows]
        elif self.columns.label:
            where = f"column '{self.columns.label}' of {self.where}"
            classes, class_of = number_classes(self._labels, rows, where)
            if class_of is None:
                raise UserError(f"{where} must hold labels; got none in any row. Choose another with --label.")
        return Known(self.where, names, values, classes, class_of)

    def _label(self, value: Any) -> int | str | None:
        label, count = label_of(value), len(self.columns.classes)
        fraction = label is None and isinstance(value, float) and isfinite(value)
        if fraction or (count and isinstance(label, int) and label >= count):
            raise UserError(
                f"labels must be whole numbers{f' below {count}, one for each name' if count else ''}, or -1 for none; "
                f"got {value} in column '{self.columns.label}' of {self.where}. Choose another with --label."
            )
        return label


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


def _huggingface_types(schema: Any) -> dict[str, dict[str, Any]]:
    try:
        types = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in types.items() if isinstance(kind, dict)}
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def image_columns(schema: Any) -> list[str]:
    """Columns that may hold encoded images: structs, else plain bytes."""
    types = _huggingface_types(schema)
    found = [column for column in schema if _kind(column.type) == "image"]
    found = [column for column in found if types.get(column.name, {}).get("_type", "Image") in ("Image", "Value")]
    structs = [column for column in found if _fields(column.type)]
    return [column.name for column in structs or found]


def _image_column(schema: Any, wanted: str | None, where: str) -> str:
    rule = f"{where} must have one column of encoded images"
    found = image_columns(schema)
    chosen = wanted or next((name for name in USUAL_NAMES if name in found), found[0] if len(found) == 1 else None)
    if chosen is None and found:
        raise UserError(f"{rule}; got {_show(found)}. Name it with --image.")
    chosen = chosen or next((name for name in (*USUAL_NAMES, "images") if name in schema.names), None)
    if chosen is None or chosen not in schema.names:
        got = f"no '{wanted}', but" if wanted else "none among"
        raise UserError(f"{rule}; got {got} {_show(schema.names)}. Choose one with --image.")
    if (kind := _kind(schema.field(chosen).type)) != "image":
        kind = {"text": "text (paths, addresses or base64)", "whole": "numbers", "real": "numbers"}.get(kind, kind)
        raise UserError(
            f"{rule}; got '{chosen}', which holds {kind:.60}. Store each image encoded (JPEG, PNG) as bytes, in a row "
            "of its own, or choose another column with --image."
        )
    return chosen


def _attribute_values(values: list[Any], name: str, where: str) -> list[int]:
    meaning = {1: 1, 0: 0, -1: 0, None: -1}  # True and False are 1 and 0.
    try:
        return [meaning[value] for value in values]
    except (KeyError, TypeError):
        strange = next(value for value in values if value not in (0, 1, -1, None))
        raise UserError(
            f"attributes must be 0 or 1 (or -1 and 1); got {strange!r:.60} in column '{name}' of {where}. "
            "Leave it out of --attributes."
        ) from None


def _show(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


_PLAIN = ("text", "truth", "whole", "real")
"""Kinds that the json of a sample carries."""
_KINDS = {
    **{"binary": "image", "large_binary": "image", "string": "text", "large_string": "text"},
    **{"bool": "truth", "halffloat": "real", "float": "real", "double": "real"},
    **{f"{sign}int{bits}": "whole" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def _kind(column_type: Any) -> str:
    """What values of an Arrow type are: image, text, truth, whole, real, or in words."""
    column_type = getattr(column_type, "storage_type", column_type)
    if _fields(column_type).get("bytes") in ("image", "null"):
        return "image"
    if not hasattr(column_type, "value_type"):
        return _KINDS.get(str(column_type), str(column_type))
    inner = _kind(column_type.value_type)
    if str(column_type).startswith("dictionary<"):
        return inner if inner in _PLAIN else str(column_type)
    if inner in ("whole", "real") or inner.startswith("lists of numbers"):
        return f"lists of numbers: {column_type}"
    return "lists of images" if inner == "image" else str(column_type)


def _fields(column_type: Any) -> dict[str, str]:
    """The kinds of the fields of a struct; of another type none."""
    if not str(column_type).startswith("struct<"):
        return {}
    return {one.name: _kind(one.type) for one in (column_type.field(place) for place in range(column_type.num_fields))}
