"""Damaged files of every format: a rejection or a sample, never an exception, and never much memory or time."""

import io
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shard_tool.image.photo import PhotoError, Recipe, make_sample, quiet_pillow
from tests.shard_tool.pictures import cmyk_jpeg, png, red_cyan_profile, save, tiff_16, wide_gamut_profile

KINDS = (
    *("JPEG", "progressive JPEG", "CMYK JPEG", "JPEG with profile and Exif"),
    *("PNG", "16-bit PNG", "palette PNG", "animated PNG", "WEBP", "animated WEBP", "GIF", "animated GIF"),
    *("TIFF", "16-bit TIFF", "LZW TIFF", "CMYK TIFF", "BMP", "PPM", "AVIF", "HEIC"),
)
RECIPE = Recipe(32, "center", "jpeg", 90)
MIB = 1 << 20


@lru_cache
def good(kind: str) -> bytes:
    """A whole file, with some noise in it, so that there is something to damage."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    image = Image.fromarray(noise).resize((100, 120))
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    profile = {
        "icc_profile": wide_gamut_profile(),
        "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0" + bytes(4),
    }
    if kind == "HEIC":
        heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (the extra `heic`)")
        buffer = io.BytesIO()
        heif.from_pillow(image).save(buffer)
        return buffer.getvalue()
    deep = np.asarray(image).astype(np.uint16) * 257
    special = {
        "progressive JPEG": lambda: save(image, "JPEG", progressive=True),
        "CMYK JPEG": lambda: cmyk_jpeg((20, 200, 30, 90), ycck=True),
        "JPEG with profile and Exif": lambda: save(image, "JPEG", **profile),
        "16-bit PNG": lambda: png(deep),
        "palette PNG": lambda: save(image.quantize(64), "PNG", transparency=bytes(range(64)), **profile),
        "16-bit TIFF": lambda: tiff_16(deep),
        "LZW TIFF": lambda: save(image, "TIFF", compression="tiff_lzw", **profile),
        "CMYK TIFF": lambda: save(image.convert("CMYK"), "TIFF", icc_profile=red_cyan_profile()),
    }
    if kind in special:
        return special[kind]()
    plain = kind.removeprefix("animated ")
    return save(image, plain, **(frames if plain != kind else {}))


def sample_or_rejection(data: bytes, recipe: Recipe = RECIPE) -> None:
    """Raises whatever is not foreseen."""
    try:
        sample = make_sample(data, recipe)
    except PhotoError as error:
        assert 0 < len(error.reason) < 40  # noqa: PT017 (either outcome is right)
        return
    assert Image.open(io.BytesIO(sample)).size == (recipe.size, recipe.size)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file with flipped bytes, a piece cut out or doubled, or its end missing."""
    data = bytearray(good(draw(st.sampled_from(KINDS))))
    where = st.one_of(st.integers(0, min(200, len(data) - 1)), st.integers(0, len(data) - 1))  # Headers more often.
    for position, value in draw(st.lists(st.tuples(where, st.integers(0, 255)), max_size=8)):
        data[position] = value
    if draw(st.booleans()):
        start, length = draw(where), draw(st.integers(1, 64))
        data[start : start + length] = data[start : start + length] * draw(st.sampled_from((0, 2)))
    if draw(st.booleans()):
        del data[draw(where) :]
    return bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=damaged(), crop=st.sampled_from(["center", "pad", "stretch"]), exact=st.booleans())
def test_no_damage_is_more_than_a_rejection(data: bytes, crop: str, exact: bool) -> None:
    with quiet_pillow(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("shard_tool.image.photo.MAX_PIXELS", 1_000_000)
        sample_or_rejection(data, Recipe(32, crop, "jpeg", 90, exact=exact))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(KINDS), st.integers(0, 40))
def test_nor_is_nonsense_behind_a_good_beginning(tail: bytes, kind: str, length: int) -> None:
    with quiet_pillow():
        sample_or_rejection(good(kind)[:length] + tail)


def mutations(kind: str, count: int) -> Iterator[bytes]:
    """Files in which sizes and lengths are changed more often than pixels: what may ask for memory."""
    chance = random.Random(kind)
    for _ in range(count):
        data = bytearray(good(kind))
        for _ in range(chance.randint(1, 4)):
            position = chance.randrange(min(len(data), chance.choice((40, 200, len(data)))))
            data[position : position + chance.choice((1, 2, 4))] = chance.choice(
                (b"\xff", b"\x7f\xff", b"\0", b"\xff" * 4)
            )
        yield bytes(data)


def test_no_damage_takes_much_memory_or_time() -> None:
    """A process of its own under hard limits: what goes beyond them is killed, or has a MemoryError."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.shard_tool.test_fuzz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def under_limits() -> None:
    """Photos of up to 4 megapixels: 16 MB as RGB, and some copies of that."""
    import resource

    from shard_tool.image import photo

    photo.MAX_PIXELS = 4_000_000
    kinds = [kind for kind in KINDS if kind != "HEIC"]  # libheif maps its code and threads' stacks at the first file.
    with quiet_pillow():
        for kind in kinds:
            sample_or_rejection(good(kind))
        if sys.platform == "linux":
            with open("/proc/self/statm") as statm:
                mapped = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + 256 * MIB, mapped + 256 * MIB))
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        for kind in kinds:
            for data in mutations(kind, 60):
                sample_or_rejection(data)


if __name__ == "__main__":
    under_limits()
