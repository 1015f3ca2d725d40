"""One update: micro-batches, one exchange between processes, one step of the optimizer, all or nothing.

    RAM       batch: images, noise                        finite? memory? -> clip, step, average
                 |  a part at a time                            ^
    device       v                                              | the only read
              [images -> model -> loss -> gradients, sums] ... norm

The bracket is a micro-batch, on CUDA one recorded graph. Until the sums are read, nothing but gradients has changed.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor

from pipeline import Batch
from pipeline.counter import make_key
from pipeline.errors import LeanstreamError
from train.config import Config, LossConfig
from train.device import Recorder, layout, release, to_device
from train.models import FaceVAE
from train.objectives import Factors, Likelihood, Terms, factors_of, objective
from train.schedule import ema_decay, kl_weight, learning_rate
from train.state import TrainState, copy_all

MAX_REPLAYS = 20
_NO_BATCH = 1 << 15
"""The request of a process that had no batch."""
_WARM_UP = 3
"""Passes before one is recorded."""


@dataclass(frozen=True)
class Update:
    """What an update found, sums over images divided by the global batch, whatever its processes left out of it."""

    loss: float
    mse: float
    """Mean squared error a pixel and channel, images in [0, 1]."""
    grey_mse: float
    """The same of a plain grey answer."""
    kl: float
    """Nats an image."""
    grad_norm: float
    learning_rate: float
    replays: int
    requests: int
    """Bitwise or of what the processes asked for."""

    @property
    def applied(self) -> bool:
        """Whether anything has changed; if not, a process had no batch, and the figures say nothing."""
        return not self.requests & _NO_BATCH


def apply_update(
    state: TrainState,
    batch: Batch | None,
    config: Config,
    accelerator: Accelerator,
    *,
    total_images: int,
    epoch_samples: int,
    requests: int = 0,
    settle: Callable[[], object] | None = None,
    recorder: Recorder | None = None,
) -> Update:
    """Consume one batch (this process's part, in RAM) and advance the position by the global batch.

    A batch may be shorter than its share: the position counts what was left out. Where a process has none, it gives
    None and takes part all the same; then no process changes anything, and the update is not `applied`.

    `requests` are this process's flags (up to 15 bits), given to all processes along with the sums. An fp16 overflow or
    running out of GPU memory changes nothing but the loss scale or the micro-batch, and the same positions are
    computed again with the same noise. `settle` is called before weights, average or moments change. `recorder` turns
    micro-batches into graphs; the state's gradients must then be laid out.

    Raises `LeanstreamError` where the loss stays non-finite or not even one image fits.
    """
    # As a graph reads it, so that steps are equal with and without one.
    rate = float(np.float32(learning_rate(config.optim, state.position, total_images)))
    replays = 0
    while True:
        put_back = state.undo()
        found = _attempt(state, batch, config, accelerator, requests, recorder, put_back)
        if found is not None and found.requests & _NO_BATCH:
            put_back()
            return Update(math.nan, math.nan, math.nan, math.nan, math.nan, rate, replays, found.requests)
        if found is not None and _step(state, config, accelerator, found.grad_norm, rate, settle, recorder):
            break
        put_back()
        replays += 1
        if replays > MAX_REPLAYS:
            raise LeanstreamError(
                f"an update must succeed within {MAX_REPLAYS} replays; got none at position {state.position}. "
                "The last checkpoint stands: try --train.mixed-precision bf16 or no."
            )
    assert batch is not None, "without one, no update is applied"
    state.zero_gradients()
    images = config.train.batch_size
    values = images * batch.images.shape[1:].numel()
    state.position += images
    state.updates += 1
    state.loss_scale.applied()
    state.error = state.error.updated(found.sums.error / values, images, config.loss.sigma_halflife_images)
    decay = ema_decay(config.train.ema_halflife_images, state.position, state.position - state.averaged)
    if decay is not None:
        average_weights(state, decay)
    state.count_samples(batch.positions.numpy(), batch.digests, epoch_samples)
    return Update(
        found.sums.loss / images,
        found.sums.squared_error / values,
        found.sums.grey_error / values,
        found.sums.kl / images,
        found.grad_norm,
        rate,
        replays,
        found.requests,
    )


def micro_batch_pass(model: FaceVAE, config: LossConfig, images: Tensor, noise: Tensor, factors: Tensor) -> Tensor:
    """Add the gradients of some images to those that stand; gives the sums of their `Terms`, float32 [5].

    Args:
        model: in training mode.
        config: of the objective.
        images: uint8 [B, 3, H, W].
        noise: float32 [B, Z].
        factors: float32 [5], on the device as all of it: `Factors`, and what the summed loss is multiplied by.
    """
    *weights, scale = factors.unbind()
    # In place: a new tensor costs more than the division.
    pictures = images.to(torch.float32, memory_format=layout(images.device)).div_(255)
    terms = objective(config, model(pictures, noise), pictures, Factors(*weights))
    (terms.loss.sum() * scale).backward()  # type: ignore[no-untyped-call]
    return torch.stack([term.detach() for term in terms]).sum(1)


def run_pass(
    model: FaceVAE,
    config: LossConfig,
    inputs: tuple[Tensor, Tensor, Tensor],
    recorder: Recorder | None,
    put_back: Callable[[], object] | None = None,
) -> Tensor:
    """`micro_batch_pass` of images, noise and factors, as a graph where it can be one; `put_back` undoes a pass."""
    call = functools.partial(micro_batch_pass, model, config)
    # Both turn to generators of random numbers, which a graph would have to know.
    if recorder is None or model.draws_for_itself or model.recompute:
        return call(*inputs)
    return recorder.run("micro-batch", call, inputs, warm_up=_WARM_UP, put_back=put_back).clone()


class _Sums(NamedTuple):
    """`Terms` summed over the images of the global batch."""

    loss: float
    squared_error: float
    error: float
    kl: float
    grey_error: float


class _Found(NamedTuple):
    """What was read from the device; the gradients that stand are those of it, times the loss scale."""

    sums: _Sums
    grad_norm: float
    requests: int


def _attempt(
    state: TrainState,
    batch: Batch | None,
    config: Config,
    accelerator: Accelerator,
    requests: int,
    recorder: Recorder | None,
    put_back: Callable[[], object],
) -> _Found | None:
    """Gradients for one update, or None where it must be tried again: with less memory or a smaller loss scale."""
    parts, out_of_memory = list[Tensor](), False
    if batch is None:
        requests |= _NO_BATCH
    else:
        parts, out_of_memory = _accumulate(state, batch, config, accelerator, recorder, put_back)
        _ = batch.digests  # The host's own work, while the device computes.
    found, failed = _exchange_and_read(state, accelerator, parts, out_of_memory, requests)
    if found is not None and found.requests & _NO_BATCH:
        return found
    if failed:
        _shrink_micro_batch(state, accelerator, recorder)
    else:
        assert found is not None, "nothing failed"
        if math.isfinite(found.grad_norm) and math.isfinite(found.sums.loss):
            return found
        if accelerator.mixed_precision != "fp16":
            raise LeanstreamError(
                f"the loss must stay finite; got loss {found.sums.loss} and gradient norm {found.grad_norm} at update "
                f"{state.updates + 1} (position {state.position}). The last checkpoint stands: "
                "run again with a lower --optim.learning-rate or with --optim.clip-norm."
            )
        state.loss_scale.overflowed()
    return None


def _accumulate(
    state: TrainState,
    batch: Batch,
    config: Config,
    accelerator: Accelerator,
    recorder: Recorder | None,
    put_back: Callable[[], object],
) -> tuple[list[Tensor], bool]:
    """Gradients of the loss divided by the global batch; of each micro-batch the sums of `Terms`; out of memory?"""
    model, device = state.model, accelerator.device
    if not model.training:
        model.train()
    draws, micro_batch = model.draws_for_itself, state.micro_batch
    parts: list[Tensor] = []
    try:
        factors = _factors(state, batch, config, accelerator)
        for begin in range(0, len(batch), micro_batch):
            moved = batch.to(device, slice(begin, begin + micro_batch))
            assert moved.noise is not None, "the trainer's loader draws it"
            if draws:
                torch.manual_seed(make_key("layers", config.run.seed, int(moved.positions[0]))[0])
            record = None if len(moved) < micro_batch else recorder
            parts.append(run_pass(model, config.loss, (moved.images, moved.noise, factors), record, put_back))
    except torch.OutOfMemoryError:
        return [], True
    return parts, False


def _factors(state: TrainState, batch: Batch, config: Config, accelerator: Accelerator) -> Tensor:
    """What this update's losses are weighed by, and the scale of their gradients; float32 [5] on the device."""
    likelihood, weight = Likelihood.of(config.loss, state.error), kl_weight(config.loss, state.position)
    factors = factors_of(config.loss, likelihood, batch.images.shape[1:].numel(), weight)
    return to_device(
        [*map(float, factors), _loss_scale(state, accelerator) / config.train.batch_size], accelerator.device
    )


def _loss_scale(state: TrainState, accelerator: Accelerator) -> float:
    return state.loss_scale.value if accelerator.mixed_precision == "fp16" else 1.0


def _exchange_and_read(
    state: TrainState, accelerator: Accelerator, parts: list[Tensor], out_of_memory: bool, requests: int
) -> tuple[_Found | None, bool]:
    """What all processes found together, and whether any of them ran out of memory: one read from the device."""
    scale, count = _loss_scale(state, accelerator), len(Terms._fields)
    if accelerator.num_processes == 1:
        if out_of_memory:
            return None, True
        try:
            *sums, norm = torch.cat([*parts, _exchange_and_measure(state, accelerator).reshape(1)]).cpu().tolist()
        except torch.OutOfMemoryError:
            return None, True
        totals = (sum(sums[term::count]) for term in range(count))
        return _Found(_Sums(*totals), norm / scale, requests), False
    # The device adds up; memory that one process lacked makes all of them compute again, so nobody waits for another.
    bits = [float(requests >> bit & 1) for bit in range(16)]
    flags = to_device([float(out_of_memory), *bits], accelerator.device).double()
    mine = torch.stack(parts).double().sum(0) if parts else flags.new_zeros(count)
    votes = torch.cat([mine, flags])
    torch.distributed.all_reduce(votes)
    norm_of_all = _exchange_and_measure(state, accelerator).double().reshape(1)
    *sums, norm = torch.cat([votes, norm_of_all]).cpu().tolist()
    failed, *counts = sums[count:]
    voted = sum(1 << bit for bit, votes_for in enumerate(counts) if votes_for)
    return _Found(_Sums(*sums[:count]), norm / scale, voted), failed > 0


def _exchange_and_measure(state: TrainState, accelerator: Accelerator) -> Tensor:
    """Sum the gradients over processes in one exchange; gives their norm, the loss scale still in it."""
    if accelerator.num_processes > 1:
        # Nothing is allocated from the vote on: what one process lacked there, all others would wait for.
        assert state.gradients is not None, "laid out before the first update"
        torch.distributed.all_reduce(state.gradients)
    # As torch.nn.utils.get_total_norm, without a call for each gradient that moves its norm to where it is.
    gradients = _gradients(state) or [torch.zeros(1, device=accelerator.device)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def _step(
    state: TrainState,
    config: Config,
    accelerator: Accelerator,
    grad_norm: float,
    rate: float,
    settle: Callable[[], object] | None,
    recorder: Recorder | None,
) -> bool:
    """One step of the optimizer; False if it lacked memory and has changed nothing."""
    factor, limit = 1 / _loss_scale(state, accelerator), config.optim.clip_norm
    if limit is not None and grad_norm > limit:
        factor *= limit / grad_norm
    if settle is not None:
        settle()
    try:
        if recorder is None:
            _step_by(state, rate, None if factor == 1 else factor)
        else:
            scales = accelerator.mixed_precision == "fp16" or limit is not None
            call = functools.partial(_step_by_tensors, state, scales)
            recorder.run("step", call, (to_device([rate, factor], accelerator.device),))
    except torch.OutOfMemoryError as error:
        # A fused step allocates nothing once it changes weights: at most it has counted itself.
        if accelerator.num_processes > 1:
            raise LeanstreamError(
                "all processes must make the same step; got out of memory in this one. "
                "The last checkpoint stands: run the same command again with a smaller --train.micro-batch."
            ) from error
    else:
        return True
    state.take_back_count()
    _shrink_micro_batch(state, accelerator, recorder)
    return False


def _step_by_tensors(state: TrainState, scales: bool, values: Tensor) -> Tensor:
    """A step whose rate and factor of the gradients are `values` [2], so that a graph can read them anew each time."""
    rate, factor = values.unbind()
    _step_by(state, rate, factor if scales else None)
    return values


def _step_by(state: TrainState, rate: float | Tensor, factor: float | Tensor | None) -> None:
    if factor is not None:
        torch._foreach_mul_(_gradients(state), factor)
    for group in state.optimizer.param_groups:
        group["lr"], group["capturable"] = rate, isinstance(rate, Tensor)
    state.optimizer.step()


def _shrink_micro_batch(state: TrainState, accelerator: Accelerator, recorder: Recorder | None) -> None:
    if state.micro_batch == 1:
        raise LeanstreamError(
            "one image must fit the GPU's memory; got out of memory at a micro-batch of 1. "
            "Choose a smaller model or end what else uses the GPU."
        )
    state.micro_batch = (state.micro_batch + 1) // 2
    if recorder is not None:
        recorder.forget()
    release(accelerator.device)


def _gradients(state: TrainState) -> list[Tensor]:
    return [weight.grad for weight in state.weights if weight.grad is not None]


@torch.no_grad()
def average_weights(state: TrainState, decay: float) -> None:
    """Move the average towards the weights; `decay` is what it keeps of itself."""
    torch._foreach_lerp_(state.average, state.weights, 1 - decay)
    copy_all(state.average_buffers, state.buffers)
    state.averaged = state.position
