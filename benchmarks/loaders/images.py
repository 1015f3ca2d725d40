"""Photos -> a shard set of JPEGs and one of raw pixels, the same images in both: what every loader gets.

    FOLDER/jpeg/   quality 95, colours at full resolution (4:4:4)
    FOLDER/raw/    .npy
    FOLDER/jpeg-crc32.npy, jpeg-fast-crc32.npy, raw-crc32.npy
            of the pixels of each image, to tell whether a loader delivers them; `fast` with the approximate DCT

More images than photos come from crops of several sizes around the centre. Each sample has a short json, as the shard
tool writes it, unless `without_json` asks for the leanest set.
"""

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.loaders.variants import ENCODINGS
from pipeline.errors import UserError
from pipeline.format import SUFFIX, Shard, ShardSet, Split
from pipeline.machine import usable_cores
from pipeline.tar import ShardWriter
from shard_tool.image.photo import Recipe, encode, upright_square

QUALITY = 95
SHARD_SAMPLES = 4096
"""The shard tool's own default; small sets get eight shards all the same, so that worker processes have some each."""
STEP_PIXELS = 10
"""Between the sizes of a photo's crops, where there is room for it."""
_AHEAD = 256
_JSON_BYTES = 96


class SetWriter:
    """Write a shard set of one split, sample after sample; a context manager that leaves a finished set."""

    def __init__(self, folder: Path, size: int, encoding: str, shard_samples: int = SHARD_SAMPLES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._size, self._encoding, self._shard_samples = folder, size, encoding, shard_samples
        self._shards: list[Shard] = []
        self._writer: ShardWriter | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            if self._writer is not None:
                self._writer.abort()
            return
        self._close_shard()
        splits = {"train": Split.of([vars(shard) for shard in self._shards])}
        name = self._folder.name.removeprefix(".").removesuffix(".partial")
        ShardSet(self._folder, name, self._size, 3, self._encoding, splits, (), ()).save()

    def add(self, sample: bytes, source: str = "") -> None:
        """Append one encoded image and, where `source` is given, a json that names it."""
        if self._writer is None:
            self._writer = ShardWriter(self._folder, f"train-{len(self._shards):06d}")
        # One length for all: raw samples lie at a constant stride.
        meta = json.dumps({"source": source}).encode().ljust(_JSON_BYTES) if source else b""
        self._writer.add(f"{self._count:08d}", sample, SUFFIX[self._encoding], meta)
        self._count += 1
        if self._writer.samples == self._shard_samples:
            self._close_shard()

    def _close_shard(self) -> None:
        shard = self._writer.close() if self._writer is not None else None
        if shard is not None:
            self._shards.append(shard)
        self._writer = None


def list_photos(folder: Path) -> list[Path]:
    """The JPEG files in a folder, the empty ones left out; `UserError` where there is none."""
    photos = sorted(path for path in folder.rglob("*.jpg") if path.stat().st_size)
    if not photos:
        raise UserError(f"photos must be a folder with JPEG files; got {folder}. Name another.")
    return photos


def draw_photos(folder: Path) -> Path:
    """Drawn faces, for those who have no photos at hand."""
    command = [str(Path(sys.executable).parent / "shard_tool"), "draw-faces", str(folder)]
    subprocess.run([*command, "--count=2000", "--size=178"], check=True)
    return folder


def make_sets(photos: Sequence[Path], folder: Path, images: int, size: int, *, without_json: bool = False) -> None:
    """Write both sets of distinct images into `folder`, unless it is there.

    `UserError` where the photos are too few, too small or too much alike.
    """
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shard_samples = min(SHARD_SAMPLES, -(-images // 8))
    crc32: dict[str, dict[int, None]] = {name: {} for name in (*ENCODINGS, "jpeg-fast")}
    count = 0
    with contextlib.ExitStack() as stack:
        samples = stack.enter_context(contextlib.closing(_samples(photos, size, -(-images // len(photos)))))
        writers = {
            encoding: stack.enter_context(SetWriter(partial / encoding, size, encoding, shard_samples))
            for encoding in ENCODINGS
        }
        for jpeg, raw in samples:
            found = {
                "jpeg": zlib.crc32(simplejpeg.decode_jpeg(jpeg, "RGB")),
                "jpeg-fast": zlib.crc32(simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=True)),
                "raw": zlib.crc32(raw[-3 * size * size :]),
            }
            if any(value in crc32[name] for name, value in found.items()):
                continue  # Collections hold some photos twice.
            for name, value in found.items():
                crc32[name][value] = None
            source = "" if without_json else f"{count:08d}.jpg"
            writers["jpeg"].add(jpeg, source)
            writers["raw"].add(raw, source)
            count += 1
            if count % 10_000 == 0:
                print(f"  {count:,} of {images:,} images", flush=True)
            if count == images:
                break
        else:
            raise UserError(f"photos must give {images:,} distinct images; got {count:,} of them. Give more photos.")
    for name, values in crc32.items():
        np.save(partial / f"{name}-crc32.npy", np.array(list(values), np.uint32))
    partial.rename(folder)


def crop_sizes(side: int, size: int, count: int) -> list[int]:
    """`count` sizes of centred squares in a photo whose shorter side is `side`, the largest first."""
    step = min(STEP_PIXELS, (side - size) // max(1, count - 1))
    if side < size or step < 1:
        raise UserError(
            f"photos must give {count} crops of {size} pixels or more; got one of {side}. Give more photos."
        )
    return [side - step * number for number in range(count)]


def _samples(photos: Sequence[Path], size: int, crops: int) -> Generator[tuple[bytes, bytes], None, None]:
    """`crops` samples of each photo as JPEG and raw, and after them one more of each, in place of those alike."""

    def work(path: Path, wanted: slice) -> list[tuple[bytes, bytes]]:
        data = path.read_bytes()
        with Image.open(path) as image:
            side = min(image.size)
        made = []
        for crop in crop_sizes(side, size, crops + 1)[wanted]:
            jpeg, raw = (Recipe(size, crop, encoding, QUALITY) for encoding in ("jpeg", "raw"))
            square = upright_square(data, jpeg)
            made.append((encode(square, jpeg), encode(square, raw)))
        return made

    with ThreadPoolExecutor(usable_cores()) as executor:
        for wanted in (slice(crops), slice(crops, None)):
            for first in range(0, len(photos), _AHEAD):
                for made in executor.map(work, photos[first : first + _AHEAD], itertools.repeat(wanted)):
                    yield from made
