"""The commands of `explore` and their options; what a command does is in the file of its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline.errors import UserError


@dataclass(frozen=True)
class Common:
    """What every command takes."""

    run: Path | None = None
    """Run folder, e.g. runs/demo."""
    model: str | None = None
    """Finished model, instead of --run: its folder, or a Hugging Face repository."""
    shards: str | None = None
    """Folder or URL of the shard set. Default: the one that the run was trained on."""
    out: Path | None = None
    """Folder for the results. Default: explore/ in the run's or the model's folder."""
    seed: int = 0
    """Another number makes other draws; the same one makes the same files."""
    debug: bool = False
    """Show tracebacks of errors."""

    def check(self) -> None:
        """Raise `UserError` for options that cannot be; on the command line tyro would box a constructor's error."""


@dataclass(frozen=True)
class Reconstruct(Common):
    """Originals over their reconstructions, and the PSNR of each: images of the set, or photos of your own."""

    photos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Photos of any size, or folders of them, in place of the set's images. They are cropped and resized as those."""
    split: Literal["train", "val", "test"] = "val"
    """Which images of the set."""
    count: int = 32
    """How many: of the split, or of each folder. Numbers are written for all, the picture shows the first 512."""
    columns: int = 16
    """Images a row."""

    def check(self) -> None:
        """Raise `UserError` for counts below 1."""
        check_at_least(1, count=self.count, columns=self.columns)


@dataclass(frozen=True)
class Morph(Common):
    """From one face to another, and on to the next, along straight lines and great circles of the latent space."""

    faces: tyro.conf.Positional[tuple[str, ...]] = ()
    """Two or more: photos, folders of them, or numbers or keys of images of the set (12, val:12, val:000123).
    Default: two of the split, drawn by the seed."""
    split: Literal["train", "val", "test"] = "val"
    """Where numbers and keys without a split's name belong."""
    steps: int = 9
    """Pictures from one face to the next, both included. The films have four times as many."""

    def check(self) -> None:
        """Raise `UserError` for steps that are none or fill the memory."""
        check_at_least(2, steps=self.steps)
        if self.steps > 24:
            raise UserError(f"--steps must be at most 24; got {self.steps}. The films have four times as many anyway.")


@dataclass(frozen=True)
class Report(Common):
    """One HTML file about a run: its data, its course, its grids, all results of the other commands, its costs, and
    how to make it again. It needs no network and no model, and shows whatever is there."""


@dataclass(frozen=True)
class Sample(Common):
    """New faces."""

    count: int = 64
    """How many."""
    columns: int = 16
    """Images a row."""
    prior: Literal["fitted", "standard"] = "fitted"
    """fitted: the aggregate posterior's mean and covariance; standard: N(0, I)."""
    temperature: float = 1.0
    """Scale of the draws: below 1 gives plainer, cleaner faces."""

    def check(self) -> None:
        """Raise `UserError` for counts below 1."""
        check_at_least(1, count=self.count, columns=self.columns)


Command = (
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Morph, tyro.conf.subcommand("morph")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
)
MODULES: dict[type[Common], str] = {Reconstruct: "reconstruct", Morph: "morph", Report: "report", Sample: "sample"}
"""By command, the file in this folder with its `run(command, console) -> list of the files that it wrote`."""


def check_at_least(least: int, **values: int | None) -> None:
    """Raise `UserError` for the first option that is given and smaller."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}; got {value}. Choose a larger one.")
