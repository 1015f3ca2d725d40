"""A run goes on in another precision than the one it was saved in."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.format import ShardSet
from tests.train.tiny import FakeAccelerator, generation_of, tiny_config, tiny_model, tiny_state, updates
from train.checkpoint import read_generation, write_generation
from train.device import DTYPES
from train.models import FaceVAE
from train.objectives import Likelihood, RunningError, factors_of, objective
from train.state import TrainState


def trained(faces: ShardSet, folder: Path, *precisions: str) -> tuple[TrainState, list[float]]:
    """Two updates in each precision, with a save and a fresh start between them; and all losses."""
    config = tiny_config(model={"kind": "residual"})
    state, losses = tiny_state(config), []
    for number, precision in enumerate(precisions):
        state.model.compute_dtype = DTYPES[precision]
        losses += [update.loss for update in updates(state, config, faces, 2, FakeAccelerator(precision))]
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
@pytest.mark.parametrize("autocast", [False, True])
def test_what_decides_about_the_loss_is_computed_in_float32(precision: str, autocast: bool) -> None:
    config = tiny_config()
    model = tiny_state(config).model
    bias = model.encoder[-1].bias
    assert isinstance(bias, torch.Tensor)
    model.compute_dtype = None if autocast else DTYPES[precision]
    with torch.no_grad(), torch.autocast("cpu", DTYPES[precision], enabled=autocast):
        # An encoder that answers with about the largest number of half precision as log-variance.
        bias[model.latent :] = 6e4
        output = model(torch.rand(2, 3, 32, 32), torch.ones(2, model.latent))
    assert {value.dtype for value in output} == {torch.float32}
    factors = factors_of(config.loss, Likelihood.of(config.loss, RunningError()), 3072)
    terms = objective(config.loss, output, torch.rand(2, 3, 32, 32), factors)
    assert {value.dtype for value in terms} == {torch.float32}
    assert all(bool(value.isfinite().all()) for value in (*output, *terms))


def seen_by_layers(model: FaceVAE, images: torch.Tensor, noise: torch.Tensor) -> list[tuple[str, torch.dtype]]:
    """Kind of each layer, in their order, with the type of what it gives."""
    found: list[tuple[str, torch.dtype]] = []
    leaves = [layer for layer in model.modules() if not list(layer.children())]
    hooks = [
        layer.register_forward_hook(lambda layer, _, made: found.append((type(layer).__name__, made.dtype)))
        for layer in leaves
    ]
    model(images, noise)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("kind", ["conv", "residual", "keras"])
@pytest.mark.parametrize("autocast", [False, True])
def test_activations_have_sixteen_bits_from_the_first_convolution_to_the_heads(kind: str, autocast: bool) -> None:
    model = tiny_model(tiny_config(model={"kind": kind})).eval()
    images, noise = torch.rand(3, 3, 32, 32), torch.randn(3, model.latent)
    expected = model(images, noise)
    model.compute_dtype = None if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layers = seen_by_layers(model, images, noise)
        found = model(images, noise)
    head = len(model.encoder) - 1
    assert [dtype for name, dtype in layers if name == "Linear"] == [torch.float32, torch.bfloat16]
    assert {dtype for name, dtype in layers if name != "Linear"} == {torch.bfloat16}
    assert type(model.encoder[head]).__name__ == "Linear"
    torch.testing.assert_close(found.images, expected.images, atol=0.02, rtol=0)
    assert not found.images.equal(expected.images)


@pytest.mark.parametrize("kind", ["conv", "residual", "keras"])
def test_a_pass_copies_its_weights_once_and_gives_float32_gradients_in_their_layout(kind: str) -> None:
    state = tiny_state(tiny_config(model={"kind": kind}))
    model = state.model
    model.compute_dtype = torch.bfloat16
    images = torch.rand(2, 3, 32, 32)
    with Operators() as operators:
        model(images, torch.zeros(2, model.latent))
    # Encoder and decoder; images and latents to 16 bits, what ends both to float32.
    assert operators.count["_foreach_copy_"] == 2
    assert operators.count["_to_copy"] == 4
    model(torch.rand(2, 3, 32, 32), torch.zeros(2, model.latent)).images.sum().backward()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert (parameter.grad.dtype, parameter.grad.stride()) == (torch.float32, parameter.stride())


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func._schema.name.split("::")[-1]] += 1
        return func(*args, **(kwargs or {}))
