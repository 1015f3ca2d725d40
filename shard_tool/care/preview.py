"""`preview`: a contact sheet of a shard set, each image with its key and labels.

rows in a mixed order --> those wanted (inspect.py knows the labels) --> decoded --> tiles with captions --> a file
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.counter import permutation
from pipeline.errors import UserError
from pipeline.files import atomic_writer
from pipeline.format import ShardSet, Split
from pipeline.shards.decode import Decoder
from pipeline.shards.shard import ShardFile
from shard_tool.care.inspect import label_counts, open_described
from shard_tool.display import Report, counted

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
MOST_IMAGES = 1000
_MIXED_SHARDS = 16
"""Shards whose rows are mixed at a time: a page of a billion images must not permute them all."""

_TILE = 144
_GAP = 16
_MARGIN = 32
_HEADER = 84
_LABEL_LINES = 2
_LINE = 17
_PAPER, _INK, _GREY = "#fbfaf8", "#1f1d1b", "#77726c"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Sample(NamedTuple):
    """One image of the sheet."""

    file: ShardFile
    row: int
    labels: tuple[str, ...]
    """What it has, the rarest first."""


def preview(
    folder: str,
    out: Path | None,
    *,
    count: int,
    split: str | None,
    seed: int,
    attribute: str | None,
    report: Report,
) -> Path:
    """Paint samples of the set in `folder` into the picture `out` and return its path.

    `attribute` is an attribute that all of them must have, or a class; `report` is told how many are found.

    Raises `UserError` for what cannot be shown, and `ShardError` where a sample is damaged.
    """
    if not 1 <= count <= MOST_IMAGES:
        raise UserError(f"count must be from 1 to {MOST_IMAGES:,}; got {count:,}. 64 fill a page.")
    shards = open_described(folder)
    names = shards.attributes or shards.classes
    if attribute is not None and attribute not in names:
        have = ", ".join(names) or "it has none"
        raise UserError(f"attribute must be one of the set's ({have}); got '{attribute}'. Name another.")
    out = Path(f"{shards.name}-preview.jpg") if out is None else out
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--out must end with {', '.join(FORMATS)}; got {out}. Choose one of them.")
    if out.resolve().is_relative_to(shards.folder.resolve()):
        raise UserError(f"--out must lie outside the set, which holds nothing but itself; got {out}. Choose a place.")
    split = split or ("train" if "train" in shards.splits else next(iter(shards.splits), "train"))
    content = shards.split(split)
    samples: list[Sample] = []
    for sample in _samples(shards, content, seed):
        if attribute is None or attribute in sample.labels:
            samples.append(sample)
        report(len(samples), 0)
        if len(samples) == count:
            break
    if not samples:
        raise UserError(f"attribute must be one that samples of {split} have; got '{attribute}'. Name another.")
    chosen = f" with {attribute}" if shards.attributes else f" of {attribute}"
    images = counted(content.total, "image")
    details = [
        f"{len(samples):,} of {images}" if attribute is None else f"{counted(len(samples), 'image')}{chosen}",
        *(split, f"{shards.image_size} px", shards.encoding),
    ]
    sheet = paint(shards, samples, shards.name, " · ".join(details))
    with atomic_writer(out) as file:
        sheet.save(file, FORMATS[out.suffix.lower()], quality=92)
    return out


def _samples(shards: ShardSet, split: Split, seed: int) -> Iterator[Sample]:
    """All samples of a split in a mixed order, some shards at a time."""
    counts = label_counts(shards)
    order = permutation(len(split), "preview", seed)
    for first in range(0, len(order), _MIXED_SHARDS):
        numbers = order[first : first + _MIXED_SHARDS]
        ends = np.cumsum(split.samples[numbers])
        files: dict[int, ShardFile] = {}
        for place in permutation(int(ends[-1]), "preview", seed, first).tolist():
            at = int(np.searchsorted(ends, place, side="right"))
            if at not in files:
                files[at] = ShardFile(shards, split[int(numbers[at])])
            row = place - int(ends[at] - split.samples[numbers[at]])
            yield Sample(files[at], row, _labels(shards, counts, files[at], row))


def _labels(shards: ShardSet, counts: dict[str, int] | None, file: ShardFile, row: int) -> tuple[str, ...]:
    meta = file.meta(row) if shards.attributes or shards.classes else {}
    if shards.attributes:
        has = [name for name in shards.attributes if meta.get("attributes", {}).get(name)]
        return tuple(sorted(has, key=lambda name: counts[name]) if counts is not None else has)
    label = meta.get("label")
    return (shards.classes[label],) if isinstance(label, int) and 0 <= label < len(shards.classes) else ()


def paint(shards: ShardSet, samples: list[Sample], title: str, details: str) -> Image.Image:
    """The sheet of these samples."""
    large, middle, small = (ImageFont.load_default(size) for size in (26, 15, 13))
    labels = [[name.replace("_", " ") for name in sample.labels] for sample in samples]
    captions = [wrap(names, small, _TILE, _LABEL_LINES) for names in labels]
    caption = 6 + (1 + max(map(len, captions))) * _LINE + 8
    columns = _columns(len(samples))
    rows = -(-len(samples) // columns)
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    sheet = Image.new("RGB", (max(width, 480), _HEADER + rows * (_TILE + caption + _GAP) + _MARGIN - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 22), shorten(title, large, sheet.width - 2 * _MARGIN), _INK, large)
    draw.text((_MARGIN, 54), shorten(details, middle, sheet.width - 2 * _MARGIN), _GREY, middle)
    decoder, size = Decoder(), shards.image_size
    pixels: NDArray[np.uint8] = np.empty((1, size, size, shards.channels), np.uint8)
    for number, sample in enumerate(samples):
        left = _MARGIN + number % columns * (_TILE + _GAP)
        top = _HEADER + number // columns * (_TILE + caption + _GAP)
        decoder.fill([sample.file], [sample.row], pixels)
        sheet.paste(Image.fromarray(pixels[0]).resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left, top))
        key = sample.file.key(sample.row).rpartition("/")[2]
        draw.text((left, top + _TILE + 6), shorten(key, small, _TILE), _INK, small)
        for line, text in enumerate(captions[number], 1):
            draw.text((left, top + _TILE + 6 + line * _LINE), text, _GREY, small)
    return sheet


def _columns(count: int) -> int:
    """As many as leave the last row fullest, on a sheet about as wide as it is high."""
    few, many = math.ceil(math.sqrt(count)), math.ceil(math.sqrt(1.7 * count))
    return min(range(few, many + 1), key=lambda columns: (-count % columns, columns))


def shorten(text: str, font: Font, width: int) -> str:
    """`text`, or what fits of it into `width` pixels, with an ellipsis in its middle: ends tell keys apart."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        cut = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
        if font.getlength(cut) <= width:
            return cut
    return "…"


def wrap(labels: Sequence[str], font: Font, width: int, lines: int) -> list[str]:
    """As many whole labels as fit into so many lines of `width` pixels, and how many more there are: `Bald, Hat +3`."""
    wrapped: list[str] = []
    for number, label in enumerate(labels):
        left = len(labels) - number - 1
        more = f" +{left}" if left else ""
        longer = f"{wrapped[-1]}, {label}" if wrapped else ""
        # Only the last line needs room for the number.
        if wrapped and font.getlength(longer + (more if len(wrapped) == lines else ",")) <= width:
            wrapped[-1] = longer
        elif len(wrapped) < lines:
            if wrapped:
                wrapped[-1] += ","
            reserved = font.getlength(more) if len(wrapped) == lines - 1 else font.getlength(",")
            wrapped.append(shorten(label, font, math.floor(width - reserved)))
        else:
            wrapped[-1] += f" +{left + 1}"
            break
    return wrapped
