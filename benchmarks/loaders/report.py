"""Medians, ratios and requirements of a run of `benchmarks/loader.py`.

A ratio is taken within each round, between processes that ran minutes apart at most, and the median over the rounds is
what counts: the machine's speed moves, and both sides move with it.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.loaders.variants import Variant

Round = Mapping[str, Mapping[str, float]]
"""Variant's name -> figure's name -> value, of the variants that ran."""


@dataclass(frozen=True)
class Requirement:
    """A figure of one variant, or its ratio to another's, and what it must be."""

    text: str
    variant: str
    figure: str
    bound: float
    """The least that it may be; the most, where `other` is empty."""
    other: str = ""
    other_figure: str = "images_per_s"


REQUIREMENTS = (
    Requirement("JPEG: times webdataset", "ours-jpeg", "images_per_s", 5, "webdataset-jpeg"),
    Requirement("JPEG: share of bare simplejpeg", "ours-jpeg", "images_per_s", 0.85, "limit-jpeg-simplejpeg"),
    Requirement("JPEG: times ffcv on the same bytes", "ours-jpeg", "images_per_s", 1, "ffcv-jpeg"),
    Requirement("raw: times webdataset", "ours-raw", "images_per_s", 25, "webdataset-raw"),
    Requirement("raw: share of a bare gather, one thread", "ours-raw", "images_per_s", 0.6, "limit-raw-gather"),
    Requirement(
        "raw: share of a bare gather, same threads", "ours-raw", "images_per_s", 0.6, "limit-raw-gather-threads"
    ),
    Requirement("raw, first pass: times webdataset", "ours-raw", "first_pass_images_per_s", 15, "webdataset-raw"),
    Requirement("JPEG: with noise, share of without", "ours-jpeg-noise", "images_per_s", 0.8, "ours-jpeg"),
    Requirement("raw: with noise, share of without", "ours-raw-noise", "images_per_s", 0.3, "ours-raw"),
    Requirement("JPEG: first batch, seconds", "ours-jpeg", "first_batch_s", 0.3),
    Requirement("raw: first batch, seconds", "ours-raw", "first_batch_s", 0.3),
)


@dataclass(frozen=True)
class Verdict:
    """What a requirement came to; `value` is None where a variant that it needs did not run."""

    requirement: Requirement
    value: float | None
    met: bool | None


def verdicts(rounds: Sequence[Round]) -> list[Verdict]:
    """Every requirement with the median over the rounds."""
    found = []
    for requirement in REQUIREMENTS:
        values = [value for figures in rounds if (value := _value(figures, requirement)) is not None]
        if not values:
            found.append(Verdict(requirement, None, None))
            continue
        median = statistics.median(values)
        met = median >= requirement.bound if requirement.other else median <= requirement.bound
        found.append(Verdict(requirement, median, met))
    return found


def _value(figures: Round, requirement: Requirement) -> float | None:
    value = figures.get(requirement.variant, {}).get(requirement.figure)
    if not requirement.other or value is None:
        return value
    other = figures.get(requirement.other, {}).get(requirement.other_figure)
    return None if other is None else value / other


def show(
    console: Console, title: str, variants: Sequence[Variant], rounds: Sequence[Round], missing: Mapping[str, str]
) -> None:
    """Print the table of all variants, why some are missing, and the requirements."""
    table = Table(title=title)
    table.add_column("loader", no_wrap=True)
    columns = ("img/s", "lowest-highest", "img/s, first pass", "first batch, s", "peak PSS, MiB", "x webdataset")
    for column in columns:
        table.add_column(column, justify="right")
    for variant in variants:
        if variant.name in missing:
            table.add_row(_label(variant), "none")
            continue
        table.add_row(_label(variant), *_cells(variant, rounds))
    console.print(table)
    for name, reason in missing.items():
        console.print(f"{name} did not run: {reason}", style="yellow", markup=False, highlight=False)
    table = Table("requirement", "bound", "median", "", title="Ours")
    for verdict in verdicts(rounds):
        requirement = verdict.requirement
        bound = f"{'at least' if requirement.other else 'at most'} {requirement.bound:g}"
        word = {True: "[green]pass[/green]", False: "[red]miss[/red]", None: "not measured"}[verdict.met]
        table.add_row(requirement.text, bound, "" if verdict.value is None else f"{verdict.value:.2f}", word)
    console.print(table)


def _label(variant: Variant) -> str:
    return " ".join(part for part in (variant.loader.title, variant.encoding, variant.mode) if part)


def _cells(variant: Variant, rounds: Sequence[Round]) -> list[str]:
    def values(figure: str) -> list[float]:
        return [figures[variant.name][figure] for figures in rounds if figure in figures.get(variant.name, {})]

    def median(figure: str, form: str) -> str:
        return format(statistics.median(found), form) if (found := values(figure)) else ""

    speeds = values("images_per_s")
    peer = Requirement("", variant.name, "images_per_s", 0, f"webdataset-{variant.encoding}")
    ratios = [ratio for figures in rounds if (ratio := _value(figures, peer)) is not None]
    return [
        median("images_per_s", ",.0f"),
        f"{min(speeds):,.0f}-{max(speeds):,.0f}" if speeds else "",
        median("first_pass_images_per_s", ",.0f"),
        median("first_batch_s", ".2f"),
        median("peak_pss_mib", ",.0f"),
        f"{statistics.median(ratios):.1f}" if ratios else "",
    ]
