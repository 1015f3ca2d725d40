"""Proof that a run trained every image exactly once in every epoch, over all its interruptions.

python -m train.audit runs/demo

    the loop     adds hash(shard, row, crc32) of each sample that it was really handed --> a sum for each epoch, saved
    the audit    adds the same hash of each sample that the indexes list               --> a sum for each epoch
                 and compares: for a finished epoch all samples, for the unfinished one those of its first positions

Samples that the run says it left out as damaged (`--data.on-error skip`) must be missing, and no other.

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

from pipeline import Dataset
from pipeline.batch import digests
from pipeline.errors import EXIT_DONE, EXIT_FAULT, CheckpointError, LeanstreamError, UserError, report_error
from pipeline.files import expand_home, inside
from pipeline.format import Index, Shard, ShardSet
from pipeline.order import Order
from pipeline.remote.transport import read_bytes
from pipeline.shards.dataset import Shards
from pipeline.shards.shard import load_index
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
    shards: tuple[str, ...] = ()
    """Shard sets, folders or URLs; default: those that the run was trained on."""
    debug: bool = False
    """Show tracebacks of errors."""


@dataclass(frozen=True)
class Progress:
    """What a run says of itself: how far it is, in which order, and the sums of what it was handed."""

    position: int
    fingerprint: str
    """Of the shard sets."""
    shards: tuple[str, ...]
    """Where they are."""
    seed: int
    window: int | None
    lanes: int | None
    sums: dict[int, int]
    """By epoch."""
    source: Path
    """What it was read from."""
    skipped: tuple[int, ...] = ()
    """Positions whose samples were left out as damaged."""


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
    argv = expand_home(sys.argv[1:] if argv is None else argv)
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
    shards = Dataset.open(command.shards or progress.shards)
    if shards.fingerprint != progress.fingerprint:
        raise UserError(
            f"{shards.location} must be the data that {folder.path} is trained on; got other data. "
            "Give the right sets with --shards."
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
    skipped = len(progress.skipped)
    folder.note("audit", position=progress.position, epochs=len(found), wrong=wrong, named=named, skipped=skipped)
    if wrong:
        console.print(
            f"{len(wrong)} of {len(found)} epochs are wrong: images were lost, trained twice or exchanged", markup=False
        )
        return EXIT_FAULT
    said = f"each of {progress.position - skipped:,} samples was trained exactly once in its place"
    if skipped:
        said += f"; {skipped:,} were left out as damaged, and are named in ledger.jsonl"
    console.print(said, soft_wrap=True, markup=False)
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
    return replace(progress, shards=load_config(folder.config_file).data.shards or ())


def audit(progress: Progress, shards: Dataset) -> Iterator[EpochAudit]:
    """Each epoch that the run has begun, and any other that it has a sum for.

    Memory is that of a few hundred shards' checksums, whatever the size of the set.
    """
    split = shards.split("train")
    order = Order(split.samples, seed=progress.seed, window=progress.window, lanes=progress.lanes)
    checksums = _Checksums(split)
    finished, begun = divmod(progress.position, order.total)
    skipped = np.unique(np.array(progress.skipped, np.int64))

    def every() -> Iterator[Hashes]:
        return _every(checksums, order)

    def look(epoch: int, images: int, whole: int, due: Samples) -> EpochAudit:
        positions = skipped[skipped // order.total == epoch]
        left_out = np.concatenate([np.empty(0, np.uint64), *(part.values for part in _at(positions, checksums, order))])
        expected = (whole - int(left_out.sum(dtype=np.uint64))) % 2**64
        found = progress.sums.get(epoch, 0)
        if found == expected:
            return EpochAudit(epoch, images, expected, found)
        fault = find_fault(found - expected, lambda: _without(left_out, due()), every, images - len(left_out))
        return EpochAudit(epoch, images, expected, found, fault)

    # The sum of an epoch in which every sample was trained once does not depend on the order.
    whole = _sum(every()) if finished else 0
    for epoch in range(finished):
        yield look(epoch, order.total, whole, every)
    if begun:
        due = functools.partial(_handed, checksums, order, finished * order.total, progress.position)
        yield look(finished, begun, _sum(due()), due)
    ahead = {*progress.sums, *(skipped // order.total).tolist()} - set(range(finished + bool(begun)))
    for epoch in sorted(ahead):
        yield look(epoch, 0, 0, lambda: iter(()))


class _Checksums:
    """crc32 of the samples of a training split, by shard, from the indexes; the shards last asked for are held."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._held: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def of(self, number: int) -> NDArray[np.int64]:
        """[samples] of one shard."""
        if number not in self._held:
            self._held[number] = _index(*self._shards[number]).records["image_crc32"].astype(np.int64)
            while len(self._held) > _OPEN_INDEXES:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]


def _index(shards: ShardSet, shard: Shard) -> Index:
    """The index of one shard; of a set behind a URL it is all that is fetched."""
    tar, url = (inside(shards.location, f"{shard.name}.{suffix}") for suffix in ("tar", "index"))
    if isinstance(tar, Path):
        return load_index(tar, shard, shards.image_member)
    try:
        index = Index.from_bytes(read_bytes(str(url)), str(url))
    except FileNotFoundError:
        raise UserError(
            f"{url} must exist for an audit; got no such file. Audit with --shards FOLDER, a copy of the set."
        ) from None
    return index.check(shard, str(url), "Copy the set again")


def _every(checksums: _Checksums, order: Order) -> Iterator[Hashes]:
    """All samples of the training split, shard by shard."""
    for number, samples in enumerate(order.samples.tolist()):
        rows = np.arange(samples, dtype=np.int64)
        shards = np.full_like(rows, number)
        yield Hashes(shards, rows, digests(shards, rows, checksums.of(number)))


def _handed(checksums: _Checksums, order: Order, begin: int, end: int) -> Iterator[Hashes]:
    """The samples of the positions from `begin` to before `end`."""
    for first in range(begin, end, _CHUNK):
        yield from _at(np.arange(first, min(first + _CHUNK, end), dtype=np.int64), checksums, order)


def _at(positions: NDArray[np.int64], checksums: _Checksums, order: Order) -> Iterator[Hashes]:
    """The samples of `positions`, shard by shard."""
    shards, rows = order.locate(positions)
    for number in np.unique(shards).tolist():
        chosen = rows[shards == number]
        same = np.full_like(chosen, number)
        yield Hashes(same, chosen, digests(same, chosen, checksums.of(number)[chosen]))


def _without(left_out: NDArray[np.uint64], samples: Iterator[Hashes]) -> Iterator[Hashes]:
    """The samples whose hashes are not among those that were left out."""
    for part in samples:
        kept = ~np.isin(part.values, left_out)
        yield Hashes(part.shards[kept], part.rows[kept], part.values[kept])


def _sum(samples: Iterator[Hashes]) -> int:
    return sum(int(part.values.sum(dtype=np.uint64)) for part in samples) % 2**64


def _told(fault: Fault, split: Shards) -> str:
    """What happened, in words."""

    def name(place: Place) -> str:
        return f"{split.named(place[0])} row {place[1]}"

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
        config.data.shards or (),
        config.run.seed,
        config.data.window,
        config.data.lanes,
        {int(epoch): int(total, 16) for epoch, total in state["audit"].items()},
        source,
        tuple(state.get("skipped", ())),
    )


if __name__ == "__main__":
    sys.exit(main())
