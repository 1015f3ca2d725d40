"""Labelled strips: one row an attribute, one column an amount, as a picture that can be read at a glance."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from explore.figures import BACKGROUND, INK

_GAP = 2
_MARGIN = 10
_TITLE, _HEAD = 30, 20
_ROWS = 20
"""Rows a block; more of them stand in a second block beside it."""
_LEAST = 64
"""Pixels that an image is wide at least: smaller ones are enlarged by a whole factor."""


def strips(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """A picture of `rows`, each a label and images uint8 [C, 3, H, W], in blocks side by side, below their `heads` [C]."""
    columns, _, size, _ = rows[0][1].shape
    factor = max(1, -(-_LEAST // size))
    step = size * factor + _GAP
    font, title_font = ImageFont.load_default(13), ImageFont.load_default(17)
    label_width = round(max(font.getlength(label) for label, _ in rows)) + _MARGIN
    blocks = -(-len(rows) // _ROWS)
    height = -(-len(rows) // blocks)
    block_width = label_width + columns * step + _MARGIN
    width = max(_MARGIN + blocks * block_width, round(title_font.getlength(title)) + 2 * _MARGIN)
    sheet = Image.new("RGB", (width, _TITLE + _HEAD + height * step + _MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, INK, title_font)
    for block in range(blocks):
        left = _MARGIN + block * block_width
        for column, head in enumerate(heads):
            center = left + label_width + column * step + (step - _GAP) / 2
            draw.text((center, _TITLE + _HEAD / 2), head, INK, font, anchor="mm")
        for row, (label, images) in enumerate(rows[block * height : (block + 1) * height]):
            top = _TITLE + _HEAD + row * step
            draw.text((left + label_width - _MARGIN, top + step / 2), label, INK, font, anchor="rm")
            for column, image in enumerate(_enlarged(images, factor)):
                place = (left + label_width + column * step, top)
                sheet.paste(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), place)
    return sheet


def _enlarged(images: Tensor, factor: int) -> Tensor:
    return torch.repeat_interleave(torch.repeat_interleave(images, factor, -1), factor, -2)
