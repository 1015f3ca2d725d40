"""Every kind of pixel to sRGB, in two steps around the resize.

    palette, 1 bit, 16 bits --averageable--> L, LA, RGB, RGBA, CMYK --resize--> small --to_srgb--> RGB

What can be averaged is resized as it is, and the profile is applied to the few pixels that are left: it costs next to
nothing and no second copy of the photo. Transparent pixels weigh nothing in the resize (Pillow multiplies alpha in).
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from shard_tool.image.recipe import PhotoError

_AVERAGEABLE = ("L", "LA", "RGB", "RGBA", "CMYK")
_PROFILE_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of an ICC profile to the mode of the images that it can describe."""
_NUMBERS = {"F": "floating point numbers", "I": "32-bit or signed numbers"}
_SAME_LEVELS = 2
"""A profile that moves no colour by more levels than these is sRGB under another name."""


def averageable(image: Image.Image) -> Image.Image:
    """All pixels of the first frame in a mode whose averages mean something; 16 bits become their upper 8."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _is_misread(image):
        raise PhotoError("pixels not supported", "16-bit TIFF, channel after channel; save it with 8 bits a channel")
    image.load()
    if image.mode in _AVERAGEABLE and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _upper_bytes(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode not in (*_AVERAGEABLE, "1", "P", "YCbCr", "RGBX"):
        numbers = _NUMBERS.get(image.mode, f"mode {image.mode}")
        raise PhotoError("pixels not supported", f"{image.format} of {numbers}; save it with 8 bits a channel")
    return image.convert("L" if image.mode == "1" else "RGB")


def to_srgb(image: Image.Image, profile: bytes | None, background: str) -> Image.Image:
    """An image of a mode that `averageable` gives as sRGB, transparent parts laid over `background`."""
    if image.mode in ("LA", "RGBA"):
        opaque = to_srgb(image.convert(image.mode[:-1]), profile, background)
        return Image.composite(opaque, Image.new("RGB", image.size, background), image.getchannel("A"))
    transform = srgb_transform(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # It is one only where it is asked to work in place.
    return converted


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
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", flags=ImageCms.Flags.NOCACHE)
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


def _is_misread(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow takes both bytes of its 16-bit numbers for pixels, and says nothing."""
    planar, compression = map(image.tag_v2.get, (TiffImagePlugin.PLANAR_CONFIGURATION, TiffImagePlugin.COMPRESSION))
    return planar == 2 and compression == 1 and max(image.tag_v2[TiffImagePlugin.BITSPERSAMPLE]) > 8


def _upper_bytes(image: Image.Image) -> Image.Image:
    values, bits, white_is_zero = np.asarray(image), 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0]
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    levels = (values >> (bits - 8)).astype(np.uint8)
    grey = Image.fromarray(~levels if white_is_zero else levels)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
