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
    """Originals over their reconstructions, and the PSNR of each."""

    split: Literal["train", "val", "test"] = "val"
    """Which images."""
    count: int = 32
    """How many."""
    columns: int = 16
    """Images a row."""

    def check(self) -> None:
        """Raise `UserError` for counts below 1."""
        check_at_least(1, count=self.count, columns=self.columns)


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
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")] | Annotated[Sample, tyro.conf.subcommand("sample")]
)
MODULES: dict[type[Common], str] = {Reconstruct: "reconstruct", Sample: "sample"}
"""By command, the file in this folder with its `run(command, console) -> list of the files that it wrote`."""


def check_at_least(least: int, **values: int | None) -> None:
    """Raise `UserError` for the first option that is given and smaller."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}; got {value}. Choose a larger one.")
