"""What new faces are drawn from: N(0, I), the aggregate posterior's Gaussian, and a mixture fitted to it.

final/priors.safetensors      of a finished model, and published with it
explore/priors.safetensors    of an unfinished run: of its newest checkpoint when it was fitted
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explore.model import Trained
from pipeline.errors import CheckpointError, UserError
from train.checkpoint import weights_sha256
from train.mixture import Mixture
from train.pretrained import CONFIG_FILE, PRIORS_FILE
from train.priors import FittedPriors, read_priors, write_priors
from train.runfolder import RunFolder

STANDARD, GAUSSIAN, MIXTURE = "standard", "gaussian", "mixture"


@dataclass(frozen=True)
class Priors:
    """Distributions over the latent space, by name."""

    mixtures: Mapping[str, Mixture]
    """`standard`, `gaussian`, and `mixture` where one is fitted."""
    default: str
    """The better one by measurement, or `gaussian` where nothing was measured."""
    facts: Mapping[str, Any]
    """What fit-prior used and measured; empty where it did not run."""
    note: str | None = None
    """Why what is stored is not used, where that is so."""

    @property
    def names(self) -> tuple[str, ...]:
        """What there is to draw from."""
        return tuple(self.mixtures)

    def sample(self, name: str, count: int, *, seed: int, temperature: float = 1.0, first: int = 0) -> Tensor:
        """Draws number `first` to `first + count - 1`, float32 [count, Z]: draw i is a function of (seed, i) alone.

        `temperature` scales the spread within a component. Raises `UserError` for a prior that is not there.
        """
        return self.mixture(name).draw(torch.arange(first, first + count), seed=seed, temperature=temperature)

    def origin(self, name: str) -> str:
        """The words for a caption."""
        if name == STANDARD:
            return "the prior N(0, I)"
        if name == GAUSSIAN:
            return "the aggregate posterior's mean and covariance"
        return f"a mixture of {len(self.mixture(name).weights)} Gaussians, fitted to the aggregate posterior"

    def mixture(self, name: str) -> Mixture:
        """The distribution itself; `UserError` for one that is not there."""
        found = self.mixtures.get(name)
        if found is None:
            why = f" ({self.note})" if self.note else ""
            raise UserError(
                f"the prior must be one of {', '.join(self.names)}; got '{name}'{why}. "
                "Fit a mixture with `explore fit-prior`, or choose one of these."
            )
        return found


def load_priors(trained: Trained) -> Priors:
    """The priors of a model: those that fit-prior stored for these very weights, else the Gaussian it came with."""
    standard = {STANDARD: Mixture.standard(trained.model.latent)}
    note = None
    for path in _places(trained):
        if not path.exists():
            continue
        try:
            stored = read_priors(path, weights_sha256(trained.model.state_dict()))
        except CheckpointError as error:
            note = str(error)
            continue
        return Priors({**standard, **stored.fitted}, stored.default, stored.facts)
    return Priors({**standard, GAUSSIAN: Mixture.single(trained.fitted)}, GAUSSIAN, {}, note)


def store_priors(trained: Trained, priors: FittedPriors) -> Path:
    """Store them with the finished model, or with the results of an unfinished run; returns the file."""
    path = _places(trained)[0]
    write_priors(path, priors, weights_sha256(trained.model.state_dict()))
    return path


def _places(trained: Trained) -> list[Path]:
    """Where priors may lie, the one to write to first."""
    models = (RunFolder(trained.home).final, trained.home)
    return [
        *(folder / PRIORS_FILE for folder in models if (folder / CONFIG_FILE).exists()),
        trained.folder / PRIORS_FILE,
    ]
