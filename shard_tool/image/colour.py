"""Every kind of pixel to sRGB, in two steps around the resize.

    palette, 1 bit, 16 bits --averageable--> L, LA, RGB, RGBA, CMYK --resize--> small --to_srgb--> RGB

What can be averaged is resized as it is, and the profile is applied to the few pixels that are left: it costs next to
nothing and no second copy of the photo. Transparent pixels weigh nothing in the resize (Pillow multiplies alpha in).
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

from shard_tool.image.formats import PhotoError

_AVERAGEABLE = ("L", "LA", "RGB", "RGBA", "CMYK")
_PROFILE_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of an ICC profile to the mode of the images that it can describe."""
_SAME_LEVELS = 2
"""A profile that moves no colour by more levels than these is sRGB under another name."""


def averageable(image: Image.Image) -> Image.Image:
    """All pixels of the first frame in a mode whose averages mean something; 16 bits become their upper 8."""
    image.load()
    if image.mode in _AVERAGEABLE and "transparency" not in image.info:
        if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
            return ImageChops.invert(image)  # Pillow takes all for Adobe's, which count the white and not the ink.
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _upper_bytes(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in (*_AVERAGEABLE, "P", "YCbCr", "RGBX"):
        raise PhotoError("pixels not supported", f"mode {image.mode} of {image.format}; save it with 8 bits a channel")
    return image.convert("RGB")


def to_srgb(image: Image.Image, profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    """An image of a mode that `averageable` gives as sRGB, transparent parts laid over `background`."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    if alpha is not None:
        image = image.convert(image.mode[:-1])
    transform = srgb_transform(profile, image.mode) if profile else None
    opaque = image.convert("RGB") if transform is None else ImageCms.applyTransform(image, transform)
    assert opaque is not None  # It is one only where it is asked to work in place.
    if alpha is None:
        return opaque
    return Image.composite(opaque, Image.new("RGB", image.size, background), alpha)


@lru_cache(maxsize=8)  # A few cameras made most photos of a set; a profile for print has half a megabyte.
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of an ICC profile to sRGB. Threads may share it.

    None where there is nothing to do: the profile is sRGB, is damaged, or describes another kind of image.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PROFILE_SPACES.get(source.profile.xcolor_space.strip()) != mode:
            return None
        # Without little CMS's memory of the last pixel, the transform has no state that a thread could spoil.
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
        return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # A profile may be damaged in any way, and the pixels are good all the same.


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    before = Image.fromarray(cube) if mode == "RGB" else Image.fromarray(levels[None])
    after = ImageCms.applyTransform(before, transform)
    difference = np.asarray(after).astype(int) - np.asarray(before.convert("RGB"))
    return int(np.abs(difference).max()) <= _SAME_LEVELS


def _upper_bytes(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    return grey
