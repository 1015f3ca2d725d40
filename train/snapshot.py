"""A copy of a state's tensors that is taken behind the loop.

    the loop    step n | begin, forward and backward of update n + 1, wait | step n + 1
    behind it          | copy ............... |  write, read back, prune ...............

Weights, average and moments change in the optimizer's step alone. So they are copied while the next gradients are
computed, and only that next step waits, where the copy is slower. The memory for it is allocated and touched once,
before the loop: fresh memory would cost a page fault every 4 KiB at every save.
"""

import threading
import time
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class Snapshot:
    """Memory for one copy at a time. `begin` and `wait` are for the loop, `take` for another thread."""

    def __init__(self, parts: Mapping[str, Tensors]) -> None:
        """For tensors of these shapes, by part and name."""
        self._copies = {
            part: {name: torch.empty_like(tensor, device="cpu").zero_() for name, tensor in tensors.items()}
            for part, tensors in parts.items()
        }
        self._sources: Mapping[str, Tensors] = {}
        self._computed: torch.cuda.Event | None = None
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
        if torch.cuda.is_available():
            self._computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._computed.record()
        self._copied.clear()

    def take(self) -> dict[str, Tensors]:
        """The copies, contiguous (safetensors knows no channels-last); they stand until the next `begin`."""
        try:
            sources = [tensor for tensors in self._sources.values() for tensor in tensors.values()]
            copies = [self._copies[part][name] for part, tensors in self._sources.items() for name in tensors]
            _copy(copies, sources, self._computed)
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


def _copy(copies: list[Tensor], sources: list[Tensor], computed: "torch.cuda.Event | None") -> None:
    """In the tensors' own memory formats: then a copy is one of bytes."""
    device = next((tensor.device for tensor in sources if tensor.device.type == "cuda"), None)
    stream = None
    if device is not None:
        assert computed is not None, "recorded where there is a GPU"
        # A stream of its own: the next update's kernels go on beside it.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_event(computed)
    with torch.no_grad(), torch.cuda.stream(stream):
        for copy, source in zip(copies, sources, strict=True):
            copy.copy_(source, non_blocking=True)
    if stream is not None:
        stream.synchronize()


def _contiguous(copy: Tensor) -> Tensor:
    """The same values and shape, contiguous, in the same memory."""
    if copy.is_contiguous():
        return copy
    memory = copy.as_strided((copy.numel(),), (1,))
    memory.copy_(copy.flatten())
    return memory.view(copy.shape)
