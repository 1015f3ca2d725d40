"""Each process's own log, `runs/NAME/logs/rank-0.log`, so that no process fails unseen.

One process prints and writes the results; the others are silent, and a launcher mixes what they say when they die. So
every process, on every machine, keeps warnings, errors with their tracebacks, and where it ran.
"""

import contextlib
import faulthandler
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

logger = logging.getLogger("leanstream")


@contextlib.contextmanager
def rank_log(folder: Path, rank: int, processes: int) -> Iterator[None]:
    """Keep this process's log in `folder` inside the block; an error passes on, and stands in the log before.

    A log that cannot be written is no reason to stop: then there is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / f"rank-{rank}.log", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed below)
    except OSError as error:
        warnings.warn(f"no log of process {rank}: {error}", stacklevel=2)
        yield
        return
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # What libraries log from warnings on, what this package logs from information on.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("leanstream"))
    root, level = logging.getLogger(), logger.level
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    with file, _warnings_to(file), _crashes_to(file):
        try:
            logger.info(
                "process %d of %d: pid %d on %s, python %s, torch %s",
                rank, processes, os.getpid(), socket.gethostname(), sys.version.split()[0], torch.__version__,
            )  # fmt: skip
            yield
            logger.info("process %d of %d ends", rank, processes)
        except BaseException:
            logger.exception("process %d of %d ends with an error", rank, processes)
            raise
        finally:
            root.removeHandler(handler)
            logger.setLevel(level)


@contextlib.contextmanager
def _warnings_to(log: TextIO) -> Iterator[None]:
    """Write warnings to `log` as well as to wherever they go."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        log.write(warnings.formatwarning(message, category, filename, lineno, line))
        before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


@contextlib.contextmanager
def _crashes_to(file: TextIO) -> Iterator[None]:
    """Write the stack of a process that dies by SIGSEGV, SIGFPE, SIGABRT, SIGBUS or SIGILL to `file`."""
    before = faulthandler.is_enabled()
    faulthandler.enable(file)
    try:
        yield
    finally:
        faulthandler.disable()
        if before and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
