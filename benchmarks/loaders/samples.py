"""The stored bytes of a shard set read back in order, for what is converted from it."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def tars(folder: Path) -> list[Path]:
    """The shards of a set, in order."""
    return sorted(folder.glob("*.tar"))


def stored_bytes(tar: Path) -> Iterator[bytes]:
    """The images of a tar, JPEG files or `.npy` files."""
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.name.endswith(".json"):
                continue
            file = archive.extractfile(member)
            assert file is not None, "a shard holds plain files"
            yield file.read()


def pixels(data: bytes) -> NDArray[np.uint8]:
    """The array [H, W, 3] in an `.npy` file."""
    image: NDArray[np.uint8] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return image
