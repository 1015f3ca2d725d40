"""`verify`, from the set to the summary: look at everything, repair what can be, say what is left."""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import EXIT_DONE, EXIT_FAULT, ShardError, UserError
from shard_tool.build.repair import Repaired, repair
from shard_tool.care.checks import Problem
from shard_tool.care.described import open_described
from shard_tool.care.integrity import Findings, check_set, check_shards
from shard_tool.display import show_progress

SHOWN_OF_A_FILE = 10
"""Problems of one file that are printed; `--json` has them all."""


def verify(
    folder: str,
    *,
    quick: bool = False,
    photos: Sequence[str] = (),
    labels: str | None = None,
    threads: int,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Check the set in `folder`, repair it from `photos` where they are given, and print what was found.

    Returns the exit code: `EXIT_DONE` where the set is whole, in the end, and `EXIT_FAULT` where it is damaged. Raises
    what `check_set` and `repair` raise.
    """
    if threads < 1:
        raise UserError(f"threads must be at least 1; got {threads}. Leave it out for one for each core.")
    started = time.monotonic()
    with show_progress("verifying", _samples(folder), quiet=quiet, counted="problems") as report:
        findings = check_set(folder, quick=quick, threads=threads, report=report)
    done = Repaired()
    if photos and findings.damaged:
        findings, done = _repair(folder, findings, photos, labels, quick, threads, quiet)
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps(_content(folder, findings, done, quick), indent=1, ensure_ascii=False))
    elif not quiet:
        print("\n".join(_summary(folder, findings, done, quick, bool(photos), seconds)))
    elif findings.problems:
        print("\n".join(_listed(findings.problems)), file=sys.stderr)
    return EXIT_DONE if findings.whole else EXIT_FAULT


def _samples(folder: str) -> int:
    try:
        return sum(split.total for split in open_described(folder).splits.values())
    except ShardError:
        return 0  # Which is then the one problem that is found.


def _repair(
    folder: str, findings: Findings, photos: Sequence[str], labels: str | None, quick: bool, threads: int, quiet: bool
) -> tuple[Findings, Repaired]:
    """What is left after a repair: restored shards are looked at again."""
    shards = open_described(folder)
    total = sum(one.shard.samples for one in findings.damaged if not one.tar_whole)
    with show_progress("repairing", total, quiet=quiet) as report:
        done = repair(shards, findings.damaged, photos, labels=labels, threads=threads, report=report)
    again = frozenset(name.rpartition(".")[0] for name in done.restored)
    kept = [problem for problem in findings.problems if problem.file.rpartition(".")[0] not in again]
    reports = check_shards(shards, quick=quick, threads=threads, report=lambda done, found: None, only=again)
    new = [problem for one in reports for problem in one.problems]
    return replace(findings, problems=(*kept, *new, *done.refused)), done


def _content(folder: str, findings: Findings, done: Repaired, quick: bool) -> dict[str, object]:
    return {
        "folder": folder,
        "whole": findings.whole,
        "quick": quick,
        "samples": findings.samples,
        "shards": findings.shards,
        "problems": [problem._asdict() for problem in findings.problems],
        "restored": done.restored,
    }


def _summary(folder: str, findings: Findings, done: Repaired, quick: bool, tried: bool, seconds: float) -> list[str]:
    lines = [f"restored  {name}" for name in done.restored]
    lines += _listed(findings.problems)
    if findings.whole:
        what = "hash" if quick else "hash, index, image, label and key"
        return [
            *lines,
            f"{folder} is whole: {findings.samples:,} images in {findings.shards:,} shards, every {what} as written, "
            f"{seconds:,.1f} s.",
        ]
    files = len({problem.file for problem in findings.problems})
    lines.append(f"{folder} is damaged: {_count(len(findings.problems), 'problem')} in {_count(files, 'file')}.")
    if findings.damaged and not tried:
        repair = f"shard_tool verify {folder} --repair PHOTOS, where PHOTOS is what it was made of"
        lines.append(f"Next: {'get those tars again from where they came' if findings.was_indexed else repair}.")
    return lines


def _listed(problems: tuple[Problem, ...]) -> list[str]:
    """A line for each, in columns; of a file with very many, the first ones."""
    lines: list[str] = []
    seen: Counter[str] = Counter()
    total = Counter(problem.file for problem in problems)
    width = max((len(problem.file) for problem in problems), default=0)
    for problem in problems:
        seen[problem.file] += 1
        if seen[problem.file] <= SHOWN_OF_A_FILE:
            sample = "" if problem.key is None else f"{problem.key} "
            lines.append(f"{problem.file:<{width}}  {sample}{problem.problem}")
        elif seen[problem.file] == SHOWN_OF_A_FILE + 1:
            more = total[problem.file] - SHOWN_OF_A_FILE
            lines.append(f"{problem.file:<{width}}  and {more:,} more; --json has them all")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
