"""What a run will need, before it starts: memory, the micro-batch that follows from it, and time.

    weights + gradients + optimizer + average        known from the model
    their 16-bit copies, and those of gradients      in 16 bits
    activations of an image x micro-batch            counted from the shapes of what autograd keeps for one image
    the copy that a save writes                      as much as weights, optimizer and average; always in RAM
    decoded batches                                  the loader's; always in RAM
    the kernels' own                                 a constant

On a GPU the count only says where to begin: a micro-batch is taken when two of it and a step of the optimizer ran, on
a throw-away state within the limit, and the plan is what that took. On the CPU the count decides.
"""

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor

from pipeline import Dataset
from pipeline.errors import ConfigError
from pipeline.loader import RAM_BYTES
from pipeline.machine import show_bytes, tree_pss
from train.config import Config
from train.device import DTYPES, Recorder, forget_peak, limit_memory, peak_bytes, release, to_device
from train.models import FaceVAE, segments
from train.state import TrainState
from train.update import average_weights, run_pass

_TIMED_ON_CPU = 8
"""Images that the time of a pass is measured on."""
_PASSING = 1.5
"""Memory of a backward pass over what autograd keeps for it: gradients of activations and the kernels' own buffers.
Measured on the CPU, float32 and bf16, 64 and 128 px, micro-batches of 2 to 256: 1.39 to 1.51."""
_KERNELS = 120 << 20
"""RAM that the first pass takes once, whatever model and micro-batch: 104 to 150 MiB in the same measurements."""


@dataclass(frozen=True)
class Need:
    """Bytes that one process needs."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    copies: int
    """Of weights and gradients in 16 bits; 0 in float32."""
    activations: int
    """Of one image."""
    activations_recomputed: int
    """Of one image, if segments of the model are computed again in the backward pass; 0 where that cannot be."""

    @property
    def state(self) -> int:
        """What does not depend on the micro-batch."""
        return self.weights + self.gradients + self.optimizer + self.average + self.copies

    @property
    def snapshot(self) -> int:
        """Of RAM, for the copy that a save writes."""
        return self.weights + self.optimizer + self.average

    def total(self, micro_batch: int, *, recompute: bool) -> int:
        """The peak of an update."""
        each = self.activations_recomputed if recompute else self.activations
        return self.state + round(_PASSING * each * micro_batch)


@dataclass(frozen=True)
class Fit:
    """What was chosen."""

    micro_batch: int
    recompute: bool
    """Whether activations are computed again in the backward pass instead of kept."""


@dataclass(frozen=True)
class Plan:
    """What was chosen for a process, and what it is expected to take."""

    need: Need
    fit: Fit
    base_bytes: int
    """In use before the model: the interpreter and its libraries, or CUDA's own memory."""
    limit_bytes: int | None
    loader_bytes: int
    """For decoded batches."""
    beside_bytes: int
    """In the same memory beside an update: without a GPU decoded batches, the copy of a save, the kernels' own."""
    seconds_per_image: float
    """Of a forward and a backward pass."""
    measured_bytes: int | None = None
    """On a GPU: its peak, all included, in a trial of `fit`."""
    ram_bytes: int = 0
    """On a GPU: the RAM that is expected beside it."""

    @property
    def on_gpu(self) -> bool:
        """Whether the other figures are of GPU memory."""
        return self.measured_bytes is not None

    def bytes(self, micro_batch: int) -> int:
        """The peak that is expected, of GPU memory or, without a GPU, of RAM."""
        if self.measured_bytes is not None and micro_batch == self.fit.micro_batch:
            return self.measured_bytes
        return self.base_bytes + self.beside_bytes + self.need.total(micro_batch, recompute=self.fit.recompute)

    def lines(self, micro_batch: int) -> list[str]:
        """For a person."""
        need, each = self.need, self.need.activations_recomputed if self.fit.recompute else self.need.activations
        limit = f" of {show_bytes(self.limit_bytes)}" if self.limit_bytes else ""
        return [
            f"memory: weights {show_bytes(need.weights)}, gradients {show_bytes(need.gradients)}, "
            f"optimizer {show_bytes(need.optimizer)}, average {show_bytes(need.average)}, "
            f"activations {show_bytes(each)} an image{' (recomputed)' if self.fit.recompute else ''}, "
            f"a save {show_bytes(need.snapshot)}, decoded batches {show_bytes(self.loader_bytes)}",
            f"memory: about {show_bytes(self.bytes(micro_batch))}{limit} expected"
            f"{f' on the GPU, {show_bytes(self.ram_bytes)} of RAM' if self.on_gpu else ''}"
            f" at micro-batches of {micro_batch}",
        ]


def make_plan(state: TrainState, config: Config, accelerator: Accelerator, batch: int, base_bytes: int) -> Plan:
    """Choose for this process's part of a batch, `batch` images; all processes choose alike.

    Steps are tried on `state`, which is then to be thrown away; on the CPU, where there is no need to, nothing of it
    changes. `base_bytes` is the RAM in use before it was made.

    Raises `ConfigError` where the budget cannot hold the model and one image.
    """
    device = accelerator.device
    on_gpu = device.type == "cuda"
    need = estimate(state.model, DTYPES[accelerator.mixed_precision])
    limit, loader_bytes = config.budget.ram_bytes, RAM_BYTES
    if limit is not None:
        loader_bytes = min(loader_bytes, limit // 16)
    if on_gpu:
        # Libraries load, and take memory, at the first step.
        _runs(state, config, accelerator, Fit(1, recompute=False))
        base_bytes, limit = limit_memory(device, config.budget.gpu_bytes)
    recorder = Recorder.of(device, config.train.cuda_graph)
    beside_bytes = 0 if on_gpu else loader_bytes + need.snapshot + _KERNELS
    trial = functools.partial(_runs, state, config, accelerator, recorder=recorder) if on_gpu else None
    if config.train.micro_batch == "auto":
        fit = choose(need, batch, limit, base_bytes + beside_bytes, trial)
    else:
        fit = Fit(min(config.train.micro_batch, batch), recompute=False)
    fit = _smallest_of_all(fit, accelerator)
    seconds = _seconds_per_image(state, config, accelerator, fit)
    plan = Plan(need, fit, base_bytes, limit, loader_bytes, beside_bytes, seconds)
    if trial is None:
        return plan
    forget_peak(device)
    trial(fit)
    ram_bytes = tree_pss() + loader_bytes + need.snapshot
    if config.budget.ram_bytes is not None and ram_bytes > config.budget.ram_bytes:
        raise ConfigError(
            f"budget.ram must hold the libraries, decoded batches and the copy that a save writes, about "
            f"{show_bytes(ram_bytes)}; got {show_bytes(config.budget.ram_bytes)}. Raise it, or choose smaller "
            "--model.widths."
        )
    return replace(plan, measured_bytes=peak_bytes(device, base_bytes), ram_bytes=ram_bytes)


def within_disk(shards: Dataset, config: Config, need: Need) -> Dataset:
    """The set, with a cache that keeps to what `budget.disk` leaves beside the run's own files.

    Raises `ConfigError` where it does not even hold those.
    """
    limit = config.budget.disk_bytes
    if limit is None:
        return shards
    generation = need.weights + need.average + need.optimizer
    # A generation, and the finished model, are whole before the one that they replace goes.
    own = (config.checkpoint.keep + 1) * generation + 2 * need.weights
    if limit <= own:
        raise ConfigError(
            f"budget.disk must hold {config.checkpoint.keep + 1} checkpoints and the model, about {show_bytes(own)}; "
            f"got {show_bytes(limit)}. Raise it, or lower --checkpoint.keep."
        )
    cache = shards.open_cache()
    return shards if cache is None else replace(shards, cache_bytes=min(cache.limit_bytes, limit - own))


def _runs(
    state: TrainState, config: Config, accelerator: Accelerator, fit: Fit, recorder: Recorder | None = None
) -> bool:
    """Whether an update of such micro-batches fits; recorded, if the run's are."""
    release(accelerator.device)  # Of what the try before left.
    put_back = state.undo()
    try:
        _try(state, config, accelerator, fit, recorder)
    except torch.OutOfMemoryError:
        return False
    finally:
        put_back()
        if recorder is not None:
            recorder.forget()
    return True


def _seconds_per_image(state: TrainState, config: Config, accelerator: Accelerator, fit: Fit) -> float:
    """Time of a forward and a backward pass after a first try; on the CPU of a few images."""
    on_cpu = accelerator.device.type == "cpu"
    few = Fit(min(fit.micro_batch, _TIMED_ON_CPU), fit.recompute) if on_cpu else fit
    for _ in range(2):
        forget_peak(accelerator.device)  # What choosing kernels took in the first try is not taken again.
        began = time.perf_counter()
        if not _runs(state, config, accelerator, few):
            return 0.0  # The first update will find out, and make its micro-batches smaller.
        seconds = time.perf_counter() - began
    return seconds / (few.micro_batch * _trial_passes(accelerator))


def _trial_passes(accelerator: Accelerator) -> int:
    """Two on a GPU: the second one adds to gradients that stand."""
    return 1 if accelerator.device.type == "cpu" else 2


def _try(state: TrainState, config: Config, accelerator: Accelerator, fit: Fit, recorder: Recorder | None) -> None:
    """What an update does, on black images and with a rate of 0."""
    model, device, size = state.model.train(), accelerator.device, state.model.architecture.image_size
    images = torch.zeros(fit.micro_batch, size, size, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    noise = torch.zeros(fit.micro_batch, model.latent, device=device)
    factors = to_device([1.0] * 5, device)
    before, model.recompute = model.recompute, fit.recompute
    try:
        for _ in range(_trial_passes(accelerator)):
            sums = run_pass(model, config.loss, (images, noise, factors), recorder)
        if device.type != "cpu":
            state.optimizer.step()
            average_weights(state, 1.0)
        sums.cpu()
    finally:
        model.recompute = before


def _smallest_of_all(fit: Fit, accelerator: Accelerator) -> Fit:
    if accelerator.num_processes == 1:
        return fit
    votes = torch.tensor([fit.micro_batch, -int(fit.recompute)], device=accelerator.device)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN)
    micro_batch, recompute = votes.cpu().tolist()
    return Fit(micro_batch, bool(recompute))


def estimate(model: FaceVAE, dtype: torch.dtype) -> Need:
    """Count for `model`, from shapes alone; `dtype` is that of its activations."""
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    kept, recomputed = _kept_bytes(copy.deepcopy(model).to("meta", dtype).train(), dtype)
    return Need(
        weights=parameters + buffers,
        gradients=parameters,
        optimizer=2 * parameters,
        average=parameters + buffers,
        copies=0 if dtype == torch.float32 else parameters,  # Half the size each, of weights and of gradients.
        activations=kept,
        activations_recomputed=recomputed if model.can_recompute else 0,
    )


def choose(
    need: Need, batch: int, limit_bytes: int | None, base_bytes: int, trial: Callable[[Fit], bool] | None = None
) -> Fit:
    """The largest divisor of `batch`, a process's part of a batch, that fits.

    Activations are recomputed only where not even one image fits without.

    Args:
        need: of the model.
        batch: images a process contributes to an update.
        limit_bytes: memory that may be used; None: whatever there is.
        base_bytes: memory in use before anything of `need`.
        trial: whether an update at this size runs; called from the largest candidate down. Without it, the count
            decides.

    Raises `ConfigError` where nothing fits.
    """
    for recompute in (False, True) if need.activations_recomputed else (False,):
        for micro_batch in divisors(batch):
            fit = Fit(micro_batch, recompute)
            counted = base_bytes + need.total(micro_batch, recompute=recompute)
            if trial is None:
                if limit_bytes is None or counted <= limit_bytes:
                    return fit
            # A count that is far beyond the limit spares a trial.
            elif (limit_bytes is None or counted <= 2 * limit_bytes) and trial(fit):
                return fit
    least = base_bytes + need.total(1, recompute=need.activations_recomputed > 0)
    raise ConfigError(
        f"the budget must hold the model and one image, about {show_bytes(least)}; "
        f"got {show_bytes(limit_bytes) if limit_bytes else 'less free memory'}. "
        "Raise it, or choose smaller --model.widths."
    )


def divisors(number: int) -> list[int]:
    """All divisors, the largest first."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)}, reverse=True)


def _kept_bytes(model: FaceVAE, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that autograd keeps for the backward pass of one image: of everything, or with `recompute`.

    With it, what stays are the values between segments, and at any moment what one segment keeps. `model` is on "meta",
    all of it of `dtype`: a real one's weights are copied once, whatever the number of images.
    """
    size, latent = model.architecture.image_size, model.latent
    pictures = torch.empty(1, 3, size, size, device="meta")
    images, noise = pictures.to(dtype), torch.empty(1, latent, device="meta", dtype=dtype)
    # Of float32 images: the sigmoid keeps its answer, the loss that and its difference from the image.
    compared = 2 * pictures.nbytes

    def everything() -> Tensor:
        model.encoder(images)
        return torch.sigmoid(model.decoder(noise).float())

    whole, _ = _kept_by(everything, model)
    between, most = 0, 0
    for layers, values in ((model.encoder, images), (model.decoder, noise)):
        for segment in segments(layers):
            into = values.detach().requires_grad_()
            inside, values = _kept_by(functools.partial(segment, into), model)
            between, most = between + values.nbytes, max(most, inside)
    return whole + compared, between + most + compared


def _kept_by(call: Callable[[], Tensor], model: FaceVAE) -> tuple[int, Tensor]:
    """Bytes of what autograd saves in `call`, each storage once and none of the model's own; and its result."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        result = call()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own), result
