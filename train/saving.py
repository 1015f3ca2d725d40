"""When and how a run saves: a snapshot in the loop, the write behind it."""

import time
from collections.abc import Collection
from types import TracebackType
from typing import Self

import torch
import torch.distributed

from train.checkpoint import BackgroundWriter, generations
from train.session import Session


class Saver:
    """Takes a session's snapshots; the first process's are written, behind the loop.

    A context manager: whatever ends the block, no write goes on after it.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        config = session.config.checkpoint
        self._writer = BackgroundWriter(
            session.folder.checkpoints, config.keep, milestone_images=config.milestone_images, held=self._held
        )
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, at)

    @property
    def idle_s(self) -> float:
        """Seconds since the last snapshot, or since the loop began."""
        return time.monotonic() - self._saved_at

    @property
    def busy(self) -> bool:
        """Whether a write is going on."""
        return self._writer.busy

    @property
    def last_position(self) -> int | None:
        """Position of the newest generation that is on disk and verified."""
        return self._writer.last_position

    def save(self) -> None:
        """Take a snapshot and write it behind the loop; every process must call this at the same update."""
        session = self._session
        session.sums = _summed_audit(session)
        if session.is_main:
            began = time.monotonic()
            generation = session.state.to_generation(session.facts, session.sums, session.elapsed_s)
            pause_s = time.monotonic() - began
            self._writer.start(generation)
            session.folder.note("saved", position=session.state.position, pause_ms=round(1000 * pause_s, 1))
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Return when nothing is being written; raises what the write raised."""
        self._writer.wait()

    def _held(self) -> Collection[int]:
        # While the loss looks wrong, whatever was saved before may be the last that is good.
        session = self._session
        if session.state.health.suspect:
            return [int(path.name) for path in generations(session.folder.checkpoints)]
        return () if session.mirror is None else session.mirror.copying


def _summed_audit(session: Session) -> dict[int, int]:
    """The audit sums of all processes together."""
    audit = session.state.audit
    if session.accelerator.num_processes == 1:
        return audit
    epochs = (session.state.position - 1) // session.epoch_samples + 1
    sums = torch.tensor([audit.get(epoch, 0) for epoch in range(epochs)], dtype=torch.uint64).view(torch.int64)
    sums = sums.to(session.accelerator.device)
    # Integers wrap around: the sum is the one modulo 2^64.
    torch.distributed.all_reduce(sums)
    return {epoch: total % 2**64 for epoch, total in enumerate(sums.tolist())}
