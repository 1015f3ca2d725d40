from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from pipeline.format import SUFFIX, ShardSet
from shard_tool.care.preview import _columns, _samples, shorten, wrap
from shard_tool.cli import main
from tests.helpers import make_image, make_shard_set

FONT = ImageFont.load_default(13)


@pytest.fixture
def preview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Image.Image]:
    """A function that paints the preview of a set, which must succeed, and opens it."""

    def run(folder: Path, *options: object) -> Image.Image:
        out = tmp_path / "sheet.png"
        assert main(["preview", str(folder), "--out", str(out), *map(str, options)]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out == f"{out} shows samples of {folder}.\n"
        with Image.open(out) as image:
            image.load()
        return image

    return run


def tiles(sheet: Image.Image, count: int, size: int) -> list[np.ndarray]:
    """The images of a sheet, as pixels [size, size, 3]."""
    columns = _columns(count)
    pitch = (sheet.height - 84 - 16) // -(-count // columns)
    places = [(32 + number % columns * 160, 84 + number // columns * pitch) for number in range(count)]
    cut = (sheet.crop((left, top, left + 144, top + 144)) for left, top in places)
    return [np.asarray(tile.resize((size, size), Image.Resampling.LANCZOS)).astype(int) for tile in cut]


@pytest.mark.parametrize("encoding", list(SUFFIX))
def test_a_preview_shows_different_samples_of_the_set(
    tmp_path: Path, preview: Callable[..., Image.Image], encoding: str
) -> None:
    make_shard_set(tmp_path / "set", encoding=encoding, size=24)
    shown = tiles(preview(tmp_path / "set", "--count", 12), 12, 24)
    originals = [make_image("train", number, 24).astype(int) for number in range(40)]
    nearest = [min(range(40), key=lambda n: np.abs(originals[n] - tile).mean()) for tile in shown]
    assert len(set(nearest)) == 12
    for tile, number in zip(shown, nearest, strict=True):
        assert np.abs(originals[number] - tile).mean() < 8


def test_the_seed_the_split_and_the_count_choose(tmp_path: Path, preview: Callable[..., Image.Image]) -> None:
    make_shard_set(tmp_path / "set")
    sheets = [
        preview(tmp_path / "set", *options)
        for options in ((), ("--seed", 0), ("--seed", 1), ("--split", "val"), ("--count", 9))
    ]
    assert sheets[0].tobytes() == sheets[1].tobytes()
    assert len({sheet.tobytes() for sheet in sheets}) == 4


def test_every_sample_comes_once_and_only_some_shards_are_mixed(tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set", samples={"train": 101}, shard_samples=3)
    shards = ShardSet.open(tmp_path / "set")
    keys = [sample.file.key(sample.row) for sample in _samples(shards, shards.splits["train"], 7)]
    assert len(keys) == len(set(keys)) == 101
    assert keys != sorted(keys)


def test_samples_with_one_attribute_are_shown(tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set", attributes=("odd", "second"))
    shards = ShardSet.open(tmp_path / "set")
    for sample in _samples(shards, shards.splits["train"], 0):
        number = int(sample.file.key(sample.row)[-5:])
        assert set(sample.labels) == {name for name, has in (("odd", number & 1), ("second", number & 2)) if has}


def test_an_attribute_or_a_class_filters(
    tmp_path: Path, preview: Callable[..., Image.Image], capsys: pytest.CaptureFixture[str]
) -> None:
    make_shard_set(tmp_path / "set", attributes=(), classes=("cat", "dog", "emu"))
    few = tiles(preview(tmp_path / "set", "--attribute", "dog"), 13, 16)
    dogs = [make_image("train", number, 16).astype(int) for number in range(1, 40, 3)]
    assert len(dogs) == len(few)
    for tile in few:
        assert min(np.abs(dog - tile).mean() for dog in dogs) < 8
    assert main(["preview", str(tmp_path / "set"), "--attribute", "cow"]) == 2
    assert "must be one of the set's (cat, dog, emu); got 'cow'" in capsys.readouterr().err


def test_the_default_picture_lies_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shard_set(tmp_path / "set", name="faces")
    monkeypatch.chdir(tmp_path)
    assert main(["preview", "set", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    with Image.open(tmp_path / "faces-preview.jpg") as image:
        assert image.format == "JPEG"
    assert {path.suffix for path in (tmp_path / "set").iterdir()} == {".tar", ".index", ".json"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--out", "set/sheet.png"), "must lie outside the set"),
        (("--out", "sheet.pdf"), "must end with .jpg, .jpeg, .png, .webp; got sheet.pdf"),
        (("--out", "nowhere/sheet.png"), "No such file or directory"),
        (("--count", "0"), "count must be from 1 to 1,000; got 0"),
        (("--split", "test"), "split must be one of the set's (train, val); got 'test'"),
        (("--attribute", "Bald"), "must be one of the set's (Smiling); got 'Bald'"),
        (("--attribute", "Smiling", "--split", "val"), "must be one that samples of val have; got 'Smiling'"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    complaint: str,
) -> None:
    make_shard_set(tmp_path / "set", samples={"train": 4, "val": 1})
    monkeypatch.chdir(tmp_path)
    assert main(["preview", "set", *options]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*.p*"))


def test_a_damaged_sample_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_shard_set(tmp_path / "set", samples={"train": 1})
    data = bytearray((made.folder / "train-000000.tar").read_bytes())
    data[700] ^= 1
    (made.folder / "train-000000.tar").write_bytes(data)
    assert main(["preview", str(made.folder), "--out", str(tmp_path / "x.png")]) == 1
    assert "sample 'train/face-00000'" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (12, 4), (60, 10), (64, 8), (97, 11)])
def test_a_sheet_is_nearly_square_and_its_last_row_nearly_full(count: int, columns: int) -> None:
    assert _columns(count) == columns


@given(st.text(st.characters(codec="latin-1", exclude_categories=("C",)), max_size=60), st.integers(20, 200))
def test_what_is_shortened_fits(text: str, width: int) -> None:
    cut = shorten(text, FONT, width)
    assert FONT.getlength(cut) <= width
    assert cut == text or "…" in cut


@given(st.lists(st.text("abcdefgh IJ", min_size=1, max_size=25), max_size=12), st.integers(60, 250), st.integers(1, 3))
def test_wrapped_labels_fit_and_none_is_forgotten(labels: list[str], width: int, lines: int) -> None:
    wrapped = wrap(labels, FONT, width, lines)
    assert len(wrapped) <= lines
    assert all(FONT.getlength(line) <= width for line in wrapped)
    more = int(wrapped[-1].rpartition(" +")[2]) if wrapped and " +" in wrapped[-1] else 0
    shown = ", ".join(line.rstrip(",") for line in wrapped).rpartition(" +")[0] if more else ", ".join(wrapped)
    assert len(labels) - more == (len(shown.replace(",,", ",").split(", ")) if wrapped else 0)


def test_faces_of_celeba(celeba: Path, tmp_path: Path, preview: Callable[..., Image.Image]) -> None:
    arguments = [str(celeba), "--out", str(tmp_path / "set"), "--limit", "100", "--quiet"]
    assert main(["make-shards", *arguments]) == 0
    sheet = preview(tmp_path / "set", "--count", 20, "--attribute", "Male")
    assert sheet.width > 600
