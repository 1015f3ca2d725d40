"""The commands of `explore` and their options; what a command does is in the file of its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pipeline.errors import UserError


@dataclass(frozen=True)
class Common:
    """What every command takes."""

    run: Path | None = None
    """Run folder, e.g. runs/demo."""
    model: str | None = None
    """Finished model, instead of --run: its folder, or a Hugging Face repository."""
    shards: tuple[str, ...] | None = None
    """Folders or URLs of shard sets, which are read as one. Default: what the run was trained on."""
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
    """Photos of any size, or folders of them, in place of the set's images. They are cropped and resized as those.
    Name them before --shards."""
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
    Name them before --shards. Default: two of the split, drawn by the seed."""
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
    """New faces: a picture of all of them, or a file of each, and their nearest training images if asked."""

    count: int = 64
    """How many."""
    columns: int = 16
    """Images a row."""
    prior: Literal["best", "mixture", "gaussian", "standard"] = "best"
    """What to draw from. standard: N(0, I); gaussian: the aggregate posterior's mean and covariance; mixture: several
    Gaussians, made by fit-prior; best: of these the one that fit-prior measured to be best, else gaussian."""
    temperature: float = 1.0
    """Scale of the draws: below 1 gives plainer, cleaner faces."""
    files: Path | None = None
    """Folder for a PNG of each face, in place of the picture of all: thousands, if you like."""
    neighbours: int = 0
    """Show the faces beside so many of their nearest training images, to see that nothing was memorised."""

    def check(self) -> None:
        """Raise `UserError` for counts below 1, more faces than a picture holds, and a temperature that is none."""
        check_at_least(1, count=self.count, columns=self.columns)
        check_at_least(0, neighbours=self.neighbours)
        if not 0 <= self.temperature <= 10:
            raise UserError(f"--temperature must be from 0 to 10; got {self.temperature:g}. 1 is the prior as it is.")
        if self.neighbours > 16:
            raise UserError(f"--neighbours must be at most 16; got {self.neighbours}. Choose a smaller number.")
        if self.files is None and self.count > 1024:
            raise UserError(
                f"a picture must hold at most 1,024 faces; got --count {self.count}. Add --files FOLDER for a file of "
                "each."
            )


@dataclass(frozen=True)
class Score(Common):
    """Figures: how true reconstructions are, and how like real faces the new ones of each prior."""

    split: Literal["val", "test", "train"] = "val"
    """The images that all others are compared with."""
    count: int | None = None
    """How many of them, and of each set that is compared. Default: all of the split, at most 10,000."""
    seeds: int = 3
    """Draws of new faces, of posterior samples and of real images, for the mean and the deviation of a figure."""
    features: Path | None = None
    """TorchScript network [B, 3, H, W] -> [B, F] on values from 0 to 255, for Frechet and kernel distance: FID and KID
    by NVIDIA's inception-2015-12-05.pt. Precision, recall, density and coverage are on its features too."""
    features_name: str | None = None
    """What to call it; `inception` makes its distances FID and KID. Default: the file's name."""
    features_size: int | None = None
    """Side in pixels that images are resized to for it. Default: as they are; NVIDIA's resizes by itself."""

    def check(self) -> None:
        """Raise `UserError` for counts that are too small, and for words about features that are not given."""
        check_at_least(1, seeds=self.seeds, features_size=self.features_size)
        check_at_least(LEAST_SCORED, count=self.count)
        if self.features is None and (self.features_name or self.features_size):
            raise UserError("--features-name and --features-size must go with a network; got none. Add --features.")


LEAST_SCORED = 10
"""Images that a score needs: fewer have not the neighbours that it looks for."""


@dataclass(frozen=True)
class Attributes(Common):
    """A direction in latent space for every attribute of the set, how well each is told, and faces moved along them."""

    faces: tyro.conf.Positional[tuple[str, ...]] = ()
    """Photos, folders of them, or numbers or keys of images of the set (12, val:12, val:000123).
    Name them before --shards. Default: three of the held-out images, drawn by the seed."""
    only: str | None = None
    """Attributes to show, e.g. Smiling,Eyeglasses. Default: all."""
    apply: str | None = None
    """Change the faces, and do nothing else: e.g. Smiling=2,Eyeglasses=-1. One unit is from without to with."""
    directions: Literal["adjusted", "plain"] = "adjusted"
    """adjusted: the other attributes held fixed; plain: the difference of the means of faces with and without it."""
    images: int | None = None
    """Training images to make the directions from. Default: those that are stored, else 20,000."""

    def check(self) -> None:
        """Raise `UserError` for too few images."""
        check_at_least(2, images=self.images)


@dataclass(frozen=True)
class App(Common):
    """A page on this machine: sliders for faces, your own photos, morphs."""

    port: int | None = None
    """Port of 127.0.0.1. Default: the first that is free from 7860 on."""
    open: bool = False
    """Open it in the browser."""

    def check(self) -> None:
        """Raise `UserError` for what is no port."""
        if self.port is not None and not 0 <= self.port <= 65535:
            raise UserError(f"--port must be from 0 to 65535; got {self.port}. Leave it out to get a free one.")


@dataclass(frozen=True)
class Latents(Common):
    """Where images lie in the latent space: t-SNE, histograms, KL, aggregate posterior, distance to the prior."""

    split: Literal["train", "val", "test", "all"] = "train"
    """Which images; all: one split after the other."""
    count: int = 20_000
    """How many, or as many as there are."""
    dimensions: int = 30
    """Histograms, of the dimensions of the largest KL."""
    colour_by: tuple[str, ...] = ()
    """Attributes of the set: a t-SNE picture coloured by each."""
    perplexity: float = 30.0
    """Neighbours of an image that t-SNE keeps near."""

    def check(self) -> None:
        """Raise `UserError` for counts and a perplexity below 1."""
        check_at_least(1, count=self.count, dimensions=self.dimensions)
        if not self.perplexity >= 1:
            raise UserError(f"--perplexity must be at least 1; got {self.perplexity:g}. Choose a larger one.")


@dataclass(frozen=True)
class FitPrior(Common):
    """Fit distributions to the latents of the training images, compare the faces that are drawn from them with
    held-out ones, and store them with the model: `sample` draws from the best one."""

    components: int = 10
    """Gaussians in the mixture."""
    count: int = 20_000
    """Training images to fit to, at most, and held-out images to measure on."""

    def check(self) -> None:
        """Raise `UserError` for counts that make no mixture."""
        check_at_least(2, components=self.components, count=self.count)


COMMANDS: dict[str, type[Common]] = {
    "reconstruct": Reconstruct,
    "fit-prior": FitPrior,
    "sample": Sample,
    "latents": Latents,
    "attributes": Attributes,
    "morph": Morph,
    "score": Score,
    "report": Report,
    "app": App,
}
"""By name. The file of that name in this folder has `run(command, console) -> list of the files that it wrote`."""


def check_at_least(least: int, **values: int | None) -> None:
    """Raise `UserError` for the first option that is given and smaller."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}; got {value}. Choose a larger one.")
