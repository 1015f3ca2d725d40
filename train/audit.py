"""Proof that a run trained every image exactly once in every epoch, over all its interruptions.

python -m train.audit runs/demo

    the loop     adds hash(shard, row, crc32) of each sample that it was really handed --> a sum for each epoch, saved
    the audit    adds the same hash of each sample that the indexes list               --> a sum for each epoch
                 and compares: for a finished epoch all samples, for the unfinished one those of its first positions

Hashes have 64 bits and sums wrap around. A sample that was lost, trained twice, or taken for another one changes a
sum; that two faults cancel each other has a chance of 2^-64. A single fault in an epoch is named, by shard and row.
"""

import functools
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from pipeline import ShardSet
from pipeline.batch import digests
from pipeline.errors import EXIT_DONE, EXIT_FAULT, CheckpointError, LeanstreamError, UserError, report_error
from pipeline.format import Index, Shard, Split
from pipeline.order import Order
from pipeline.remote.transport import join, read_bytes
from pipeline.shards.shard import check_index, load_index
from train.checkpoint import find_newest, read_state
from train.config import from_dict, load_config
from train.faults import Fault, Hashes, Place, Samples, find_fault
from train.pretrained import TRAINING_FILE
from train.runfolder import RunFolder

_CHUNK = 1 << 16
_OPEN_INDEXES = 256


@dataclass(frozen=True)
class Command:
    """Prove that a run trained every image exactly once in every epoch."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, e.g. runs/demo."""
    shards: str | None = None
    """Shard set, a folder or a URL; default: the one that the run was trained on."""
    debug: bool = False
    """Show tracebacks of errors."""


@dataclass(frozen=True)
class Progress:
    """What a run says of itself: how far it is, in which order, and the sums of what it was handed."""

    position: int
    fingerprint: str
    """Of the shard set."""
    shards: str
    """Folder of the shard set."""
    seed: int
    window: int | None
    lanes: int | None
    sums: dict[int, int]
    """By epoch."""
    source: Path
    """What it was read from."""


@dataclass(frozen=True)
class EpochAudit:
    """One epoch: what its sum must be, and what it is."""

    epoch: int
    images: int
    """How many samples of the epoch the run has consumed."""
    expected: int
    found: int
    fault: Fault | None = None
    """What explains the difference, where a single sample or two exchanged ones do."""

    @property
    def ok(self) -> bool:
        """Whether each of those samples was trained exactly once, and no other."""
        return self.expected == self.found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 where every sum is right, 1 where one is not, 2 where there is nothing to sum."""
    argv = sys.argv[1:] if argv is None else argv
    console = Console(highlight=False)
    try:
        command = tyro.cli(Command, args=argv, prog="python -m train.audit")
        return report(command, console)
    except (LeanstreamError, OSError) as error:
        if "--debug" in argv:
            raise
        return report_error(error, "auditing")


def report(command: Command, console: Console) -> int:
    """Audit, print a line for each epoch, and note the result in the run's ledger."""
    folder = RunFolder(command.run)
    progress = read_progress(folder)
    shards = ShardSet.open(command.shards or progress.shards)
    if shards.fingerprint != progress.fingerprint:
        raise UserError(
            f"{shards.location} must be the set that {folder.path} is trained on; got other data. "
            "Give the right one with --shards."
        )
    console.print(f"{progress.source}: image {progress.position:,}, of {shards.location}", soft_wrap=True, markup=False)
    console.print("epoch        images          expected             found", markup=False)
    found: list[EpochAudit] = []
    named: list[str] = []
    for line in audit(progress, shards):
        found.append(line)
        verdict = "ok" if line.ok else "WRONG"
        row = f"{line.epoch:5d}  {line.images:12,}  {line.expected:016x}  {line.found:016x}  {verdict}"
        console.print(row, soft_wrap=True, markup=False)
        if line.fault is not None:
            named.append(f"epoch {line.epoch}: {_told(line.fault, shards.split('train'))}")
            console.print(f"       {named[-1]}", soft_wrap=True, markup=False)
    wrong = [line.epoch for line in found if not line.ok]
    folder.note("audit", position=progress.position, epochs=len(found), wrong=wrong, named=named)
    if wrong:
        console.print(
            f"{len(wrong)} of {len(found)} epochs are wrong: images were lost, trained twice or exchanged", markup=False
        )
        return EXIT_FAULT
    console.print(f"each of {progress.position:,} samples was trained exactly once in its place", markup=False)
    return EXIT_DONE


def read_progress(folder: RunFolder) -> Progress:
    """From the newest whole generation, or, where there is none any more, from the finished model.

    Raises `UserError` where the run has saved nothing, `CheckpointError` where all it has saved is damaged.
    """
    newest, _ = find_newest(folder.checkpoints)
    if newest is not None:
        return _progress(read_state(newest), newest)
    training = folder.final / TRAINING_FILE
    if not training.exists():
        raise UserError(
            f"{folder.path} must be a run that has saved; got neither checkpoints nor a finished model. "
            "Name a folder such as runs/demo, or wait for the first save."
        )
    try:
        progress = _progress(json.loads(training.read_bytes()), folder.final)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{training} must be whole; got '{error}'. Copy it again.") from error
    return replace(progress, shards=load_config(folder.config_file).data.shards or "")


def audit(progress: Progress, shards: ShardSet) -> Iterator[EpochAudit]:
    """Each epoch that the run has begun, and any other that it has a sum for.

    Memory is that of a few hundred shards' checksums, whatever the size of the set.
    """
    order = Order(shards.split("train").samples, seed=progress.seed, window=progress.window, lanes=progress.lanes)
    checksums = _Checksums(shards)
    finished, begun = divmod(progress.position, order.total)

    def every() -> Iterator[Hashes]:
        return _every(checksums, order)

    def look(epoch: int, images: int, expected: int, due: Samples) -> EpochAudit:
        found = progress.sums.get(epoch, 0)
        fault = None if found == expected else find_fault(found - expected, due, every, images)
        return EpochAudit(epoch, images, expected, found, fault)

    # The sum of an epoch in which every sample was trained once does not depend on the order.
    whole = _sum(every()) if finished else 0
    for epoch in range(finished):
        yield look(epoch, order.total, whole, every)
    if begun:
        due = functools.partial(_handed, checksums, order, finished * order.total, progress.position)
        yield look(finished, begun, _sum(due()), due)
    for epoch in sorted(set(progress.sums) - set(range(finished + bool(begun)))):
        yield look(epoch, 0, 0, lambda: iter(()))


class _Checksums:
    """crc32 of the samples of a training split, by shard, from the indexes; the shards last asked for are held."""

    def __init__(self, shards: ShardSet) -> None:
        self._location, self._split = shards.location, shards.split("train")
        self._held: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def of(self, number: int) -> NDArray[np.int64]:
        """[samples] of one shard."""
        if number not in self._held:
            self._held[number] = _index(self._location, self._split[number]).records["image_crc32"].astype(np.int64)
            while len(self._held) > _OPEN_INDEXES:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]


def _index(location: Path | str, shard: Shard) -> Index:
    """The index of one shard; of a set behind a URL it is all that is fetched."""
    if not isinstance(location, str):
        return load_index(location / f"{shard.name}.index", location / f"{shard.name}.tar", shard)
    url = join(location, f"{shard.name}.index")
    try:
        index = Index.from_bytes(read_bytes(url), url)
    except FileNotFoundError:
        raise UserError(
            f"{url} must exist for an audit; got no such file. Audit with --shards FOLDER, a copy of the set."
        ) from None
    check_index(index, shard, url, "Copy the set again")
    return index


def _every(checksums: _Checksums, order: Order) -> Iterator[Hashes]:
    """All samples of the training split, shard by shard."""
    for number, samples in enumerate(order.samples.tolist()):
        rows = np.arange(samples, dtype=np.int64)
        shards = np.full_like(rows, number)
        yield Hashes(shards, rows, digests(shards, rows, checksums.of(number)))


def _handed(checksums: _Checksums, order: Order, begin: int, end: int) -> Iterator[Hashes]:
    """The samples of the positions from `begin` to before `end`."""
    for first in range(begin, end, _CHUNK):
        shards, rows = order.locate(np.arange(first, min(first + _CHUNK, end), dtype=np.int64))
        for number in np.unique(shards).tolist():
            chosen = rows[shards == number]
            same = np.full_like(chosen, number)
            yield Hashes(same, chosen, digests(same, chosen, checksums.of(number)[chosen]))


def _sum(samples: Iterator[Hashes]) -> int:
    return sum(int(part.values.sum(dtype=np.uint64)) for part in samples) % 2**64


def _told(fault: Fault, split: Split) -> str:
    """What happened, in words."""

    def name(place: Place) -> str:
        return f"{split[place[0]].name} row {place[1]}"

    if fault.surplus is None:
        assert fault.missing is not None, "a fault names at least one sample"
        return f"{name(fault.missing)} was not trained"
    if fault.missing is None:
        return f"{name(fault.surplus)} was trained once too often"
    return f"{name(fault.surplus)} was trained in the place of {name(fault.missing)}"


def _progress(state: dict[str, Any], source: Path) -> Progress:
    config = from_dict(state["config"], str(source))
    return Progress(
        state["position"],
        state["shardset"],
        config.data.shards or "",
        config.run.seed,
        config.data.window,
        config.data.lanes,
        {int(epoch): int(total, 16) for epoch, total in state["audit"].items()},
        source,
    )


if __name__ == "__main__":
    sys.exit(main())
