import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from explore.cli import main
from explore.faces import drawn_faces, load_faces
from explore.morph import FINER, Walk, angle_between, film_of, linear, slerp
from pipeline.errors import UserError
from pipeline.format import ShardSet
from tests.explore.untrained import SIZE, save_model, trained
from tests.helpers import make_key, make_shard_set
from train.evaluate import stream_images
from train.grids import to_uint8

CPU = torch.device("cpu")
SHARES = torch.linspace(0, 1, 9)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return make_shard_set(tmp_path / "set", samples={"train": 9, "val": 7}, size=SIZE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def morph(model: Path, shards: ShardSet, *arguments: str) -> dict[str, Any]:
    assert main(["morph", *arguments, "--model", str(model), "--shards", str(shards.folder)]) == 0
    return dict(json.loads((model / "explore" / "morph.json").read_bytes()))


def test_slerp_in_the_plane_is_a_turn_by_equal_angles() -> None:
    start, end = torch.tensor([2.0, 0.0]), 2 * torch.tensor([math.cos(1.2), math.sin(1.2)])
    angles = 1.2 * SHARES
    assert torch.allclose(slerp(start, end, SHARES), 2 * torch.stack([angles.cos(), angles.sin()], 1), atol=1e-6)
    assert float(angle_between(start, end)) == pytest.approx(1.2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_ways_begin_and_end_at_their_ends_and_spheres_are_not_left(seed: int, size: int) -> None:
    start, end = torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    end = end * start.norm() / end.norm()
    shares = SHARES.double()
    for path in (linear, slerp):
        points = path(start, end, shares)
        assert torch.allclose(points[0], start)
        assert torch.allclose(points[-1], end)
        assert torch.allclose(path(end, start, shares).flip(0), points)
    assert torch.allclose(slerp(start, end, shares).norm(dim=1), start.norm().expand(len(shares)))
    assert (linear(start, end, shares).norm(dim=1) <= start.norm() * (1 + 1e-9)).all()


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, -2.0, 0.0])
def test_ends_without_a_plane_are_joined_by_the_straight_line(factor: float) -> None:
    start = torch.tensor([1.0, 2.0, -0.5])
    points = slerp(start, factor * start, SHARES)
    assert torch.allclose(points, linear(start, factor * start, SHARES), atol=1e-5)
    assert points.isfinite().all()


def test_a_morph_is_a_strip_two_films_and_numbers(model: Path, shards: ShardSet) -> None:
    found = morph(model, shards, "val:1", "train:2", make_key("val", 3), "--steps", "3")
    folder = model / "explore"
    assert sorted(path.name for path in folder.iterdir()) == [
        "morph-linear.gif",
        "morph-spherical.gif",
        "morph.csv",
        "morph.json",
        "morph.png",
    ]
    assert [face["name"] for face in found["faces"]][:2] == ["val:1", "train:2"]
    assert found["faces"][2]["key"] == make_key("val", 3)
    images = [
        next(iter(stream_images(shards, "val", 2, CPU)))[1],
        next(iter(stream_images(shards, "train", 3, CPU)))[2],
    ]
    network = trained(folder).model
    with torch.inference_mode():
        start, end = network.encode(torch.stack(images))[0]
    pair = found["pairs"][0]
    assert pair["latent_distance"] == pytest.approx(float((start - end).norm()), rel=1e-4)
    lengths = {way: figures["latent_length"] for way, figures in pair["ways"].items()}
    assert lengths["linear"] == pytest.approx(pair["latent_distance"], rel=1e-4)
    assert lengths["spherical"] >= lengths["linear"] * (1 - 1e-4)
    with open(folder / "morph.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (2 * FINER + 1)
    decibels = [float(row["psnr_to_the_frame_before_db"]) for row in rows[1 : 2 * FINER + 1]]
    assert pair["ways"]["linear"]["least_psnr_of_steps_db"] == pytest.approx(min(decibels), abs=1e-2)


def test_the_film_goes_there_and_back_without_end_and_rests_at_the_faces() -> None:
    across = torch.linspace(0, 120, SIZE)[None, None, :].expand(3, SIZE, SIZE)
    brightness = torch.arange(2 * 2 * FINER + 1) * 8.0
    frames = (across + brightness[:, None, None, None]).round().to(torch.uint8)
    middle = 2 * FINER
    walks = [Walk(torch.zeros(0), frames[: middle + 1]), Walk(torch.zeros(0), frames[middle:])]
    with Image.open(io.BytesIO(film_of(walks))) as film:
        assert film.info["loop"] == 0
        shown = [
            (frame.info["duration"], np.asarray(frame.convert("RGB")).astype(float))
            for frame in ImageSequence.Iterator(film)
        ]
    there = list(range(len(frames)))
    order = there + there[-2:0:-1]
    assert [duration for duration, _ in shown] == [700 if place % middle == 0 else 60 for place in order]
    for place, (_, picture) in zip(order, shown, strict=True):
        assert picture.shape == (192, 192, 3)
        small = picture.reshape(SIZE, 6, SIZE, 6, 3).mean((1, 3))
        assert np.abs(small - frames[place].permute(1, 2, 0).numpy()).mean() < 2


def test_own_photos_need_no_shard_set(model: Path, tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "navy")):
        Image.new("RGB", (50, 40), colour).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(2)]
    assert main(["morph", *paths, "--model", str(model)]) == 0
    assert [face["name"] for face in json.loads((model / "explore" / "morph.json").read_bytes())["faces"]] == [
        "0.png",
        "1.png",
    ]


def test_without_names_the_seed_draws_two_faces(model: Path, shards: ShardSet) -> None:
    first = morph(model, shards)
    files = {path.name: path.read_bytes() for path in (model / "explore").iterdir()}
    assert len({face["name"] for face in first["faces"]}) == 2
    assert morph(model, shards) == first
    assert {path.name: path.read_bytes() for path in (model / "explore").iterdir()} == files
    drawn = {tuple(drawn_faces(trained(model, shards), "val", 2, seed).names) for seed in range(5)}
    assert len(drawn) > 1


def test_numbers_and_keys_name_the_same_faces(tmp_path: Path, shards: ShardSet) -> None:
    known = trained(tmp_path, shards)
    images = torch.cat(list(stream_images(shards, "val", None, CPU)))
    faces = load_faces(known, [str(number) for number in range(7)], "val")
    assert torch.equal(faces.images, to_uint8(images))
    by_key = load_faces(known, [str(key) for key in faces.keys], "val")
    assert torch.equal(by_key.images, faces.images)
    assert by_key.names == faces.names == tuple(f"val:{number}" for number in range(7))
    short = str(faces.keys[4]).rpartition("/")[2]
    assert load_faces(known, [f"val:{short}"], "train").names == ("val:4",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0"], "a morph must have from 2 to 12 faces; got 1. Name a face to go to."),
        (["0", "7"], "a number of the val split must be below 7; got 7"),
        (["0", "nobody"], "got 'nobody', which is none in val. Numbers go from 0 to 6"),
        (["0", "gone.jpg"], "a photo must be a file; got gone.jpg"),
        (["test:0", "0"], "got 'test'"),
        (["0", "1", "--steps", "1"], "--steps must be at least 2; got 1"),
        (["0", "1", "--steps", "25"], "--steps must be at most 24; got 25"),
        (["0"] * 13, "a morph must have from 2 to 12 faces; got 13. Name fewer."),
    ],
)
def test_mistakes_are_one_line(
    model: Path, shards: ShardSet, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["morph", *arguments, "--model", str(model), "--shards", str(shards.folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_name_without_a_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a face must be a photo; got 'nobody', .* or add --shards"):
        load_faces(trained(tmp_path), ["nobody"], "val")
    with pytest.raises(UserError, match="must come from a shard set"):
        load_faces(trained(tmp_path), ["0"], "val")


def test_a_split_of_one_image_has_no_two_faces(tmp_path: Path) -> None:
    shards = make_shard_set(tmp_path / "one", samples={"train": 4, "val": 1}, size=SIZE)
    with pytest.raises(UserError, match="must have at least 2 images; got 1"):
        drawn_faces(trained(tmp_path, shards), "val", 2, 0)
