import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import train.checkpoint
import train.pretrained
from pipeline.errors import CheckpointError, UserError
from pipeline.files import write_json
from tests.train.tiny import CPU, tiny_config, tiny_model
from train.architectures import Architecture
from train.evaluate import Gaussian
from train.models import FaceVAE
from train.pretrained import FORMAT, load_pretrained, save_pretrained

PRIOR = Gaussian(torch.arange(4.0, dtype=torch.float64), torch.eye(4, dtype=torch.float64) / 3)


def save(folder: Path, kind: str = "conv") -> FaceVAE:
    model = tiny_model(tiny_config(model={"kind": kind})).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for buffer in model.buffers():
        buffer.add_(1)
    save_pretrained(folder, model, PRIOR, {"position": 7, "shardset": "abc"})
    return model


@pytest.mark.parametrize("kind", ["conv", "keras"])
def test_a_model_comes_back_with_the_same_answers(tmp_path: Path, kind: str) -> None:
    model = save(tmp_path / "final", kind).eval()
    again, prior, facts = load_pretrained(tmp_path / "final", CPU)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again.encode(images)[0], model.encode(images)[0])
    assert not again.training
    assert prior.mean.equal(PRIOR.mean)
    assert prior.covariance.equal(PRIOR.covariance)
    assert (facts["position"], facts["shardset"]) == (7, "abc")
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == [
        "config.json",
        "model.safetensors",
        "prior.safetensors",
    ]


def test_no_model_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold a finished model; got no config\.json"):
        load_pretrained(tmp_path, CPU)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "prior.safetensors"])
def test_a_damaged_model_is_an_error(tmp_path: Path, name: str) -> None:
    save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=r"(must be a whole model|as config\.json says).*Copy it again"):
        load_pretrained(tmp_path, CPU)


@pytest.mark.parametrize("version", [None, FORMAT + 1])
def test_a_model_of_another_format_is_refused_as_it_would_be_another_function(
    tmp_path: Path, version: int | None
) -> None:
    save(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["format"]
    write_json(tmp_path / "config.json", saved if version is None else {**saved, "format": version})
    with pytest.raises(CheckpointError, match=f"must be a model of format {FORMAT}; got {version or 1}"):
        load_pretrained(tmp_path, CPU)


def test_a_full_disk_is_an_os_error_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise train.checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(train.checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left") as failed:
        save(tmp_path)
    assert failed.value.errno == errno.ENOSPC
    assert not (tmp_path / "config.json").exists()


def test_a_longer_training_replaces_the_model_as_a_whole(tmp_path: Path) -> None:
    save(tmp_path / "final")
    (tmp_path / "final" / "of-before.txt").touch()
    save_pretrained(tmp_path / "final", tiny_model(tiny_config()), PRIOR, {"position": 9}, {"README.md": b"card"})
    assert load_pretrained(tmp_path / "final", CPU)[2]["position"] == 9
    assert sorted(path.name for path in (tmp_path / "final").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "prior.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_whatever_fails_the_model_before_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save(tmp_path / "final")
    before = {path.name: path.read_bytes() for path in (tmp_path / "final").iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(
        "train.pretrained.save_tensors" if name != "config.json" else "train.pretrained.write_json", fail
    )
    with pytest.raises(OSError, match="Input/output"):
        save(tmp_path / "final")
    assert {path.name: path.read_bytes() for path in (tmp_path / "final").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_the_model_before_comes_back_where_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "final")
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        save(tmp_path / "final")
    monkeypatch.undo()
    assert load_pretrained(tmp_path / "final", CPU)[2]["position"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_reader_never_gets_half_of_two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is replaced after its config was read; the second attempt finds the new one."""
    save(tmp_path / "final")
    original = train.pretrained.architecture_of

    def replace_meanwhile(described: dict[str, Any]) -> Architecture:
        monkeypatch.setattr(train.pretrained, "architecture_of", original)
        other = tiny_model(tiny_config(run={"seed": 1}))
        save_pretrained(tmp_path / "final", other, PRIOR, {"position": 9, "shardset": "abc"})
        return original(described)

    monkeypatch.setattr(train.pretrained, "architecture_of", replace_meanwhile)
    model, _, facts = load_pretrained(tmp_path / "final", CPU)
    assert facts["position"] == 9
    expected = tiny_model(tiny_config(run={"seed": 1})).state_dict()
    assert all(value.equal(expected[name]) for name, value in model.state_dict().items())
