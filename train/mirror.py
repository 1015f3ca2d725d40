"""A copy of a run on a mounted drive, so that the run outlives its machine.

    runs/x/checkpoints/000000051200 --copied, read back--> MIRROR/x/checkpoints/000000051200   the two newest
    runs/x/metrics.jsonl, ledger.jsonl, config.toml, ...-> MIRROR/x/...
    runs/x/grids/, final/           ---------------------> MIRROR/x/grids/, final/
                                                           MIRROR/x/mirror.json   whose copy, and who writes it

It is written behind the training by a thread, at its own interval. Drives are full, slow or gone at times: what fails
is told and tried again at the next interval, and never stops the training. A file is emptied before it is removed,
because the trash of a drive counts against its quota. A generation is trusted by its manifest alone, which is written
last; no folder is renamed, as some mounts cannot.
"""

import contextlib
import filecmp
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, UserError, describe_os_error
from pipeline.files import write_json
from train.checkpoint import MANIFEST_FILE, PARTIAL, find_newest, generations, read_state, verify
from train.display import duration
from train.pretrained import CONFIG_FILE
from train.runfolder import RunFolder, set_aside

IDENTITY_FILE = "mirror.json"
KEEP = 2
PATIENCE_S = 600.0
"""How long the end of a run waits for the mirror; a mount may hang for good."""
_GROWING = ("metrics.jsonl", "ledger.jsonl")
_SMALL = ("config.toml", "summary.json", "curves.png")
_FOLDERS = ("grids", "final")


class Mirror:
    """One run's copy below a mirror folder; for the first process alone.

    `start` and `poll` belong to the training's thread, and return at once.
    """

    def __init__(self, root: str, folder: RunFolder, every_minutes: float) -> None:
        """Raises `UserError` where `root` is no folder (a drive that is not mounted must not become a local one), or
        where the copy would be the run itself."""
        if not Path(root).is_dir():
            raise UserError(
                f"checkpoint.mirror must be a folder that exists; got '{root}'. "
                "Mount the drive, make the folder, or leave the mirror out."
            )
        self.path = Path(root) / folder.path.resolve().name
        if self.path.resolve() == folder.path.resolve():
            raise UserError(
                f"checkpoint.mirror must be another place than the run's own; got '{root}', where {folder.path} lies. "
                "Name a folder on another drive."
            )
        self._folder, self._checkpoints = folder, self.path / "checkpoints"
        self._every_s = 60 * every_minutes
        self._writer = secrets.token_hex(8)
        self._due = time.monotonic()
        self._position = 0
        self._thread: threading.Thread | None = None
        self._outcome: dict[str, Any] | None = None
        self._grown: dict[str, int] = {}
        self.taken_over = False
        """Whether another process writes this mirror now; then this one never touches it again."""
        self.slowest_s = 0.0
        """What the slowest copy so far took."""
        self.position: int | None = None
        """Position of the newest generation that this process has mirrored."""

    # ---- at the start of a run

    def set_aside(self) -> Path | None:
        """Rename the copy that is there, for a fresh start; returns where it went."""
        return set_aside(self.path) if self.path.exists() else None

    def bring_back(self) -> tuple[int | None, list[str]]:
        """Copy the run from the mirror where the mirror is further than the run folder.

        Returns the position brought back, None where the run folder needs nothing; and what was wrong on the way.
        Raises `UserError` where the mirror is another run's, `CheckpointError` where only the mirror has generations
        and all of them are damaged.
        """
        identity = self._read_identity()
        if identity is None:
            return None, []
        remarks: list[str] = []
        local = _newest(self._folder.checkpoints, remarks)
        if local is not None and read_state(local).get("run") not in (None, identity["run"]):
            raise UserError(
                f"{self.path} must be the copy of {self._folder.path}; got that of another run, "
                f"started on {identity['host']} at {identity['time']}. "
                "Choose another checkpoint.mirror or --run.name, or move that copy away."
            )
        try:
            remote, passed_over = find_newest(self._checkpoints)
            remarks += passed_over
        except CheckpointError as error:
            if local is None:
                raise
            remarks.append(str(error))
            remote = None
        if remote is None or (local is not None and int(local.name) >= int(remote.name)):
            return None, remarks
        try:
            self._copy_back(remote)
        except OSError as error:
            raise describe_os_error(error, f"bringing back the run from {self.path}") from error
        return int(remote.name), remarks

    def claim(self, run: str | None) -> tuple[str, str | None]:
        """Make this process the one that writes the mirror of the run `run`, or of a new one where it is None.

        Returns the run's identity and a warning where another process wrote here only just now.
        """
        before = self._read_identity()
        warning = None
        if before is not None and not before.get("released"):
            with contextlib.suppress(OSError):
                age_s = time.time() - (self.path / "ledger.jsonl").stat().st_mtime
                if age_s < 2 * self._every_s:
                    warning = (
                        f"{before['host']} wrote to the mirror {duration(max(age_s, 0))} ago: if that run is still "
                        "alive, stop it; it will not write there any more"
                    )
        run = run or (before or {}).get("run") or secrets.token_hex(8)
        self._write_identity(run, released=False)
        return run, warning

    # ---- while the run goes on

    @property
    def busy(self) -> bool:
        """Whether a copy is going on."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def copying(self) -> set[int]:
        """Positions whose generations must stay, because they are being copied."""
        return {self._position} if self.busy else set()

    def is_due(self) -> bool:
        """Whether the interval is over and nothing is being copied."""
        return not self.taken_over and not self.busy and time.monotonic() >= self._due

    def start(self, position: int) -> None:
        """Begin to copy the generation of this position and everything beside it."""
        assert not self.busy, "one copy at a time"
        self._due = time.monotonic() + self._every_s
        self._position = position
        # A daemon: a mount that hangs for good must not keep the process alive.
        self._thread = threading.Thread(target=self._copy, args=(position,), name="mirror", daemon=True)
        self._thread.start()

    def poll(self) -> dict[str, Any] | None:
        """What came of a copy, once for each: the values of a ledger line, with a `warning` where it failed."""
        outcome, self._outcome = self._outcome, None
        return outcome

    def note(self, outcome: dict[str, Any], say: Callable[[str], None]) -> None:
        """Write what came of a copy into the run's ledger; a failure is told as well."""
        self._folder.note("mirror failed" if "warning" in outcome else "mirrored", **outcome)
        if "warning" in outcome:
            again = "" if self.taken_over else "; tried again at the next interval"
            say(f"warning: the mirror is behind{again}: {outcome['warning']}")

    def finish(self, position: int, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Copy the end of a run: its last generation and its results; returns as `poll` does."""
        give_up = time.monotonic() + patience_s
        if self._thread is not None:
            self._thread.join(patience_s)
        if not self.busy and not self.taken_over:
            self._outcome = None
            self.start(position)
            assert self._thread is not None, "started just now"
            self._thread.join(max(0.0, give_up - time.monotonic()))
        if self.busy:
            return _failure(f"{self.path} gave no answer for {duration(patience_s)}")
        outcome = self.poll()
        if outcome is None:
            return _failure("another process writes it now")
        if "warning" not in outcome:
            with contextlib.suppress(OSError, KeyError, TypeError):
                self._write_identity((self._read_identity() or {})["run"], released=True)
        return outcome

    # ---- the copying itself

    def _copy(self, position: int) -> None:
        began = time.monotonic()
        try:
            identity = self._read_identity()
            if identity is None:
                raise UserError(f"{self.path} must be there; got nothing. Mount the drive again.")
            if identity["writer"] != self._writer:
                self.taken_over = True
                by = f"{identity['host']} at {identity['time']}"
                raise UserError(
                    f"{self.path} must be written by one process; got it taken over from {by}. Stop one of the two."
                )
            if self.position != position:
                self._copy_generation(position)
            for name in _GROWING:
                self._append(name)
            for name in _SMALL:
                _copy_if_other(self._folder.path / name, self.path / name)
            for name in _FOLDERS:
                self._copy_folder(name)
            seconds = time.monotonic() - began
            self.slowest_s = max(self.slowest_s, seconds)
            self._outcome = {"position": position, "seconds": round(seconds, 1)}
        except Exception as error:
            reason = str(describe_os_error(error, "copying") if isinstance(error, OSError) else error)
            self._outcome = _failure(reason)

    def _copy_generation(self, position: int) -> None:
        source, target = self._folder.checkpoints / f"{position:012d}", self._checkpoints / f"{position:012d}"
        try:
            _discard(target)
            target.mkdir(parents=True)
            names = [path.name for path in source.iterdir() if path.name != MANIFEST_FILE]
            for name in [*sorted(names), MANIFEST_FILE]:
                _copy_file(source / name, target / name)
            verify(target)
        except Exception:
            with contextlib.suppress(OSError):
                _discard(target)
            raise
        self.position = position
        older = [path for path in generations(self._checkpoints) if int(path.name) < position]
        later = [path for path in generations(self._checkpoints) if int(path.name) > position]
        for path in older[KEEP - 1 :] + later:
            _discard(path)

    def _append(self, name: str) -> None:
        """Bring a file that only grows up to date; it is copied whole where it was cut back."""
        source, target = self._folder.path / name, self.path / name
        if not source.exists():
            return
        size = target.stat().st_size if target.exists() else -1
        with open(source, "rb") as file:
            if size < 0 or (self._grown.get(name) != size and target.read_bytes() != file.read(size)):
                data = source.read_bytes()
                _replace(target, data)
                self._grown[name] = len(data)
                return
            file.seek(size)
            tail = file.read()
        with open(target, "ab") as file:
            file.write(tail)
            file.flush()
            os.fsync(file.fileno())
        with open(target, "rb") as file:
            _forget_cached(file.fileno())
            file.seek(size)
            if file.read() != tail:
                self._grown.pop(name, None)
                raise UserError(f"{target} must keep what is written; got other bytes. Look at the drive.")
        self._grown[name] = size + len(tail)

    def _copy_folder(self, name: str) -> None:
        source, target = self._folder.path / name, self.path / name
        # What says that a model is complete comes last, here as there.
        files = (
            sorted(source.iterdir(), key=lambda path: (path.name == CONFIG_FILE, path.name)) if source.is_dir() else []
        )
        for path in files:
            if path.is_file() and not path.name.startswith("."):
                target.mkdir(exist_ok=True)
                _copy_if_other(path, target / path.name)

    def _copy_back(self, generation: Path) -> None:
        """The checkpoint comes last: until it is whole in its place, the next start begins here again."""
        local = self._folder
        local.checkpoints.mkdir(parents=True, exist_ok=True)
        for name in (*_SMALL, "metrics.jsonl"):
            if (self.path / name).exists():
                _replace(local.path / name, (self.path / name).read_bytes())
        local.join_ledger(self.path / "ledger.jsonl")
        for folder in _FOLDERS:
            for path in sorted((self.path / folder).glob("*")):
                (local.path / folder).mkdir(exist_ok=True)
                _copy_if_other(path, local.path / folder / path.name)
        partial = local.checkpoints / f"{generation.name}{PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for path in generation.iterdir():
            _copy_file(path, partial / path.name)
        verify(partial)
        shutil.rmtree(local.checkpoints / generation.name, ignore_errors=True)
        os.replace(partial, local.checkpoints / generation.name)

    def _read_identity(self) -> dict[str, Any] | None:
        """Whose copy it is; None where there is none yet."""
        try:
            identity = json.loads((self.path / IDENTITY_FILE).read_bytes())
            return {name: identity[name] for name in ("run", "writer", "host", "time", "released")}
        except FileNotFoundError:
            if generations(self._checkpoints):
                raise UserError(
                    f"{self.path} must be a mirror; got a folder with checkpoints and no {IDENTITY_FILE}. "
                    "Choose another checkpoint.mirror or --run.name, or move that folder away."
                ) from None
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path / IDENTITY_FILE} must be whole; got '{error}'. Move the folder away."
            ) from error

    def _write_identity(self, run: str, *, released: bool) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        try:
            self.path.mkdir(exist_ok=True)
            write_json(
                self.path / IDENTITY_FILE,
                {"run": run, "writer": self._writer, "host": socket.gethostname(), "time": now, "released": released},
            )
        except OSError as error:
            raise describe_os_error(error, f"writing the mirror {self.path}") from error


def _failure(reason: str) -> dict[str, Any]:
    return {"warning": reason}


def _newest(folder: Path, remarks: list[str]) -> Path | None:
    """The newest whole generation; None also where all are damaged, for then the mirror may still have one."""
    try:
        path, passed_over = find_newest(folder)
    except CheckpointError as error:
        remarks.append(str(error))
        return None
    remarks += passed_over
    return path


def _copy_file(source: Path, target: Path) -> None:
    """Copy, and leave nothing of it in this machine's cache: whoever reads it next reads what the drive has kept."""
    with open(source, "rb") as reading, open(target, "wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())
        _forget_cached(writing.fileno())


def _copy_if_other(source: Path, target: Path) -> None:
    """Copy a small file that changed, and compare what can be read back."""
    if not source.exists() or (target.exists() and filecmp.cmp(source, target, shallow=False)):
        return
    if target.exists():
        os.truncate(target, 0)
    _copy_file(source, target)
    filecmp.clear_cache()
    if not filecmp.cmp(source, target, shallow=False):
        raise UserError(f"{target} must keep what is written; got other bytes. Look at the drive.")


def _replace(target: Path, data: bytes) -> None:
    """Write a file whole; one that is there stays until the new one is."""
    partial = target.with_name(f".{target.name}{PARTIAL}")
    partial.write_bytes(data)
    os.replace(partial, target)


def _forget_cached(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _discard(folder: Path) -> None:
    """Remove a generation: the manifest first, so that half of it never looks whole; every file emptied before."""
    if not folder.exists():
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name != MANIFEST_FILE):
        os.truncate(path, 0)
        path.unlink()
    folder.rmdir()
