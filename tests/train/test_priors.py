from pathlib import Path

import pytest
import torch

from pipeline.errors import CheckpointError
from train.evaluate import Gaussian
from train.mixture import Mixture
from train.priors import FittedPriors, read_priors, write_priors


@pytest.fixture
def priors() -> FittedPriors:
    means = torch.tensor([[1.0, 2], [3, 4]])
    return FittedPriors(
        {
            "gaussian": Mixture.single(Gaussian.standard(2)),
            "mixture": Mixture.of(torch.tensor([0.5, 0.5]), means, torch.eye(2).repeat(2, 1, 1)),
        },
        "mixture",
        {"images": 40, "held_out_from": "val"},
    )


def test_what_is_written_is_read(tmp_path: Path, priors: FittedPriors) -> None:
    write_priors(tmp_path / "new" / "priors.safetensors", priors, "abc")
    again = read_priors(tmp_path / "new" / "priors.safetensors", "abc")
    assert (again.default, again.facts, list(again.fitted)) == ("mixture", priors.facts, ["gaussian", "mixture"])
    for name, mixture in priors.fitted.items():
        assert all(value.equal(vars(again.fitted[name])[part]) for part, value in vars(mixture).items())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["priors.safetensors"]


def test_priors_of_other_weights_are_refused(tmp_path: Path, priors: FittedPriors) -> None:
    path = tmp_path / "priors.safetensors"
    write_priors(path, priors, "abc")
    with pytest.raises(CheckpointError, match="must be fitted to the model's weights; got priors of others"):
        read_priors(path, "abd")


@pytest.mark.parametrize("place", [3, 40, 200, -1, -30])
def test_one_wrong_byte_is_found_wherever_it_is(tmp_path: Path, priors: FittedPriors, place: int) -> None:
    path = tmp_path / "priors.safetensors"
    write_priors(path, priors, "abc")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="Run fit-prior again") as failed:
        read_priors(path, "abc")
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("content", [b"", b"half", b"\x10" + bytes(7) + b'{"a": 1}        '])
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "priors.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="must be readable"):
        read_priors(path, "abc")
