"""Labelled strips: a row for each attribute or face, a column for each amount or version."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from explore.figures.sheets import GAP, enlarged, enlargement, pillow
from train.grids import BACKGROUND, INK

_MARGIN = 10
_TITLE, _HEAD = 32, 20
_ROWS = 20
"""Rows a block, at most; the next block stands beside it."""


def strips(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Rows of images uint8 [C, 3, H, W], each behind its label, in blocks below their `heads` [C] and a title."""
    columns, _, size, _ = rows[0][1].shape
    blocks = -(-len(rows) // _ROWS)
    height = -(-len(rows) // blocks)
    factor = enlargement(blocks * columns * size)
    step = size * factor + GAP
    font, title_font = ImageFont.load_default(13), ImageFont.load_default(17)
    label_width = round(max(font.getlength(label) for label, _ in rows)) + _MARGIN
    block_width = label_width + columns * step + _MARGIN
    width = max(_MARGIN + blocks * block_width, round(title_font.getlength(title)) + 2 * _MARGIN)
    sheet = Image.new("RGB", (width, _TITLE + _HEAD + height * step + _MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, INK, title_font)
    for block in range(blocks):
        left = _MARGIN + block * block_width + label_width
        for column, head in enumerate(heads):
            draw.text((left + column * step + (step - GAP) / 2, _TITLE + _HEAD / 2), head, INK, font, anchor="mm")
        for row, (label, images) in enumerate(rows[block * height : (block + 1) * height]):
            top = _TITLE + _HEAD + row * step
            draw.text((left - _MARGIN, top + step / 2), label, INK, font, anchor="rm")
            for column, image in enumerate(enlarged(images, factor)):
                sheet.paste(pillow(image), (left + column * step, top))
    return sheet
