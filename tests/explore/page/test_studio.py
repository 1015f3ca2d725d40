import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from explore.encode import encoded
from explore.page.studio import Face, Studio, enlarged, open_studio, png, strongest_dimensions
from pipeline.errors import UserError
from pipeline.format import ShardSet
from tests.explore.untrained import SIZE, trained
from tests.helpers import make_image, make_shard_set
from train.objectives import kl_divergence

NAMES = ("Smiling", "Eyeglasses")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """What suits tiny models, and what the page itself takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shard_set(
        tmp_path_factory.mktemp("sets") / "faces", samples={"train": 40, "val": 12}, size=SIZE, attributes=NAMES
    )


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, shards: ShardSet) -> Studio:
    return open_studio(trained(tmp_path_factory.mktemp("model"), shards), Console(quiet=True))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo that is twice as large as the model's images."""
    path = tmp_path / "Jane Doe at home.png"
    Image.fromarray(make_image("val", 3, 2 * SIZE)).save(path)
    return path


def test_a_seed_and_a_temperature_draw_the_same_face_again(studio: Studio) -> None:
    first = studio.random_face(3)
    assert np.array_equal(first.latent, studio.random_face(3).latent)
    assert not np.array_equal(first.latent, studio.random_face(4).latent)
    assert not np.array_equal(first.latent, studio.random_face(3, 0.5).latent)
    assert (first.name, first.title, first.seed) == ("face-3", "Random face 3", 3)


def test_sliders_at_zero_show_the_face_itself(studio: Studio) -> None:
    face = studio.random_face(0)
    resting = studio.edited(face, dict.fromkeys(NAMES, 0.0), {d.number: 0.0 for d in studio.dimensions})
    assert np.array_equal(resting, face.latent)


def test_an_attributes_slider_moves_along_its_direction(studio: Studio) -> None:
    assert studio.directions is not None
    face = studio.random_face(0)
    moved = studio.edited(face, {"Smiling": 2.0, "Eyeglasses": 0.0}, {})
    wanted = studio.directions.moved(torch.from_numpy(face.latent)[None], {"Smiling": 2.0})[0].numpy()
    assert np.array_equal(moved, wanted)
    assert not np.array_equal(moved, face.latent)


def test_a_dimensions_slider_moves_it_alone_by_standard_deviations(studio: Studio) -> None:
    face = studio.random_face(0)
    dimension = studio.dimensions[0]
    step = studio.edited(face, {}, {dimension.number: -3.0}) - face.latent
    assert step[dimension.number] == pytest.approx(-3.0 * dimension.std, rel=1e-5)
    assert np.count_nonzero(step) == 1


def test_edits_leave_the_face_as_it_was(studio: Studio) -> None:
    face = studio.random_face(0)
    before = face.latent.copy()
    studio.edited(face, {"Smiling": 4.0}, {studio.dimensions[0].number: 4.0})
    assert np.array_equal(face.latent, before)


def test_the_dimensions_are_those_of_most_kl(studio: Studio) -> None:
    model = studio.trained
    with torch.inference_mode():
        batches = list(encoded(model, "train", 40))
    mean, logvar = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("mean", "logvar"))
    by_dimension = [float(kl_divergence(mean[:, z, None], logvar[:, z, None]).mean()) for z in range(mean.shape[1])]
    order = sorted(range(len(by_dimension)), key=lambda z: -by_dimension[z])
    assert [dimension.number for dimension in studio.dimensions] == order[:12]
    assert studio.dimensions[0].strength == f"{max(by_dimension):.1f} nats"


def test_without_images_the_dimensions_are_those_that_change_most_pixels(studio: Studio) -> None:
    alone = replace(studio.trained, shards=None)
    found = strongest_dimensions(alone)
    strengths = [float(dimension.strength.removesuffix(" levels")) for dimension in found]
    assert sorted(dimension.number for dimension in found) == list(range(alone.model.latent))
    assert strengths == sorted(strengths, reverse=True)
    # The strongest one again, by hand.
    ends = np.zeros((2, alone.model.latent), np.float32)
    ends[:, found[0].number] = -1, 1
    low, high = (np.asarray(studio.picture(end), float) for end in ends)
    assert strengths[0] == pytest.approx(np.abs(high - low).mean(), abs=0.06)


def test_a_photo_becomes_its_posterior_mean_beside_what_the_model_saw(studio: Studio, photo: Path) -> None:
    face = studio.photo_face(photo)
    assert face.photo is not None
    assert face.photo.shape == (SIZE, SIZE, 3)
    with torch.inference_mode():
        mean, _ = studio.trained.model.encode(torch.from_numpy(face.photo).permute(2, 0, 1)[None].float() / 255)
    assert np.allclose(face.latent, mean[0].numpy(), atol=1e-5)
    answer = np.asarray(studio.picture(face.latent), float)
    decibels = 10 * np.log10(255**2 / np.square(answer - face.photo).mean())
    assert face.note == f"{decibels:.1f} dB PSNR"
    assert "Jane" not in face.name + face.title


@pytest.mark.parametrize("content", [b"", b"no photo at all", b"\xff\xd8\xff\xe0 half a JPEG"])
def test_a_file_that_is_no_photo_is_named_without_its_folder(studio: Studio, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^broken\.jpg must be a photo") as raised:
        studio.photo_face(path)
    assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize("way", ["linear", "spherical"])
def test_a_morph_begins_at_the_left_and_ends_at_the_right(studio: Studio, way: str) -> None:
    left, right = studio.random_face(0), studio.random_face(1)
    # A slider's ends arrive as whole numbers.
    assert np.allclose(studio.between(left, right, 0, way), left.latent, atol=1e-5)
    assert np.allclose(studio.between(left, right, 1, way), right.latent, atol=1e-5)
    half = studio.between(left, right, 0.5, way)
    straight = (left.latent + right.latent) / 2
    assert np.allclose(half, straight, atol=1e-5) == (way == "linear")


def test_a_film_goes_there_and_back_without_end(studio: Studio) -> None:
    left, right = studio.random_face(0), studio.random_face(1)
    with Image.open(io.BytesIO(studio.film(left, right, "spherical"))) as film:
        assert film.format == "GIF"
        assert film.info["loop"] == 0
        frames = getattr(film, "n_frames", 1)
        pictures = []
        for number in range(frames):
            film.seek(number)
            pictures.append(np.asarray(film.convert("RGB")))
    assert 10 < frames <= 48
    middle = frames // 2
    assert np.array_equal(pictures[1], pictures[-1])
    assert not np.array_equal(pictures[0], pictures[middle])


def test_a_set_without_attributes_leaves_the_dimensions(tmp_path: Path) -> None:
    said = Console(record=True, width=200, file=io.StringIO())
    plain = make_shard_set(tmp_path / "plain", size=SIZE, attributes=())
    studio = open_studio(trained(tmp_path / "model", plain), said)
    assert studio.directions is None
    assert studio.attributes == ()
    assert len(studio.dimensions) == studio.trained.model.latent
    assert "No sliders for attributes: the shard set must have attributes" in said.export_text()


def test_a_model_alone_draws_and_edits_faces(tmp_path: Path) -> None:
    studio = open_studio(trained(tmp_path), Console(quiet=True))
    face: Face = studio.random_face(0)
    moved = studio.edited(face, {}, {studio.dimensions[0].number: 4.0})
    assert studio.picture(moved).size == (SIZE, SIZE)


@pytest.mark.parametrize("smooth", [True, False])
def test_a_picture_is_enlarged_by_a_whole_factor_and_saved_without_loss(studio: Studio, smooth: bool) -> None:
    small = studio.picture(studio.random_face(0).latent)
    large = enlarged(small, smooth=smooth)
    assert large.size == (384, 384)
    with Image.open(io.BytesIO(png(large))) as saved:
        assert saved.format == "PNG"
        assert np.array_equal(np.asarray(saved), np.asarray(large))
    exact = np.asarray(small).repeat(12, 0).repeat(12, 1)
    assert np.array_equal(np.asarray(large), exact) != smooth
