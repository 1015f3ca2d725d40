"""A square of pixels as the bytes of one sample, with nothing but pixels in them."""

import importlib.metadata
import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, features

from pipeline.format import npy_bytes
from shard_tool.image.recipe import Recipe

_PILLOW_LIBRARIES = {
    "pillow": "pil",
    "libjpeg-turbo": "libjpeg_turbo",
    "libwebp": "webp",
    "zlib": "zlib",
    "zlib-ng": "zlib_ng",
    "littlecms": "littlecms2",
    "libavif": "avif",
    "libtiff": "libtiff",
}
_PACKAGES = ("simplejpeg", "cykooz-resizer", "pillow-heif")


def encode(square: Image.Image | NDArray[np.uint8], recipe: Recipe) -> bytes:
    """The bytes of an RGB image, or of its pixels [H, W, 3], in the set's encoding."""
    if recipe.encoding in ("jpeg", "raw"):
        pixels = np.ascontiguousarray(square)
        if recipe.encoding == "raw":
            return npy_bytes(pixels)
        return bytes(simplejpeg.encode_jpeg(pixels, recipe.quality, "RGB", recipe.subsampling))
    # Made from the pixels alone: Pillow carries comments and profiles along, and writes them into what it saves.
    image = Image.fromarray(np.asarray(square))
    buffer = io.BytesIO()
    if recipe.encoding == "webp":
        image.save(buffer, "WEBP", quality=recipe.quality, method=4)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def library_versions() -> dict[str, str]:
    """What decides about the bytes of a sample besides the photo and the recipe."""
    versions = {name: features.version(key) for name, key in _PILLOW_LIBRARIES.items()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass  # Not installed: it decides about nothing.
    return {name: str(version) for name, version in versions.items() if version}
