import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline import Dataset
from pipeline.counter import normal
from pipeline.errors import ShardError, UserError
from pipeline.format import ShardSet
from pipeline.loader import StreamingLoader
from pipeline.order import Order
from pipeline.shards.shard import load_index
from tests.helpers import make_image
from tests.train.tiny import CPU, tiny_config, tiny_model
from train.evaluate import Gaussian, aggregate_posterior, mean_image_psnr, score, stream_images
from train.grids import training_grid
from train.models import FaceVAE
from train.objectives import Likelihood, kl_divergence
from train.similarity import detail, ssim


@pytest.fixture
def model() -> FaceVAE:
    return tiny_model(tiny_config())


def all_images(shards: Dataset, split: str) -> torch.Tensor:
    """Every image of a split in the order of its evaluation, float in [0, 1], by batches of one."""
    with StreamingLoader(shards, split=split, batch_size=1, window=1, lanes=1) as loader:
        return torch.cat([next(loader).images.clone() for _ in range(loader.samples)]).float() / 255


@pytest.mark.parametrize(("limit", "count"), [(None, 70), (1, 1), (64, 64), (65, 65), (1000, 70)])
def test_a_stream_gives_each_image_once_up_to_its_limit(
    shard_set: Callable[..., ShardSet], limit: int | None, count: int
) -> None:
    shards = Dataset.open(shard_set(samples={"val": 70}, encoding="png"))
    images = torch.cat(list(stream_images(shards, "val", limit, CPU)))
    assert len(images) == count
    known = {make_image("val", number, 16).tobytes() for number in range(70)}
    found = {(image.permute(1, 2, 0) * 255).round().byte().numpy().tobytes() for image in images}
    assert len(found) == count
    assert found <= known


@pytest.mark.parametrize("limit", [None, 2, 1])
def test_a_stream_leaves_out_damaged_images_if_it_is_told_to(
    shard_set: Callable[..., ShardSet], limit: int | None
) -> None:
    made = shard_set(samples={"val": 9}, shard_samples=9, encoding="png")
    shards = Dataset.open(made)
    whole = torch.cat(list(stream_images(shards, "val", limit, CPU, 4)))
    row = int(Order(made.split("val").samples, window=1, lanes=1).locate(np.array([1]))[1][0])
    tar = made.folder / "val-000000.tar"
    data = bytearray(tar.read_bytes())
    index = load_index(tar, made.split("val")[0])
    data[int(index.records["image_offset"][row])] ^= 1
    tar.write_bytes(data)
    left = torch.cat(list(stream_images(Dataset.open(shards, on_error="skip"), "val", limit, CPU, 4)))
    assert left.equal(torch.cat([whole[:1], whole[2:]]))
    with pytest.raises(ShardError, match="another crc32"):
        list(stream_images(shards, "val", limit or 9, CPU, 4))


@torch.inference_mode()
def test_a_score_is_the_mean_over_all_images(model: FaceVAE, shard_set: Callable[..., ShardSet]) -> None:
    shards = Dataset.open(shard_set(samples={"val": 70}, size=32))
    found = score(model, shards, "val", CPU, Likelihood("gaussian", 0.02))
    images = all_images(shards, "val")
    mean, logvar = model.eval().encode(images)
    squares = (images - model.decode(mean)).square().flatten(1).mean(1)
    assert found.images == 70
    assert found.psnr_db == pytest.approx(float((-10 * squares.log10()).mean()), rel=1e-5)
    assert found.mse == pytest.approx(float(squares.mean()), rel=1e-5)
    assert found.rate_nats == pytest.approx(float(kl_divergence(mean, logvar).mean()), rel=1e-5)
    assert found.ssim == pytest.approx(float(ssim(images, model.decode(mean)).mean()), rel=1e-5)
    assert found.sharpness == pytest.approx(float(detail(model.decode(mean)).sum() / detail(images).sum()), rel=1e-4)
    assert found.active_units == int((mean.var(0, correction=0) > 0.01).sum())
    noise = torch.from_numpy(normal(np.arange(70), 4, seed=0, stream="score"))
    sampled = model.decode(mean + torch.exp(0.5 * logvar) * noise)
    density = torch.distributions.Normal(sampled, 0.02**0.5).log_prob(images).flatten(1).sum(1)
    assert found.distortion_nats == pytest.approx(-float(density.mean()), rel=1e-5)
    nats = found.rate_nats + found.distortion_nats
    assert found.bits_per_dimension == pytest.approx(nats / (3 * 32 * 32 * math.log(2)) + 8)


@torch.inference_mode()
def test_the_aggregate_posterior_is_the_mixtures_mean_and_covariance(model: FaceVAE, faces: ShardSet) -> None:
    found = aggregate_posterior(model, Dataset.open(faces), "train", 1000, CPU)
    mean, logvar = model.eval().encode(all_images(Dataset.open(faces), "train"))
    expected = torch.cov(mean.double().T, correction=0) + torch.diag(logvar.double().exp().mean(0))
    torch.testing.assert_close(found.mean, mean.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.covariance, expected, rtol=1e-5, atol=1e-6)


def test_samples_have_the_gaussians_moments() -> None:
    spread = torch.tensor([[1.0, 0.0], [3.0, 0.5]], dtype=torch.float64)
    gaussian = Gaussian(torch.tensor([5.0, -5.0], dtype=torch.float64), spread @ spread.T)
    latents = gaussian.sample(torch.from_numpy(normal(np.arange(50_000), 2, seed=0, stream="a test")))
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents.mean(0).double(), gaussian.mean, rtol=0.01, atol=0)
    torch.testing.assert_close(torch.cov(latents.double().T), gaussian.covariance, rtol=0.03, atol=0)
    assert Gaussian.standard(3).sample(torch.eye(3)).sub(torch.eye(3)).abs().max() < 1e-5


def test_the_floor_is_the_psnr_of_the_mean_training_picture(faces: ShardSet) -> None:
    average = all_images(Dataset.open(faces), "train").mean(0)
    squares = (all_images(Dataset.open(faces), "val") - average).square().flatten(1).mean(1)
    assert mean_image_psnr(Dataset.open(faces), "val") == pytest.approx(float((-10 * squares.log10()).mean()), rel=1e-5)
    assert math.isfinite(mean_image_psnr(Dataset.open(faces), "train"))


def test_a_split_that_is_not_there_is_an_error(model: FaceVAE, faces: ShardSet) -> None:
    with pytest.raises(UserError, match=r"one of the set's \(train, val\); got 'test'"):
        score(model, Dataset.open(faces), "test", CPU, Likelihood("gaussian", 0.02))


class Hungry(FaceVAE):
    """Decodes and encodes at most three at once."""

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return super().encode(images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        if len(latents) > 3:
            raise torch.OutOfMemoryError
        return super().decode(latents)


def test_with_little_memory_left_the_same_is_found_by_smaller_batches(
    model: FaceVAE, shard_set: Callable[..., ShardSet]
) -> None:
    shards = Dataset.open(shard_set(samples={"val": 20}, size=32))
    hungry = tiny_model(tiny_config(), kind=Hungry)
    likelihood = Likelihood("gaussian", 0.02)
    found, expected = (score(each, shards, "val", CPU, likelihood) for each in (hungry, model))
    assert found.images == expected.images
    assert found.bits_per_dimension == pytest.approx(expected.bits_per_dimension, rel=1e-5)
    assert found.psnr_db == pytest.approx(expected.psnr_db, rel=1e-5)
    fitted, prior = (aggregate_posterior(each, shards, "val", 20, CPU) for each in (hungry, model))
    torch.testing.assert_close(fitted.covariance, prior.covariance, rtol=1e-4, atol=1e-6)
    painted, grid = (training_grid(each, shards, "val", prior, CPU, 0) for each in (hungry, model))
    assert np.abs(np.asarray(painted, np.int64) - np.asarray(grid, np.int64)).max() <= 1
