"""`--not-in`: a set of the photos that another set does not hold."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Make = Callable[..., str]
Refuse = Callable[..., str]
Samples = Callable[..., list[tuple[str, dict[str, bytes]]]]
Rejections = Callable[[Path], dict[str, str]]
Pixels = Callable[..., Image.Image]
SMALL = ("--size", 16, "--shard-samples", 5)


@pytest.fixture
def grown(photos: Path, tmp_path: Path, make: Make, picture: Pixels) -> Path:
    """A folder with a finished set of its first 60 photos in `set`, and 30 more since."""
    (photos / "broken.jpg").write_bytes(b"nothing")
    make(photos, tmp_path / "set", *SMALL)
    for number in range(60, 90):
        picture(number).save(photos / "b" / f"{number:05d}.jpg", quality=90)
    return photos


def test_only_what_is_new_becomes_a_sample(
    grown: Path, tmp_path: Path, make: Make, samples: Samples, rejections: Rejections
) -> None:
    printed = make(grown, tmp_path / "more", *SMALL, "--not-in", tmp_path / "set")
    assert "30 images" in printed
    first, second = ({key for key, _ in samples(tmp_path / name)} for name in ("set", "more"))
    assert not first & second
    assert len(second) == 30
    found = rejections(tmp_path / "more")
    assert sum(reason == "in another set" for reason in found.values()) == 60
    assert found["broken.jpg"] == "not an image", "what the other set rejected is tried again"
    assert "already complete" in make(grown, tmp_path / "more", *SMALL, "--not-in", tmp_path / "set")


def test_a_changed_photo_is_new(grown: Path, tmp_path: Path, make: Make, samples: Samples, picture: Pixels) -> None:
    picture(200, size=(300, 300)).save(grown / "a" / "00000.jpg", quality=95)
    make(grown, tmp_path / "more", *SMALL, "--not-in", tmp_path / "set")
    assert "a/00000" in {key for key, _ in samples(tmp_path / "more")}


def test_the_same_bytes_under_another_name_are_left_out_if_asked(
    grown: Path, tmp_path: Path, make: Make, samples: Samples, rejections: Rejections
) -> None:
    shutil.copy(grown / "b" / "00031.jpg", grown / "a" / "copy.jpg")
    make(grown, tmp_path / "by-name", *SMALL, "--not-in", tmp_path / "set")
    assert "a/copy" in {key for key, _ in samples(tmp_path / "by-name")}
    make(grown, tmp_path / "by-content", *SMALL, "--not-in", tmp_path / "set", "--drop-duplicates")
    assert rejections(tmp_path / "by-content")["a/copy.jpg"] == "in another set"
    assert len(samples(tmp_path / "by-content")) == 30


def test_a_set_that_says_nothing_is_refused(grown: Path, tmp_path: Path, refuse: Refuse) -> None:
    assert "must name finished shard sets" in refuse(grown, tmp_path / "more", *SMALL, "--not-in", tmp_path / "none")
    (tmp_path / "set" / "photos.npy").unlink()
    error = refuse(grown, tmp_path / "more", *SMALL, "--not-in", tmp_path / "set")
    assert "whose photos.npy is missing or damaged. Run the command again that built it" in error


def test_where_nothing_is_new_nothing_is_made(photos: Path, tmp_path: Path, make: Make) -> None:
    make(photos, tmp_path / "set", *SMALL)
    printed = make(photos, tmp_path / "more", *SMALL, "--not-in", tmp_path / "set")
    assert "all 60 photos of raw are in" in printed
    assert not (tmp_path / "more").exists()
