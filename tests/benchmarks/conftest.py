"""Photos for the benchmarks' own tests."""

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import make_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of twelve JPEG photos of 90x90 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(make_image("train", number, 90)).save(folder / f"{number:03d}.jpg", quality=95)
    return folder
