"""A device for tests that no machine has: code for any GPU runs on its `gpu:0`, on a machine without one.

    with counting() as counted:
        loss = float(model(images.to(GPU)).sum())
    counted.operators  # {"convolution at train/models.py:110": 4, ...}: at least one kernel launch each on a real GPU
    counted.waits      # {"_local_scalar_dense at tests/train/test_standin.py:31": 1}

The CPU computes its numbers, forward and backward. Where tensors lie is checked as on CUDA: one that was left on the
CPU is an error. It shows no times, no memory, no streams and none of autocast's casts, and what draws random numbers
draws them as the CPU does. Backward passes run in the main thread alone.

Importing this module registers the device for the rest of the process, and changes nothing for the others. On a machine
with a GPU, whose place it would take, the test file that imports it is skipped.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.optim.optimizer import _foreach_supported_types
from torch.utils import _foreach_utils, backend_registration
from torch.utils._pytree import tree_leaves, tree_map_only

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch knows no devices that are written in Python", allow_module_level=True)
if torch.accelerator.is_available():
    pytest.skip("torch would take the stand-in for the GPU of this machine", allow_module_level=True)

_ROOT = f"{Path(__file__).resolve().parents[1]}/"
_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_COPIES = {"copy_", "_foreach_copy_", "_to_copy"}
_WAITS = {"_local_scalar_dense", "equal", "masked_select", "nonzero"}


@dataclass
class Counted:
    """How often the device was asked for what, by name and line of this repository."""

    operators: Counter[str] = field(default_factory=Counter)
    """What computes or copies: no views, no questions about shapes, no allocations."""
    waits: Counter[str] = field(default_factory=Counter)
    """What the host must wait for: numbers that it reads."""
    types: Counter[str] = field(default_factory=Counter)
    """Of the numbers that were made on it."""


_counted: list[Counted] = []


@contextmanager
def counting() -> Iterator[Counted]:
    """Count inside the block."""
    counted = Counted()
    _counted.append(counted)
    try:
        yield counted
    finally:
        _counted.remove(counted)


@contextmanager
def accelerate_hands_it_out() -> Iterator[None]:
    """The Accelerator that is made inside the block has this device; a whole run goes there. For one run at a time."""
    AcceleratorState._reset_state(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_TORCH_DEVICE", str(GPU))
        try:
            yield
        finally:
            AcceleratorState._reset_state(True)


class DeviceTensor(torch.Tensor):
    """A tensor of the device; its numbers are those of `raw`, on the CPU."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "DeviceTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=GPU
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: "DeviceTensor") -> None:
        torch.Tensor.data.__set__(self, other)
        self.raw = other.raw

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"{self.raw!r} on {GPU}"


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator, computed by the CPU."""
    if _has_kernel(func.name(), _COMPOSITE) and not _has_kernel(func.name(), "CPU"):
        return func._op_dk(_COMPOSITE, *args, **kwargs)  # Several others, which inference mode did not take apart.
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if name not in _COPIES:
        _check_place(name, tensors)
    target = kwargs.get("device")
    leaves = target is not None and target.type != GPU.type
    if not (func.is_view or name == "_unsafe_view" or "empty" in name):
        _count("operators", name)
    if name in _WAITS:
        _count("waits", name)
    if name in _COPIES and str(target if name == "_to_copy" else tensors[0].device) == "cpu":
        _count("waits", "a copy to the CPU")

    if target is not None and not leaves:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(each.raw if isinstance(each, DeviceTensor) else each): each for each in tensors}

    def given_back(raw: torch.Tensor) -> torch.Tensor:
        made = known.get(id(raw))
        if made is None and not leaves:
            _count("types", str(raw.dtype))
            return DeviceTensor(raw)
        if made is None:
            return raw
        if (made.shape, made.stride()) != (raw.shape, raw.stride()):
            raise NotImplementedError(f"the stand-in knows no {func} that gives a tensor another shape")
        return made

    args, kwargs = tree_map_only(DeviceTensor, lambda each: each.raw, (args, kwargs))
    return tree_map_only(torch.Tensor, given_back, func(*args, **kwargs))


def _check_place(name: str, tensors: list[torch.Tensor]) -> None:
    # CUDA, too, takes a single number from the CPU, but not in a fused optimizer.
    if any(each.device != GPU and (each.dim() or name.startswith("_fused")) for each in tensors):
        found = ", ".join(f"{each.device} {list(each.shape)}" for each in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {found}")


def _count(what: str, name: str) -> None:
    for counted in _counted:
        getattr(counted, what)[f"{name} at {_line()}"] += 1


def _line() -> str:
    """The line of this repository that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_ROOT) and "/.venv/" not in file and file != __file__:
            return f"{file.removeprefix(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "a library"


class _Module(backend_registration._DummyBackendModule):
    """`torch.gpu`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        _count("waits", "synchronize")

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()  # torch.random.fork_rng asks every accelerator that there is.

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        pass


def _register() -> list[torch.library.Library]:
    # Autograd gives each device that it finds at its first backward pass a thread, after which no process may fork:
    # so that pass is now, and those on the device then run in the thread that asks for them.
    torch.ones(1, requires_grad=True).sum().backward()
    torch.autograd.set_multithreading_enabled(False)
    backend_registration._setup_privateuseone_for_python_backend("gpu", backend_module=_Module())
    for supported in (_foreach_supported_types, _foreach_utils._foreach_supported_types):
        supported.append(DeviceTensor)
    # What makes tensors out of none; everything else is given one, and comes to `__torch_dispatch__`.
    aten, library, every = torch.ops.aten, torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    factories = (aten.empty.memory_format, aten.empty_strided.default)
    for made in (*factories, aten.arange.default, aten.arange.start, aten.arange.start_step):
        library.impl(made, lambda *args, made=made, **kwargs: _run(made, args, kwargs), "PrivateUse1")
    # The last step of torch.tensor, out of Python's sight.
    library.impl(
        "_copy_from", lambda source, made, _=False: _run(aten.copy_.default, (made, source), {}), "PrivateUse1"
    )
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return [library, every]


_libraries = _register()
GPU = torch.device("gpu:0")
