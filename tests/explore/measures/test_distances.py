"""Sliced Wasserstein distance against sorting, and how it answers to what one knows of pictures."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from explore.measures import distances
from explore.measures.distances import distance, laplacian_pyramid, project, sliced_wasserstein
from pipeline.counter import normal
from pipeline.errors import UserError


def noise_images(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth noise on grey, uint8 [count, 3, size, size]: large shapes and fine grain."""
    drawn = (
        (side, normal(np.arange(count), 3 * side * side, seed=seed, stream=f"images {side}"))
        for side in (size // 8, size)
    )
    coarse, fine = (torch.from_numpy(normals).view(count, 3, side, side) for side, normals in drawn)
    large = interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
    return (128 + 40 * large + 12 * fine).clamp(0, 255).round().to(torch.uint8)


def by_sorting(images: Tensor, others: Tensor, seed: int) -> list[float]:
    """The distance of each level as the paper computes it: all descriptors in memory, projections sorted."""
    found = []
    levels = zip(*(laplacian_pyramid(values.float() / 255) for values in (images, others)), strict=True)
    for one, other in levels:
        projected = []
        for level in (one, other):
            patches = distances._patches(level, 0, seed)
            mean, std = patches.mean((0, 2), keepdim=True), patches.std((0, 2), keepdim=True)
            vectors = distances._directions(level.shape[2], seed)
            projected.append((((patches - mean) / std).flatten(1) @ vectors).sort(0).values)
        found.append(1000 * float((projected[0] - projected[1]).abs().mean()))
    return found


@pytest.mark.parametrize("seed", [0, 5])
def test_histograms_give_what_sorting_gives(seed: int) -> None:
    images, others = noise_images(24), noise_images(24, seed=1).flip(2)
    others[:, :, :16] = others[:, :, 16:]
    found = sliced_wasserstein(images, others, seed=seed)
    assert list(found.levels) == [32, 16]
    assert list(found.levels.values()) == pytest.approx(by_sorting(images, others, seed), rel=0.01)
    assert found.mean == pytest.approx(sum(found.levels.values()) / 2)


def test_a_set_is_at_no_distance_from_itself() -> None:
    images = noise_images(20)
    found = sliced_wasserstein(images, images)
    assert found.mean == 0
    assert set(found.levels.values()) == {0.0}


def test_sides_are_halved_down_to_16_pixels() -> None:
    shapes = {size: [level.shape[2] for level in laplacian_pyramid(torch.rand(1, 3, size, size))] for size in (96, 16)}
    assert shapes == {96: [96, 48, 24], 16: [16]}


def blurred(images: Tensor) -> Tensor:
    """By 1 4 6 4 1 in both directions, as a convolution."""
    weights = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = torch.outer(weights, weights).expand(3, 1, 5, 5)
    return conv2d(pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def doubled(smaller: Tensor, like: Tensor) -> Tensor:
    """Back in the size of `like`: every second pixel, blurred over the others."""
    larger = torch.zeros_like(like)
    larger[:, :, ::2, ::2] = smaller
    return 4 * blurred(larger)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 33)])
def test_a_level_is_what_halving_loses_and_all_levels_hold_the_whole_picture(height: int, width: int) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    *finer, whole = laplacian_pyramid(images)
    torch.testing.assert_close(finer[0], images - doubled(blurred(images)[:, :, ::2, ::2], images))
    for level in reversed(finer):
        whole = level + doubled(whole, level)
    torch.testing.assert_close(whole, images)


def test_detail_of_a_flat_picture_is_none() -> None:
    *finer, whole = laplacian_pyramid(torch.full((1, 3, 64, 64), 0.25))
    assert all(level.abs().max() < 1e-6 for level in finer)
    assert torch.allclose(whole, torch.tensor(0.25))


def test_the_distance_grows_with_blur_and_blur_shows_at_the_finest_level() -> None:
    images = noise_images(64, 64)

    def coarse(factor: int) -> Tensor:
        return interpolate(avg_pool2d(images.float() / 255, factor), scale_factor=factor, mode="bilinear")

    floor = sliced_wasserstein(images, noise_images(64, 64, seed=1))
    slight, strong = (sliced_wasserstein(images, coarse(factor)) for factor in (2, 4))
    assert floor.mean < slight.mean < strong.mean
    assert slight.levels[64] > 3 * floor.levels[64]
    assert slight.levels[64] > slight.levels[16]


def test_pictures_turned_upside_down_are_of_another_set() -> None:
    ramp = torch.linspace(0, 200, 32)[None, None, :, None].expand(48, 3, 32, 32)
    images = (ramp + 20 * torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    assert sliced_wasserstein(images, images.flip(2)).mean > 5 * sliced_wasserstein(images[::2], images[1::2]).mean


def test_brightness_and_contrast_of_a_whole_set_do_not_matter() -> None:
    images = noise_images(32).float() / 255
    assert sliced_wasserstein(images, 0.5 * images + 0.25).mean == pytest.approx(0, abs=0.5)


def test_batches_bytes_and_floats_of_the_same_pictures_are_the_same() -> None:
    images = noise_images(40)
    whole = project(images)
    in_parts = project(list(torch.split(images, 7)))
    assert (whole.images, whole.sides) == (in_parts.images, in_parts.sides) == (40, (32, 16))
    # Chunks of other sizes round other sums: a patch in a million may fall into the bin beside.
    assert distance(whole, in_parts).mean < 0.05
    assert sliced_wasserstein(images, images.float() / 255).mean < 0.05


def test_the_distance_is_the_same_for_a_seed_and_another_for_another() -> None:
    images, others = noise_images(16), noise_images(16, seed=1)
    state = torch.get_rng_state()
    assert sliced_wasserstein(images, others, seed=3) == sliced_wasserstein(images, others, seed=3)
    assert sliced_wasserstein(images, others, seed=3) != sliced_wasserstein(images, others, seed=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_sets_need_not_be_of_one_length_and_the_floor_falls_with_the_length() -> None:
    images = noise_images(96)
    few, many = (sliced_wasserstein(images, noise_images(count, seed=1)).mean for count in (12, 96))
    assert many < few


def test_equal_pictures_without_contrast_are_at_no_distance() -> None:
    flat = torch.full((4, 3, 16, 16), 7, dtype=torch.uint8)
    assert sliced_wasserstein(flat, flat).mean == 0


@pytest.mark.parametrize(
    ("images", "others", "message"),
    [
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 64, 64), "must be of one size; got 32 and 64 px"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), "of 16 px or more"),
        (torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32), r"must be \[N, 3, H, W\]"),
        (torch.zeros(0, 3, 32, 32), torch.zeros(2, 3, 32, 32), "must have some; got none"),
        ([], torch.zeros(2, 3, 32, 32), "must have some; got none"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(images: Tensor, others: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sliced_wasserstein(images, others)


def test_pictures_that_can_be_read_only_once_are_refused() -> None:
    with pytest.raises(AssertionError, match="read twice"):
        project(iter([noise_images(2)]))
