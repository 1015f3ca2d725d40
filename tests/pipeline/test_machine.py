import math
import mmap
import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import machine
from pipeline.errors import ConfigError
from pipeline.machine import PeakMemory, parse_bytes, show_bytes, tree_pss

MIB = 1 << 20


def test_memory_that_is_touched_is_counted():
    before = tree_pss()
    with mmap.mmap(-1, 64 * MIB) as fresh:  # Not from an allocator, which may have touched it long ago.
        for place in range(0, len(fresh), 4096):
            fresh[place] = 1
        assert 56 * MIB < tree_pss() - before < 96 * MIB


def test_children_are_counted_with_their_parent():
    program = "held = b'x' * (64 << 20); print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout.readline() == "ready\n"
        alone = tree_pss(child.pid)
        both = tree_pss()
        child.stdin.write("\n")
    assert alone > 64 * MIB
    assert both - tree_pss() > 60 * MIB
    assert tree_pss(child.pid) == 0, "a process that has ended has no memory"


def test_the_peak_outlives_what_caused_it(monkeypatch):
    figures = iter([10, 70, 30])
    monkeypatch.setattr(machine, "tree_pss", lambda _: next(figures))
    with PeakMemory(interval_s=3600) as peak:
        peak.sample()
    assert (peak.peak, peak.last) == (70, 30)


def test_the_thread_looks_by_itself_and_ends(monkeypatch):
    looked = threading.Event()
    caller = threading.get_ident()

    def look(_) -> int:
        if threading.get_ident() != caller:
            looked.set()
            return 99
        return 1

    monkeypatch.setattr(machine, "tree_pss", look)
    with PeakMemory(interval_s=0.001) as peak:
        assert looked.wait(timeout=30)
    assert peak.peak == 99
    assert "memory" not in [thread.name for thread in threading.enumerate()]


def test_another_process_is_watched_until_it_ends():
    with PeakMemory(interval_s=3600, pid=os.getppid()) as peak:
        assert peak.sample() > 0


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2 << 30), ("1.5 gib", 3 << 29), ("500MB", 500_000_000), ("4096", 4096), ("1k", 1000), ("3T", 3 * 10**12)],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2GiBs", "two", "0", "1e9", "2 X"])
def test_what_is_no_size_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="a size must be a number of bytes such as 100MB"):
        parse_bytes(text)


@given(st.integers(1, 1 << 45))
def test_a_shown_size_is_read_back_within_its_digits(count: int) -> None:
    assert parse_bytes(show_bytes(count).replace(",", "")) == pytest.approx(count, rel=0.06)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_is_freed_can_be_kept_for_the_next_allocation():
    program = """
import resource, sys
import numpy as np
from pipeline.machine import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
for number in range(40):
    if number == 8:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(48 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = [
        int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, check=True).stdout)
        for how in ("by default", "keep")
    ]
    assert faults[1] < faults[0] / 10


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, math.inf),
        (
            {
                "proc/self/cgroup": "0::/user.slice/app",
                "sys/fs/cgroup/user.slice/cpu.max": "150000 100000",
                "sys/fs/cgroup/user.slice/app/cpu.max": "max 100000",
            },
            1.5,
        ),
        (  # Version 1; the path is the host's.
            {
                "proc/self/cgroup": "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            math.inf,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/job",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ({}, math.inf),
    ],
)
def test_a_containers_share_of_the_cores_is_found(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.granted_cores(tmp_path) == cores


def test_a_container_with_half_a_core_gets_one_thread(monkeypatch):
    monkeypatch.setattr(machine, "granted_cores", lambda: 0.5)
    assert machine.usable_cores() == 1
    monkeypatch.setattr(machine, "granted_cores", lambda: math.inf)
    assert machine.usable_cores() >= 1
