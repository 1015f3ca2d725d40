"""The options about photos, from the command line to the finished set."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.shard_tool.pictures import save


@pytest.fixture
def mixed(tmp_path: Path, picture) -> Path:
    """A small photo, a wide one, a transparent one."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "small.jpg").write_bytes(save(picture(1, (20, 20)), "JPEG"))
    (folder / "wide.jpg").write_bytes(save(picture(2, (300, 150)), "JPEG"))
    (folder / "clear.png").write_bytes(save(Image.new("RGBA", (100, 100), (0, 255, 0, 0)), "PNG"))
    return folder


def images(samples, out: Path) -> dict[str, np.ndarray]:
    return {key: np.asarray(Image.open(io.BytesIO(files["png"]))) for key, files in samples(out)}


def test_every_option_reaches_the_samples(mixed: Path, tmp_path: Path, make, samples) -> None:
    out = tmp_path / "set"
    make(mixed, out, "--size", 32, "--crop", "pad", "--background", "#102030", "--upscale", "--encode", "png")
    found = images(samples, out)
    assert sorted(found) == ["clear", "small", "wide"]
    assert (found["clear"] == (16, 32, 48)).all()
    assert (found["wide"][:8] == (16, 32, 48)).all()
    assert not (found["wide"][8:24] == (16, 32, 48)).all(axis=-1).any()
    settings = json.loads((out / "shardset.json").read_text())["parts"][0]["settings"]
    expected = {"crop": "pad", "background": "#102030", "upscale": True, "exact": False, "subsampling": None}
    assert expected.items() <= settings.items()


def test_without_them_small_photos_are_rejected(mixed: Path, tmp_path: Path, make, rejections) -> None:
    make(mixed, tmp_path / "set", "--size", 32)
    assert rejections(tmp_path / "set") == {"small.jpg": "smaller than the target"}


def test_none_is_another_name_of_stretch(mixed: Path, tmp_path: Path, make, hashes) -> None:
    for name in ("none", "stretch"):
        make(mixed, tmp_path / name / "set", "--size", 32, "--crop", name)
    assert hashes(tmp_path / "none") == hashes(tmp_path / "stretch")


def test_exact_changes_the_bytes_and_the_request(photos: Path, tmp_path: Path, make, hashes) -> None:
    for options in ((), ("--exact",), ("--subsampling", 420)):
        make(photos, tmp_path / "-".join(map(str, ("set", *options))), "--size", 32, *options)
    assert len({hashes(path)["train-000000.tar"] for path in tmp_path.glob("set*")}) == 3


@pytest.mark.parametrize("value", ["mauve", "#12345", "#gggggg", ""])
def test_a_background_must_be_a_colour(mixed: Path, tmp_path: Path, refuse, value: str) -> None:
    message = refuse(mixed, tmp_path / "set", "--background", value)
    assert f"background must be white, black or #rrggbb; got '{value}'. " in message


def test_heic_without_its_extra_is_listed_with_the_way_to_get_it(
    mixed: Path, tmp_path: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (mixed / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(3000))
    make(mixed, tmp_path / "set", "--size", 16)
    (line,) = (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert (rejected["path"], rejected["reason"]) == ("IMG_0001.HEIC", "image format not supported")
    assert "pip install 'leanstream[heic]'" in rejected["detail"]
