"""Which images to fit to, and which to measure on: never the same."""

from dataclasses import dataclass

from explore.latent.directions import held_out_split
from explore.model import Trained
from pipeline.errors import UserError


@dataclass(frozen=True)
class Part:
    """Images number `begin` to `end - 1` of a split's order."""

    split: str
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def first(self, count: int) -> "Part":
        """The first `count` of them."""
        return Part(self.split, self.begin, min(self.end, self.begin + count))


def training_and_held_out(trained: Trained) -> tuple[Part, Part]:
    """The training images, and the held-out ones of `val` or else `test`; in a set with one split, its last tenth.

    Raises `UserError` for a set of one image.
    """
    total, split = trained.count("train"), held_out_split(trained)
    if split != "train":
        return Part("train", 0, total), Part(split, 0, trained.count(split))
    if total < 2:
        raise UserError("the shard set must have 2 images at least; got 1. Make a larger one.")
    cut = max(1, total * 9 // 10)
    return Part("train", 0, cut), Part("train", cut, total)
