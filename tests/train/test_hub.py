"""A finished model by one line: from a folder, from a run, from a Hugging Face that is a fake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import train.hub
from pipeline.errors import CheckpointError, TransportError, UserError
from tests.train.tiny import CPU
from train import FaceVAE, models
from train.architectures import Architecture
from train.pretrained import load_pretrained

FILES = [
    "README.md",
    "config.json",
    "curves.png",
    "grid.png",
    "model.safetensors",
    "prior.safetensors",
    "training.json",
]


class FakeHub:
    """Repositories as folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.token: str | None = None

    def api(self, token: str | None = None) -> "FakeHub":
        self.token = token
        return self

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: Path, **_: Any) -> str:
        assert repo_type == "model"
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        if not (self.root / repo_id).exists():
            raise LocalEntryNotFoundError(f"no {repo_id} and no network\nmore")
        return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", fake.api)
    monkeypatch.setattr(train.hub, "snapshot_download", fake.snapshot_download)
    return fake


def assert_same_model(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert set(ours) == set(theirs)
    assert all(value.equal(theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("where", ["final", "."])
def test_a_model_loads_by_one_line_from_its_folder_or_its_run(finished_run: Path, where: str) -> None:
    model = FaceVAE.from_pretrained(str(finished_run / where))
    reference, prior, _ = load_pretrained(finished_run / "final", CPU)
    assert isinstance(model, models.FaceVAE)
    assert not model.training
    assert_same_model(model, reference)
    assert model.prior.mean.equal(prior.mean)
    assert model.facts["position"] == 96
    assert model.facts["scores"]["val"]["images"] == 12


def test_it_draws_new_faces(finished_run: Path) -> None:
    model = FaceVAE.from_pretrained(finished_run / "final")
    faces = model.sample(5)
    assert (faces.shape, faces.dtype) == ((5, 3, 32, 32), torch.uint8)
    assert faces.equal(model.sample(5))
    assert not faces.equal(model.sample(5, seed=1))


def test_it_goes_to_the_hub_with_its_card_and_pictures_and_comes_back(finished_run: Path, hub: FakeHub) -> None:
    model = FaceVAE.from_pretrained(finished_run / "final")
    assert model.push_to_hub("me/faces", token="a token", private=True) == "https://hub/me/faces/commit/1"
    assert hub.token == "a token"
    assert sorted(path.name for path in (hub.root / "me/faces").iterdir()) == FILES
    for name in ("README.md", "grid.png", "training.json"):
        assert (hub.root / "me/faces" / name).read_bytes() == (finished_run / "final" / name).read_bytes()
    again = FaceVAE.from_pretrained("me/faces")
    assert_same_model(again, model)
    assert (again.facts, again.prior.mean.tolist()) == (model.facts, model.prior.mean.tolist())


def test_weights_that_were_changed_are_saved_as_they_are_now(finished_run: Path, tmp_path: Path) -> None:
    model = FaceVAE.from_pretrained(finished_run)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "changed")
    assert_same_model(FaceVAE.from_pretrained(tmp_path / "changed"), model)


def test_a_model_that_came_from_no_run_saves_too(tmp_path: Path) -> None:
    model = FaceVAE(Architecture.of("conv", 32, 4, (8, 8, 8, 8), None))
    model.save_pretrained(tmp_path / "fresh")
    again = FaceVAE.from_pretrained(tmp_path / "fresh")
    assert_same_model(again, model)
    assert "library_name: leanstream" in (tmp_path / "fresh" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("runs/none/final/x", UserError, "must be a folder or a Hugging Face repository; got 'runs/none/final/x'"),
        ("me/none", TransportError, "got 'no me/none and no network'"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(
    hub: FakeHub, name: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.count("/") > 1:
        monkeypatch.setattr(train.hub, "snapshot_download", huggingface_hub.snapshot_download)
    with pytest.raises(error, match=message) as failed:
        FaceVAE.from_pretrained(name)
    assert "\n" not in str(failed.value)


def test_a_folder_without_a_model_and_a_damaged_one_are_one_line(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold a finished model; got no config\.json"):
        FaceVAE.from_pretrained(tmp_path)
    shutil.copytree(finished_run / "final", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"must be as config\.json says"):
        FaceVAE.from_pretrained(tmp_path / "damaged")


def test_importing_the_trainer_alone_loads_no_torch() -> None:
    program = "import sys, train; print('torch' in sys.modules); train.FaceVAE; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_the_card_tells_data_figures_settings_and_shows_the_pictures(finished_run: Path) -> None:
    final = finished_run / "final"
    assert sorted(path.name for path in final.iterdir()) == FILES
    card = (final / "README.md").read_text()
    config = json.loads((final / "config.json").read_bytes())
    assert card.startswith("---\nlibrary_name: leanstream\n")
    for line in (
        "# faces-32",
        f"| PSNR of the reconstruction from the posterior mean | {config['scores']['val']['psnr_db']:.2f} dB |",
        "| images | 40 in `train`, 12 in `val` |",
        "| model | `conv`, widths 8, 8, 8, 8 |",
        "| length | 96 images, 2.40 epochs, 6 updates |",
        "(grid.png)",
        "(curves.png)",
        "FaceVAE.from_pretrained",
    ):
        assert line in card, line
    metadata = huggingface_hub.ModelCard(card).data
    assert (metadata.library_name, metadata.pipeline_tag) == ("leanstream", "unconditional-image-generation")


def test_nothing_that_is_published_names_a_place_on_this_machine(finished_run: Path) -> None:
    for path in (finished_run / "final").iterdir():
        assert str(finished_run.parent).encode() not in path.read_bytes(), path.name
        assert b"/tmp" not in path.read_bytes() or path.suffix in (".png", ".safetensors"), path.name


def test_a_set_without_held_out_images_has_a_card_too(tmp_path: Path, finished_run: Path) -> None:
    from train.card import model_card

    facts = {**json.loads((finished_run / "final" / "config.json").read_bytes()), "scores": {}}
    training = json.loads((finished_run / "final" / "training.json").read_bytes())
    card = model_card("x", facts, training, set())
    assert "nothing was measured" in card
    assert "png" not in card
