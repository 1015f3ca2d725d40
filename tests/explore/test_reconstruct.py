import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explore import reconstruct as reconstruct_module
from explore.cli import main
from explore.figures.sheets import pairs_sheet
from explore.photos import load_photos
from pipeline.format import ShardSet
from tests.explore.untrained import SIZE, save_model, trained, untrained
from tests.helpers import make_shard_set
from train.evaluate import stream_images
from train.grids import to_uint8
from train.similarity import psnr, ssim

CPU = torch.device("cpu")


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return make_shard_set(tmp_path / "set", samples={"train": 9, "val": 7}, size=SIZE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def faces(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 256, (5, 5, 3)).astype(np.uint8)
        Image.fromarray(values).resize((60, 80), Image.Resampling.BICUBIC).save(folder / f"<b>{number}.png")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_of_a_split_has_its_key_and_its_figures(model: Path, shards: ShardSet) -> None:
    assert main(["reconstruct", "--model", str(model), "--shards", str(shards.folder), "--count", "5"]) == 0
    images = torch.cat(list(stream_images(shards, "val", 5, CPU)))
    network = untrained()
    with torch.inference_mode():
        answers = to_uint8(network.decode(network.encode(images)[0])).float() / 255
    table = rows(model / "explore" / "reconstruct-val.csv")
    assert [row["number"] for row in table] == ["0", "1", "2", "3", "4"]
    assert sorted(row["key"] for row in table) == sorted({row["key"] for row in table})
    assert all(row["key"].startswith("val/face-") for row in table)
    assert [float(row["psnr_db"]) for row in table] == pytest.approx(psnr(images, answers).tolist(), abs=2e-3)
    assert [float(row["ssim"]) for row in table] == pytest.approx(ssim(images, answers).tolist(), abs=2e-4)
    found = json.loads((model / "explore" / "reconstruct-val.json").read_bytes())
    best = max(table, key=lambda row: float(row["psnr_db"]))
    assert (found["images"], found["best"]) == (5, best["key"])


def test_images_of_several_sets_are_reconstructed_each_once(model: Path, shards: ShardSet, tmp_path: Path) -> None:
    rare = make_shard_set(tmp_path / "rare", samples={"train": 2}, size=SIZE, seed=1)
    figures: list[float] = []
    for sets in ([shards.folder], [rare.folder], [shards.folder, f"{rare.folder}*3"]):
        names = [str(one) for one in sets]
        assert main(["reconstruct", "--model", str(model), "--split", "train", "--shards", *names]) == 0
        table = rows(model / "explore" / "reconstruct-train.csv")
        if len(sets) == 1:
            figures += [float(row["psnr_db"]) for row in table]
    assert sorted(float(row["psnr_db"]) for row in table) == sorted(figures)
    assert len(figures) == 11


def test_own_photos_are_reconstructed_without_a_shard_set(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = faces(tmp_path / "own", 3)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["reconstruct", str(folder), str(folder / "<b>1.png"), "--model", str(model)]) == 0
    assert "left out:" in capsys.readouterr().out
    table = rows(model / "explore" / "reconstruct-photos.csv")
    assert [row["file"] for row in table] == ["<b>0.png", "<b>1.png", "<b>2.png", "<b>1.png"]
    assert table[1]["psnr_db"] == table[3]["psnr_db"]
    images = load_photos(trained(tmp_path), [folder / "<b>1.png"])
    network = untrained()
    with torch.inference_mode():
        answer = to_uint8(network.decode(network.encode(images)[0])).float() / 255
    assert float(table[1]["psnr_db"]) == pytest.approx(float(psnr(images, answer)), abs=2e-3)
    settings = json.loads((model / "explore" / "reconstruct-photos.json").read_bytes())["settings"]
    assert settings["photos"] == [str(folder), str(folder / "<b>1.png")]


def test_the_picture_shows_the_first_and_the_numbers_are_of_all(
    model: Path, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["reconstruct", "--model", str(model), "--shards", str(shards.folder), "--columns", "3"]
    assert main(command) == 0
    with Image.open(model / "explore" / "reconstruct-val.png") as picture:
        whole = picture.size
    monkeypatch.setattr(reconstruct_module, "SHOWN_PIXELS", 3 * SIZE**2)
    monkeypatch.setattr(reconstruct_module, "batch_for", lambda _: 2)
    assert main(command) == 0
    with Image.open(model / "explore" / "reconstruct-val.png") as picture:
        assert picture.height < whole[1] / 2
    assert len(rows(model / "explore" / "reconstruct-val.csv")) == 7


def test_the_same_command_writes_the_same_bytes(model: Path, shards: ShardSet, tmp_path: Path) -> None:
    def write(name: str) -> list[bytes]:
        folder = tmp_path / name
        assert main(["reconstruct", "--model", str(model), "--shards", str(shards.folder), "--out", str(folder)]) == 0
        return [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"]

    first = write("one")
    assert len(first) == 2
    assert write("two") == first


def test_a_pair_is_original_over_answer_with_its_note_below() -> None:
    above, below = torch.full((3, 3, 32, 32), 200, dtype=torch.uint8), torch.full((3, 3, 32, 32), 90, dtype=torch.uint8)
    pixels = np.asarray(pairs_sheet(above, below, ["20.1", "20.2", "20.3"], 2))
    factor = 4
    step = 32 * factor + 2
    assert (pixels[: 32 * factor, : 32 * factor] == 200).all()
    assert (pixels[step : step + 32 * factor, : 32 * factor] == 90).all()
    assert (pixels[2 * step : 2 * step + 14, : 32 * factor] < 200).any(), "the note"
    # The third pair begins a second row, and nothing is beside it.
    second = pixels[2 * step + 16 :]
    assert (second[: 32 * factor, : 32 * factor] == 200).all()
    assert (second[:, step:] == pixels[-1, -1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/gone.jpg"], "gone.jpg, where there is none"),
        (["{tmp}/model/config.json"], "config.json must be a photo; got not an image"),
        ([], "the images must come from a shard set; got none. Add --shards FOLDER."),
        (["--columns", "0"], "--columns must be at least 1; got 0"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", *(part.format(tmp=tmp_path) for part in arguments), "--model", str(model)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
