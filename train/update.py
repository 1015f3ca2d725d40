"""One update: micro-batches, one exchange between processes, one step of the optimizer, all or nothing."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor

from pipeline import Batch
from pipeline.counter import make_key
from pipeline.errors import LeanstreamError
from pipeline.noise import normal
from train.config import Config
from train.objectives import Likelihood, Terms, objective
from train.schedule import ema_decay, kl_weight, learning_rate
from train.state import TrainState

MAX_REPLAYS = 20


@dataclass(frozen=True)
class Update:
    """What an applied update found, means over the images of the global batch."""

    loss: float
    mse: float
    """Mean squared error a pixel and channel, images in [0, 1]."""
    kl: float
    """Nats an image."""
    grad_norm: float
    learning_rate: float
    replays: int
    requests: int
    """Bitwise or of what the processes asked for."""


def apply_update(
    state: TrainState,
    batch: Batch,
    config: Config,
    accelerator: Accelerator,
    *,
    total_images: int,
    epoch_samples: int,
    requests: int = 0,
    settle: Callable[[], object] | None = None,
) -> Update:
    """Consume one batch (this process's part, on its device) and advance the position by the global batch.

    `requests` are this process's flags (up to 16 bits), given to all processes along with the sums. An fp16 overflow or
    running out of GPU memory changes nothing but the loss scale or the micro-batch, and the same positions are
    computed again with the same noise. `settle` is called before weights, average or moments change.

    Raises `LeanstreamError` where the loss stays non-finite or not even one image fits.
    """
    replays = 0
    while (found := _attempt(state, batch, config, accelerator, requests)) is None:
        replays += 1
        if replays > MAX_REPLAYS:
            raise LeanstreamError(
                f"an update must succeed within {MAX_REPLAYS} replays; got none at position {state.position}. "
                "The last checkpoint stands: try --train.mixed-precision bf16 or no."
            )
    rate = learning_rate(config.optim, state.position, total_images)
    grad_norm = found.grad_norm
    if config.optim.clip_norm is not None and grad_norm > config.optim.clip_norm:
        _scale_gradients(state, config.optim.clip_norm / grad_norm)
    if settle is not None:
        settle()
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.zero_gradients()
    images = config.train.batch_size
    mse = found.squared_error / (images * batch.images[0].numel())
    state.position += images
    state.updates += 1
    state.loss_scale.applied()
    error = found.error / (images * batch.images[0].numel())
    state.error = state.error.updated(error, images, config.loss.sigma_halflife_images)
    decay = ema_decay(config.train.ema_halflife_images, state.position, state.position - state.averaged)
    if decay is not None:
        _average_weights(state, decay)
    state.count_samples(batch.positions.cpu().numpy(), batch.digests, epoch_samples)
    return Update(found.loss / images, mse, found.kl / images, grad_norm, rate, replays, found.requests)


class _Found(NamedTuple):
    """Sums over the global batch, and the norm of the gradients that stand ready."""

    loss: float
    squared_error: float
    error: float
    kl: float
    grad_norm: float
    requests: int


def _attempt(state: TrainState, batch: Batch, config: Config, accelerator: Accelerator, requests: int) -> _Found | None:
    """Gradients for one update, or None after everything was put back for a replay."""
    buffers = [buffer.clone() for buffer in state.model.buffers()]
    sums, out_of_memory = _accumulate(state, batch, config, accelerator)
    (loss, squared_error, error, kl), failed, voted = _vote(accelerator, sums, out_of_memory, requests)
    if failed:
        _shrink_micro_batch(state)
    else:
        grad_norm = _exchange_and_measure(state, accelerator)
        if math.isfinite(grad_norm) and math.isfinite(loss):
            return _Found(loss, squared_error, error, kl, grad_norm, voted)
        if accelerator.mixed_precision != "fp16":
            raise LeanstreamError(
                f"the loss must stay finite; got loss {loss} and gradient norm {grad_norm} at update "
                f"{state.updates + 1} (position {state.position}). The last checkpoint stands: "
                "run again with a lower --optim.learning-rate or with --optim.clip-norm."
            )
        state.loss_scale.overflowed()
    state.zero_gradients()
    for buffer, before in zip(state.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return None


def _accumulate(state: TrainState, batch: Batch, config: Config, accelerator: Accelerator) -> tuple[Tensor, bool]:
    """Gradients of the loss divided by the global batch; float64 sums of `Terms`; out of memory?"""
    model = state.model.train()
    likelihood = Likelihood.of(config.loss, state.error)
    weight = kl_weight(config.loss, state.position)
    scale = state.loss_scale.value if accelerator.mixed_precision == "fp16" else 1.0
    sums = torch.zeros(len(Terms._fields), dtype=torch.float64)
    parts = []
    try:
        for begin in range(0, len(batch), state.micro_batch):
            part = slice(begin, begin + state.micro_batch)
            positions = batch.positions[part]
            images = batch.images[part].float().div_(255)  # In place: a new tensor costs more than the division.
            noise = normal(positions, model.latent, seed=config.run.seed, stream="latent")
            if model.draws_for_itself:
                torch.manual_seed(make_key("layers", config.run.seed, int(positions[0]))[0])
            with accelerator.autocast():
                output = model(images, noise)
            terms = objective(config.loss, output, images, likelihood, weight)
            (terms.loss.sum() * (scale / config.train.batch_size)).backward()  # type: ignore[no-untyped-call]
            parts.append(torch.stack([term.detach().sum() for term in terms]))
        sums = torch.stack(parts).cpu().double().sum(0)
        _reserve_step(state)
    except torch.OutOfMemoryError:
        return sums, True
    return sums, False


def _reserve_step(state: TrainState) -> None:
    """Have the allocator hold what the optimizer's step will take for itself, a temporary of each weight.

    So that a lack of memory shows now, where nothing has changed yet and all processes can still replay.
    """
    first = next(state.model.parameters())
    torch.empty(sum(parameter.nbytes for parameter in state.model.parameters()), dtype=torch.uint8, device=first.device)


def _vote(accelerator: Accelerator, sums: Tensor, out_of_memory: bool, requests: int) -> tuple[list[float], bool, int]:
    """Sums over all processes, whether any ran out of memory, and the requests of all."""
    if accelerator.num_processes == 1:
        return sums.tolist(), out_of_memory, requests
    bits = [float(requests >> bit & 1) for bit in range(16)]
    votes = torch.tensor([*sums.tolist(), float(out_of_memory), *bits], dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(votes)
    totals, (failed, *counts) = votes[: len(sums)].tolist(), votes[len(sums) :].tolist()
    return totals, failed > 0, sum(1 << bit for bit, count in enumerate(counts) if count)


def _shrink_micro_batch(state: TrainState) -> None:
    if state.micro_batch == 1:
        raise LeanstreamError(
            "one image must fit the GPU's memory; got out of memory at a micro-batch of 1. "
            "Choose a smaller model or end what else uses the GPU."
        )
    state.micro_batch = (state.micro_batch + 1) // 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _exchange_and_measure(state: TrainState, accelerator: Accelerator) -> float:
    """Sum the gradients over processes in one exchange, undo the loss scale, return their norm."""
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    if accelerator.num_processes > 1:
        # Nothing is allocated from the vote on: what one process lacked there, all others would wait for.
        assert state.gradients is not None, "laid out before the first update"
        torch.distributed.all_reduce(state.gradients)
    if accelerator.mixed_precision == "fp16":
        _scale_gradients(state, 1 / state.loss_scale.value)
    return float(torch.nn.utils.get_total_norm(gradients))


def _scale_gradients(state: TrainState, factor: float) -> None:
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, factor)


@torch.no_grad()
def _average_weights(state: TrainState, decay: float) -> None:
    torch._foreach_lerp_(list(state.ema.parameters()), list(state.model.parameters()), 1 - decay)
    for average, buffer in zip(state.ema.buffers(), state.model.buffers(), strict=True):
        average.copy_(buffer)
    state.averaged = state.position
