"""`explore fit-prior` on a model with fresh weights."""

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from explore.cli import main
from explore.encode import decoded
from explore.fit_prior import Measured, best, too_few
from explore.latent.priors import load_priors
from pipeline.format import ShardSet
from tests.explore.untrained import SIZE, save_model, trained, untrained
from tests.helpers import make_shard_set
from tests.train.tiny import CPU
from train import FaceVAE
from train.gaussian import Gaussian


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shard_set(tmp_path_factory.mktemp("sets") / "faces", samples={"train": 48, "val": 14}, size=32)


def fit(model: Path, shards: ShardSet, *more: str) -> dict[str, Any]:
    assert main(["fit-prior", "--model", str(model), "--shards", str(shards.folder), *more, "--debug"]) == 0
    return dict(json.loads((model / "explore" / "fit-prior.json").read_bytes()))


@pytest.fixture(scope="module", autouse=True)
def posteriors_beside_the_prior() -> Iterator[None]:
    """As those of a trained model lie: what is fitted to them is better than N(0, I) for a reason."""

    def shifted(size: int = SIZE) -> FaceVAE:
        model = untrained(size)
        with torch.no_grad():
            model.encoder[-1].bias[: model.latent] += 1
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.explore.untrained.untrained", shifted)
        yield


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, shards: ShardSet) -> Path:
    """A model's folder, with its priors."""
    folder = save_model(tmp_path_factory.mktemp("models") / "model", shardset=shards.fingerprint)
    fit(folder, shards, "--components", "3")
    return folder


@pytest.fixture
def model(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "model"))


def test_it_measures_three_priors_and_stores_the_fitted_ones(fitted: Path, shards: ShardSet) -> None:
    found = json.loads((fitted / "explore" / "fit-prior.json").read_bytes())
    assert list(found["measured"]) == ["standard", "gaussian", "mixture"]
    assert found["default"] in found["measured"]
    assert (found["images"], found["of"], found["held_out"], found["held_out_from"]) == (48, 48, 14, "val")
    assert (found["pictures"], found["components"], found["no_mixture"]) == (14, 3, None)
    assert found["measured"]["gaussian"]["nats"] > found["measured"]["standard"]["nats"]
    assert found["swd_real"] > 0
    with Image.open(fitted / "explore" / "fit-prior.png") as image:
        assert image.width > 600
    rows = list(csv.DictReader(io.StringIO((fitted / "explore" / "fit-prior.csv").read_text())))
    assert [row["prior"] for row in rows[:3]] == ["standard", "gaussian", "mixture"]
    assert float(rows[2]["swd"]) == found["measured"]["mixture"]["swd"]
    priors = load_priors(trained(fitted, shards))
    assert (priors.names, priors.default) == (("standard", "gaussian", "mixture"), found["default"])
    assert priors.facts["measured"] == found["measured"]
    assert len(priors.mixture("mixture").weights) == 3


def test_the_likelihood_is_that_of_the_held_out_posteriors(fitted: Path, shards: ShardSet) -> None:
    from explore.encode import latents_of

    this = trained(fitted, shards)
    priors, held_out = load_priors(this), latents_of(this, "val", 100, 0)
    nats = float(priors.mixture("gaussian").log_density(torch.from_numpy(held_out.draws)).mean())
    assert nats == pytest.approx(priors.facts["measured"]["gaussian"]["nats"], rel=1e-6)


def test_the_model_loads_and_is_published_with_its_priors(model: Path, tmp_path: Path) -> None:
    loaded = FaceVAE.from_pretrained(model)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "priors.safetensors").read_bytes() == (model / "priors.safetensors").read_bytes()
    assert load_priors(trained(tmp_path / "again")).default == load_priors(trained(model)).default
    assert "mixture" in load_priors(trained(tmp_path / "again")).names
    # One line in a program draws as the command does.
    priors = load_priors(trained(model))
    latents = priors.sample(priors.default, 5, seed=2)
    expected = torch.cat(list(decoded(loaded, latents, CPU)))
    assert (loaded.sample(5, seed=2).int() - expected.int()).abs().max() <= 1
    assert not loaded.sample(5, seed=2, prior=Gaussian(loaded.prior.mean + 1, loaded.prior.covariance)).equal(expected)


def test_the_same_seed_makes_the_same_files(model: Path, shards: ShardSet) -> None:
    names = ("priors.safetensors", "explore/fit-prior.png", "explore/fit-prior.csv")
    before = [(model / name).read_bytes() for name in names]
    for name in names:
        (model / name).unlink()
    fit(model, shards, "--components", "3")
    assert [(model / name).read_bytes() for name in names] == before


def test_sample_draws_from_the_best_by_default_and_from_any_by_name(model: Path) -> None:
    best_prior = load_priors(trained(model)).default
    assert main(["sample", "--model", str(model), "--count", "4"]) == 0
    assert (model / "explore" / f"sample-{best_prior}.png").exists()
    assert main(["sample", "--model", str(model), "--count", "4", "--prior", "mixture"]) == 0
    facts = json.loads((model / "explore" / "sample-mixture.json").read_bytes())
    assert facts["origin"] == "a mixture of 3 Gaussians, fitted to the aggregate posterior"


def test_priors_of_other_weights_are_not_used_and_said_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = FaceVAE.from_pretrained(model)
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    loaded.save_pretrained(model)
    assert main(["sample", "--model", str(model), "--count", "4"]) == 0
    assert "must be fitted to the model's weights; got priors of others" in capsys.readouterr().out
    assert (model / "explore" / "sample-gaussian.png").exists()
    assert main(["sample", "--model", str(model), "--prior", "mixture"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "got 'mixture'" in error


def test_damaged_priors_are_not_used_and_fitted_again(
    model: Path, shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (model / "priors.safetensors").read_bytes()
    (model / "priors.safetensors").write_bytes(data[:-9])
    assert main(["sample", "--model", str(model), "--count", "4"]) == 0
    assert "Run fit-prior again" in capsys.readouterr().out
    fit(model, shards, "--components", "3")
    assert (model / "priors.safetensors").read_bytes() == data


def test_too_few_images_for_a_mixture_are_one_line_and_the_gaussian_is_fitted(
    model: Path, shards: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fit(model, shards)
    out = capsys.readouterr().out
    assert "must be fitted to 100 images or more; got 48. Give --components 4." in out
    assert list(found["measured"]) == ["standard", "gaussian"]
    assert load_priors(trained(model)).names == ("standard", "gaussian")
    assert main(["sample", "--model", str(model), "--prior", "mixture"]) == 2


@pytest.mark.parametrize(
    ("images", "components", "dimensions", "remedy"),
    [
        (100, 10, 4, None),
        (99, 10, 4, "Give --components 9."),
        (255, 10, 128, "a larger set"),
        (256, 10, 128, None),
        (15, 10, 4, "a larger set"),
    ],
)
def test_the_remedy_for_too_few_images_is_one_that_helps(
    images: int, components: int, dimensions: int, remedy: str | None
) -> None:
    note = too_few(images, components, dimensions)
    assert (note is None) == (remedy is None)
    if note is not None and remedy is not None:
        assert remedy in note
    if remedy is not None and remedy.startswith("Give"):
        assert too_few(images, int(remedy.split()[-1].rstrip(".")), dimensions) is None


def test_a_set_without_held_out_images_is_measured_on_its_last_tenth(tmp_path: Path) -> None:
    alone = make_shard_set(tmp_path / "alone", samples={"train": 40}, size=32)
    model = save_model(tmp_path / "model", shardset=alone.fingerprint)
    found = fit(model, alone, "--components", "2")
    assert (found["images"], found["of"], found["held_out"], found["held_out_from"]) == (36, 40, 4, "train")
    assert math.isfinite(found["measured"]["mixture"]["nats"])


def test_another_set_than_the_models_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (model / "priors.safetensors").read_bytes()
    other = make_shard_set(tmp_path / "other", size=32, seed=1)
    assert main(["fit-prior", "--model", str(model), "--shards", str(other.folder)]) == 2
    assert "must be fitted to what the model was trained on" in capsys.readouterr().err
    assert (model / "priors.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the images must come from a shard set; got none. Add --shards FOLDER."),
        (["--components", "1"], "--components must be at least 2; got 1"),
        (["--count", "0"], "--count must be at least 2; got 0"),
    ],
)
def test_a_persons_mistake_is_one_line(
    model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit-prior", "--model", str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_the_nearer_pictures_win_and_where_they_are_alike_the_likelihood() -> None:
    far, near, as_near = (Measured(nats, 1.0, swd, 1.0) for nats, swd in ((-1.0, 90.0), (-9.0, 50.0), (-8.0, 51.0)))
    assert best({"standard": far, "gaussian": near})[0] == "gaussian"
    assert best({"standard": far, "gaussian": near, "mixture": as_near})[0] == "mixture"
    assert "held-out likelihood" in best({"gaussian": near, "mixture": as_near})[1]
