"""Sheets of images with words: pairs with a note below each, and strips between two faces."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from train.grids import BACKGROUND, INK

FAINT = (120, 122, 128)
GAP = 2
_NOTE = 16
_COMFORTABLE = 640
"""Pixels across that a sheet should have: fewer are hard to see on any screen."""


def enlargement(width: int, most: int = 4) -> int:
    """How many times a sheet of `width` pixels is to be enlarged, a whole number: pixels stay what they are."""
    return max(1, min(most, _COMFORTABLE // max(width, 1)))


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Images [..., H, W] with every pixel `factor` times as wide and high."""
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2) if factor > 1 else images


def pillow(image: Tensor) -> Image.Image:
    """An image uint8 [3, H, W] on the CPU."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def pairs_sheet(above: Tensor, below: Tensor, notes: Sequence[str], columns: int) -> Image.Image:
    """Images uint8 [N, 3, H, W] in rows of at most `columns`, each over its partner, with its note under both."""
    columns = min(columns, len(above))
    size = above.shape[-1]
    factor = enlargement(columns * size)
    above, below = enlarged(above, factor), enlarged(below, factor)
    step = size * factor + GAP
    font = ImageFont.load_default(11)
    noted = max(map(font.getlength, notes), default=0) <= size * factor
    height = 2 * step + (_NOTE if noted else GAP)
    rows = -(-len(above) // columns)
    sheet = Image.new("RGB", (columns * step - GAP, rows * height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (original, answer, note) in enumerate(zip(above, below, notes, strict=True)):
        row, column = divmod(number, columns)
        left, top = column * step, row * height
        sheet.paste(pillow(original), (left, top))
        sheet.paste(pillow(answer), (left, top + step))
        if noted:
            draw.text((left + size * factor / 2, top + 2 * step), note, FAINT, font, anchor="ma")
    return sheet


def strip(first: Tensor, last: Tensor, rows: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Rows of images uint8 [steps, 3, H, W], each with its name, between two large images uint8 [3, H, W]."""
    steps, _, size, _ = rows[0][1].shape
    factor = enlargement((steps + 2 * len(rows)) * size, 2)
    step, font = size * factor + GAP, ImageFont.load_default(13)
    height = len(rows) * step - GAP
    gutter = 3 * GAP
    name_width = round(max(font.getlength(name) for name, _ in rows)) + gutter
    inner = height + gutter + name_width
    sheet = Image.new("RGB", (inner + steps * step - GAP + gutter + height, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for image, left in ((first, 0), (last, sheet.width - height)):
        sheet.paste(pillow(image).resize((height, height), Image.Resampling.BICUBIC), (left, 0))
    for number, (name, images) in enumerate(rows):
        top = number * step
        draw.text((inner - gutter, top + size * factor / 2), name, INK, font, anchor="rm")
        for place, image in enumerate(enlarged(images, factor)):
            sheet.paste(pillow(image), (inner + place * step, top))
    return sheet


def film(frames: Tensor, least: int = 192) -> list[Image.Image]:
    """Images uint8 [N, 3, H, W] as pictures of at least `least` pixels, each with a palette of 256 colours."""
    size = frames.shape[-1]
    width = size * -(-least // size)
    images = (pillow(frame).resize((width, width), Image.Resampling.BICUBIC) for frame in frames)
    # Its own colours for each: 3 dB closer than a palette for all, and still parts change less from frame to frame.
    return [image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=3) for image in images]
