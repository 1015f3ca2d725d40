"""This process among others: its launcher, its signals, its device."""

import contextlib
import ctypes
import datetime
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object, parse_flag_from_env

from pipeline.errors import ConfigError
from pipeline.machine import usable_cores
from train.config import Config
from train.device import precision_of, settle_device

PATIENCE = datetime.timedelta(hours=12)
"""How long processes wait for each other: the first one validates and copies to a drive while the others wait. One that
dies is noticed at once all the same, by the launcher."""
_PR_SET_PDEATHSIG = 1


def follow_launcher() -> None:
    """Turn the death of the launcher, however it dies, into a SIGTERM for this process (Linux).

    `accelerate launch` and torchrun would otherwise leave a trainer behind that nobody sees. Without a launcher
    nothing is set: a trainer that was started with nohup outlives its shell on purpose.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if not launched or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def process_began() -> float:
    """When this process began, on the clock of `time.monotonic`: loading the libraries took seconds already."""
    age_s: float = time.time() - psutil.Process().create_time()
    return time.monotonic() - age_s


class StopRequest:
    """Becomes true at SIGTERM or Ctrl-C; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the block."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        # The first one counts: after a Ctrl-C the launcher's end sends a SIGTERM as well.
        self.signal = self.signal or signal.Signals(number).name


def make_accelerator(config: Config) -> Accelerator:
    """An Accelerator with the precision of the config; what a launcher exported cannot change it silently.

    Its device has an index. The precision is that of this device: `accelerate launch --cpu` on a machine with a GPU
    trains on the CPU. Nothing here uses Accelerate's autocast or its scaler: the model states its precision itself.
    """
    # Accelerate's `backward` would divide by this; here the loop scales its own loss.
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    on_cpu = not has_gpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    device = PartialState(cpu=on_cpu, **waiting.to_kwargs()).device
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=precision_of(config.train.mixed_precision, device),
        kwargs_handlers=[waiting],
    )
    allowed = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in allowed:
        raise ConfigError(
            "the launcher must use plain data parallelism; "
            f"got {accelerator.distributed_type}. Run `accelerate config` again without sharding plugins."
        )
    accelerator.state.device = settle_device(accelerator.device)
    return accelerator


def processes_here(processes: int) -> int:
    """How many of all processes run on this machine, as the launcher says; all of them where it says nothing."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes))


def set_threads(config: Config, processes: int) -> int:
    """Torch's threads in this process: the config's, or its share of the cores; launchers export OMP_NUM_THREADS=1."""
    threads = config.train.threads or max(1, usable_cores() // processes_here(processes))
    torch.set_num_threads(threads)
    return threads


def any_process(accelerator: Accelerator, mine: bool) -> bool:
    """Whether it is so in any process; every process must call this."""
    if accelerator.num_processes == 1:
        return mine
    votes = torch.tensor(float(mine), device=accelerator.device)
    torch.distributed.all_reduce(votes)
    return bool(votes)


def peaks_of_all(accelerator: Accelerator, pss_bytes: int, gpu_bytes: int) -> dict[str, Any]:
    """The most memory that the processes held; every process must call this with its own peaks, bytes.

    `peak_pss_bytes` is that of the fullest machine, where the peaks of its processes are added: an upper bound, as they
    need not have met. `peak_gpu_bytes` is that of the fullest GPU.
    """
    mine = {"rank": accelerator.process_index, "host": socket.gethostname(), "pss": pss_bytes, "gpu": gpu_bytes}
    every: list[dict[str, Any]] = [mine]
    if accelerator.num_processes > 1:
        every = gather_object([mine])
    hosts: dict[str, int] = {}
    for each in every:
        hosts[each["host"]] = hosts.get(each["host"], 0) + each["pss"]
    found: dict[str, Any] = {
        "peak_pss_bytes": max(hosts.values()),
        "peak_gpu_bytes": max(each["gpu"] for each in every),
    }
    return found if len(every) == 1 else {**found, "peaks_of_processes": every}
