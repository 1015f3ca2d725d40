"""The VAE: one class around the encoder and decoder of an architecture, with which it goes to disk and comes back.

It states its precision itself. Weights are float32; in 16 bits (`compute_dtype`) each pass copies them once, all
activations from the first convolution on have 16 bits, and what ends it is float32: the encoder's last layer, the
sigmoid, the loss. Norms sum up in float32 inside their kernels. Under `torch.autocast` it does the same in that
precision: autocast's own rules would keep every norm, SiLU and upsampling in float32 on CUDA, and copy at every layer.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from pipeline.errors import CheckpointError
from train.architectures import Architecture, build
from train.checkpoint import weights_sha256
from train.device import halving, layout
from train.gaussian import Gaussian
from train.mixture import Mixture
from train.pretrained import CARD_FILE, PRIORS_FILE, Pretrained, read_pretrained, write_files
from train.priors import parse_priors

_DECODED_AT_ONCE = 64
LOGVAR_RANGE = (-20.0, 10.0)
"""Limits of the posterior's log-variance, so that no precision overflows."""


class Output(NamedTuple):
    """What one pass gives: `images` [B, 3, H, W] in [0, 1], `mean` and `logvar` [B, Z] of the posterior, float32."""

    images: Tensor
    mean: Tensor
    logvar: Tensor


class FaceVAE(nn.Module, ModelHubMixin, library_name="leanstream", tags=["vae", "faces"]):
    """A variational autoencoder with a Gaussian posterior of diagonal covariance and the prior N(0, I).

    A trained one: `FaceVAE.from_pretrained("runs/demo/final")`, or the name of a Hugging Face repository.
    `save_pretrained(folder)` and `push_to_hub("user/name")` write it with its model card and its pictures.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.prior = Gaussian.standard(architecture.latent)
        """Of a trained model the aggregate posterior's mean and covariance."""
        self.facts: dict[str, Any] = {}
        """What is known about a trained model: position, figures, the fingerprint of its data."""
        self.fitted: Mixture | None = None
        """The best prior by measurement, where `explore fit-prior` ran on these weights: then drawn from instead."""
        self._extras: dict[str, bytes] = {}
        self.recompute = False
        """Whether the activations inside a segment are computed again in the backward pass instead of kept."""
        self.compute_dtype: torch.dtype | None = None
        """Of activations, bfloat16 or float16; None: that of the weights, float32."""
        self.encoder, self.decoder = build(architecture)

    @property
    def latent(self) -> int:
        """Z, the dimensions of the latent space."""
        return self.architecture.latent

    @functools.cached_property
    def draws_for_itself(self) -> bool:
        """Whether a layer draws random numbers in training (dropout)."""
        return any(isinstance(layer, nn.Dropout) for layer in self.modules())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, Z], float32, of the posterior of `images` [B, 3, H, W] in [0, 1]."""
        with self._precision(images.device) as dtype:
            body = self.encoder[:-1]
            assert isinstance(body, nn.Sequential), "a part of one"
            features = self._run(body, images.to(dtype, memory_format=layout(images.device)))
            mean, logvar = self.encoder[-1](features.to(self._weight_dtype)).chunk(2, dim=1)
            return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], float32, of `latents` [B, Z]."""
        with self._precision(latents.device) as dtype:
            return torch.sigmoid(self._run(self.decoder, latents.to(dtype)).float())

    def forward(self, images: Tensor, noise: Tensor) -> Output:
        """Encode, take the sample mean + std * `noise` [B, Z] (Kingma and Welling 2013, section 2.4), decode."""
        mean, logvar = self.encode(images)
        return Output(self.decode(mean + torch.exp(0.5 * logvar) * noise), mean, logvar)

    @property
    def can_recompute(self) -> bool:
        """Whether computing layers twice changes nothing: BatchNorm would count each batch twice."""
        return not any(isinstance(layer, nn.BatchNorm2d) for layer in self.modules())

    @property
    def _weight_dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @contextlib.contextmanager
    def _precision(self, device: torch.device) -> Iterator[torch.dtype]:
        """The precision of activations: an enclosing autocast's, or else the model's own. Inside, autocast is off."""
        if not (torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)):
            yield self.compute_dtype or self._weight_dtype
            return
        dtype = torch.get_autocast_dtype(device.type)
        with torch.autocast(device.type, enabled=False):
            yield dtype

    def _run(self, layers: nn.Sequential, values: Tensor) -> Tensor:
        """`layers` in the precision of `values`."""
        recompute = self.recompute and torch.is_grad_enabled()
        weights = {} if values.dtype == self._weight_dtype else _copied(layers, values.dtype)
        for run in segments(layers) if recompute else [layers]:
            call = functools.partial(_with_weights, run, weights) if weights else run
            values = checkpoint(call, values, use_reentrant=False) if recompute else call(values)
        return values

    @torch.inference_mode()
    def sample(
        self, count: int, *, seed: int = 0, temperature: float = 1.0, prior: Gaussian | Mixture | None = None
    ) -> Tensor:
        """New faces, uint8 [count, 3, H, W] on the CPU, of draws from `prior` (default: `fitted`, else `self.prior`).

        Another seed gives others; `temperature` scales the spread of the draws: below 1, plainer faces.
        """
        self.eval()
        chosen = prior or self.fitted or self.prior
        mixture = Mixture.single(chosen) if isinstance(chosen, Gaussian) else chosen
        latents = mixture.draw(torch.arange(count), seed=seed, temperature=temperature)
        latents = latents.to(next(self.parameters()).device)
        parts = torch.split(latents, _DECODED_AT_ONCE)
        return torch.cat([halving(lambda part: (to_uint8(self.decode(part)).cpu(),), part)[0] for part in parts])

    def describe(self) -> dict[str, object]:
        """The architecture as JSON values."""
        return asdict(self.architecture)

    @classmethod
    def of(cls, found: Pretrained) -> Self:
        """The model that was read, in evaluation mode; `CheckpointError` where its tensors are another model's."""
        model = cls(found.architecture)
        try:
            model.load_state_dict(found.tensors)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights must fit their architecture; got '{error}'. Copy them again."
            ) from error
        model.prior, model._extras = found.prior, found.extras
        if PRIORS_FILE in found.extras:
            # Damaged ones, and those of other weights, count as none; `explore` says so.
            with contextlib.suppress(CheckpointError):
                weights = weights_sha256(model.state_dict())
                model.fitted = parse_priors(found.extras[PRIORS_FILE], weights, PRIORS_FILE).best
        model.facts = found.facts
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load from a finished model's folder, a finished run's folder, or a Hugging Face repository.

        `options` are huggingface_hub's: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.
        Raises `UserError` where there is no model of that name, `CheckpointError` where it is damaged,
        `TransportError` where the hub cannot be reached.
        """
        return cls.of(read_pretrained(pretrained_model_name_or_path, **options))

    def _save_pretrained(self, save_directory: Path) -> None:
        extras = {CARD_FILE: self._plain_card().encode(), **self._extras}
        write_files(save_directory, self, self.prior, self.facts, extras)

    def _plain_card(self) -> str:
        """The card of a model that came from no run."""
        return (
            "---\nlibrary_name: leanstream\ntags:\n- vae\n- faces\n---\n"
            f"# A variational autoencoder of faces, {self.architecture.image_size} px\n"
        )


class _Copy(torch.autograd.Function):
    """Tensors in another precision, by one kernel, and their gradients back, by one more."""

    @staticmethod
    def forward(_: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _copies(tensors, dtype)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_copies(gradients, torch.float32))


def _copies(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    made = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    torch._foreach_copy_(made, tensors)
    return made


def _copied(layers: nn.Sequential, dtype: torch.dtype) -> dict[Tensor, Tensor]:
    """The weights in another precision, but for those of BatchNorm: its kernels want them, and its moving statistics,
    in float32 beside images of 16 bits."""
    weights = [
        weight
        for layer in layers.modules()
        if not isinstance(layer, nn.BatchNorm2d)
        for weight in layer.parameters(recurse=False)
    ]
    return dict(zip(weights, _Copy.apply(dtype, *weights), strict=True))  # type: ignore[no-untyped-call]


def _with_weights(layers: nn.Sequential, weights: dict[Tensor, Tensor], values: Tensor) -> Tensor:
    """`layers` with others in place of their own weights."""
    others = {name: weights[weight] for name, weight in layers.named_parameters() if weight in weights}
    result: Tensor = functional_call(layers, others, (values,))
    return result


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [0, 1] as uint8, rounded."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def segments(layers: nn.Sequential) -> list[nn.Sequential]:
    """The layers in runs that each begin where the size of the images changes."""
    runs: list[list[nn.Module]] = [[]]
    for layer in layers:
        resizes = isinstance(layer, nn.Upsample) or (
            isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.stride != (1, 1)
        )
        if resizes and runs[-1]:
            runs.append([])
        runs[-1].append(layer)
    return [nn.Sequential(*run) for run in runs]


def parameter_count(model: nn.Module) -> int:
    """Numbers that make up the model, BatchNorm's moving statistics included, as Keras counts them."""
    return sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())
