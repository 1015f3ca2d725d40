"""Files as they are found in collections: each becomes a sample, or is rejected for the right reason."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shard_tool.image.photo import PhotoError, make_sample, quiet_pillow
from tests.shard_tool.pictures import RECIPE

FOLDERS = {
    "appledouble": "not an image",
    "bomb_160MP": "too many pixels",
    "gray350": "sample",
    "mixed_wild": "sample",
    "png_named_jpg_rgba": "sample",
    "tiny": "smaller than the target",
    "webp_named_jpg": "sample",
    "zero_byte": "empty file",
}
EXCEPTIONS = {
    "with_mask__0_0_0 copy 43.jpg": "smaller than the target",
    "with_mask__0_0_6f3feedbly1g35rq7j549j20xc0m877l.jpg": "smaller than the target",
    "with_mask__0_1_22.jpg": "smaller than the target",
    "with_mask__1_0_0 copy 12.jpg": "smaller than the target",
    "with_mask__292.jpg": "smaller than the target",
}


def expected(path: Path) -> str:
    return EXCEPTIONS.get(path.name, FOLDERS[path.parent.name])


def files(odd: Path) -> list[Path]:
    found = sorted(path for path in odd.rglob("*") if path.is_file())
    assert len(found) > 300
    return found


def test_each_ends_as_a_sample_or_as_the_right_rejection(odd: Path) -> None:
    wrong = {}
    with quiet_pillow():
        for path in files(odd):
            try:
                make_sample(path.read_bytes(), RECIPE)
                outcome = "sample"
            except PhotoError as error:
                outcome = error.reason
            if outcome != expected(path):
                wrong[path.name] = outcome
    assert wrong == {}


def test_make_shards_says_the_same(odd: Path, tmp_path: Path, make, rejections, samples) -> None:
    out = tmp_path / "set"
    make(odd, out, "--size", 64, "--threads", 2)
    found = {odd / path: reason for path, reason in rejections(out).items()}
    # Hidden files are passed over, as the resource forks are that macOS leaves behind.
    table = {path: expected(path) for path in files(odd) if not path.name.startswith(".")}
    assert found == {path: reason for path, reason in table.items() if reason != "sample"}
    assert len(samples(out)) == Counter(table.values())["sample"]


def test_a_bomb_costs_no_memory(odd: Path) -> None:
    program = (
        "import resource, sys, pathlib\n"
        "from shard_tool.image.photo import *\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "try: make_sample(data, Recipe(64, 'center', 'jpeg', 95))\n"
        "except PhotoError as error: print(error.reason, '|', peak() - before)"
    )
    (bomb,) = (odd / "bomb_160MP").iterdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(bomb)], capture_output=True, text=True, check=True
    )
    reason, grown = done.stdout.split("|")
    assert reason.strip() == "too many pixels"
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < 20 << 20


def test_transparent_ones_keep_their_faces(odd: Path) -> None:
    """Nothing is laid over the pixels that can be seen."""
    checked = 0
    for path in (*odd.glob("mixed_wild/*.png"), *odd.glob("png_named_jpg_rgba/*")):
        with Image.open(path) as image:
            if image.mode != "RGBA" or min(image.size) < 64:
                continue
            side = min(image.size)
            box = [(length + sign * side) / 2 for sign in (-1, 1) for length in image.size]
            alpha = np.asarray(image.getchannel("A").resize((64, 64), Image.Resampling.BOX, box))
            plain = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS, box)).astype(int)
        found = np.asarray(Image.open(io.BytesIO(make_sample(path.read_bytes(), RECIPE)))).astype(int)
        solid = alpha == 255
        if solid.mean() > 0.2:
            assert np.median(np.abs(found - plain)[solid]) <= 1
            checked += 1
    if not checked:
        pytest.skip("no photo there has enough solid pixels")
