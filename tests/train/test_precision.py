"""A run goes on in another precision than the one it was saved in."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.format import ShardSet
from tests.train.tiny import FakeAccelerator, generation_of, tiny_config, tiny_state, updates
from train.checkpoint import read_generation, write_generation
from train.objectives import Likelihood, RunningError, objective
from train.state import TrainState

DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Autocast(FakeAccelerator):
    """One process that really computes in its precision, on the CPU."""

    def autocast(self) -> torch.autocast:  # type: ignore[override]
        dtype = DTYPES[self.mixed_precision]
        return torch.autocast("cpu", dtype, enabled=dtype is not None)


def trained(faces: ShardSet, folder: Path, *precisions: str) -> tuple[TrainState, list[float]]:
    """Two updates in each precision, with a save and a fresh start between them; and all losses."""
    config = tiny_config(model={"kind": "residual"})
    state, losses = tiny_state(config), []
    for number, precision in enumerate(precisions):
        losses += [update.loss for update in updates(state, config, faces, 2, Autocast(precision))]
        saved = write_generation(folder / str(number), generation_of(state))
        state = tiny_state(config)
        state.restore(read_generation(saved))
    return state, losses


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(DTYPES, 2)))
def test_a_run_goes_on_in_another_precision(faces: ShardSet, tmp_path: Path, before: str, after: str) -> None:
    state, losses = trained(faces, tmp_path / "crossed", before, after)
    exact, expected = trained(faces, tmp_path / "exact", "no", "no")
    assert losses == pytest.approx(expected, rel=0.02)
    assert losses != expected
    assert (state.position, state.audit) == (exact.position, exact.audit)
    assert all(parameter.dtype == torch.float32 for parameter in state.model.parameters())
    moved = torch.cat(
        [(p - q).flatten() for p, q in zip(state.model.parameters(), exact.model.parameters(), strict=True)]
    )
    # Adam's first steps have the length of the rate in every coordinate, whatever the gradient's size.
    assert float(moved.detach().abs().mean()) < 4 * 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_decides_about_the_loss_is_computed_in_float32(precision: str) -> None:
    config = tiny_config()
    model = tiny_state(config).model
    bias = model.encoder[-1].bias
    assert isinstance(bias, torch.Tensor)
    with torch.no_grad(), Autocast(precision).autocast():
        # An encoder that answers with about the largest number of half precision as log-variance.
        bias[model.latent :] = 6e4
        output = model(torch.rand(2, 3, 32, 32), torch.ones(2, model.latent))
    assert {value.dtype for value in output} == {torch.float32}
    terms = objective(config.loss, output, torch.rand(2, 3, 32, 32), Likelihood.of(config.loss, RunningError()))
    assert {value.dtype for value in terms} == {torch.float32}
    assert all(bool(value.isfinite().all()) for value in (*output, *terms))
