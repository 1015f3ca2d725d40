"""The machine: cores that may be used, and memory as a person pays for it, the PSS of a whole process tree."""

import ctypes
import math
import os
import re
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from pipeline.errors import ConfigError

_UNITS: dict[str, int] = {"": 1, "B": 1} | {
    f"{prefix}{kind}": base ** (power + 1)
    for kind, base in (("", 1000), ("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT")
}


def parse_bytes(text: str, name: str = "a size") -> int:
    """Bytes of a size such as `2GiB`, `500 MB` or `4096`; `ConfigError`, which calls it `name`, for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    unit = next((unit for unit in _UNITS if match and unit.lower() == match[2].lower()), None)
    if match is None or unit is None or not float(match[1]):
        raise ConfigError(f"{name} must be a number of bytes such as 100MB or 2GiB; got '{text}'. Use a unit of those.")
    return round(float(match[1]) * _UNITS[unit])


def show_bytes(count: float) -> str:
    """A size as a person reads it: `1.5 GiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B"


def usable_cores() -> int:
    """Cores that this process may run on; a container's share of processor time counts, part of a core as a whole."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = granted_cores()
    return cores if math.isinf(granted) else max(1, min(cores, math.ceil(granted)))


def granted_cores(root: Path = Path("/")) -> float:
    """Processor seconds a second that the control groups of this process grant it, version 1 or 2; else infinite.

    `root` holds `proc` and `sys`. In a container the path of a group may be that of the host, which is not mounted:
    then the group at the mount counts. A limit of any group above counts as well.
    """
    granted, mount = math.inf, root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        groups = [mount / name / path.strip("/") for name in dict.fromkeys(("cpu" * bool(controllers), controllers))]
        for folder in (folder for group in groups for folder in (group, *group.parents)):
            quota = (
                _text(folder / "cpu.max")
                or f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
            )
            if match := re.match(r"(\d+)\s+(\d+)", quota):
                granted = min(granted, int(match[1]) / int(match[2]))
    return granted


def _text(file: Path) -> str:
    """What a small file of the kernel's holds; nothing where there is none."""
    try:
        return file.read_text()
    except OSError:
        return ""


def local_processes() -> int:
    """Processes of this run on this machine, as torchrun and accelerate tell each of them; 1 without a launcher."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def tree_pss(pid: int | None = None) -> int:
    """Bytes of PSS of a process (default: this one) and all its descendants.

    Shared pages count once, split between those that share them; mapped files count. Where the system has no PSS
    (macOS), resident set sizes are added instead.
    """
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in processes:
        try:
            memory = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(memory, "pss", memory.rss)
    return total


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
"""Bytes, as a C int holds them."""


class PeakMemory:
    """Samples `tree_pss` in a thread; `peak` is the highest figure seen, in bytes.

    A context manager. One sample costs about a millisecond for each GiB that is resident.
    """

    def __init__(self, interval_s: float = 1.0, pid: int | None = None) -> None:
        self.peak = self.last = 0
        self._interval_s, self._pid = interval_s, pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._pid is None:
            self.sample()

    def sample(self) -> int:
        """Look now."""
        self.last = tree_pss(self._pid)
        self.peak = max(self.peak, self.last)
        return self.last

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()


def release_memory() -> None:
    """Give what was freed back to the system: glibc keeps it, and large temporary arrays would count for good."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def keep_memory() -> None:
    """Have glibc keep what is freed for the next allocation, for code that allocates the same again and again.

    By default it gives large blocks back at once, and the kernel fills their pages with zeros anew for each update.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, _NEVER):
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # The most that older versions take.
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def _glibc(name: str) -> Any:
    """A function of the C library, or None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
