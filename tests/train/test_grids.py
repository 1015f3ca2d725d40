import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import Dataset
from pipeline.format import ShardSet
from tests.train.tiny import CPU, tiny_config, tiny_model
from train.evaluate import Gaussian
from train.grids import reconstruction_blocks, tile, to_uint8, training_grid


def test_a_tile_puts_images_in_rows_with_gaps() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 4, 4) * 10
    pixels = np.asarray(tile(images, 3))
    assert pixels.shape == (4 + 2 + 4, 3 * 4 + 2 * 2, 3)
    assert [int(pixels[0, column * 6, 0]) for column in range(3)] == [0, 10, 20]
    assert [int(pixels[6, column * 6, 0]) for column in range(3)] == [30, 40, 250]


def test_floats_are_rounded_and_clamped() -> None:
    assert to_uint8(torch.tensor([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0])).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("count", [1, 5, 12, 50])
def test_each_original_is_above_its_reconstruction(faces: ShardSet, count: int) -> None:
    model = tiny_model(tiny_config())
    [(caption, picture)], originals, answers = reconstruction_blocks(
        model, Dataset.open(faces), "val", CPU, columns=5, count=count
    )
    shown = min(count, 12)
    assert "val" in caption
    assert len(originals) == len(answers) == shown
    rows = 2 * -(-shown // 5)
    assert picture.size == (5 * 34 - 2, rows * 34 - 2)
    pixels = np.asarray(picture)
    for number in (0, shown - 1):
        row, column = divmod(number, 5)
        for images, top in ((originals, 68 * row), (answers, 68 * row + 34)):
            cell = pixels[top : top + 32, 34 * column : 34 * column + 32]
            assert np.array_equal(cell, images[number].permute(1, 2, 0).numpy())


def test_new_faces_follow_the_seed_and_the_temperature() -> None:
    model = tiny_model(tiny_config())
    gaussian = Gaussian.standard(4)
    first = model.sample(70, seed=3, prior=gaussian)
    assert first.shape == (70, 3, 32, 32)
    assert first[:5].equal(model.sample(5, seed=3, prior=gaussian))
    assert not first.equal(model.sample(70, seed=4, prior=gaussian))
    still = model.sample(3, seed=3, temperature=0.0, prior=gaussian)
    assert still[0].equal(still[2])


def test_a_training_grid_is_the_same_every_time_and_leaves_the_weights_alone(faces: ShardSet) -> None:
    model = tiny_model(tiny_config(model={"kind": "keras"}))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def paint() -> Image.Image:
        return training_grid(model, Dataset.open(faces), "val", Gaussian.standard(4), CPU, 0)

    assert np.array_equal(np.asarray(paint()), np.asarray(paint()))
    assert paint().width == 16 * 34 - 2 + 2 * 8
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
