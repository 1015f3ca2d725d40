"""The run folder: what is where, who may write, and what is cut back on resume.

runs/NAME/
  config.toml     the resolved configuration          grids/        pictures by position
  metrics.jsonl   one line for every few updates      checkpoints/  generations by position
  ledger.jsonl    starts, resumes, changes, saves     final/        the finished model
  summary.json    what came out                       curves.png    loss, PSNR and rate over the images seen
  logs/           warnings and errors by process      lock          held while the run lives
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, describe_os_error
from pipeline.files import try_lock, write_atomic, write_json
from pipeline.format import SHARDSET_FILE


class RunFolder:
    """Paths and small files of one run; only the first process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.grids = path / "grids"
        self.final = path / "final"
        self.logs = path / "logs"
        self.config_file = path / "config.toml"
        self.curves_file = path / "curves.png"
        self.summary_file = path / "summary.json"
        self._metrics_file = path / "metrics.jsonl"
        self._ledger_file = path / "ledger.jsonl"

    def check_place(self) -> None:
        """Raises `UserError` where the folder holds something else: a run must not write among it, nor move it away."""
        if not self.path.is_dir():
            return
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        ours = {self._ledger_file.name, self.config_file.name, self.checkpoints.name, "lock", self.logs.name}
        if SHARDSET_FILE in names or (names and not names & ours):
            what = "a shard set" if SHARDSET_FILE in names else f"one with {sorted(names)[0]} in it"
            raise UserError(
                f"a run must have a folder of its own; got {self.path}, {what}. Choose another with --run.dir."
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; `UserError` where another live run holds it. The lock dies with its process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "a+")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise describe_os_error(error, f"making the run folder {self.path}") from error
        with lock:
            if not try_lock(lock):
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise UserError(
                    f"{self.path} must not be in use; got a live run in it (process {holder}). "
                    "Wait for it, stop it, or choose another folder with --run.dir."
                )
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def set_aside(self) -> Path:
        """Rename the folder so that a new run can start; returns where it went."""
        return set_aside(self.path)

    def write_config(self, toml: str) -> None:
        """Save the resolved configuration."""
        write_atomic(self.config_file, toml.encode())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Save what came out."""
        write_json(self.summary_file, summary)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line of metrics."""
        _append(self._metrics_file, record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of the metrics."""
        return _read_lines(self._metrics_file)

    def cut_metrics(self, position: int) -> None:
        """Drop the lines beyond `position`: their updates were lost and will be made again."""
        if not self._metrics_file.exists():
            return
        kept = [record for record in self.read_metrics() if record["position"] <= position]
        write_atomic(self._metrics_file, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def note(self, event: str, **values: Any) -> None:
        """Add one line to the ledger, with the time."""
        _append(self._ledger_file, {"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **values})

    def join_ledger(self, other: Path) -> None:
        """Put the lines of another copy's ledger before those that only this one has."""
        theirs = _read_lines(other)
        ours = [record for record in self.read_ledger() if record not in theirs]
        if theirs:
            lines = "".join(json.dumps(record) + "\n" for record in theirs + ours)
            write_atomic(self._ledger_file, lines.encode())

    def read_ledger(self) -> list[dict[str, Any]]:
        """All whole lines of the ledger."""
        return _read_lines(self._ledger_file)


def set_aside(path: Path) -> Path:
    """Rename a folder to the next free `NAME.old-N`; returns where it went."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    try:
        path.rename(aside)
    except OSError as error:
        raise describe_os_error(error, f"renaming {path}") from error
    return aside


def _append(path: Path, record: dict[str, Any]) -> None:
    try:
        with open(path, "a+b") as file:
            # A crash may have left half a line; the next one starts afresh.
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write((json.dumps(record) + "\n").encode())
    except OSError as error:
        raise describe_os_error(error, f"writing {path}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records
