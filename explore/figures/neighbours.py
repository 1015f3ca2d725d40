"""What `explore sample --neighbours` shows: faces beside their nearest training images, and how near those are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from explore.figures.sheets import FAINT, GAP, enlarged, enlargement, pillow
from explore.figures.style import COLOURS, INK, figure
from explore.latent.neighbours import Found
from train.grids import BACKGROUND, stack
from train.grids import INK as BLACK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTE, _HEAD, _GUTTER = 15, 20, 14
_TITLES = {"pixels": "by pixels at 32 px", "latents": "by latents"}
_AXES = {
    "pixels": "root mean squared difference of intensities in [0, 1], at 32 px",
    "latents": "Euclidean distance of posterior means",
}
_KINDS = {"new": "new faces", "reconstructions": "held-out photos, reconstructed", "photos": "held-out photos"}


def neighbours_sheet(faces: Tensor, found: Found, numbers: Mapping[str, Mapping[str, float]]) -> Image.Image:
    """New faces uint8 [N, 3, H, W], one a row, each beside the training images that `find` was asked to keep."""
    count = found.nearest["pixels"].numbers.shape[1]
    factor = enlargement((2 * count + 1) * faces.shape[-1], 2)
    side = faces.shape[-1] * factor
    step, block = side + GAP, count * (side + GAP) + _GUTTER
    titles = {name: f"{text}, ratio {numbers[name]['ratio_to_reconstructions']:.2f}" for name, text in _TITLES.items()}
    head, note = ImageFont.load_default(12), ImageFont.load_default(10)
    width = step + _GUTTER + 2 * block
    width = max(width, step + _GUTTER + block + round(head.getlength(titles["latents"])))
    sheet = Image.new("RGB", (width, _HEAD + len(faces) * (side + _NOTE)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((0, 0), "new face", BLACK, head)
    lefts = {"pixels": step + _GUTTER, "latents": step + _GUTTER + block}
    for name, title in titles.items():
        fits = head.getlength(title) <= block - GAP or name == "latents"
        draw.text((lefts[name], 0), title if fits else _short(name), BLACK, head)
    for row, face in enumerate(enlarged(faces, factor)):
        top = _HEAD + row * (side + _NOTE)
        sheet.paste(pillow(face), (0, top))
        for name, nearest in found.nearest.items():
            places = zip(nearest.numbers[row].tolist(), nearest.distances[row].tolist(), strict=True)
            for rank, (number, distance) in enumerate(places):
                if number < 0:
                    continue
                image, left = found.known[number].image, lefts[name] + rank * step
                assert image is not None, "images are kept of what is shown"
                sheet.paste(pillow(enlarged(image, factor)), (left, top))
                text = f"{distance:.3f}" if name == "pixels" else f"{distance:.1f}"
                draw.text((left + side / 2, top + side), text, FAINT, note, anchor="ma")
    caption = f"new faces and the nearest of {len(found.train):,} training images, with distances"
    return stack([(caption, sheet)])


def distances_figure(found: Found, kinds: Mapping[str, slice], numbers: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Distribution functions of the distance to the nearest training image; call it, and save it, within `style()`."""
    picture = figure(11, 4.2)
    for axes, (measure, nearest) in zip(picture.subplots(1, 2), found.nearest.items(), strict=True):
        for colour, (kind, label) in zip((COLOURS[2], COLOURS[1], COLOURS[0]), _KINDS.items(), strict=True):
            values = nearest.distances[kinds[kind], 0].sort().values
            shares = torch.arange(1, len(values) + 1) / len(values)
            axes.plot(values.numpy(), shares.numpy(), color=colour, label=label)
        axes.axhline(0.5, color=INK, linewidth=0.6, linestyle=":")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1)
        axes.set_xlabel(_AXES[measure])
        axes.set_ylabel("share of the pictures")
        ratio = numbers[measure]["ratio_to_reconstructions"]
        axes.set_title(f"By {measure}: median {ratio:.2f} times that of reconstructions")
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3)
    picture.suptitle(
        f"Distance to the nearest of {len(found.train):,} training images: memorised faces would be at 0",
        fontsize=12,
        fontweight="bold",
    )
    return picture


def _short(name: str) -> str:
    return f"by {name}"
