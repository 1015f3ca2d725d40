"""Whether a shard set is, byte for byte, what was written, and what is wrong where it is not.

every shard (checks.py, in threads) --> over all shards: keys, label counts, strangers, rejections --> Findings
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.format import REJECTED_FILE, SHARDSET_FILE, Shard, ShardSet
from pipeline.shards.shard import ShardFile
from shard_tool.care.checks import Problem, ShardCheck, ShardReport
from shard_tool.care.described import labels_by_split, open_described
from shard_tool.image.photo import quiet_pillow

Report = Callable[[int, int], None]
"""Told the samples that are checked and the problems found so far."""


@dataclass(frozen=True)
class Findings:
    """What is known of a set after looking at all of it."""

    problems: tuple[Problem, ...]
    samples: int
    """That the set should have."""
    shards: int
    damaged: tuple[ShardReport, ...]
    """The shards whose tar or index is not whole: what a repair rebuilds."""
    was_indexed: bool = False
    """The set was found and not built: nothing but its tars can be had again."""

    @property
    def whole(self) -> bool:
        """Whether everything is as it was written."""
        return not self.problems


def check_set(folder: str, *, quick: bool, threads: int, report: Report) -> Findings:
    """Check the set in `folder`; with `quick` only the hashes of its files.

    Memory is 8 bytes for each sample, to find keys that stand twice. Raises `UserError` where there is no set, or one
    that may not be read.
    """
    try:
        shards = open_described(folder)
    except ShardError as error:  # Without it, nothing says what the shards should be.
        return Findings((Problem(SHARDSET_FILE, None, str(error)),), 0, 0, ())
    reports = check_shards(shards, quick=quick, threads=threads, report=report)
    problems = [problem for one in reports for problem in one.problems]
    problems += _totals(shards)
    problems += _strangers(shards)
    problems += _rejections(shards)
    problems += _listings(shards)
    if not quick:
        problems += _repeated_keys(shards, reports)
        problems += _label_counts(shards, reports)
    damaged = tuple(one for one in reports if not (one.tar_whole and one.index_whole))
    samples, was_indexed = sum(split.total for split in shards.splits.values()), _was_indexed(shards)
    return Findings(tuple(problems), samples, len(reports), damaged, was_indexed)


def _was_indexed(shards: ShardSet) -> bool:
    return any("indexed" in part for part in shards.parts)


def check_shards(
    shards: ShardSet, *, quick: bool, threads: int, report: Report, only: frozenset[str] | None = None
) -> list[ShardReport]:
    """Check all shards, or those named; `threads` at a time, in the order of the set."""
    owners = {shard.sha256: shard.name for split in shards.splits.values() for shard in split}
    chosen = (
        (name, shard) for name, split in shards.splits.items() for shard in split if only is None or shard.name in only
    )
    done = found = 0

    def tick(samples: int, problems: int) -> None:
        nonlocal done, found  # Under the interpreter lock, and only for show.
        done, found = done + samples, found + problems
        report(done, found)

    def check(row: tuple[str, Shard]) -> ShardReport:
        return ShardCheck(shards, *row, owners, tick).run(quick=quick)

    report(0, 0)
    with quiet_pillow(), ThreadPoolExecutor(threads, "verify") as pool:
        try:
            return list(pool.map(check, chosen))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _strangers(shards: ShardSet) -> Iterator[Problem]:
    """Tars that do not belong to the set: readers that take all of a folder would read them too."""
    ours = {f"{shard.name}.tar" for split in shards.splits.values() for shard in split}
    for path in sorted(shards.folder.glob("*.tar")):
        if path.name not in ours:
            yield Problem(path.name, None, f"is not of this set: {SHARDSET_FILE} does not name it")


def _rejections(shards: ShardSet) -> Iterator[Problem]:
    try:
        with open(shards.folder / REJECTED_FILE, "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        if shards.rejected:
            yield Problem(REJECTED_FILE, None, f"is missing, with {shards.rejected:,} lines")
        return
    if len(lines) != shards.rejected:
        yield Problem(REJECTED_FILE, None, f"has {len(lines):,} lines in place of {shards.rejected:,}")
    for number, line in enumerate(lines, 1):
        try:
            if not isinstance(json.loads(line)["reason"], str):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            yield Problem(REJECTED_FILE, None, f"must have a JSON object with a reason in line {number}")


def _listings(shards: ShardSet) -> Iterator[Problem]:
    """The files that say of which photos a part was made."""
    for listing in (part["listing"] for part in shards.parts if "listing" in part):
        try:
            sha256 = hashlib.sha256((shards.folder / listing["file"]).read_bytes()).hexdigest()
        except FileNotFoundError:
            yield Problem(listing["file"], None, "is missing")
            continue
        if sha256 != listing["sha256"]:
            yield Problem(listing["file"], None, f"has sha256 {sha256[:12]}... in place of {listing['sha256'][:12]}...")


def _repeated_keys(shards: ShardSet, reports: Iterable[ShardReport]) -> Iterator[Problem]:
    """Two samples of one key: readers that join members by it would mix them up.

    Many foreign sets count from zero in each tar, and no reader joins members of two tars: there it is no problem.
    """
    if _was_indexed(shards):
        return
    reports = list(reports)
    hashes = np.concatenate([one.key_hashes for one in reports]) if reports else np.empty(0, np.uint64)
    first_row = np.cumsum([0, *(len(one.key_hashes) for one in reports)])
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero((hashes[order][1:] == hashes[order][:-1]) & (hashes[order][1:] != 0))

    def place(number: int) -> tuple[ShardReport, int]:
        shard = int(np.searchsorted(first_row, number, side="right")) - 1
        return reports[shard], int(number - first_row[shard])

    for pair in same.tolist():
        (one, row), (other, other_row) = place(order[pair]), place(order[pair + 1])
        try:
            keys = [ShardFile(shards, two.shard).key(at) for two, at in ((one, row), (other, other_row))]
        except ShardError:
            continue  # A damaged shard has been reported already.
        if keys[0] == keys[1]:
            where = f"in {one.shard.name}.tar" if other is not one else "before"
            yield Problem(f"{other.shard.name}.tar", keys[1], f"has a key that stands {where} too")


def _label_counts(shards: ShardSet, reports: Iterable[ShardReport]) -> Iterator[Problem]:
    """Whether as many samples have each label as `shardset.json` says."""
    said = labels_by_split(shards)
    for split in said or {}:
        mine = [one for one in reports if one.split == split]
        counts = [one.label_counts for one in mine if one.label_counts is not None]
        if said is None or len(counts) < len(mine):
            continue  # Samples are damaged, and have been reported.
        for (name, should), has in zip(said[split].items(), np.sum(counts, 0).tolist(), strict=True):
            if has != should:
                what = f"counts {should:,} samples with '{name}' in {split}; {has:,} have it"
                yield Problem(SHARDSET_FILE, None, what)


def _totals(shards: ShardSet) -> Iterator[Problem]:
    """The sums that `shardset.json` holds for those who read it without leanstream."""
    content = json.loads((shards.folder / SHARDSET_FILE).read_bytes())
    for name, split in shards.splits.items():
        total = content["splits"][name].get("samples")
        if total != split.total:
            yield Problem(SHARDSET_FILE, None, f"counts {total} samples in {name}; its shards hold {split.total:,}")
