"""`explore latents` on a tiny model and gradients: one run of it, looked at from all sides."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from explore.cli import main
from explore.commands import Latents
from explore.model import load_trained
from pipeline import ShardSet, StreamingLoader
from tests.helpers import make_attributes, make_key, make_shard_set
from tests.train.tiny import tiny_config, tiny_model
from train.evaluate import Gaussian, aggregate_posterior
from train.models import FaceVAE
from train.pretrained import save_pretrained

ATTRIBUTES = ("Smiling", "Blond_Hair", "Eyeglasses")
SMALL = ("--perplexity", "3")
NAMES = [
    "latents-all-kl.png",
    "latents-all-aggregate.png",
    "latents-all-dimensions.csv",
    "latents-all-covariance.csv",
    "latents-all-histograms.png",
    "latents-all-histograms.csv",
    "latents-all-tsne-Eyeglasses.png",
    "latents-all-tsne-Smiling.png",
    "latents-all-tsne.csv",
    "latents-all-tsne-histogram.csv",
    "latents-all.json",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shard_set(tmp_path_factory.mktemp("sets") / "faces", size=32, attributes=ATTRIBUTES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(folder, tiny_model(tiny_config()), Gaussian.standard(4), {})
    return folder


def latents(model: Path, shards: ShardSet, out: Path, *more: str) -> int:
    return main(["latents", "--model", str(model), "--shards", str(shards.folder), "--out", str(out), *SMALL, *more])


@pytest.fixture(scope="module")
def found(model: Path, shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of both splits."""
    out = tmp_path_factory.mktemp("results")
    assert latents(model, shards, out, "--split", "all", "--colour-by", "Eyeglasses", "Smiling") == 0
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def posteriors(model: Path, shards: ShardSet) -> tuple[FaceVAE, torch.Tensor, torch.Tensor, list[str]]:
    """Mean and log-variance [N, Z] of all images, and their keys."""
    vae = load_trained(Latents(model=str(model))).model
    images, keys = [], []
    for split, count in (("train", 40), ("val", 12)):
        with StreamingLoader(shards, split=split, batch_size=count, window=1, lanes=1) as loader:
            batch = next(loader)
            images.append(batch.images.clone())
            keys += batch.keys
    with torch.inference_mode():
        mean, logvar = vae.encode(torch.cat(images).float() / 255)
    return vae, mean.double(), logvar.double(), keys


def test_every_picture_can_be_opened_and_has_its_numbers(found: Path):
    assert sorted(path.name for path in found.iterdir()) == sorted(NAMES)
    for name in NAMES:
        if name.endswith(".png"):
            with Image.open(found / name) as image:
                image.load()
                assert min(image.size) > 300


def test_figures_agree_with_an_independent_computation(found: Path, model: Path, shards: ShardSet):
    _, mean, logvar, _ = posteriors(model, shards)
    written = json.loads((found / "latents-all.json").read_bytes())
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean(0)
    covariance = torch.cov(mean.T, correction=0) + logvar.exp().mean(0).diag()
    assert (written["images"], written["available"], written["splits"]) == (52, 52, ["train", "val"])
    assert written["rate_nats"] == pytest.approx(float(kl.sum()), rel=1e-5)
    assert written["active_units"] == int((mean.var(0, correction=0) > 0.01).sum())
    assert written["eigenvalues"] == pytest.approx(torch.linalg.eigvalsh(covariance).flip(0).tolist(), rel=1e-4)
    gaussian = torch.distributions.MultivariateNormal(mean.mean(0), covariance)
    prior = torch.distributions.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    distance = torch.distributions.kl_divergence(gaussian, prior)
    assert written["gaussian_kl_nats"] == pytest.approx(float(distance), rel=1e-4)
    table = rows(found / "latents-all-dimensions.csv")
    order = kl.argsort(descending=True).tolist()
    assert [int(row["dimension"]) for row in table] == order
    assert [float(row["kl_nats"]) for row in table] == pytest.approx(kl[order].tolist(), rel=1e-5)
    assert [float(row["mean"]) for row in table] == pytest.approx(mean.mean(0)[order].tolist(), rel=1e-4, abs=1e-6)
    assert [float(row["std"]) for row in table] == pytest.approx(covariance.diagonal().sqrt()[order].tolist(), rel=1e-5)
    stored = [[float(value) for value in row.values()] for row in rows(found / "latents-all-covariance.csv")]
    assert np.array(stored) == pytest.approx(covariance.numpy(), rel=1e-4, abs=1e-6)
    discrepancy = written["squared_mmd"]
    assert discrepancy["images"] == 52
    # An untrained encoder gives N(0, I) or nearly so only by chance; the Gaussian of the draws is theirs.
    assert abs(discrepancy["fitted"]) < discrepancy["standard"] + 5 * discrepancy["floor_std"]


def test_moments_are_those_that_training_stores_with_a_model(model: Path, shards: ShardSet, tmp_path: Path):
    assert latents(model, shards, tmp_path, "--split", "val") == 0
    vae = load_trained(Latents(model=str(model))).model
    stored = aggregate_posterior(vae, shards, "val", 12, torch.device("cpu"))
    written = np.loadtxt(tmp_path / "latents-val-covariance.csv", delimiter=",", skiprows=1)
    assert written == pytest.approx(stored.covariance.numpy(), rel=1e-6, abs=1e-9)


def test_every_point_has_its_key_and_attributes(found: Path, model: Path, shards: ShardSet):
    *_, keys = posteriors(model, shards)
    table = rows(found / "latents-all-tsne.csv")
    assert [row["key"] for row in table] == keys
    assert [row["split"] for row in table] == ["train"] * 40 + ["val"] * 12
    numbers = {make_key(split, number): number for split, count in shards_counts(shards) for number in range(count)}
    for row in table:
        true = make_attributes(numbers[row["key"]], ATTRIBUTES)
        assert [int(row[name]) for name in ("Eyeglasses", "Smiling")] == [true["Eyeglasses"], true["Smiling"]]
    cells = rows(found / "latents-all-tsne-histogram.csv")
    assert sum(int(cell["images"]) for cell in cells) == 52
    assert len({(row["x"], row["y"]) for row in table}) == 52


def shards_counts(shards: ShardSet) -> list[tuple[str, int]]:
    return [(name, split.total) for name, split in shards.splits.items()]


def test_histograms_are_densities_of_the_dimensions_in_order(found: Path):
    table = rows(found / "latents-all-histograms.csv")
    names = [name for name in table[0] if name.startswith("density")]
    assert names == [f"density_z{row['dimension']}" for row in rows(found / "latents-all-dimensions.csv")]
    width = np.array([float(row["to"]) - float(row["from"]) for row in table])
    for name in names:
        assert (np.array([float(row[name]) for row in table]) * width).sum() == pytest.approx(1, abs=0.05)


def test_equal_seeds_give_equal_files_and_others_other_points(
    found: Path, model: Path, shards: ShardSet, tmp_path: Path
):
    options = ("--split", "all", "--colour-by", "Eyeglasses", "Smiling")
    assert latents(model, shards, tmp_path / "again", *options) == 0
    for name in NAMES:
        if name != "latents-all.json":
            assert (tmp_path / "again" / name).read_bytes() == (found / name).read_bytes(), name
    assert latents(model, shards, tmp_path / "other", *options, "--seed", "1") == 0
    other = rows(tmp_path / "other" / "latents-all-tsne.csv")
    assert [row["x"] for row in other] != [row["x"] for row in rows(found / "latents-all-tsne.csv")]


def test_files_are_listed_and_a_smaller_split_is_no_surprise(
    model: Path, shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert latents(model, shards, tmp_path, "--split", "val", "--dimensions", "2", "--count", "30") == 0
    shown = capsys.readouterr()
    listed = [Path(line) for line in shown.out.splitlines()]
    assert sorted(listed) == sorted(tmp_path.iterdir())
    assert tmp_path / "latents-val-tsne.png" in listed
    assert shown.err.splitlines() == [
        "the val split has 12 images: all of them are taken, not 30",
        "t-SNE of 12 posterior samples of 4 dimensions, perplexity 3",
    ]
    assert len(rows(tmp_path / "latents-val-histograms.csv")[0]) == 2 + 2


def test_several_sets_are_explored_as_one_with_each_image_once(model: Path, shards: ShardSet, tmp_path: Path):
    rare = make_shard_set(tmp_path / "rare", samples={"train": 6, "test": 3}, size=32, attributes=ATTRIBUTES, seed=1)
    sets = [str(shards.folder), f"{rare.folder}*3"]
    command = ["latents", "--model", str(model), "--shards", *sets, "--split", "all", "--out", str(tmp_path / "out")]
    assert main([*command, "--colour-by", "Eyeglasses", *SMALL]) == 0
    written = json.loads((tmp_path / "out" / "latents-all.json").read_bytes())
    assert (written["images"], written["splits"]) == (40 + 6 + 12 + 3, ["train", "val", "test"])
    assert written["settings"]["shards"] == sets
    keys = [row["key"] for row in rows(tmp_path / "out" / "latents-all-tsne.csv")]
    expected = [("train", 40), ("train", 6), ("val", 12), ("test", 3)]
    assert sorted(keys) == sorted(make_key(split, number) for split, count in expected for number in range(count))


def test_no_more_images_are_taken_than_asked_for(model: Path, shards: ShardSet, tmp_path: Path, found: Path):
    assert latents(model, shards, tmp_path, "--split", "all", "--count", "44") == 0
    written = json.loads((tmp_path / "latents-all.json").read_bytes())
    assert (written["images"], written["available"]) == (44, 52)
    keys = [row["key"] for row in rows(tmp_path / "latents-all-tsne.csv")]
    assert keys == [row["key"] for row in rows(found / "latents-all-tsne.csv")][:44]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--colour-by", "smilling"), "got 'smilling'. Did you mean: Smiling?"),
        (("--colour-by", "Blond Hair"), "got 'Blond Hair'. Did you mean: Blond_Hair?"),
        (("--colour-by", "hair"), "got 'hair'. Did you mean: Blond_Hair?"),
        (("--colour-by", "xyz"), "got 'xyz'. Did you mean: Smiling, Blond_Hair, Eyeglasses?"),
        (("--perplexity", "30"), "got 30 for 40 images. Choose at most 13, or more images."),
        (("--count", "5"), "got 3 for 5 images. Choose at most 1, or more images."),
        (("--perplexity", "nan"), "--perplexity must be at least 1; got nan"),
        (("--dimensions", "0"), "--dimensions must be at least 1; got 0"),
        (("--split", "test"), "got 'test'"),
    ],
)
def test_a_persons_mistake_is_one_line_before_any_work(
    more: tuple[str, ...],
    message: str,
    model: Path,
    shards: ShardSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert latents(model, shards, tmp_path / "out", *more) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_set_without_attributes_has_no_colours(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = make_shard_set(tmp_path / "plain", size=32, attributes=())
    assert latents(model, plain, tmp_path / "out", "--colour-by", "Smiling") == 2
    assert "the shard set must have attributes; got none" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_one_line(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.toml").write_text(f'[data]\nshards = ["{shards.folder}"]\n')
    assert main(["latents", "--run", str(tmp_path)]) == 2
    assert "got no checkpoint yet" in capsys.readouterr().err


def test_a_dead_dimension_is_told_from_those_in_use(shards: ShardSet, tmp_path: Path):
    vae = tiny_model(tiny_config())
    # The last layer gives means, then log-variances: the first mean becomes 0 for any image, its variance 1.
    last = [layer for layer in vae.encoder.modules() if hasattr(layer, "weight")][-1]
    with torch.no_grad():
        last.weight[[0, 4]] = 0
        last.bias[[0, 4]] = 0
    save_pretrained(tmp_path / "model", vae, Gaussian.standard(4), {})
    assert latents(tmp_path / "model", shards, tmp_path / "out") == 0
    table = rows(tmp_path / "out" / "latents-train-dimensions.csv")
    assert (table[-1]["dimension"], table[-1]["in_use"]) == ("0", "0")
    assert float(table[-1]["kl_nats"]) == pytest.approx(0, abs=1e-9)
    shutil.rmtree(tmp_path / "out")
