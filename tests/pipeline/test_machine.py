import os
import subprocess
import sys
import threading

import numpy as np

from pipeline import machine
from pipeline.machine import PeakMemory, tree_pss

MIB = 1 << 20


def test_memory_that_is_touched_is_counted():
    before = tree_pss()
    held = np.ones(64 * MIB, np.uint8)
    assert 56 * MIB < tree_pss() - before < 96 * MIB
    assert held.all()


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
