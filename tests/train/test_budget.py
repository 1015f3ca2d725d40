from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Dataset
from pipeline.errors import ConfigError
from pipeline.format import ShardSet
from tests.train.tiny import FakeAccelerator, state_sha256, tiny_config, tiny_state, updates
from train.architectures import Architecture
from train.budget import Fit, Need, Plan, choose, divisors, estimate, make_plan, within_disk
from train.config import LossConfig
from train.models import FaceVAE, parameter_count, segments
from train.objectives import Factors, objective

NEED = Need(weights=100, gradients=100, optimizer=200, average=100, copies=0, activations=40, activations_recomputed=10)
KINDS = ["conv", "residual", "keras"]


def model_of(kind: str, size: int = 64) -> FaceVAE:
    torch.manual_seed(0)
    return FaceVAE(Architecture.of(kind, size, None, None, None))


@given(st.integers(1, 3000))
def test_divisors_are_all_and_the_largest_is_first(number: int) -> None:
    assert divisors(number) == [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


@given(st.integers(1, 64), st.integers(600, 6000))
def test_the_largest_divisor_that_fits_the_count_is_chosen(batch: int, limit: int) -> None:
    fit = choose(NEED, batch, limit, 20)
    assert 20 + NEED.total(fit.micro_batch, recompute=fit.recompute) <= limit
    larger = [divisor for divisor in divisors(batch) if divisor > fit.micro_batch]
    assert all(20 + NEED.total(divisor, recompute=fit.recompute) > limit for divisor in larger)
    if fit.recompute:
        assert 20 + NEED.total(1, recompute=False) > limit


def test_without_a_limit_a_whole_batch_is_computed_at_once() -> None:
    assert choose(NEED, 48, None, 0) == Fit(48, recompute=False)


def test_where_a_trial_decides_it_is_asked_from_the_largest_down() -> None:
    asked: list[Fit] = []

    def trial(fit: Fit) -> bool:
        asked.append(fit)
        return fit.recompute and fit.micro_batch <= 4

    assert choose(NEED, 12, None, 0, trial) == Fit(4, recompute=True)
    kept, again = ([fit.micro_batch for fit in asked if fit.recompute is value] for value in (False, True))
    assert kept == [12, 6, 4, 3, 2, 1]
    assert again == [12, 6, 4]


def test_a_count_far_beyond_the_limit_spares_the_trial() -> None:
    asked: list[Fit] = []
    choose(NEED, 1024, 2000, 0, lambda fit: asked.append(fit) is None)
    assert len(asked) == 1
    assert NEED.total(asked[0].micro_batch, recompute=False) <= 4000


def test_a_budget_that_holds_nothing_says_what_it_would_take() -> None:
    with pytest.raises(ConfigError, match=r"budget must hold the model and one image, about 535 B; got 400 B"):
        choose(NEED, 8, 400, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_count_is_what_autograd_keeps_for_real_images(kind: str, dtype: torch.dtype) -> None:
    """Two images more keep twice the count of one; small things that do not grow with images cancel."""
    model = model_of(kind).train()
    model.compute_dtype = dtype
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def kept(count: int) -> int:
        alive: dict[int, torch.Tensor] = {}

        def save(tensor: torch.Tensor) -> torch.Tensor:
            alive[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            images, noise = torch.rand(count, 3, 64, 64), torch.zeros(count, model.latent)
            loss = objective(LossConfig("mse"), model(images, noise), images, Factors(1.0, 0.0, 1.0, 0.0)).loss
        assert loss.requires_grad
        return sum(tensor.untyped_storage().nbytes() for key, tensor in alive.items() if key not in own)

    counted = estimate(model, dtype).activations
    assert (kept(4) - kept(2)) / 2 == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_counted_to_the_byte(kind: str) -> None:
    config = tiny_config(model={"kind": kind, "widths": [8, 8, 8, 8], "latent": 4})
    state = tiny_state(config)
    need = estimate(state.model, torch.float32)
    assert need.weights == need.average == sum(value.nbytes for value in state.model.state_dict().values())
    moments = [value for entry in state.optimizer.state.values() for value in entry.values() if value.dim()]
    assert need.optimizer == sum(value.nbytes for value in moments)


@pytest.mark.parametrize("size", [64, 128])
def test_recomputing_keeps_less_and_half_precision_too(size: int) -> None:
    need, half = (estimate(model_of("residual", size), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert need.activations_recomputed < need.activations / 2
    assert half.activations < need.activations


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    model = model_of(kind, 32)
    images, noise = torch.rand(3, 3, 32, 32), torch.randn(3, model.latent)

    def gradients(*, recompute: bool) -> torch.Tensor:
        model.recompute = recompute
        model.zero_grad()
        model(images, noise).images.square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert torch.equal(gradients(recompute=False), gradients(recompute=True))


def test_a_model_with_batchnorm_does_not_compute_twice() -> None:
    assert not model_of("keras").can_recompute
    assert estimate(model_of("keras"), torch.float32).activations_recomputed == 0


def test_segments_are_the_layers_in_their_order() -> None:
    layers = model_of("residual").encoder
    assert [layer for segment in segments(layers) for layer in segment] == list(layers)
    assert len(segments(layers)) == 4


class Hungry(FaceVAE):
    """Runs out of memory where more than `fits` images come at once."""

    fits = 5

    def forward(self, images: torch.Tensor, noise: torch.Tensor):  # type: ignore[no-untyped-def]
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return super().forward(images, noise)


def test_planning_on_the_cpu_measures_the_time_of_a_pass_and_changes_nothing_of_the_state(faces: ShardSet) -> None:
    config = tiny_config(model={"kind": "keras", "widths": [8, 8, 8, 8], "latent": 4})
    state, untouched = tiny_state(config), tiny_state(config)
    plan = make_plan(state, config, FakeAccelerator(), 16, 0)  # type: ignore[arg-type]
    assert plan.seconds_per_image > 0
    assert not plan.on_gpu
    assert state_sha256(state) == state_sha256(untouched)
    list(updates(state, config, faces, 3))
    list(updates(untouched, config, faces, 3))
    assert state_sha256(state) == state_sha256(untouched)


def test_of_a_trial_on_a_gpu_the_plan_is_what_it_took() -> None:
    plan = Plan(NEED, Fit(8, recompute=False), 500, 5000, 10, 0, 0.1, measured_bytes=2000, ram_bytes=300)
    assert plan.bytes(8) == 2000
    assert plan.bytes(4) == 500 + NEED.total(4, recompute=False)
    assert "2.0 KiB of 4.9 KiB expected on the GPU, 300 B of RAM at micro-batches of 8" in plan.lines(8)[1]


def test_a_budget_of_ram_makes_the_micro_batch_smaller() -> None:
    config = tiny_config(model={"kind": "residual", "widths": [8, 8, 8, 8], "latent": 4}, budget={"ram": "132MiB"})
    state = tiny_state(config)
    plan = make_plan(state, config, FakeAccelerator(), 64, 1 << 20)  # type: ignore[arg-type]
    assert 1 <= plan.fit.micro_batch < 64
    assert plan.bytes(plan.fit.micro_batch) <= 132 << 20
    assert "of 132.0 MiB expected" in plan.lines(plan.fit.micro_batch)[1]
    free = make_plan(state, tiny_config(), FakeAccelerator(), 64, 1 << 20)  # type: ignore[arg-type]
    assert free.fit == Fit(64, recompute=False)


def test_a_micro_batch_that_is_given_is_taken() -> None:
    config = tiny_config(train={"micro_batch": 3})
    assert make_plan(tiny_state(config), config, FakeAccelerator(), 16, 0).fit.micro_batch == 3  # type: ignore[arg-type]


def test_a_model_too_large_for_the_timing_is_left_to_the_first_update() -> None:
    config = tiny_config()
    state = tiny_state(config, kind=Hungry)
    assert make_plan(state, config, FakeAccelerator(), 16, 0).seconds_per_image == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_large_model_trains_batches_of_256_within_two_gib(dtype: torch.dtype) -> None:
    """An allocator of the size of a budget stands in for the GPU; what it hands out is a tenth more than the count."""
    need, context = estimate(model_of("residual", 128), dtype), 500 << 20
    assert parameter_count(model_of("residual", 128)) > 18e6
    sizes = []
    for gib in (1, 2, 4, 8, 15):
        limit = gib << 30

        def fits(fit: Fit, limit: int = limit) -> bool:
            return context + 1.1 * need.total(fit.micro_batch, recompute=fit.recompute) <= limit

        fit = choose(need, 256, limit, context, fits)
        assert 256 % fit.micro_batch == 0
        assert fits(fit)
        assert not fit.recompute
        sizes.append(fit.micro_batch)
    assert sizes == sorted(sizes)
    assert sizes[1] >= 8
    assert sizes[3] >= 64
    # Where not even one image fits as it is, activations are computed again.
    tight = context + need.total(1, recompute=False) - 1
    assert choose(need, 256, tight, context).recompute


def test_a_budget_of_disk_leaves_the_cache_what_the_checkpoints_do_not_take(faces: ShardSet, tmp_path: Path) -> None:
    near, cached = Dataset.open(faces), Dataset.open(faces, cache=tmp_path / "cache")
    own = 3 * (100 + 100 + 200) + 2 * 100
    config = tiny_config(budget={"disk": str(own + 5000)}, checkpoint={"keep": 2})
    assert within_disk(cached, config, NEED).cache_bytes == 5000
    assert within_disk(replace(cached, cache_bytes=300), config, NEED).cache_bytes == 300
    assert within_disk(near, config, NEED) == near
    assert within_disk(cached, tiny_config(), NEED) == cached
    with pytest.raises(ConfigError, match=r"budget.disk must hold 3 checkpoints and the model, about 1.4 KiB; got"):
        within_disk(near, tiny_config(budget={"disk": str(own)}), NEED)
