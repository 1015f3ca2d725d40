"""Pictures of a model: originals over reconstructions, and new faces, with a caption above each block."""

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline import Dataset
from train.device import halving
from train.evaluate import stream_images
from train.gaussian import Gaussian
from train.models import FaceVAE
from train.models import to_uint8 as to_uint8

BACKGROUND, INK = (250, 249, 246), (40, 42, 48)
_GAP = 2
_CAPTION = 22


def tile(images: Tensor, columns: int) -> Image.Image:
    """Images uint8 [B, 3, H, W] in rows of `columns`, with a thin gap."""
    _, _, height, width = images.shape
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), BACKGROUND)
    for number, image in enumerate(images.cpu()):
        row, column = divmod(number, columns)
        sheet.paste(
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()),
            (column * (width + _GAP), row * (height + _GAP)),
        )
    return sheet


def stack(blocks: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """One picture of several, each below its caption."""
    margin, font = 8, ImageFont.load_default(14)
    width = max(max(block.width, math.ceil(font.getlength(caption))) for caption, block in blocks) + 2 * margin
    height = sum(block.height + _CAPTION + margin for _, block in blocks) + margin
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    top = margin
    for caption, block in blocks:
        draw.text((margin, top), caption, INK, font)
        picture.paste(block, (margin, top + _CAPTION))
        top += block.height + _CAPTION + margin
    return picture


@torch.inference_mode()
def reconstruction_blocks(
    model: FaceVAE, shards: Dataset, split: str, device: torch.device, *, columns: int, count: int
) -> tuple[list[tuple[str, Image.Image]], Tensor, Tensor]:
    """Captioned rows of originals, each over its reconstructions, and both as uint8 [count, 3, H, W]."""
    model.eval()
    images = torch.cat(list(stream_images(shards, split, count, device, min(64, count))))
    parts = torch.split(images, 64)
    answers = torch.cat([halving(lambda part: (model.decode(model.encode(part)[0]),), part)[0] for part in parts])
    originals, reconstructions = to_uint8(images), to_uint8(answers)
    pairs = zip(torch.split(originals, columns), torch.split(reconstructions, columns), strict=True)
    rows = torch.cat([torch.cat([_padded(above, columns), _padded(below, columns)]) for above, below in pairs])
    block = (f"{split} split: originals over reconstructions", tile(rows, columns))
    return [block], originals, reconstructions


def training_grid(
    model: FaceVAE, shards: Dataset, split: str, fitted: Gaussian, device: torch.device, seed: int
) -> Image.Image:
    """The picture that a run saves at each epoch: the same faces and the same draws every time."""
    columns = 16 if shards.image_size <= 64 else 8
    blocks, _, _ = reconstruction_blocks(model, shards, split, device, columns=columns, count=2 * columns)
    for caption, gaussian in (
        ("new faces, from the aggregate posterior's mean and covariance", fitted),
        ("new faces, from the prior N(0, I)", Gaussian.standard(model.latent)),
    ):
        faces = model.sample(2 * columns, seed=seed, prior=gaussian)
        blocks.append((caption, tile(faces, columns)))
    return stack(blocks)


def _padded(images: Tensor, columns: int) -> Tensor:
    """A full row: what is missing is background."""
    missing = columns - len(images)
    colour = torch.tensor(BACKGROUND, dtype=torch.uint8, device=images.device)[None, :, None, None]
    return torch.cat([images, colour.expand(missing, -1, *images.shape[2:])])
