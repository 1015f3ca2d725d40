"""The device that a run computes on: asked for once, at start; what is CUDA's alone is here and nowhere else.

settle_device     its index, and how its kernels are chosen and round
precision_of      which 16-bit numbers it multiplies fast
layout            how images lie in its memory
limit_memory      the allocator's limit; outside_bytes, peak_bytes: what is used in all
pinned            standing memory that a copy from the GPU goes to without the CPU
Recorder          calls as CUDA graphs
"""

import contextlib
import os
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError, LeanstreamError

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_CONTEXT = 1 << 30
"""Where the driver does not tell processes apart: CUDA itself takes less than this."""
_STILL_TO_LOAD = 96 << 20
"""What CUDA itself takes beyond a trial, for kernels that come later: 74 MiB on an H200."""


def settle_device(device: torch.device) -> torch.device:
    """`device` with its index, made the current one, its kernels set up.

    Their sums have one order and are chosen by shape, not by a race at each start: a run that goes on computes what the
    uninterrupted one does, bit for bit. TF32 is on: products of float32 numbers round to 10 bits on tensor cores, which
    serves validation (and float32 training on Ampere and later); the sums stay float32.
    """
    if device.type != "cuda":
        return device
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    torch.cuda.set_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Else its sums may differ from stream to stream.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    return device


def best_device() -> torch.device:
    """The GPU where there is one: for commands that no launcher gave a device."""
    return settle_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def device_name(device: torch.device) -> str:
    """As its vendor calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def precision_of(asked: str, device: torch.device) -> str:
    """auto -> bf16 only where the hardware has it (a T4 emulates it), fp16 on other CUDA GPUs, else float32.

    Raises `ConfigError` for fp16 elsewhere.
    """
    if asked == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "no"
    if asked == "fp16" and device.type in ("cpu", "mps"):
        raise ConfigError("train.mixed_precision fp16 must have a CUDA GPU; got none. Use auto, no or bf16.")
    return asked


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has matrix units for bf16 (AMX); without them it only saves memory."""
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def layout(device: torch.device) -> torch.memory_format:
    """The memory format that images, activations and weights keep throughout.

    A CPU is fastest with channels last. CUDA's group norm answers in NCHW whatever it is given, so that channels-last
    images would be turned around at every layer.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def pins_memory(device: torch.device) -> bool:
    """Whether copies to `device` run beside the CPU's work if they come from page-locked memory."""
    return device.type == "cuda"


def to_device(values: list[float], device: torch.device) -> Tensor:
    """float32 numbers on `device`, without waiting for it."""
    made = torch.tensor(values, dtype=torch.float32, pin_memory=pins_memory(device))
    return made.to(device, non_blocking=True)


def limit_memory(device: torch.device, limit: int | None) -> tuple[int, int]:
    """Hold this process to `limit` bytes in all; gives what CUDA itself will take of it, and the limit.

    To be called once libraries are loaded, after a first real step: they take memory, too. Some of it is kept for what
    they still load, which `keep_to_limit` finds out. Raises `ConfigError` where they leave nothing.
    """
    outside, total = outside_bytes(device) + _STILL_TO_LOAD, torch.cuda.get_device_properties(device).total_memory
    limit = min(limit or total, total)
    if limit <= outside:
        raise ConfigError(f"budget.gpu must be more than CUDA's own {outside:,} bytes; got {limit:,}. Raise it.")
    torch.cuda.set_per_process_memory_fraction((limit - outside) / total, device)
    return outside, limit


def keep_to_limit(device: torch.device, limit: int | None, outside: int) -> None:
    """Leave the allocator less where CUDA itself has come to take more than `outside` of `limit`."""
    if device.type == "cuda" and limit is not None and (taken := outside_bytes(device)) > outside:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(max(limit - taken, 0) / total, device)


def outside_bytes(device: torch.device) -> int:
    """GPU memory of this process that its allocator does not manage: CUDA's context, libraries, kernels.

    By the driver's figure for the process where nvidia-ml-py is installed and the driver tells; else what is in use on
    the whole GPU, at most 1 GiB.
    """
    if device.type != "cuda":
        return 0
    reserved = torch.cuda.memory_reserved(device)
    mine = _bytes_by_driver(device)
    if mine is not None:
        return max(mine - reserved, 0)
    free, total = torch.cuda.mem_get_info(device)
    return min(max(total - free - reserved, 0), _MOST_CONTEXT)


def peak_bytes(device: torch.device, outside: int | None = None) -> int:
    """The most GPU memory that this process has held; 0 without CUDA. `outside` saves asking the driver."""
    if device.type != "cuda":
        return 0
    return (outside_bytes(device) if outside is None else outside) + torch.cuda.max_memory_reserved(device)


def forget_peak(device: torch.device) -> None:
    """Free what nobody uses and measure the peak from here on."""
    release(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def release(device: torch.device) -> None:
    """Give memory that the allocator holds for nobody back to the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _bytes_by_driver(device: torch.device) -> int | None:
    """This process's GPU memory as NVML has it; None where it has not (no package, a container, WSL)."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        found = {one.pid: one.usedGpuMemory for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except Exception:  # Whatever a driver's library raises: there is another way to measure.
        return None
    return found.get(os.getpid())


def pinned(size: int, device: torch.device) -> Tensor:
    """`size` bytes of RAM, zeroed, uint8 [size]; page-locked where that helps copies from `device`.

    Memory that is there already is registered with CUDA: its own allocator would round up to a power of two.
    """
    memory = torch.zeros(size, dtype=torch.uint8)
    if pins_memory(device) and size:
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(memory.data_ptr(), size, 0)) == 0:
            unregister = weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, memory.data_ptr())
            unregister.atexit = False
    return memory


class SideCopy:
    """Copies from the device by another thread, beside what the loop computes there: `mark` and then `copy`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._marked: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._marked = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def mark(self) -> None:
        """The tensors are now as they are to be copied; called by the loop."""
        if self._marked is not None:
            self._marked.record(torch.cuda.current_stream(self._device))

    def copy(self, targets: list[Tensor], sources: list[Tensor]) -> None:
        """Overwrite `targets`, in RAM; returns when they are whole."""
        beside: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._stream is not None:
            self._stream.wait_event(self._marked)
            beside = torch.cuda.stream(self._stream)
        with torch.no_grad(), beside:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()


class CudaGraph:
    """One call as a CUDA graph: hundreds of launches become one (cudaGraphLaunch).

    The call must read its inputs alone and tensors that stay where they are, and leave what it changes in such tensors.
    """

    def __init__(self, call: Callable[..., Tensor], inputs: tuple[Tensor, ...], warm_up: int) -> None:
        """Run `call` `warm_up` times, in which libraries load and cuDNN measures its kernels, and record it once."""
        self._inputs = tuple(each.clone() for each in inputs)
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                call(*self._inputs)
        current.wait_stream(stream)
        torch.cuda.empty_cache()  # The recording has memory of its own.
        self._graph = torch.cuda.CUDAGraph()
        # Of this thread alone: another one may be copying a snapshot.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = call(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run it on other inputs of the same shapes; the result is overwritten by the next run."""
        for standing, given in zip(self._inputs, inputs, strict=True):
            standing.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._output


class Recorder:
    """Runs calls as recorded graphs, by name; one whose inputs have other shapes than before is recorded again."""

    def __init__(
        self, record: Callable[[Callable[..., Tensor], tuple[Tensor, ...], int], Callable[..., Tensor]] = CudaGraph
    ) -> None:
        """`record` makes a graph of a call, its inputs, and how often it is to run before."""
        self._record = record
        self._recorded: dict[str, tuple[tuple[torch.Size, ...], Callable[..., Tensor]]] = {}

    @classmethod
    def of(cls, device: torch.device, wanted: str) -> "Recorder | None":
        """By `train.cuda_graph`: None where there are no graphs, or none are wanted."""
        return cls() if device.type == "cuda" and wanted == "auto" else None

    def run(
        self,
        name: str,
        call: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        *,
        warm_up: int = 0,
        put_back: Callable[[], object] | None = None,
    ) -> Tensor:
        """The result of `call`, valid until the next run of that name.

        Where it is recorded, it runs `warm_up` times before, and `put_back` undoes what it has changed in them. A call
        that CUDA cannot record runs as it is, with a warning.
        """
        shapes = tuple(each.shape for each in inputs)
        if name not in self._recorded or self._recorded[name][0] != shapes:
            self._recorded.pop(name, None)
            try:
                recorded = self._record(call, inputs, warm_up)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                warnings.warn(f"a {name} runs kernel by kernel: CUDA did not record it ({error})", stacklevel=2)
                recorded = call
            self._recorded[name] = shapes, recorded
            if put_back is not None:
                put_back()
        return self._recorded[name][1](*inputs)

    def forget(self) -> None:
        """Drop all recordings and their memory."""
        self._recorded.clear()


def halving(call: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> tuple[Tensor, ...]:
    """`call(*values)`, by halves where the whole does not fit the memory; all values and results are [B, ...].

    Raises `LeanstreamError` where not even one image fits.
    """
    try:
        return call(*values)
    except torch.OutOfMemoryError as error:
        if len(values[0]) == 1:
            raise LeanstreamError(
                "one image must fit the GPU's memory; got out of memory. End what else uses the GPU, or choose a "
                "smaller model."
            ) from error
    release(values[0].device)
    parts = [halving(call, *halves) for halves in zip(*(torch.chunk(each, 2) for each in values), strict=True)]
    return tuple(torch.cat(results) for results in zip(*parts, strict=True))
