"""`explore score` and what it is made of, against formulas and sets that are counted by hand."""

import csv
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from torch import Tensor, nn

from explore.cli import main
from explore.measures.features import Extractor, Pyramid
from explore.measures.frechet import FeatureDistances, kernel_distance
from explore.measures.manifold import compare, radii
from pipeline.errors import UserError
from pipeline.format import ShardSet
from tests.explore.measures.test_distances import noise_images
from tests.helpers import make_shard_set
from train.run import main as train_main
from train.similarity import ms_ssim, scales, ssim

TOML = """
[model]
widths = [8, 8, 8, 8]
latent = 4
[train]
batch_size = 16
total_images = 48
prior_images = 32
threads = 1
"""
CPU = torch.device("cpu")


class Linear(nn.Module):
    """Means over four columns of a picture, then a fixed linear map: features whose moments are known."""

    def __init__(self, dimensions: int = 5, shape: str = "matrix") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(12, dimensions, generator=generator) / 64)
        self.shape = shape

    def forward(self, images: Tensor) -> Tensor:
        columns = images.unflatten(3, (4, -1)).mean(dim=(2, 4)).flatten(1)
        features = columns @ self.weight
        if self.shape == "cube":
            return features[:, :, None]
        if self.shape == "nan":
            return features / 0 * 0
        return features


class WithFlag(nn.Module):
    """As NVIDIA's Inception: classes unless features are asked for."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        means = images.mean(dim=(2, 3))
        return means if return_features else means[:, :1]


class FixedSize(nn.Module):
    """Takes 24 px and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3 * 24 * 24, 2) / 1000)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def scripted(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def frechet_by_scipy(one: np.ndarray, other: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(one, rowvar=False) @ np.cov(other, rowvar=False)).real
    gap = np.square(one.mean(0) - other.mean(0)).sum()
    return float(gap + np.trace(np.cov(one, rowvar=False) + np.cov(other, rowvar=False) - 2 * root))


def kernel_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(one), len(other)
    within = (kernel(one, one).sum() - np.trace(kernel(one, one))) / (n * (n - 1))
    within += (kernel(other, other).sum() - np.trace(kernel(other, other))) / (m * (m - 1))
    return float(within - 2 * kernel(one, other).mean())


def test_ms_ssim_of_equal_pictures_is_one_and_falls_with_noise() -> None:
    images = noise_images(4, 64).float() / 255
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.allclose(ms_ssim(images, images), torch.ones(4))
    slight, strong = (ms_ssim(images, (images + share * noise).clamp(0, 1)) for share in (0.1, 0.5))
    assert (strong < slight).all()
    assert (slight < 1).all()


def ms_ssim_by_scipy(image: np.ndarray, other: np.ndarray, levels: int) -> float:
    """Of two channels [H, W] in [0, 1], written down from the paper with scipy's filter and whole windows."""

    def mean(values: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(values, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:levels])
    found = []
    for _ in range(levels):
        product = mean(image * other) - mean(image) * mean(other)
        spread = mean(image**2) - mean(image) ** 2 + mean(other**2) - mean(other) ** 2
        contrast = (2 * product + 0.03**2) / (spread + 0.03**2)
        light = (2 * mean(image) * mean(other) + 0.01**2) / (mean(image) ** 2 + mean(other) ** 2 + 0.01**2)
        found.append((contrast.mean(), (light * contrast).mean()))
        image, other = (values.reshape(len(values) // 2, 2, -1, 2).mean((1, 3)) for values in (image, other))
    factors = [contrast for contrast, _ in found[:-1]] + [found[-1][1]]
    return float(np.prod(np.array(factors) ** (weights / weights.sum())))


@pytest.mark.parametrize(("size", "count"), [(32, 2), (64, 3), (128, 4), (176, 5), (512, 5)])
def test_ms_ssim_has_as_many_scales_as_hold_a_window(size: int, count: int) -> None:
    assert scales(size) == count


def test_ms_ssim_is_the_papers() -> None:
    images, others = (noise_images(1, 64, seed)[:, :1].float() / 255 for seed in (0, 1))
    others = 0.7 * images + 0.3 * others
    expected = ms_ssim_by_scipy(images[0, 0].double().numpy(), others[0, 0].double().numpy(), 3)
    assert float(ms_ssim(images, others)) == pytest.approx(expected, abs=1e-4)


def test_one_scale_of_ms_ssim_is_ssim() -> None:
    images, others = (noise_images(2, 16, seed).float() / 255 for seed in (0, 1))
    others = 0.5 * (images + others)
    torch.testing.assert_close(ms_ssim(images, others), ssim(images, others).clamp(min=0))


def test_radii_reach_the_neighbours_and_not_the_point_itself() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert radii(points, (1, 2)).tolist() == [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0], [4.0, 6.0]]


def test_precision_recall_density_and_coverage_are_as_counted_by_hand() -> None:
    # Real balls (k = 1): [-1, 1], [0, 2], [8, 12], [8, 12]; the last two are around 10 and 10 + 2 = 12: [10, 14].
    real = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    # New balls: 0.5 -> [-1, 2] (to 2), 2 -> [0.5, 3.5], 20 -> [2, 38].
    new = torch.tensor([[0.5], [2.0], [20.0]])
    found = compare(real, new, manifold_k=1, density_k=1)
    # 0.5 is in two real balls, 2 is in one (its edge), 20 in none.
    assert found.precision == pytest.approx(2 / 3)
    assert found.density == pytest.approx(3 / 3)
    # 0 and 1 are in the ball of 0.5, 10 and 12 in that of 20.
    assert found.recall == 1
    assert found.coverage == pytest.approx(2 / 4)


def test_a_set_has_all_of_itself_and_nothing_of_one_far_away() -> None:
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    same = compare(points, points)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = compare(points, points + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_fewer_points_than_neighbours_are_refused() -> None:
    with pytest.raises(UserError, match="neighbours need 6 images; got 5"):
        compare(torch.rand(5, 2), torch.rand(9, 2))


def test_new_pictures_of_one_mode_have_precision_and_no_recall() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.cat([torch.randn(100, 3, generator=generator) + 50 * mode for mode in range(4)])
    found = compare(real, torch.randn(400, 3, generator=generator))
    assert found.precision > 0.8
    assert found.recall < 0.3
    assert found.coverage < 0.3


def test_the_frechet_distance_is_the_formulas() -> None:
    one, other = (np.random.default_rng(seed).normal(seed, 1 + seed, (60, 6)) for seed in (0, 1))
    distances = FeatureDistances(6)
    for part in np.array_split(one, 4):
        distances.update(torch.from_numpy(part).float(), real=True)
    for again in (other, one):
        distances.update(torch.from_numpy(again).float(), real=False)
        found = distances.compute(torch.from_numpy(one), torch.from_numpy(again), seed=0)
        assert found.frechet == pytest.approx(frechet_by_scipy(one, again), rel=1e-4, abs=1e-4)


def test_the_kernel_distance_is_unbiased_and_draws_nothing_from_the_global_generator() -> None:
    one, other = (np.random.default_rng(seed).normal(seed, 1, (50, 6)) for seed in (0, 1))
    state = torch.get_rng_state()
    found = kernel_distance(torch.from_numpy(one), torch.from_numpy(other), seed=0)
    assert found == pytest.approx(kernel_by_hand(one, other), rel=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


def test_pyramid_features_keep_what_tells_pictures_apart() -> None:
    images = noise_images(80, 32)
    features = Pyramid.fit(list(torch.split(images, 32)))
    whole = features(images)
    assert whole.shape == (80, features.dimensions) == (80, 64)
    assert 0.5 < features.explained <= 1
    assert whole.mean(0).abs().max() < 1e-4
    variances = whole.var(0)
    assert (variances.diff() > -1e-6).all()
    torch.testing.assert_close(features(images[:3]), whole[:3], rtol=1e-4, atol=1e-5)


def test_pyramid_features_need_two_pictures() -> None:
    with pytest.raises(UserError, match="fitted to two images or more; got 1"):
        Pyramid.fit([noise_images(1)])


def test_an_extractor_gets_values_up_to_255_and_is_called_by_its_file(tmp_path: Path) -> None:
    path = scripted(tmp_path / "means.pt", WithFlag())
    found = Extractor.load(path, None, None, 32, CPU)
    assert (found.name, found.dimensions, found.arguments) == ("means.pt", 3, {"return_features": True})
    images = noise_images(4)
    torch.testing.assert_close(found(images), images.float().mean((2, 3)))
    assert found.describe()["sha256"] == found.sha256
    assert len(found.sha256) == 64


def test_pictures_are_resized_for_an_extractor_of_one_size(tmp_path: Path) -> None:
    path = scripted(tmp_path / "fixed.pt", FixedSize())
    assert Extractor.load(path, None, 24, 32, CPU)(noise_images(3)).shape == (3, 2)
    with pytest.raises(UserError, match="Give the size that it takes with --features-size") as caught:
        Extractor.load(path, None, None, 32, CPU)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shard_set(tmp_path_factory.mktemp("sets") / "faces", samples={"train": 40, "val": 12}, size=32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: ShardSet) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.toml").write_text(TOML)
    arguments = [str(folder / "tiny.toml"), "--data.shards", str(shards.folder), "--run.dir", str(folder / "run")]
    assert train_main(arguments) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def score(run: Path, *more: str) -> dict[str, Any]:
    assert main(["score", "--run", str(run), *more]) == 0
    return dict(json.loads((run / "explore" / "score.json").read_bytes()))


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_run_is_scored_as_its_training_scored_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = score(run, "--seeds", "2")
    trained = json.loads((run / "final" / "config.json").read_bytes())["scores"]["val"]
    for name in ("psnr_db", "ssim", "mse", "sharpness", "rate_nats"):
        assert found["reconstruction"][name]["mean"] == pytest.approx(trained[name], rel=1e-4)
        assert found["reconstruction"][name]["deviation"] is None
    # Other draws of the posterior, so not the same to the last digit.
    for name in ("distortion_nats", "bits_per_dimension"):
        assert found["reconstruction"][name]["mean"] == pytest.approx(trained[name], rel=0.05)
        assert found["reconstruction"][name]["draws"] == 2
    assert found["data"]["images"] == 12
    assert list(found["sets"])[:2] == ["real", "reconstructions"]
    assert {"standard", "gaussian"} < set(found["sets"])
    for scored in found["sets"].values():
        assert {"swd", "swd_32px", "swd_16px", "precision", "recall", "density", "coverage"} < set(scored["figures"])
    assert found["sets"]["standard"]["figures"]["swd"]["draws"] == 2
    assert found["sets"]["standard"]["figures"]["swd"]["deviation"] > 0
    # Smooth gradients are alike, and what eight filters make of them in three updates is not.
    assert found["sets"]["real"]["figures"]["swd"]["mean"] < found["sets"]["standard"]["figures"]["swd"]["mean"]
    assert "fid" not in found["sets"]["standard"]["figures"]
    printed = capsys.readouterr().out
    assert "FID and KID need a network" in printed
    assert "not comparable with published figures" in printed
    assert "torch " in printed
    assert printed.splitlines()[-2:] == [str(run / "explore" / f"score.{kind}") for kind in ("json", "csv")]


def test_every_row_of_the_table_says_what_it_is_of(run: Path) -> None:
    found = score(run, "--seeds", "1", "--count", "10")
    with open(run / "explore" / "score.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["reconstruction"]) + sum(len(kind["figures"]) for kind in found["sets"].values())
    assert {(row["reference"], row["images"], row["image_px"], row["crop"]) for row in rows} == {
        ("tiny val", "10", "32", "unknown")
    }
    assert {row["features"] for row in rows if row["figure"] == "coverage"} == {found["features"]["name"]}
    swd = next(row for row in rows if (row["of"], row["figure"]) == ("standard", "swd"))
    assert float(swd["mean"]) == found["sets"]["standard"]["figures"]["swd"]["mean"]
    assert swd["deviation"] == ""


def test_scores_are_the_same_for_a_seed(run: Path) -> None:
    first = score(run, "--seeds", "1")
    assert score(run, "--seeds", "1") == first
    other = score(run, "--seeds", "1", "--seed", "1")
    assert other["sets"]["standard"]["figures"] != first["sets"]["standard"]["figures"]


def test_the_training_split_is_scored_against_its_other_half(run: Path) -> None:
    found = score(run, "--seeds", "1", "--split", "train")
    assert found["data"]["images"] == found["sets"]["real"]["images"] == 20


def test_distances_on_a_persons_own_network_are_called_by_its_name(run: Path, tmp_path: Path) -> None:
    path = scripted(tmp_path / "linear.pt", Linear())
    found = score(run, "--seeds", "1", "--features", str(path))
    assert found["features"]["name"] == "linear.pt"
    assert found["missing"] == []
    figures = found["sets"]["standard"]["figures"]
    assert {"frechet distance on linear.pt", "kernel distance on linear.pt"} < set(figures)
    assert not {"fid", "kid"} & set(figures)
    assert (
        "fid"
        in score(run, "--seeds", "1", "--features", str(path), "--features-name", "inception")["sets"]["real"][
            "figures"
        ]
    )
    assert math.isfinite(figures["frechet distance on linear.pt"]["mean"])


def test_an_unfinished_run_is_scored_at_its_checkpoints_scale(run: Path) -> None:
    sigma = json.loads((run / "final" / "config.json").read_bytes())["sigma"]
    shutil.rmtree(run / "final")
    assert score(run, "--seeds", "1")["model"]["sigma"] == pytest.approx(sigma)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "the split must be one of train, val; got 'test'"),
        (["--count", "5"], "--count must be at least 10; got 5"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--features-name", "inception"], "must go with a network; got none. Add --features."),
        (["--features", "{tmp}/nothing.pt"], "where there is none. Check the path: nothing is downloaded."),
        (["--features", "{tmp}/text.pt"], "must be a TorchScript network"),
        (["--features", "{tmp}/weights.pt"], "must be a TorchScript network"),
        (["--features", "{tmp}/cube.pt"], "must give features [2, F] for 2 images; got [2, 5, 1]"),
        (["--features", "{tmp}/nan.pt"], "must give finite features"),
        (["--features", "{tmp}/fixed.pt"], "Give the size that it takes with --features-size"),
    ],
)
def test_a_persons_mistake_is_one_line(
    arguments: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.pt").write_text("no network")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    scripted(tmp_path / "cube.pt", Linear(shape="cube"))
    scripted(tmp_path / "nan.pt", Linear(shape="nan"))
    scripted(tmp_path / "fixed.pt", FixedSize())
    capsys.readouterr()
    assert main(["score", "--run", str(run), *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    assert message in error_line(capsys)


def test_a_split_of_too_few_images_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path) -> None:
    small = make_shard_set(tmp_path / "small", samples={"train": 40, "val": 4}, size=32)
    capsys.readouterr()
    assert main(["score", "--model", str(run / "final"), "--shards", str(small.folder)]) == 2
    assert "a score must have 10 images or more; got 4 in val" in error_line(capsys)
