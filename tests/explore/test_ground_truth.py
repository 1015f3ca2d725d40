"""Drawn faces tell whether directions do what they say: there, every attribute was drawn independently of the others.

A model is trained briefly by the product itself. What its pictures show is judged by a probe that was trained on true
drawn pictures and their labels alone. What it cannot judge on true pictures, it does not judge at all; and what it
cannot find on reconstructions of held-out faces, the model does not paint after so short a training, and no direction
could: both by areas under ROC curves that are measured here, not by name.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from demo.traits import HAIR_COLOURS
from explore.commands import Common
from explore.encode import Encoded, encoded
from explore.latent import directions as module
from explore.latent.directions import Directions, compute_directions, load_directions
from explore.model import Trained, load_trained
from tests.explore.probes import Probe, train_probe

JUDGED, PAINTED = 0.9, 0.7
"""Areas under the ROC curve from which on the probe knows an attribute on true pictures, and on reconstructions: on
300 faces the second is six standard errors above chance. Of what is painted less, a direction can add but little."""
UNITS = 2.0


@dataclasses.dataclass(frozen=True)
class Bench:
    trained: Trained
    probe: Probe
    latents: Tensor
    """Of the held-out faces."""
    on_true: Tensor
    """[A] Areas of the probe on true held-out pictures."""
    on_answers: Tensor
    """[A] The same on their reconstructions."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.trained.require_attributes()

    def effects(self, directions: Directions, *, plain: bool = False) -> Tensor:
        """[A, A] What each direction does to each attribute, as the probe sees it; as shares of the true difference."""
        assert directions.names == self.names
        vectors = directions.plain if plain else directions.vectors
        with torch.inference_mode():
            return self.probe.effects(self.latents[:100], vectors, self.trained.model.decode, UNITS)

    def true_to_their_names(self, effects: Tensor) -> dict[str, bool]:
        """Of each attribute that the model paints: whether its direction adds it, and nothing else as much.

        A hair colour is not compared with the others: they are one draw, and to add one is to take another away.
        """
        found = {}
        for number, name in enumerate(self.names):
            if self.on_answers[number] < PAINTED or self.on_true[number] < JUDGED:
                continue
            others = [
                float(effects[number, other].abs())
                for other, its_name in enumerate(self.names)
                if other != number
                and self.on_true[other] >= JUDGED
                and not (name in HAIR_COLOURS and its_name in HAIR_COLOURS)
            ]
            found[name] = float(effects[number, number]) > max(others)
        return found


@pytest.fixture(scope="module")
def bench(drawn_run: Path) -> Bench:
    trained = load_trained(Common(run=drawn_run), prior_images=1)
    images, _, labels = _all(trained, "train")
    held_out, latents, truth = _all(trained, "val")
    probe = train_probe(images, labels, held_out, truth)
    with torch.inference_mode():
        answers = trained.model.decode(latents)
    return Bench(trained, probe, latents, probe.aucs(held_out, truth), probe.aucs(answers, truth))


def _all(trained: Trained, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, posterior means and labels of a split."""
    parts = []
    for batch in encoded(trained, split, labels=True):
        assert batch.labels is not None
        parts.append((batch.images, batch.mean, batch.labels))
    images, means, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return images.clone(), means.clone(), labels


def test_the_probe_knows_true_pictures_and_the_model_paints_enough(bench: Bench) -> None:
    assert int((bench.on_true >= JUDGED).sum()) >= 16
    assert int(((bench.on_true >= JUDGED) & (bench.on_answers >= PAINTED)).sum()) >= 13


@pytest.mark.parametrize("plain", [False, True])
def test_each_direction_changes_what_it_names_more_than_anything_else(bench: Bench, plain: bool) -> None:
    effects = bench.effects(load_directions(bench.trained), plain=plain)
    found = bench.true_to_their_names(effects)
    assert all(found.values()), found


def test_directions_of_shuffled_labels_do_not(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def shuffled(*arguments: Any, **options: Any) -> Iterator[Encoded]:
        for batch in encoded(*arguments, **options):
            assert batch.labels is not None
            yield dataclasses.replace(batch, labels=batch.labels.roll(1, 0))

    monkeypatch.setattr(module, "encoded", shuffled)
    found = bench.true_to_their_names(bench.effects(compute_directions(bench.trained, None, 20_000)))
    assert sum(found.values()) < len(found) / 2, found
