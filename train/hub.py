"""`FaceVAE` as users meet it: from a folder or a Hugging Face repository by one line, and back."""

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from pipeline.errors import TransportError, UserError
from train import models
from train.architectures import Architecture
from train.evaluate import Gaussian
from train.grids import new_faces
from train.pretrained import (
    CARD_FILE,
    CONFIG_FILE,
    EXTRA_FILES,
    PRIOR_FILE,
    WEIGHTS_FILE,
    load_pretrained,
    write_files,
)
from train.runfolder import RunFolder

_FILES = (CONFIG_FILE, WEIGHTS_FILE, PRIOR_FILE, *EXTRA_FILES)


class FaceVAE(models.FaceVAE, ModelHubMixin, library_name="leanstream", tags=["vae", "faces"]):
    """A trained face VAE: `FaceVAE.from_pretrained("runs/demo/final")`, or the name of a Hugging Face repository.

    `save_pretrained(folder)` and `push_to_hub("user/name")` write it with its model card and its pictures.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.prior = Gaussian.standard(architecture.latent)
        """The aggregate posterior's mean and covariance: where new faces are drawn from."""
        self.facts: dict[str, Any] = {}
        """What is known about the model: position, figures, the fingerprint of its data."""
        self._extras: dict[str, bytes] = {}

    def sample(self, count: int, *, seed: int = 0, temperature: float = 1.0) -> Tensor:
        """New faces, uint8 [count, 3, H, W]; another seed gives others, a `temperature` below 1 plainer ones."""
        device = next(self.parameters()).device
        return new_faces(self, self.prior, device, count=count, seed=seed, temperature=temperature)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load from a finished model's folder, a finished run's folder, or a Hugging Face repository.

        `options` are huggingface_hub's: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.
        Raises `UserError` where there is no model of that name, `CheckpointError` where it is damaged,
        `TransportError` where the hub cannot be reached.
        """
        name = str(pretrained_model_name_or_path)
        path = Path(name).expanduser()
        if path.is_dir() and not (path / CONFIG_FILE).exists() and RunFolder(path).final.is_dir():
            path = RunFolder(path).final
        if not path.is_dir():
            path = _download(name, options)
        loaded, prior, facts = load_pretrained(path, torch.device("cpu"))
        model = cls(loaded.architecture)
        model.load_state_dict(loaded.state_dict())
        model.prior = prior
        model.facts = {key: value for key, value in facts.items() if key not in ("architecture", "files")}
        model._extras = {name: (path / name).read_bytes() for name in EXTRA_FILES if (path / name).exists()}
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        extras = {CARD_FILE: _plain_card(self).encode(), **self._extras}
        write_files(save_directory, self, self.prior, self.facts, extras)


def _download(name: str, options: dict[str, Any]) -> Path:
    """A repository's files in huggingface_hub's cache."""
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES), **options))
    except HFValidationError as error:
        raise UserError(
            f"a model must be a folder or a Hugging Face repository; got '{name}', which is neither. Check the name."
        ) from error
    except LocalEntryNotFoundError as error:
        raise TransportError(
            f"{name} must be a folder, or in reach on Hugging Face; got '{str(error).splitlines()[0]}'. "
            "Check the path and the network."
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"a model must be a folder or a Hugging Face repository; got '{name}', and the hub says "
            f"'{str(error).splitlines()[-1]}'. Check the name, and log in where it is private."
        ) from error


def _plain_card(model: FaceVAE) -> str:
    """The card of a model that came from no run."""
    size = model.architecture.image_size
    return (
        f"---\nlibrary_name: leanstream\ntags:\n- vae\n- faces\n---\n# A variational autoencoder of faces, {size} px\n"
    )
