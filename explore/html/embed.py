"""Pictures inside an HTML file: reduced, recompressed, as data URIs."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageSequence

from pipeline.shards.picture import open_picture

MOST_WIDTH = 1600
"""Pixels; a page shows no more."""
_FORMATS = ("PNG", "GIF", "JPEG", "WEBP")
_DRAWING_COLOURS, _LOSSLESS_BYTES = 1 << 14, 100_000
"""A picture of few colours and no larger without loss, as figures of lines and letters are, stays as it is."""
_MOST_FRAMES = 400
_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """An image element."""

    source: str
    """A data URI."""
    width: int
    height: int
    """Its own size, pixels, so that a page knows its place before it is decoded."""
    text: str
    """What it shows, for who does not see it."""
    caption: str = ""
    moving: bool = False


def embed_file(path: Path, text: str, caption: str = "", most_width: int = MOST_WIDTH) -> Picture:
    """A picture file, a film if it is one; raises `OSError` or `ValueError` where it is damaged."""
    try:
        with open_picture(path, _FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1:
                return _film(image, text, caption)
            image.load()
            return embed(image, text, caption, most_width)
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} must be a picture; got '{error}'. Make it again.") from error


def embed(image: Image.Image, text: str, caption: str = "", most_width: int = MOST_WIDTH) -> Picture:
    """A picture, without loss where it is a drawing."""
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.width > most_width:
        height = max(1, round(image.height * most_width / image.width))
        image = image.resize((most_width, height), Image.Resampling.LANCZOS)
    drawn = image.width * image.height > _DRAWING_COLOURS and image.getcolors(_DRAWING_COLOURS) is not None
    data = _webp(image, lossless=True, quality=60) if drawn else b""
    if not 0 < len(data) <= _LOSSLESS_BYTES:
        data = _webp(image, quality=_QUALITY)
    return Picture(_uri(data), image.width, image.height, text, caption)


def _film(image: Image.Image, text: str, caption: str) -> Picture:
    frames, durations = [], []
    for frame in ImageSequence.Iterator(image):
        frames.append(frame.convert("RGB"))
        durations.append(int(frame.info.get("duration", 100)))
        if len(frames) == _MOST_FRAMES:
            break
    data = _webp(
        frames[0], save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=70, minimize_size=False
    )
    return Picture(_uri(data), image.width, image.height, text, caption, moving=True)


def _webp(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", method=4, **options)
    return buffer.getvalue()


def _uri(data: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
