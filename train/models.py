"""The VAE: one class around the encoder and decoder of an architecture."""

from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.architectures import Architecture, build

LOGVAR_RANGE = (-20.0, 10.0)
"""Limits of the posterior's log-variance, so that no precision overflows."""


class Output(NamedTuple):
    """What one pass gives: `images` [B, 3, H, W] in [0, 1], `mean` and `logvar` [B, Z] of the posterior, float32."""

    images: Tensor
    mean: Tensor
    logvar: Tensor


class FaceVAE(nn.Module):
    """A variational autoencoder with a Gaussian posterior of diagonal covariance and the prior N(0, I)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.recompute = False
        """Whether the activations inside a segment are computed again in the backward pass instead of kept."""
        self.encoder, self.decoder = build(architecture)

    @property
    def latent(self) -> int:
        """Z, the dimensions of the latent space."""
        return self.architecture.latent

    @property
    def draws_for_itself(self) -> bool:
        """Whether a layer draws random numbers in training (dropout)."""
        return any(isinstance(layer, nn.Dropout) for layer in self.modules())

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, Z], float32, of the posterior of `images` [B, 3, H, W] in [0, 1]."""
        mean, logvar = self._run(self.encoder, images).float().chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], float32, of `latents` [B, Z]."""
        return torch.sigmoid(self._run(self.decoder, latents).float())

    def forward(self, images: Tensor, noise: Tensor) -> Output:
        """Encode, take the sample mean + std * `noise` [B, Z] (Kingma and Welling 2013, section 2.4), decode."""
        mean, logvar = self.encode(images)
        return Output(self.decode(mean + torch.exp(0.5 * logvar) * noise), mean, logvar)

    @property
    def can_recompute(self) -> bool:
        """Whether computing layers twice changes nothing: BatchNorm would count each batch twice."""
        return not any(isinstance(layer, nn.BatchNorm2d) for layer in self.modules())

    def _run(self, layers: nn.Sequential, values: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            result: Tensor = layers(values)
            return result
        for segment in segments(layers):
            values = checkpoint(segment, values, use_reentrant=False)
        return values

    def describe(self) -> dict[str, object]:
        """The architecture as JSON values."""
        return asdict(self.architecture)


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
