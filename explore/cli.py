"""`explore reconstruct` and `explore sample`: pictures of a trained face VAE, each with its numbers beside it."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from pipeline.errors import LeanstreamError, UserError, report_error
from pipeline.files import atomic_writer, write_json


@dataclass(frozen=True)
class Common:
    """What every command takes."""

    run: Path | None = None
    """Run folder, e.g. runs/demo."""
    model: Path | None = None
    """Finished model's folder, instead of --run."""
    shards: str | None = None
    """Folder or URL of the shard set; default: the one that the run was trained on."""
    debug: bool = False
    """Show tracebacks of errors."""


@dataclass(frozen=True)
class Reconstruct(Common):
    """Originals over their reconstructions, and the PSNR of each."""

    split: Literal["train", "val", "test"] = "val"
    """Which images."""
    count: int = 32
    """How many."""
    columns: int = 16
    """Images a row."""


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
    seed: int = 0
    """Other numbers give other faces."""


Command = (
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")] | Annotated[Sample, tyro.conf.subcommand("sample")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    console = Console(highlight=False)
    try:
        command: Reconstruct | Sample = tyro.cli(Command, args=arguments, prog="explore", description=__doc__)
        if command.count < 1 or command.columns < 1:
            raise UserError("--count and --columns must be at least 1; got less. Choose larger ones.")
        path = reconstruct(command) if isinstance(command, Reconstruct) else sample(command)
    except (LeanstreamError, OSError) as error:
        if "--debug" in arguments:
            raise
        return report_error(error, "exploring")
    console.print(f"{path}\n{path.with_suffix('.json')}", soft_wrap=True, markup=False)
    return 0


def run() -> None:
    """The console script."""
    sys.exit(main())


def reconstruct(command: Reconstruct) -> Path:
    """Paint `reconstruct-SPLIT.png`; its json has the PSNR of every image in dB."""
    from explore.model import load_trained
    from train.grids import reconstruction_blocks, stack
    from train.similarity import psnr

    trained = load_trained(command.run, command.model, command.shards)
    if trained.shards is None:
        raise UserError("the originals must come from a shard set; got none. Add --shards FOLDER.")
    blocks, originals, answers = reconstruction_blocks(
        trained.model, trained.shards, command.split, trained.device, columns=command.columns, count=command.count
    )
    decibels = psnr(originals.float() / 255, answers.float() / 255)
    caption, picture = blocks[0]
    image = stack([(f"{caption} (PSNR {decibels.mean():.2f} dB)", picture)])
    path = trained.folder / f"reconstruct-{command.split}.png"
    return _save(path, image, {"psnr_db": decibels.tolist(), "mean_psnr_db": float(decibels.mean())}, command)


def sample(command: Sample) -> Path:
    """Paint `sample-PRIOR.png`; its json says what it was drawn from."""
    from explore.model import load_trained
    from train.evaluate import Gaussian
    from train.grids import new_faces, stack, tile

    trained = load_trained(command.run, command.model, command.shards)
    gaussian = trained.fitted if command.prior == "fitted" else Gaussian.standard(trained.model.latent)
    faces = new_faces(
        trained.model,
        gaussian,
        trained.device,
        count=command.count,
        seed=command.seed,
        temperature=command.temperature,
    )
    name = "the aggregate posterior's mean and covariance" if command.prior == "fitted" else "the prior N(0, I)"
    image = stack([(f"new faces, from {name}, temperature {command.temperature:g}", tile(faces, command.columns))])
    return _save(trained.folder / f"sample-{command.prior}.png", image, {}, command)


def _save(path: Path, image: object, numbers: dict[str, object], command: Common) -> Path:
    from PIL import Image

    assert isinstance(image, Image.Image), "pictures are Pillow's"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as file:
        image.save(file, "PNG")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(command).items()}
    write_json(path.with_suffix(".json"), {**numbers, "settings": settings})
    return path


if __name__ == "__main__":
    run()
