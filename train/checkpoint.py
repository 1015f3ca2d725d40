"""Checkpoint generations: folders named by position, verified whole before anything relies on them.

    checkpoints/000000051200/
      model.safetensors  ema.safetensors  optimizer.safetensors   every tensor, contiguous
      state.json                                                  every scalar
      manifest.json                                               size and sha256 of the others, written last

No pickle is read or written. A folder is built under a temporary name, synced, and renamed; a reader trusts only a
generation whose every byte matches its manifest, and otherwise takes the one before, saying why.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import CheckpointError, LeanstreamError, describe_os_error
from pipeline.files import sync_folder, write_json
from train.snapshot import Tensors

MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
PARTIAL = ".partial"
"""Ends the names of what is not finished."""


@dataclass(frozen=True)
class Generation:
    """A checkpoint as values: tensors by part and name, on the CPU and contiguous, and the scalars."""

    parts: dict[str, Tensors]
    state: dict[str, Any]

    @property
    def position(self) -> int:
        """Training samples consumed by applied updates."""
        return int(self.state["position"])


def snapshot(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies on the CPU, contiguous (safetensors knows no channels-last), that later updates do not touch."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values that does not depend on order, device or memory format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_generation(folder: Path, generation: Generation) -> Path:
    """Write one generation below `folder`, read it back, and return its folder.

    Raises `LeanstreamError` where a tensor of it is not finite: what is on disk can always be trained on.
    """
    _check_finite(generation)
    final = folder / f"{generation.position:012d}"
    if final.exists():
        try:
            verify(final)
            return final
        except CheckpointError:
            shutil.rmtree(final)
    partial = final.with_name(final.name + PARTIAL)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for part, tensors in generation.parts.items():
            save_tensors(tensors, partial / f"{part}.safetensors")
        write_json(partial / STATE_FILE, generation.state)
        manifest = {path.name: _entry(path, sync=True) for path in sorted(partial.iterdir())}
        write_json(partial / MANIFEST_FILE, manifest)
        os.replace(partial, final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise describe_os_error(error, "saving a checkpoint") from error
    verify(final)
    return final


def save_tensors(tensors: Tensors, path: Path) -> None:
    """`save_file` with the manners of `open`: an `OSError` with its number, and the permissions of a new file."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(mode)


def read_generation(folder: Path) -> Generation:
    """Load one generation; `CheckpointError` where any byte of it is not what was written."""
    verify(folder)
    return _load(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """The scalars of a generation that `find_newest` gave."""
    return dict(json.loads((folder / STATE_FILE).read_bytes()))


def generations(folder: Path) -> list[Path]:
    """The generation folders below `folder`, newest first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), reverse=True)


def read_newest(folder: Path) -> tuple[Generation | None, list[str]]:
    """The newest generation that is whole (None where there is none yet), and why newer ones were passed over.

    Raises `CheckpointError` where there are generations, but none is whole.
    """
    path, passed_over = find_newest(folder)
    return None if path is None else _load(path), passed_over


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """As `read_newest`, but the generation's folder: every byte of it was read and is right, nothing was loaded."""
    passed_over: list[str] = []
    for path in generations(folder):
        try:
            verify(path)
            return path, passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    if passed_over:
        raise CheckpointError(
            f"{folder} must hold one whole generation; got none ({' '.join(passed_over)}). "
            "Restore the folder from a copy, or start again with --run.fresh."
        )
    return None, []


def prune(
    folder: Path, keep: int, newest: int, *, milestone_images: int | None = None, held: Collection[int] = ()
) -> None:
    """Remove all but the `keep` newest generations up to position `newest`, and what interrupted saves left.

    `newest` was verified just now. Any that are later were passed over as damaged: they count for nothing, and go.
    The first generation at or after each multiple of `milestone_images` stays for good, those at `held` for now.
    """
    found = generations(folder)
    later = [path for path in found if int(path.name) > newest]
    kept = {*_milestones(found[len(later) :], milestone_images), *held}
    for path in later + found[len(later) :][keep:]:
        if int(path.name) in kept:
            continue
        # First the manifest: half a generation must not look whole.
        (path / MANIFEST_FILE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _milestones(found: list[Path], every_images: int | None) -> set[int]:
    """Positions of the first generation in each span of `every_images`, the span from 0 on left out."""
    first: dict[int, int] = {}
    for path in found if every_images else ():
        assert every_images, "nothing is found otherwise"
        position = int(path.name)
        span = position // every_images
        first[span] = min(position, first.get(span, position))
    return {position for span, position in first.items() if span}


class BackgroundWriter:
    """Writes one generation at a time behind the training loop; an error surfaces at the next call.

    A context manager: whatever ends the block, no write goes on after it.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        *,
        milestone_images: int | None = None,
        held: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """`held` gives the positions that somebody reads just now."""
        self._folder, self._keep, self._milestone_images, self._held = folder, keep, milestone_images, held
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.last_position: int | None = None
        """Position of the newest generation that is on disk and verified."""
        self.last_seconds = 0.0
        """What it took to write that one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.join()

    def start(self, take: Callable[[], Generation]) -> None:
        """Wait for the write before, then begin that of what `take` gives; it is called in the writer's thread."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(take,), name="checkpoint")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a write is going on."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Return when nothing is being written; raises what the write raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, take: Callable[[], Generation]) -> None:
        began = time.monotonic()
        try:
            generation = take()
            write_generation(self._folder, generation)
            prune(
                self._folder,
                self._keep,
                generation.position,
                milestone_images=self._milestone_images,
                held=self._held(),
            )
            self.last_seconds = time.monotonic() - began
            self.last_position = generation.position
        except Exception as error:
            self._error = error


def _check_finite(generation: Generation) -> None:
    for part, tensors in generation.parts.items():
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise LeanstreamError(
                    f"weights must be finite to be saved; got others in {part} '{name}' after update "
                    f"{generation.state.get('updates')} (position {generation.position}). The last checkpoint stands: "
                    "run again with a lower --optim.learning-rate or with --optim.clip-norm."
                )


def _load(folder: Path) -> Generation:
    """A generation that was verified."""
    names = json.loads((folder / MANIFEST_FILE).read_bytes())
    parts = {Path(name).stem: load_file(folder / name) for name in names if name != STATE_FILE}
    return Generation(parts, read_state(folder))


def verify(folder: Path) -> None:
    """Compare every file with the manifest; `CheckpointError` where one differs."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
        for name, entry in manifest.items():
            if _entry(folder / Path(name).name) != entry:
                raise CheckpointError(f"{folder / name} must match its manifest; got other bytes. It is passed over.")
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} must exist; got no such file. It is passed over.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} must be readable; got '{error}'. It is passed over.") from error
    if STATE_FILE not in manifest:
        raise CheckpointError(f"{folder / MANIFEST_FILE} must name {STATE_FILE}; got none. It is passed over.")


def _entry(path: Path, *, sync: bool = False) -> dict[str, Any]:
    """What a manifest says of one file."""
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
