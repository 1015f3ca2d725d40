"""New faces as files, and their nearest training images."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explore.cli import main
from explore.latent.neighbours import Nearest, Queries, features, find, held_out_queries, measured
from pipeline.format import ShardSet
from tests.explore.untrained import save_model, trained
from tests.helpers import make_image, make_key, make_shard_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shard_set(
        tmp_path_factory.mktemp("sets") / "faces", samples={"train": 40, "val": 12}, size=32, encoding="raw"
    )


@pytest.fixture
def model(tmp_path: Path, shards: ShardSet) -> Path:
    return save_model(tmp_path / "model", shardset=shards.fingerprint)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["sample", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def face(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_files_are_numbered_and_the_faces_of_the_picture(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "faces"
    arguments = ["sample", "--model", str(model), "--prior", "standard", "--seed", "3"]
    assert main([*arguments, "--count", "130", "--files", str(folder)]) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == [*(f"{number:06d}.png" for number in range(130)), "samples.json"]
    facts = json.loads((folder / "samples.json").read_bytes())
    assert (facts["prior"], facts["seed"], facts["temperature"]) == ("standard", 3, 1.0)
    assert not (model / "explore" / "sample-standard.png").exists()
    assert main([*arguments, "--count", "12", "--columns", "12"]) == 0
    sheet = face(model / "explore" / "sample-standard.png")
    left, top = 8, 8 + 22
    first = sheet[top : top + 32, left : left + 32]
    assert np.abs(first.astype(int) - face(folder / "000000.png")).max() <= 1


def test_a_face_is_the_same_however_many_are_written(model: Path, tmp_path: Path) -> None:
    for count in ("70", "3"):
        folder = tmp_path / count
        assert main(["sample", "--model", str(model), "--count", count, "--files", str(folder)]) == 0
    for number in range(3):
        few, many = (face(tmp_path / count / f"{number:06d}.png").astype(int) for count in ("3", "70"))
        assert np.abs(few - many).max() <= 1


def test_an_interrupted_folder_is_finished_by_the_same_command(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    command = ["sample", "--model", str(model), "--count", "10", "--files", str(folder)]
    assert main(command) == 0
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "000007.png").unlink()
    (folder / "000008.png").rename(folder / "000008.png.partial")
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.parametrize(
    ("made", "message"),
    [("photo.jpg", "must hold nothing else; got 'photo.jpg'"), ("000000.png", "must hold nothing else")],
)
def test_faces_are_not_mixed_with_other_files(
    model: Path, tmp_path: Path, made: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / made).write_bytes(b"mine")
    error = error_of(capsys, "--model", str(model), "--files", str(folder))
    assert message in error
    assert "Name an empty folder" in error
    assert [path.name for path in folder.iterdir()] == [made]
    assert (folder / made).read_bytes() == b"mine"


@pytest.mark.parametrize("more", [("--seed", "1"), ("--prior", "standard"), ("--temperature", "0.5")])
def test_faces_of_other_settings_are_not_mixed(
    model: Path, tmp_path: Path, more: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "faces"
    assert main(["sample", "--model", str(model), "--count", "2", "--files", str(folder), "--prior", "gaussian"]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = {"--prior": "gaussian", more[0]: more[1]}
    error = error_of(
        capsys, "--model", str(model), "--files", str(folder), *(part for pair in options.items() for part in pair)
    )
    assert "must hold faces of the same settings; got faces of others" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count must be at least 1"),
        (["--count", "1025"], "a picture must hold at most 1,024 faces; got --count 1025. Add --files FOLDER"),
        (["--temperature", "-1"], "--temperature must be from 0 to 10; got -1"),
        (["--temperature", "nan"], "--temperature must be from 0 to 10; got nan"),
        (["--neighbours", "-1"], "--neighbours must be at least 0"),
        (["--neighbours", "17"], "--neighbours must be at most 16"),
        (["--neighbours", "2"], "the images must come from a shard set; got none. Add --shards FOLDER."),
        (["--prior", "mixture"], "Fit a mixture with `explore fit-prior`"),
        (["--files", "{file}"], "--files must be a folder; got the file"),
    ],
)
def test_a_persons_mistake_is_one_line(
    model: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert message in error_of(capsys, "--model", str(model), *(part.format(file=file) for part in arguments))


def test_a_planted_training_image_is_its_own_nearest_neighbour(tmp_path: Path, shards: ShardSet) -> None:
    this = trained(tmp_path, shards)
    planted = [7, 31]
    images = torch.stack([torch.from_numpy(make_image("train", number, 32)).permute(2, 0, 1) for number in planted])
    queries = features(this, images.float() / 255)
    found = find(this, queries, 3, named=2, shown=1)
    for nearest in found.nearest.values():
        for row, number in enumerate(planted):
            assert found.known[int(nearest.numbers[row, 0])].key == make_key("train", number)
            assert float(nearest.distances[row, 0]) < 1e-3
            assert float(nearest.distances[row, 1]) > 2 * float(nearest.distances[row, 0])
    mine = found.known[int(found.nearest["pixels"].numbers[0, 0])].image
    assert mine is not None
    assert mine.equal(images[0])


def test_neighbours_are_those_of_a_search_in_memory(tmp_path: Path, shards: ShardSet) -> None:
    this = trained(tmp_path, shards)
    photos, _ = held_out_queries(this, 12, 0, None)
    found = find(this, photos, 5, named=12, shown=0)
    train = (
        torch.stack([torch.from_numpy(make_image("train", n, 32)).permute(2, 0, 1) for n in range(40)]).float() / 255
    )
    everything = features(this, train)
    distances = torch.cdist(photos.latents.double(), everything.latents.double())
    expected = distances.sort(dim=1)
    torch.testing.assert_close(
        found.nearest["latents"].distances.double(), expected.values[:, :5], atol=1e-4, rtol=1e-3
    )
    keys = [found.known[number].key for number in found.nearest["latents"].numbers[:, 0].tolist()]
    assert keys == [make_key("train", number) for number in expected.indices[:, 0].tolist()]
    assert all(neighbour.image is None for neighbour in found.known.values())
    wanted = {number for nearest in found.nearest.values() for number in nearest.numbers.flatten().tolist()}
    assert set(found.known) == wanted


def test_a_model_that_memorised_is_told_by_the_ratio(tmp_path: Path, shards: ShardSet) -> None:
    this = trained(tmp_path, shards)
    photos, answers = held_out_queries(this, 12, 0, None)
    train = (
        torch.stack([torch.from_numpy(make_image("train", n, 32)).permute(2, 0, 1) for n in range(12)]).float() / 255
    )
    queries = Queries.joined([features(this, train), photos, answers])
    numbers = measured(
        find(this, queries, 1, named=0, shown=0),
        {"new": slice(0, 12), "photos": slice(12, 24), "reconstructions": slice(24, 36)},
    )
    for values in numbers.values():
        assert values["ratio_to_reconstructions"] < 0.1
        assert values["ratio_to_photos"] < 0.1
        assert values["nearer_than_99_percent"] == 1.0


def test_neighbours_are_painted_and_named(model: Path, shards: ShardSet) -> None:
    arguments = ["sample", "--model", str(model), "--shards", str(shards.folder), "--neighbours", "3", "--count", "5"]
    assert main([*arguments, "--debug"]) == 0
    results = model / "explore"
    facts = json.loads((results / "sample-gaussian.json").read_bytes())["neighbours"]
    assert (facts["train"], facts["held_out"]) == (40, 12)
    assert facts["pixels"]["ratio_to_reconstructions"] > 0
    rows = list(csv.DictReader(io.StringIO((results / "sample-gaussian-neighbours.csv").read_text())))
    assert len(rows) == facts["faces"] * 3 * 2
    keys = {make_key("train", number) for number in range(40)}
    assert {row["key"] for row in rows} <= keys
    ranks = [float(row["distance"]) for row in rows if row["face"] == "0" and row["measure"] == "pixels"]
    assert ranks == sorted(ranks)
    for name in ("sample-gaussian-neighbours.png", "sample-gaussian-neighbours-distances.png"):
        assert face(results / name).shape[1] > 300


def test_more_neighbours_than_training_images_are_all_of_them() -> None:
    nearest = Nearest(2, 4)
    nearest.add(torch.tensor([[3.0, 1.0], [2.0, 2.0]]), 0)
    nearest.add(torch.tensor([[2.0], [0.5]]), 2)
    assert nearest.numbers.tolist() == [[1, 2, 0, -1], [2, 0, 1, -1]]
    assert nearest.distances[0].tolist() == [1.0, 2.0, 3.0, float("inf")]
