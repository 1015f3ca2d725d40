import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train.update
from pipeline import Batch, StreamingLoader
from pipeline.errors import LeanstreamError
from pipeline.format import ShardSet
from tests.train.tiny import (
    TOTAL_IMAGES,
    FakeAccelerator,
    generation_of,
    state_sha256,
    tiny_config,
    tiny_state,
    updates,
)
from train.checkpoint import weights_sha256
from train.config import Config
from train.device import Recorder
from train.models import FaceVAE, Output
from train.state import INITIAL_SCALE, TrainState
from train.update import MAX_REPLAYS, Update, apply_update

FP16 = FakeAccelerator(mixed_precision="fp16")
KERAS = {"kind": "keras"}


class Overflowing(FaceVAE):
    """Its gradients are infinite in the first `left` passes."""

    left = 0

    def forward(self, images: Tensor, noise: Tensor) -> Output:
        output = super().forward(images, noise)
        if self.left:
            self.left -= 1
            output.images.register_hook(lambda gradient: gradient * math.inf)
        return output


class Hungry(FaceVAE):
    """Runs out of memory where more than `fits` images come at once."""

    fits = 5

    def forward(self, images: Tensor, noise: Tensor) -> Output:
        output = super().forward(images, noise)
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return output


def run(config: Config, shards: ShardSet, count: int = 3, **settings: Any) -> tuple[TrainState, list[Any]]:
    accelerator = settings.pop("accelerator", None)
    failures = settings.pop("failures", 0)
    state = tiny_state(config, **settings)
    if failures:
        state.model.left = failures  # type: ignore[assignment]
    return state, list(updates(state, config, shards, count, accelerator))


@pytest.mark.parametrize("failures", [1, 3])
def test_an_overflow_halves_the_scale_and_replays_the_same_samples(faces: ShardSet, failures: int) -> None:
    config = tiny_config(model=KERAS)  # its BatchNorm has buffers to put back
    calm, expected = run(config, faces, accelerator=FP16, kind=Overflowing)
    state, found = run(config, faces, accelerator=FP16, kind=Overflowing, failures=failures)
    assert state.position == calm.position == 48
    assert [update.replays for update in found] == [failures, 0, 0]
    assert [replace(update, replays=0) for update in found] == expected
    assert (state.loss_scale.value, calm.loss_scale.value) == (INITIAL_SCALE / 2**failures, INITIAL_SCALE)
    assert state_sha256(state) == state_sha256(calm)
    assert state.audit == calm.audit


def test_the_loss_scale_does_not_change_the_update(faces: ShardSet) -> None:
    config = tiny_config(optim={"clip_norm": 0.5})
    scaled, _ = run(config, faces, accelerator=FP16)
    plain, _ = run(config, faces)
    assert state_sha256(scaled) == state_sha256(plain)


def test_overflow_without_end_is_an_error_and_changes_nothing_but_the_scale(faces: ShardSet) -> None:
    config = tiny_config()
    state = tiny_state(config, kind=Overflowing)
    before = state_sha256(state)
    state.model.left = MAX_REPLAYS + 1  # type: ignore[assignment]
    with pytest.raises(LeanstreamError, match=r"within 20 replays; got none at position 0.*--train.mixed-precision"):
        list(updates(state, config, faces, 1, FP16))
    assert (state.position, state.updates) == (0, 0)
    assert state_sha256(state) == before


def test_the_last_replay_may_still_succeed(faces: ShardSet) -> None:
    _, found = run(tiny_config(), faces, 1, accelerator=FP16, kind=Overflowing, failures=MAX_REPLAYS)
    assert found[0].replays == MAX_REPLAYS


def test_out_of_memory_halves_the_micro_batch_and_replays_the_same_samples(faces: ShardSet) -> None:
    config = tiny_config(model=KERAS)
    state, found = run(config, faces, kind=Hungry)
    small, expected = run(config, faces, micro_batch=4)
    assert (state.micro_batch, [update.replays for update in found]) == (4, [2, 0, 0])
    assert [replace(update, replays=0) for update in found] == expected
    assert state_sha256(state) == state_sha256(small)


def test_one_image_that_does_not_fit_is_an_error(faces: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hungry, "fits", 0)
    with pytest.raises(LeanstreamError, match="out of memory at a micro-batch of 1"):
        run(tiny_config(), faces, kind=Hungry)


def test_a_non_finite_loss_in_float32_is_an_error_that_names_the_update(faces: ShardSet) -> None:
    config = tiny_config()
    state = tiny_state(config)
    list(updates(state, config, faces, 2))
    next(state.model.parameters()).data[0] = math.nan
    with pytest.raises(LeanstreamError, match=r"got loss nan .* at update 3 \(position 32\).*--optim.learning-rate"):
        list(updates(state, config, faces, 1))
    assert state.position == 32


def test_clipping_scales_the_gradients_and_reports_their_norm(faces: ShardSet) -> None:
    """Adam does not feel the scale of its first gradient but keeps it: the moments tell."""
    free, (update,) = run(tiny_config(), faces, 1)
    limit = update.grad_norm / 4
    clipped, (other,) = run(tiny_config(optim={"clip_norm": limit}), faces, 1)
    assert other.grad_norm == update.grad_norm
    for one, two in zip(free.optimizer.state.values(), clipped.optimizer.state.values(), strict=True):
        torch.testing.assert_close(two["exp_avg"], one["exp_avg"] / 4)
    unclipped, _ = run(tiny_config(optim={"clip_norm": update.grad_norm * 2}), faces, 1)
    assert state_sha256(unclipped) == state_sha256(free)


@pytest.mark.parametrize("objective", ["optimal_sigma", "mse"])
def test_any_split_into_micro_batches_trains_as_the_whole_batch(faces: ShardSet, objective: str) -> None:
    """Halves, quarters, and one that leaves a smaller rest."""
    config = tiny_config(loss={"objective": objective}, train={"batch_size": 64})
    whole, expected = run(config, faces, 40)
    assert expected[-1].mse < 0.95 * expected[0].mse  # it has really trained
    for micro_batch in (32, 16, 24):
        parts, found = run(config, faces, 40, micro_batch=micro_batch)
        for one, other in zip(found, expected, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)
            assert one.mse == pytest.approx(other.mse, rel=1e-4)
        assert parts.audit == whole.audit


def test_a_micro_batch_that_does_not_divide_gives_the_same_update(faces: ShardSet) -> None:
    _, expected = run(tiny_config(), faces, 2)
    _, found = run(tiny_config(), faces, 2, micro_batch=7)
    assert [update.loss for update in found] == pytest.approx([update.loss for update in expected], rel=1e-5)


def test_an_update_passes_on_what_this_process_asks_for(faces: ShardSet) -> None:
    _, (update,) = run(tiny_config(), faces, 1)
    assert update.requests == 0
    assert update.learning_rate == pytest.approx(1e-3 / 64)


TWO = FakeAccelerator(num_processes=2)


class NoMemory(TorchDispatchMode):
    """An allocator that has nothing left but a few small blocks."""

    def __init__(self, block_bytes: int) -> None:
        super().__init__()
        self.block_bytes = block_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            memory = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if memory is not None and memory.data_ptr() not in given and memory.nbytes() > self.block_bytes:
                raise torch.OutOfMemoryError(f"out of memory in {func}")
        return made


@pytest.fixture
def alone_among_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that adds nothing to any sum."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_gradients_that_are_laid_out_for_an_exchange_train_as_any(
    faces: ShardSet, kind: str, alone_among_two: None
) -> None:
    config = tiny_config(model={"kind": kind})
    state, usual = tiny_state(config, 7), tiny_state(config, 7)
    state.lay_out_gradients()
    assert state.gradients is not None
    strides = [parameter.grad.stride() for parameter in state.model.parameters() if parameter.grad is not None]
    assert strides == [parameter.stride() for parameter in state.model.parameters()]
    found, expected = list(updates(state, config, faces, 4, TWO)), list(updates(usual, config, faces, 4))
    assert found == expected
    for one, other in zip(state.model.parameters(), usual.model.parameters(), strict=True):
        assert one.equal(other)
        assert one.grad is not None
        assert one.grad.untyped_storage().data_ptr() == state.gradients.untyped_storage().data_ptr()


def test_an_exchange_needs_no_memory(faces: ShardSet, alone_among_two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the vote no process may fail alone: the others would wait for it."""
    config = tiny_config()
    state = tiny_state(config)
    state.lay_out_gradients()
    assert state.gradients is not None
    original, left, measured = train.update._exchange_and_measure, state.gradients.nbytes // 4, []

    def exchange(*args: Any) -> float:
        with NoMemory(left):
            measured.append(original(*args))
        return measured[-1]

    monkeypatch.setattr(train.update, "_exchange_and_measure", exchange)
    list(updates(state, config, faces, 2, TWO))
    assert len(measured) == 2
    with pytest.raises(torch.OutOfMemoryError), NoMemory(left):
        torch.cat([parameter.flatten() for parameter in state.model.parameters()])


def apply(state: TrainState, config: Config, batch: Batch | None, **options: Any) -> Update:
    """One update of a batch that is given."""
    facts: dict[str, Any] = {"total_images": TOTAL_IMAGES, "epoch_samples": 40}
    return apply_update(state, batch, config, options.pop("accelerator", FakeAccelerator()), **facts, **options)


def first_batch(config: Config, shards: ShardSet) -> Batch:
    with StreamingLoader(shards, batch_size=config.train.batch_size, noise=4, threads=1) as loader:
        return next(loader)


@pytest.mark.parametrize("mine", [True, False])
def test_where_a_process_has_no_batch_nothing_changes_in_any(
    faces: ShardSet, monkeypatch: pytest.MonkeyPatch, mine: bool
) -> None:
    """Seen from the process that has one, and from the one that has none."""
    config = tiny_config(model=KERAS)
    state = tiny_state(config)
    state.lay_out_gradients()
    before = state_sha256(state)

    def add_the_others(tensor: Tensor) -> None:
        if tensor.dtype == torch.float64:
            tensor[-16 + 2] += 1  # Its request 4.
            tensor[-1] += mine

    monkeypatch.setattr(torch.distributed, "all_reduce", add_the_others)
    batch = first_batch(config, faces) if mine else None
    update = apply(state, config, batch, accelerator=TWO, requests=1)
    assert not update.applied
    assert update.requests & 7 == 5
    assert (state.position, state.updates, state.audit) == (0, 0, {})
    assert state_sha256(state) == before
    assert state.gradients is not None
    assert not state.gradients.any()


def test_one_process_without_a_batch_changes_nothing(faces: ShardSet) -> None:
    config = tiny_config()
    state, before = tiny_state(config), state_sha256(tiny_state(config))
    update = apply(state, config, None, requests=2)
    assert (update.applied, update.requests & 7, state.position) == (False, 2, 0)
    assert state_sha256(state) == before


@pytest.mark.parametrize("recorder", [None, 6])
def test_a_batch_without_some_samples_counts_for_all_and_trains_what_is_there(
    faces: ShardSet, recorder: int | None
) -> None:
    config = tiny_config()
    whole = first_batch(config, faces)
    short = whole.without(np.array([0, 5, 15]), ())
    state, usual = tiny_state(config, recorder), tiny_state(config)
    state.lay_out_gradients()
    found = apply(state, config, short, recorder=None if recorder is None else Recorder(Standing))
    expected = apply(usual, config, whole)
    assert (found.applied, state.position, state.updates) == (True, 16, 1)
    assert state.audit == {0: int(short.digests.sum(dtype=np.uint64))}
    assert 0.7 * expected.grey_mse < found.grey_mse < expected.grey_mse


def test_a_step_that_lacks_memory_is_replayed(faces: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    state, small = tiny_state(config), tiny_state(config)
    for each in (state, small):
        list(updates(each, config, faces, 1))
    small.micro_batch, original, full = 8, state.optimizer.step, [True]
    list(updates(small, config, faces, 2))

    def step() -> None:
        if full:
            full.pop()
            for values in state.optimizer.state.values():
                values["step"] += 1  # The first thing that a step does.
            raise torch.OutOfMemoryError
        original()

    monkeypatch.setattr(state.optimizer, "step", step)
    found = list(updates(state, config, faces, 2))
    assert (state.micro_batch, [update.replays for update in found]) == (8, [1, 0])
    assert state_sha256(state) == state_sha256(small)


def test_a_norm_that_lacks_memory_is_replayed(faces: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    state, small = tiny_state(config), tiny_state(config, 8)
    original, full = torch.linalg.vector_norm, [True]

    def norm(*arguments: Any) -> Tensor:
        if full:
            full.pop()
            raise torch.OutOfMemoryError
        return original(*arguments)

    monkeypatch.setattr(torch.linalg, "vector_norm", norm)
    found = list(updates(state, config, faces, 2))
    assert (state.micro_batch, [update.replays for update in found]) == (8, [1, 0])
    list(updates(small, config, faces, 2))
    assert state_sha256(state) == state_sha256(small)


def test_a_step_that_lacks_memory_among_several_processes_is_an_error(
    faces: ShardSet, alone_among_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have stepped."""
    config = tiny_config()
    state = tiny_state(config)
    state.lay_out_gradients()

    def step() -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(state.optimizer, "step", step)
    with pytest.raises(LeanstreamError, match="same step; got out of memory in this one"):
        list(updates(state, config, faces, 1, TWO))


def test_a_batch_that_does_not_fit_the_device_is_moved_in_smaller_parts(
    faces: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    state, small = tiny_state(config), tiny_state(config, 8)
    original = Batch.to

    def to(self: Batch, device: torch.device, part: slice = slice(None)) -> Batch:
        moved = original(self, device, part)
        if len(moved) > 8:
            raise torch.OutOfMemoryError
        return moved

    monkeypatch.setattr(Batch, "to", to)
    found = list(updates(state, config, faces, 2))
    assert (state.micro_batch, [update.replays for update in found]) == (8, [1, 0])
    list(updates(small, config, faces, 2))
    assert state_sha256(state) == state_sha256(small)


STEP = (2,)
"""What a step of the optimizer is given: rate and factor."""


class Standing:
    """A graph that is none: it computes from inputs that stand where they were when it was recorded."""

    made: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, call: Callable[..., Tensor], inputs: tuple[Tensor, ...], warm_up: int) -> None:
        self.call, self.inputs, self.output = call, [each.clone() for each in inputs], torch.empty(0)
        self.made.append(tuple(inputs[0].shape))
        for _ in range(warm_up):
            call(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        found = self.call(*self.inputs)
        self.output = self.output.copy_(found) if self.output.shape == found.shape else found.clone()
        return self.output


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what was recorded."""
    monkeypatch.setattr(Standing, "made", [])
    return Standing.made


@pytest.mark.parametrize("kind", ["conv", "residual"])
@pytest.mark.parametrize("micro_batch", [16, 8, 6])
def test_recorded_micro_batches_train_as_any(
    faces: ShardSet, kind: str, micro_batch: int, made: list[tuple[int, ...]]
) -> None:
    """Also where the last one is smaller: it is computed as it is."""
    config = tiny_config(model={"kind": kind}, loss={"kl_warmup_images": 64}, optim={"clip_norm": 100.0})
    state, usual = tiny_state(config, micro_batch), tiny_state(config, micro_batch)
    state.lay_out_gradients()
    found = list(updates(state, config, faces, 4, recorder=Recorder(Standing)))
    assert made == [(micro_batch, 3, 32, 32), STEP]
    assert found == list(updates(usual, config, faces, 4))
    assert state_sha256(state) == state_sha256(usual)


def test_a_smaller_micro_batch_is_recorded_again(faces: ShardSet, made: list[tuple[int, ...]]) -> None:
    config = tiny_config()
    state, small = tiny_state(config, kind=Hungry), tiny_state(config, 4)
    state.lay_out_gradients()
    found = list(updates(state, config, faces, 3, recorder=Recorder(Standing)))
    assert made == [(16, 3, 32, 32), (8, 3, 32, 32), (4, 3, 32, 32), STEP]
    assert [update.replays for update in found] == [2, 0, 0]
    list(updates(small, config, faces, 3))
    assert state_sha256(state) == state_sha256(small)


def test_an_overflow_replays_the_recording(faces: ShardSet, made: list[tuple[int, ...]]) -> None:
    config = tiny_config()
    state, usual = tiny_state(config, 8), tiny_state(config, 8)
    state.lay_out_gradients()
    state.loss_scale.value = 2.0**72  # The squares of such gradients are beyond float32.
    found = list(updates(state, config, faces, 2, FP16, Recorder(Standing)))
    assert found[0].replays > 0
    assert made == [(8, 3, 32, 32), STEP]
    assert [replace(update, replays=0) for update in found] == list(updates(usual, config, faces, 2))


@pytest.mark.parametrize("case", ["dropout", "recomputed"])
def test_what_asks_generators_is_not_recorded(faces: ShardSet, case: str, made: list[tuple[int, ...]]) -> None:
    config = tiny_config(model=KERAS if case == "dropout" else {})
    state = tiny_state(config)
    state.lay_out_gradients()
    state.model.recompute = case == "recomputed"
    list(updates(state, config, faces, 1, recorder=Recorder(Standing)))
    assert made == [STEP]


def test_what_cannot_be_recorded_runs_as_it_is(faces: ShardSet) -> None:
    def record(*_: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    config = tiny_config()
    state, usual = tiny_state(config, 8), tiny_state(config, 8)
    state.lay_out_gradients()
    with pytest.warns(UserWarning, match=r"a (micro-batch|step) runs kernel by kernel: CUDA did not record it"):
        found = list(updates(state, config, faces, 3, recorder=Recorder(record)))
    assert found == list(updates(usual, config, faces, 3))
    assert state_sha256(state) == state_sha256(usual)


def test_the_average_moves_when_it_is_due_and_a_resume_keeps_to_that(faces: ShardSet) -> None:
    config = tiny_config(train={"ema_halflife_images": 64 * 48}, optim={"schedule": "constant"})
    state = tiny_state(config)
    state.position = state.averaged = 160_000
    before = weights_sha256(state.ema.state_dict())
    list(updates(state, config, faces, 2))
    assert (weights_sha256(state.ema.state_dict()), state.averaged) == (before, 160_000)
    resumed = tiny_state(config)
    resumed.restore(generation_of(state))
    for each in (state, resumed):
        list(updates(each, config, faces, 1))
        assert weights_sha256(each.ema.state_dict()) != before
        assert each.averaged == each.position == 160_048
    assert state_sha256(state) == state_sha256(resumed)
