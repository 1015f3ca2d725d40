"""All that changes in training, and how it becomes a checkpoint generation and comes back."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import CheckpointError
from train.checkpoint import Generation
from train.config import OptimConfig
from train.device import layout
from train.health import Health
from train.models import FaceVAE
from train.objectives import RunningError
from train.snapshot import Tensors

STATE_VERSION = 2
INITIAL_SCALE = 2.0**8
SCALE_GROWTH_UPDATES = 2_000


def audit_as_json(sums: dict[int, int]) -> dict[str, str]:
    """By epoch, the audit's sums in hexadecimal: JSON numbers are not safe beyond 2^53."""
    return {str(epoch): f"{total:016x}" for epoch, total in sums.items()}


@dataclass
class LossScale:
    """The factor of an fp16 loss: halved by an overflow, doubled after many updates without one.

    Micikevicius et al. 2017 (arXiv 1710.03740), section 3.2. Kept as two numbers, and not as torch's GradScaler,
    because an overflow here replays the same samples instead of skipping them.
    """

    value: float = INITIAL_SCALE
    good_updates: int = 0

    def overflowed(self) -> None:
        """Halve after an overflow."""
        self.value, self.good_updates = self.value / 2, 0

    def applied(self) -> None:
        """Count an update without overflow."""
        self.good_updates += 1
        if self.good_updates >= SCALE_GROWTH_UPDATES:
            self.value, self.good_updates = self.value * 2, 0


@dataclass
class TrainState:
    """Weights, their average, the optimizer, and a handful of numbers; equal on every process."""

    model: FaceVAE
    ema: FaceVAE
    optimizer: torch.optim.Optimizer
    position: int = 0
    """Training samples consumed by applied updates."""
    updates: int = 0
    averaged: int = 0
    """Position at which the average was last moved."""
    error: RunningError = field(default_factory=RunningError)
    """Of which the decoder's scale follows."""
    loss_scale: LossScale = field(default_factory=LossScale)
    health: Health = field(default_factory=Health)
    micro_batch: int = 0
    """Images a process computes at once."""
    audit: dict[int, int] = field(default_factory=dict)
    """By epoch, the sum modulo 2^64 of the digests of the samples that were consumed (this process's part)."""
    skipped: list[int] = field(default_factory=list)
    """Positions whose samples were left out as damaged, of all processes, as last saved; the first process has them."""
    gradients: Tensor | None = None
    """All gradients in one tensor, where several processes exchange them or a recorded graph adds to them."""
    elapsed_s: float = 0.0
    """Wall time of all interrupted parts of the run that this state goes back to."""

    @classmethod
    def create(cls, model: FaceVAE, config: OptimConfig, device: torch.device, micro_batch: int) -> "TrainState":
        """A fresh state with `model` on `device`, its convolutions in the layout of images there."""
        model = model.to(device=device, memory_format=layout(device))  # type: ignore[call-overload]
        ema = copy.deepcopy(model).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=0.0,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            # One pass over memory instead of a dozen, nothing allocated in it, its count of steps on the device.
            fused=True,
        )
        for parameter in model.parameters():
            # As the first step would make them; made now, a later lack of memory cannot come in mid-update.
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), device=device), **moments}
        return cls(model, ema, optimizer, micro_batch=micro_batch)

    # Looked up once: a walk through all layers takes longer than a GPU needs for some of an update's kernels.

    @cached_property
    def weights(self) -> list[Tensor]:
        """The model's."""
        return list(self.model.parameters())

    @cached_property
    def average(self) -> list[Tensor]:
        """Of the weights."""
        return list(self.ema.parameters())

    @cached_property
    def buffers(self) -> list[Tensor]:
        """The model's: what a forward pass changes."""
        return list(self.model.buffers())

    @cached_property
    def average_buffers(self) -> list[Tensor]:
        """Those of the average: copies."""
        return list(self.ema.buffers())

    def count_samples(self, positions: NDArray[np.int64], digests: NDArray[np.uint64], epoch_samples: int) -> None:
        """Add what an update was handed to the sums of its epochs."""
        epochs = positions // epoch_samples
        for epoch in np.unique(epochs).tolist():
            total = int(digests[epochs == epoch].sum(dtype=np.uint64))
            self.audit[epoch] = (self.audit.get(epoch, 0) + total) % 2**64

    def scalars(self, facts: dict[str, Any], audit: dict[int, int], elapsed_s: float) -> dict[str, Any]:
        """Every number of a generation; `facts` are constants of the run that a resume compares or shows."""
        return {
            "version": STATE_VERSION,
            "position": self.position,
            "updates": self.updates,
            "averaged": self.averaged,
            "error": asdict(self.error),
            "loss_scale": asdict(self.loss_scale),
            "health": asdict(self.health),
            "micro_batch": self.micro_batch,
            "elapsed_s": elapsed_s,
            "audit": audit_as_json(audit),
            "skipped": list(self.skipped),
            **facts,
        }

    def tensors(self) -> dict[str, Tensors]:
        """Every tensor of a generation by part and name, as they are: no copies."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self._optimizer_tensors(),
        }

    def unsteady(self) -> dict[str, list[str]]:
        """Names of the tensors that a forward pass changes, by part; all others change in the optimizer's step."""
        return {"model": [name for name, _ in self.model.named_buffers()]}

    def lay_out_gradients(self) -> None:
        """Make all gradients views of one tensor: processes exchange them in one call that allocates nothing, and a
        recorded graph finds them where they were."""
        sizes = [weight.numel() for weight in self.weights]
        self.gradients = self.weights[0].detach().new_zeros(sum(sizes))
        for weight, view in zip(self.weights, torch.split(self.gradients, sizes), strict=True):
            # In the weight's memory format, as the backward pass itself would have made it.
            weight.grad = view.as_strided(weight.shape, weight.stride(), view.storage_offset())

    def undo(self) -> Callable[[], None]:
        """What takes back any passes from here on: gradients to zero, the buffers as they are now."""
        kept = [torch.empty_like(buffer) for buffer in self.buffers]
        copy_all(kept, self.buffers)

        def put_back() -> None:
            self.zero_gradients()
            copy_all(self.buffers, kept)

        return put_back

    def zero_gradients(self) -> None:
        """Forget the gradients."""
        if self.gradients is None:
            self.optimizer.zero_grad()
        else:
            self.gradients.zero_()

    def take_back_count(self) -> None:
        """Let the optimizer's count of steps be that of the updates, after a step that did not come about."""
        for values in self.optimizer.state.values():
            values["step"].fill_(self.updates)

    def restore(self, generation: Generation) -> None:
        """Take over everything from a generation; `CheckpointError` where it is of another shape."""
        self.restore_scalars(generation.state, first_process=True)
        try:
            self.model.load_state_dict(generation.parts["model"])
            self.ema.load_state_dict(generation.parts["ema"])
            self._load_optimizer(generation.parts["optimizer"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint's tensors must fit the model; got '{error}'. Use the config that it was made with."
            ) from error

    def restore_scalars(self, state: dict[str, Any], *, first_process: bool) -> None:
        """Take over a generation's numbers alone; a process that is not the first is given the tensors by `share`."""
        if state.get("version") != STATE_VERSION:
            raise CheckpointError(
                f"the checkpoint must be of version {STATE_VERSION}; got {state.get('version')}. "
                "Resume it with the leanstream that wrote it."
            )
        self.position, self.updates, self.averaged = state["position"], state["updates"], state["averaged"]
        self.error = RunningError(**state["error"])
        self.loss_scale = LossScale(**state["loss_scale"])
        self.health = Health(**state.get("health", {}))
        self.elapsed_s = state["elapsed_s"]
        # What is saved is that of all processes together; one process carries it on.
        sums = {int(epoch): int(total, 16) for epoch, total in state["audit"].items()}
        self.audit = sums if first_process else {}
        self.skipped = list(state.get("skipped", [])) if first_process else []

    def share(self, accelerator: Accelerator) -> None:
        """Give all processes the first one's weights, average and optimizer, tensor by tensor on their devices.

        So a checkpoint is read once, and no process ever holds a second copy of it.
        """
        if accelerator.num_processes == 1:
            return
        for tensor in (*self.model.state_dict().values(), *self.ema.state_dict().values()):
            _share(tensor, accelerator)
        mine = self._optimizer_tensors()
        shapes = [[(name, tuple(value.shape), value.dtype) for name, value in mine.items()]]
        broadcast_object_list(shapes)
        tensors = {name: mine.get(name, torch.empty(shape, dtype=dtype)) for name, shape, dtype in shapes[0]}
        for tensor in tensors.values():
            _share(tensor, accelerator)
        if not accelerator.is_main_process:
            self._load_optimizer(tensors)

    def _optimizer_tensors(self) -> Tensors:
        return {
            f"{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }

    def _load_optimizer(self, tensors: Tensors) -> None:
        self.optimizer.state.clear()
        parameters = dict(self.model.named_parameters())
        for name, value in tensors.items():
            owner, _, key = name.rpartition(".")
            parameter = parameters[owner]
            # In the parameter's memory format, as the optimizer itself would have made it.
            like = parameter if value.shape == parameter.shape else parameter.new_empty(value.shape)
            self.optimizer.state[parameter][key] = torch.empty_like(like, requires_grad=False).copy_(value)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Overwrite tensors, those of one type together."""
    for dtype in {target.dtype for target in targets}:
        chosen = [place for place, target in enumerate(targets) if target.dtype == dtype]
        torch._foreach_copy_([targets[place] for place in chosen], [sources[place] for place in chosen])


def _share(tensor: Tensor, accelerator: Accelerator) -> None:
    """Overwrite a tensor by the first process's."""
    moved = tensor.detach().to(accelerator.device, memory_format=torch.contiguous_format)
    torch.distributed.broadcast(moved, 0)
    tensor.detach().copy_(moved)
