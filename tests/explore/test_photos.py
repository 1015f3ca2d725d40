import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from explore import photos as photos_module
from explore.photos import load_photos, photo_from_bytes, read_photos, recipe_of
from pipeline import StreamingLoader
from pipeline.errors import UserError
from pipeline.format import ShardSet
from tests.explore.untrained import SIZE, make_shards, pixels, trained
from tests.helpers import make_shard_set
from train.finished import photo_settings

REAL = Path(__file__).parents[3] / "shared" / "data"


def paint(folder: Path, count: int, size: tuple[int, int] = (90, 70)) -> Path:
    """Photos with edges and colours; every second one lies on its side, and its EXIF says so."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (7, 9, 3)).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 2 else 1
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png", exif=exif)
    return folder


def images_of(shards: ShardSet) -> dict[str, Any]:
    """Every image of the training split [H, W, 3] by the stem of its file name."""
    with StreamingLoader(shards, split="train", batch_size=2, window=1, lanes=1) as loader:
        batches = [next(loader) for _ in range(loader.samples // 2)]
        return {
            key.rpartition("/")[2]: image.permute(1, 2, 0).numpy()
            for batch in batches
            for key, image in zip(batch.keys, batch.images, strict=True)
        }


@pytest.mark.parametrize("crop", ["center", "pad", "stretch", "48"])
def test_a_photo_that_went_into_a_set_has_the_same_pixels_here(tmp_path: Path, crop: str) -> None:
    folder = paint(tmp_path / "faces", 4)
    shards = make_shards(
        folder, tmp_path / "set", "--size", str(SIZE), "--crop", crop, "--encode", "png",
        "--background", "#336699", "--val-fraction", "0",
    )  # fmt: skip
    stored = images_of(shards)
    paths = sorted(folder.iterdir())
    own = pixels(load_photos(trained(tmp_path, shards), paths))
    for path, image in zip(paths, own, strict=True):
        assert np.array_equal(image, stored[path.stem])
    # The model alone knows as much once it was saved.
    alone = trained(tmp_path, photos=photo_settings(shards))
    assert np.array_equal(pixels(load_photos(alone, paths)), own)
    assert json.dumps(photo_settings(shards))


def test_a_jpeg_set_differs_by_its_own_compression_alone(tmp_path: Path) -> None:
    folder = paint(tmp_path / "faces", 4)
    shards = make_shards(folder, tmp_path / "set", "--size", str(SIZE), "--val-fraction", "0")
    stored = images_of(shards)
    own = pixels(load_photos(trained(tmp_path, shards), sorted(folder.iterdir())))
    for number, image in enumerate(own):
        error = np.mean((image.astype(float) - stored[str(number)]) ** 2)
        assert 10 * np.log10(255**2 / error) > 35


def test_a_foreign_set_and_none_give_the_tools_own_recipe(tmp_path: Path) -> None:
    foreign = make_shard_set(tmp_path / "set", size=SIZE)
    assert photo_settings(foreign) == {}
    recipes = [recipe_of(trained(tmp_path, foreign, photos={})), recipe_of(trained(tmp_path))]
    assert recipes[0] == recipes[1]
    assert (recipes[0].size, recipes[0].crop, recipes[0].background) == (SIZE, "center", "#ffffff")


def test_the_recipe_of_the_model_goes_before_that_of_another_set(tmp_path: Path) -> None:
    shards = make_shards(paint(tmp_path / "faces", 2), tmp_path / "set", "--size", str(SIZE), "--crop", "pad")
    assert recipe_of(trained(tmp_path, shards)).crop == "pad"
    assert recipe_of(trained(tmp_path, shards, photos={"crop": "stretch"})).crop == "stretch"


@pytest.mark.parametrize("size", [(20, 12), (1, 1), (SIZE, SIZE - 1)])
def test_a_small_photo_is_enlarged(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "small.png")
    image = load_photos(trained(tmp_path), [tmp_path / "small.png"])
    assert image.shape == (1, 3, SIZE, SIZE)
    assert torch.allclose(image.mean((0, 2, 3)) * 255, torch.tensor([10.0, 200.0, 30.0]))


def test_a_photo_smaller_than_the_sets_crop_is_taken_whole(tmp_path: Path) -> None:
    half = Image.new("RGB", (50, 50), "red")
    half.paste("blue", (25, 0, 50, 50))
    half.save(tmp_path / "half.png")
    image = pixels(load_photos(trained(tmp_path, photos={"crop": 60}), [tmp_path / "half.png"]))[0]
    assert tuple(image[0, 0]) == (255, 0, 0)
    assert tuple(image[0, -1]) == (0, 0, 255)


def test_bytes_and_files_are_read_alike(tmp_path: Path) -> None:
    [path] = paint(tmp_path / "faces", 1).iterdir()
    known = trained(tmp_path)
    one = photo_from_bytes(path.read_bytes(), recipe_of(known))
    assert (one.dtype, one.shape) == (torch.float32, (3, SIZE, SIZE))
    assert torch.equal(one, load_photos(known, [path])[0])


def test_a_folder_gives_all_its_photos_in_order_and_passes_over_what_is_none(tmp_path: Path) -> None:
    folder = paint(tmp_path / "faces", 3)
    paint(folder / "more", 1)
    (folder / "notes.txt").write_text("no photo at all")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    known = trained(tmp_path)
    found = read_photos(known, [folder])
    assert found.names == ("0.png", "1.png", "2.png", "more/0.png")
    assert len(found.left_out) == 1
    assert "broken.jpg must be a photo; got damaged image" in found.left_out[0]
    single = load_photos(known, [folder / "1.png"])[0]
    assert np.array_equal(found.images[1].permute(1, 2, 0).numpy(), pixels(single[None])[0])
    few = read_photos(known, [folder, folder / "2.png"], 2)
    assert few.names == ("0.png", "1.png", "2.png")
    assert few.left_out == (f"{folder}: all but the first 2 of 5 photos",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("letter.jpg", b"Dear all,", "must be a photo; got not an image"),
        ("empty.jpg", b"", "must be a photo; got empty file. Give a JPEG or PNG file."),
        ("cut.jpg", b"\xff\xd8\xff\xe0", "must be a photo; got damaged image"),
        ("film.mp4", b"\0\0\0\x18ftypisom", "must be a photo; got image format not supported"),
        ("gone.jpg", None, "a photo must be a file; got"),
    ],
)
def test_what_is_no_photo_is_named_in_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_photos(trained(tmp_path), [path])
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_photos_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must hold photos"):
        load_photos(trained(tmp_path), [tmp_path / "empty"])
    (tmp_path / "empty" / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match="at least one photo must be readable"):
        load_photos(trained(tmp_path), [tmp_path / "empty"])


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(paint(tmp_path / "faces", 3).iterdir())
    monkeypatch.setattr(photos_module, "MOST_PHOTOS", 2)
    with pytest.raises(UserError, match="at most 2 photos must be given"):
        load_photos(trained(tmp_path), paths)
    monkeypatch.setattr(photos_module, "MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match=r"0\.png must be a photo of at most 0 MiB; got more"):
        load_photos(trained(tmp_path), paths[:1])


def test_photos_as_people_have_them_are_read(tmp_path: Path) -> None:
    folders = [REAL / "gan512", REAL / "ccby_large", REAL / "odd"]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip("no real photos here (../shared/data)")
    found = read_photos(trained(tmp_path), folders, 6)
    assert 12 <= len(found) <= 18
    assert found.images.float().flatten(1).std(1).min() > 10
    buffer = io.BytesIO()
    Image.fromarray(found.images[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    again = photo_from_bytes(buffer.getvalue(), recipe_of(trained(tmp_path)))
    assert torch.equal(again, found.images[0].float() / 255)
