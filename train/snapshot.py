"""A copy of a state's tensors that is taken behind the loop.

    the loop    step n | begin, forward and backward of update n + 1, wait | step n + 1
    behind it          | copy ............... |  write, read back, prune ...............

Weights, average and moments change in the optimizer's step alone. So they are copied while the next gradients are
computed, and only that next step waits, where the copy is slower. The memory for it is allocated and touched once,
before the loop: fresh memory would cost a page fault every 4 KiB at every save. It is one block, which a GPU writes
to by itself.
"""

import threading
import time
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from train.device import SideCopy, pinned

Tensors = dict[str, Tensor]
_ALIGNMENT = 64
"""Bytes: a line of the processor's cache, and a multiple of every type's size."""


class Snapshot:
    """Memory for one copy at a time. `begin` and `wait` are for the loop, `take` for another thread."""

    def __init__(self, parts: Mapping[str, Tensors], device: torch.device) -> None:
        """For tensors of these shapes, by part and name, most of them on `device`."""
        sizes = [
            -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensors in parts.values() for tensor in tensors.values()
        ]
        blocks = iter(torch.split(pinned(sum(sizes), device), sizes))
        self._copies = {
            part: {name: _laid_out(next(blocks), tensor) for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }
        self._sources: Mapping[str, Tensors] = {}
        self._side = SideCopy(device)
        self._copied = threading.Event()
        self._copied.set()

    def begin(self, parts: Mapping[str, Tensors], unsteady: Mapping[str, Collection[str]]) -> None:
        """From now on `take` copies these tensors; nobody may change them before `wait` returns.

        Those named in `unsteady`, by part, are copied at once: a forward pass changes them.
        """
        assert self._copied.is_set(), "one copy at a time"
        for part, names in unsteady.items():
            for name in names:
                self._copies[part][name].copy_(parts[part][name])
        self._sources = {
            part: {name: tensor for name, tensor in tensors.items() if name not in unsteady.get(part, ())}
            for part, tensors in parts.items()
        }
        self._side.mark()
        self._copied.clear()

    def take(self) -> dict[str, Tensors]:
        """The copies, contiguous (safetensors knows no channels-last); they stand until the next `begin`."""
        try:
            sources = [tensor for tensors in self._sources.values() for tensor in tensors.values()]
            copies = [self._copies[part][name] for part, tensors in self._sources.items() for name in tensors]
            # In the tensors' own memory formats: then a copy is one of bytes.
            self._side.copy(copies, sources)
        finally:
            self._sources = {}
            self._copied.set()
        return {
            part: {name: _contiguous(copy) for name, copy in copies.items()} for part, copies in self._copies.items()
        }

    def wait(self) -> float:
        """Return when the tensors may change again; gives the seconds that it took."""
        if self._copied.is_set():
            return 0.0
        began = time.monotonic()
        self._copied.wait()
        return time.monotonic() - began


def _laid_out(block: Tensor, like: Tensor) -> Tensor:
    """The start of `block`, uint8, as a tensor of the same type, shape and memory format."""
    return block[: like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())


def _contiguous(copy: Tensor) -> Tensor:
    """The same values and shape, contiguous, in the same memory."""
    if copy.is_contiguous():
        return copy
    memory = copy.as_strided((copy.numel(),), (1,))
    memory.copy_(copy.flatten())
    return memory.view(copy.shape)
