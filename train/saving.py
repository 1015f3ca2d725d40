"""When and how a run saves: a snapshot is begun in the loop, taken and written behind it."""

import time
from collections.abc import Collection
from types import TracebackType
from typing import Self

import torch
import torch.distributed
from accelerate.utils import gather_object

from train.checkpoint import BackgroundWriter, Generation, generations
from train.session import Session
from train.snapshot import Snapshot

_SLOW_BYTES_PER_S = 50e6
"""Until a write was measured: of a drive that is slow, with syncing and reading back."""
_MARGIN = 1.5
"""Of what the next save may take, over the slowest so far."""
_ENDING_S = 5.0
"""For the summary and the end of the process."""


class Saver:
    """Saves a session; the first process writes for all.

    A context manager: whatever ends the block, no write goes on after it.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        config, tensors = session.config.checkpoint, session.state.tensors()
        self._writer = BackgroundWriter(
            session.folder.checkpoints, config.keep, milestone_images=config.milestone_images, held=self._held
        )
        self._snapshot = Snapshot(tensors, session.accelerator.device) if session.is_main else None
        self._saved_at = time.monotonic()
        self._being_saved: int | None = None
        self._pause_s = 0.0
        self._guess_s = sum(tensor.nbytes for part in tensors.values() for tensor in part.values()) / _SLOW_BYTES_PER_S
        saves = [record for record in session.folder.read_ledger() if record["event"] == "saved"]
        self._writes_s = [float(record["write_s"]) for record in saves if "write_s" in record]

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

    def reserve_s(self, writes: int) -> float:
        """Seconds that so many writes and the end of the process may take, as measured by earlier saves."""
        mirror = self._session.mirror
        copying_s = 0.0 if mirror is None else mirror.slowest_s
        return _MARGIN * (writes * max(self._writes_s, default=self._guess_s) + copying_s) + _ENDING_S

    def save(self) -> None:
        """Begin a snapshot, to be written behind the loop; every process must call this at the same update.

        Nothing may change the state's tensors before `settle` was called.
        """
        session, began = self._session, time.monotonic()
        session.sums = _summed_audit(session)
        _write_down_skipped(session)
        if self._snapshot is not None:
            self.wait()
            snapshot, state = self._snapshot, session.state
            scalars = state.scalars(session.facts, session.sums, session.elapsed_s)
            snapshot.begin(state.tensors(), state.unsteady())
            self._writer.start(lambda: Generation(snapshot.take(), scalars))
            self._being_saved = state.position
        self._saved_at = time.monotonic()
        self._pause_s = self._saved_at - began

    def settle(self) -> None:
        """Return when the state's tensors may change."""
        if self._snapshot is not None:
            self._pause_s += self._snapshot.wait()

    def follow(self) -> None:
        """Note a save that is finished in the ledger; raises what its write raised."""
        if self._being_saved is not None and not self._writer.busy:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written and what was is noted; raises what the write raised."""
        position, self._being_saved = self._being_saved, None
        self._writer.wait()
        if position is None:
            return
        session, write_s = self._session, self._writer.last_seconds
        self._writes_s.append(write_s)
        session.pauses.append(self._pause_s)
        session.folder.note("saved", position=position, pause_s=round(self._pause_s, 4), write_s=round(write_s, 2))

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


def _write_down_skipped(session: Session) -> None:
    """Put what any process left out since the last save into the first one's state, and into the ledger."""
    found, session.skipped = session.skipped, []
    if session.config.data.on_error == "skip" and session.accelerator.num_processes > 1:
        found = gather_object(found)
    if not session.is_main:
        return
    session.warn_of_skipped(found)
    for sample in sorted(found):
        session.state.skipped.append(sample.position)
        session.folder.note("skipped", **sample._asdict())
