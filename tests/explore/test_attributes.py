import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from explore.attributes import AMOUNTS, parse_amounts
from explore.cli import main
from explore.faces import load_faces
from explore.latent.directions import load_directions
from pipeline.errors import UserError
from pipeline.format import ShardSet
from tests.explore.untrained import SIZE, save_model, trained
from tests.helpers import make_image, make_shard_set
from train.grids import to_uint8

NAMES = ("Smiling", "Young", "Eyeglasses", "Bald")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("sets") / "faces"
    return make_shard_set(folder, samples={"train": 8, "val": 12}, size=SIZE, attributes=NAMES)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "me.png"
    Image.fromarray(make_image("own", 3, 90)).save(path)
    return path


def attributes(model: Path, shards: ShardSet, *arguments: str) -> Path:
    assert main(["attributes", *arguments, "--model", str(model), "--shards", str(shards.folder)]) == 0
    return model / "explore"


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def numbers(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def test_attributes_writes_a_table_figures_and_a_strip_of_each_face(
    model: Path, shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = attributes(model, shards)
    shown = capsys.readouterr().out
    faces = sorted(path.name for path in folder.glob("attributes-face-val-*.png"))
    assert len(faces) == 3
    for name in ("attributes.csv", "attributes.json", "attributes-auc.png", "attributes-cosines.png", *faces):
        assert f"{folder / name}\n" in shown
    rows = table(folder / "attributes.csv")
    assert {row["attribute"] for row in rows} == {"Smiling", "Young", "Eyeglasses"}
    assert [float(row["auc"]) for row in rows] == sorted((float(row["auc"]) for row in rows), reverse=True)
    found = numbers(folder / "attributes.json")
    assert found["without_direction"] == {"Bald": 0}
    assert "all 8 images are the same: Bald" in shown
    assert (found["training_images"], found["held_out_images"], found["held_out_from"]) == (8, 12, "val")
    cosines = table(folder / "attributes-cosines.csv")
    assert [float(row[row["attribute"]]) for row in cosines] == pytest.approx([1.0] * 6)
    assert {row["directions"] for row in cosines} == {"adjusted", "plain"}


def test_a_strip_goes_from_minus_four_to_four_with_the_face_in_the_middle(model: Path, shards: ShardSet) -> None:
    folder = attributes(model, shards, "5", "--only", "Young,Smiling")
    known = trained(folder, shards)
    directions = load_directions(known)
    faces = load_faces(known, ["5"], "val")
    with torch.inference_mode():
        mean, _ = known.model.encode(faces.images.float() / 255)
        step = directions.vectors[directions.number("Young")]
        expected = [
            to_uint8(known.model.decode(mean + amount * step))[0].permute(1, 2, 0).numpy() for amount in AMOUNTS
        ]
    with Image.open(folder / "attributes-face-val-5.png") as image:
        pixels = np.asarray(image)
    changes = {row["attribute"]: row for row in table(folder / "attributes-face-val-5.csv")}
    assert set(changes) == {"Young", "Smiling"}
    for amount, picture in zip(AMOUNTS, expected, strict=True):
        assert contains(pixels, picture)
        difference = np.sqrt(np.square(picture.astype(float) - expected[4]).mean())
        assert float(changes["Young"][f"rms_{amount:+d}" if amount else "rms_0"]) == pytest.approx(difference, abs=0.01)


def contains(sheet: Any, picture: Any) -> bool:
    """Whether `picture` [h, w, 3] is part of `sheet`, enlarged by a whole factor or not at all."""
    for factor in (1, 2, 3, 4):
        part = picture.repeat(factor, 0).repeat(factor, 1)
        height, width, _ = part.shape
        if height > len(sheet) or width > sheet.shape[1]:
            continue
        same = np.ones((len(sheet) - height + 1, sheet.shape[1] - width + 1), bool)
        for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
            same &= (sheet[y : y + same.shape[0], x : x + same.shape[1]] == part[y, x]).all(-1)
        if any((sheet[y : y + height, x : x + width] == part).all() for y, x in zip(*same.nonzero(), strict=True)):
            return True
    return False


def test_the_same_seed_writes_the_same_bytes(model: Path, shards: ShardSet) -> None:
    def written(*more: str) -> dict[str, bytes]:
        folder = attributes(model, shards, "--only", "Young", *more)
        found = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".csv")}
        for path in folder.glob("attributes-*"):
            path.unlink()
        return found

    first = written()
    assert written() == first
    assert written("--seed", "1").keys() != first.keys()


def test_apply_changes_a_persons_own_photo(model: Path, shards: ShardSet, photo: Path) -> None:
    attributes(model, shards, "--only", "Smiling", "1")
    folder = model / "explore"
    for path in folder.glob("attributes*"):
        path.unlink()
    # With stored directions the shard set is not needed any more.
    assert main(["attributes", "--model", str(model), "--apply", "Smiling=2,Young=-1", str(photo)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "attributes-applied.json",
        "attributes-applied.png",
        "directions.safetensors",
    ]
    known = trained(folder)
    faces = load_faces(known, [str(photo)], "val")
    with torch.inference_mode():
        mean, _ = known.model.encode(faces.images.float() / 255)
        moved = load_directions(known).moved(mean, {"Smiling": 2, "Young": -1})
        pictures = [faces.images[0], *(to_uint8(known.model.decode(latents))[0] for latents in (mean, moved))]
    with Image.open(folder / "attributes-applied.png") as image:
        sheet = np.asarray(image)
    for picture in pictures:
        assert contains(sheet, picture.permute(1, 2, 0).numpy())
    found = numbers(folder / "attributes-applied.json")
    assert found["amounts"] == {"Smiling": 2, "Young": -1}
    (face,) = found["faces"]
    assert face["name"] == "me.png"
    assert face["change_rms"] > 0


def test_plain_directions_are_others_than_adjusted_ones(model: Path, shards: ShardSet) -> None:
    def changed(kind: str) -> float:
        folder = attributes(model, shards, "2", "--apply", "Smiling=3", "--directions", kind)
        return float(numbers(folder / "attributes-applied.json")["faces"][0]["change_rms"])

    assert changed("plain") != changed("adjusted")


def test_namesakes_do_not_overwrite_each_other(model: Path, shards: ShardSet, tmp_path: Path) -> None:
    for name, number in (("one/a.png", 1), ("two/a.jpg", 2)):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(make_image("own", number, 40)).save(tmp_path / name)
    folder = attributes(model, shards, str(tmp_path / "one/a.png"), str(tmp_path / "two/a.jpg"), "--only", "Young")
    assert {path.name for path in folder.glob("attributes-face-*.png")} == {
        "attributes-face-a.png",
        "attributes-face-a-2.png",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "Smilng"], "got 'Smilng'. Did you mean: Smiling"),
        (["--only", "Bald"], "attribute Bald must be 1 for some training images and 0 for others; got 0 of 8"),
        (["--apply", "Smiling"], "--apply must be attributes and units from -100 to 100; got 'Smiling'. Write it as"),
        (["--apply", "Smiling=much"], "got 'Smiling=much'"),
        (["--apply", "Smiling=nan"], "got 'Smiling=nan'"),
        (["--apply", "Smiling=1e9"], "got 'Smiling=1e9'"),
        (["--apply", "=1"], "got '=1'"),
        (["--apply", "Smiling=1,"], "got ''"),
        (["--apply", "Smiling=1,Smiling=2"], "must name an attribute once; got 'Smiling' twice"),
        (["--apply", "Simling=1"], "got 'Simling'. Did you mean: Smiling"),
        (["--apply", "Smiling=1", "{tmp}/nobody.jpg"], "a photo must be a file; got"),
        (["--apply", "Smiling=1", "{tmp}/text.jpg"], "must be a photo; got"),
        (["99"], "a number of the val split must be below 12; got 99"),
        (["--images", "1"], "--images must be at least 2; got 1"),
        (["--shards", "{tmp}/bare"], "the shard set must have attributes; got none"),
        (["--shards", "{shards}", "{tmp}/bare"], "the attributes must be the same in all sets; got others in each of"),
    ],
)
def test_a_persons_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    model: Path,
    shards: ShardSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    make_shard_set(tmp_path / "bare", size=SIZE, attributes=())
    filled = [argument.format(tmp=tmp_path, shards=shards.folder) for argument in arguments]
    if "--shards" not in filled:
        filled += ["--shards", str(shards.folder)]
    assert main(["attributes", "--model", str(model), *filled]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize("wrong", [["--only", "Smilng"], ["--apply", "Smilng=1"], ["99"], ["nobody.jpg"]])
def test_a_mistake_is_told_before_any_image_is_streamed(
    wrong: list[str], model: Path, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("explore.latent.directions.encoded", None)
    assert main(["attributes", *wrong, "--model", str(model), "--shards", str(shards.folder)]) == 2


def test_a_single_held_out_face_tells_no_area_and_all_else_is_there(model: Path, tmp_path: Path) -> None:
    few = make_shard_set(tmp_path / "few", samples={"train": 8, "val": 1}, size=SIZE, attributes=NAMES)
    folder = attributes(model, few)
    assert {row["auc"] for row in table(folder / "attributes.csv")} == {""}
    assert numbers(folder / "attributes.json")["attributes"]["Young"]["auc"] is None
    assert (folder / "attributes-auc.png").exists()
    assert (folder / "attributes-face-val-0.png").exists()


def test_amounts_are_read_with_signs_fractions_and_blanks() -> None:
    assert parse_amounts("Smiling=2, Eyeglasses=-1.5,Young=+.5") == {"Smiling": 2, "Eyeglasses": -1.5, "Young": 0.5}
    with pytest.raises(UserError):
        parse_amounts("")
