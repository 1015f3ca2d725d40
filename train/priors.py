"""The priors that were fitted to a model's aggregate posterior, as one file that belongs to these weights alone.

`priors.safetensors` holds the components' weights, means and Cholesky factors; its header says of which weights they
are, what was measured, and a hash of all of it. So tensors and what is said of them cannot part, and neither a
damaged file nor one of other weights is ever drawn from.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from pipeline.errors import CheckpointError
from pipeline.files import write_atomic
from train.checkpoint import weights_sha256
from train.mixture import Mixture

_VERSION = 1
_TENSORS = ("weights", "means", "factors")


@dataclass(frozen=True)
class FittedPriors:
    """What `explore fit-prior` found."""

    fitted: dict[str, Mixture]
    """By name: `gaussian`, and `mixture` where there were images enough."""
    default: str
    """The best by measurement: one of these or `standard`, which is N(0, I)."""
    facts: dict[str, Any]
    """Of which images they were made, and what was measured; JSON values."""

    @property
    def best(self) -> Mixture:
        """The default itself."""
        found = self.fitted.get(self.default)
        return Mixture.standard(next(iter(self.fitted.values())).latent) if found is None else found


def write_priors(path: Path, priors: FittedPriors, weights: str) -> None:
    """Write all of it in one step; `weights` is the `weights_sha256` of the model."""
    tensors = {
        f"{name}.{part}": getattr(mixture, part).contiguous()
        for name, mixture in priors.fitted.items()
        for part in _TENSORS
    }
    about = {
        "version": _VERSION,
        "weights_sha256": weights,
        "tensors_sha256": weights_sha256(tensors),
        "names": list(priors.fitted),
        "default": priors.default,
        "facts": priors.facts,
    }
    # One entry: the order of several is not the same each time.
    header = {"priors": json.dumps({"about": about, "sha256": _hash(about)}, ensure_ascii=False)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors, header))


def read_priors(path: Path, weights: str) -> FittedPriors:
    """Read what `write_priors` wrote.

    Raises `CheckpointError` where the file is damaged, or was fitted to other weights.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} must be readable; got '{error}'. Run fit-prior again.") from error
    return parse_priors(data, weights, str(path))


def parse_priors(data: bytes, weights: str, path: str) -> FittedPriors:
    """As `read_priors`, of the content of a file; `path` is for the message."""
    try:
        # A safetensors file begins with the length of its header, which is JSON.
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["priors"])
        tensors = load(data)
        about = header["about"]
        whole = (_hash(about), weights_sha256(tensors)) == (header["sha256"], about["tensors_sha256"])
        if not whole or about["version"] != _VERSION:
            raise CheckpointError(f"{path} must be as it was written; got other bytes. Run fit-prior again.")
        if about["weights_sha256"] != weights:
            raise CheckpointError(
                f"{path} must be fitted to the model's weights; got priors of others. Run fit-prior again."
            )
        mixtures = {name: Mixture(*(tensors[f"{name}.{part}"] for part in _TENSORS)) for name in about["names"]}
        return FittedPriors(mixtures, about["default"], about["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} must be readable; got '{error}'. Run fit-prior again.") from error


def _hash(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
