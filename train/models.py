"""The VAEs: one class, whose encoder and decoder are made by `kind`.

conv   four stride-2 stages of convolution, GroupNorm and SiLU; 64 or 128 px.
keras  the Keras CelebA VAE of "Generative Deep Learning" (Foster 2019, chapter 3), layer by layer.
"""

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError

STAGES = 4
DEFAULT_LATENT = {"conv": 128, "keras": 200}
DEFAULT_WIDTHS = {"conv": (32, 64, 128, 256), "keras": (32, 64, 64, 64)}
LOGVAR_RANGE = (-20.0, 10.0)
"""Limits of the posterior's log-variance, so that no precision overflows."""


class Output(NamedTuple):
    """What one pass gives: `images` [B, 3, H, W] in [0, 1], `mean` and `logvar` [B, Z] of the posterior, float32."""

    images: Tensor
    mean: Tensor
    logvar: Tensor


@dataclass(frozen=True)
class Architecture:
    """All that it takes to build the model again."""

    kind: str
    image_size: int
    latent: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        step = 2**STAGES
        if self.image_size % step or self.image_size < 2 * step:
            raise ConfigError(
                f"the image size must be a multiple of {step} from {2 * step} on for model.kind={self.kind}; "
                f"got {self.image_size}. Make the shards with --size 64 or --size 128."
            )


class FaceVAE(nn.Module):
    """A variational autoencoder with a Gaussian posterior of diagonal covariance and the prior N(0, I)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        build = {"conv": _build_conv, "keras": _build_keras}[architecture.kind]
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
        mean, logvar = self.encoder(images).float().chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], float32, of `latents` [B, Z]."""
        images: Tensor = self.decoder(latents)
        return torch.sigmoid(images.float())

    def forward(self, images: Tensor, noise: Tensor) -> Output:
        """Encode, take the sample mean + std * `noise` [B, Z] (Kingma and Welling 2013, section 2.4), decode."""
        mean, logvar = self.encode(images)
        return Output(self.decode(mean + torch.exp(0.5 * logvar) * noise), mean, logvar)

    def describe(self) -> dict[str, object]:
        """The architecture as JSON values."""
        return asdict(self.architecture)


def parameter_count(model: nn.Module) -> int:
    """Numbers that make up the model, BatchNorm's moving statistics included, as Keras counts them."""
    return sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())


def _build_conv(architecture: Architecture) -> tuple[nn.Module, nn.Module]:
    widths = architecture.widths
    bottom = architecture.image_size >> STAGES
    flat = widths[-1] * bottom * bottom
    down: list[nn.Module] = []
    for before, after in zip((3, *widths[:-1]), widths, strict=True):
        down += [nn.Conv2d(before, after, 3, stride=2, padding=1), _group_norm(after), nn.SiLU()]
    up: list[nn.Module] = [nn.Linear(architecture.latent, flat), nn.Unflatten(1, (widths[-1], bottom, bottom))]
    for before, after in zip(reversed(widths), (*reversed(widths[:-1]), 3), strict=True):
        up += [_group_norm(before), nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, 2 * architecture.latent))
    decoder = nn.Sequential(*up)
    return encoder, decoder


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


class _SameConv2d(nn.Conv2d):
    """3x3, stride 2, with TensorFlow's "same" padding: for an even size nothing before, one after."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(functional.pad(images, (0, 1, 0, 1)))


class _SameConvTranspose2d(nn.ConvTranspose2d):
    """3x3, stride 2, exactly twice the size: the last row and column are cut off, as TensorFlow's "same" does."""

    def forward(self, images: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(images, output_size)[:, :, :-1, :-1]


class _FlattenLast(nn.Module):
    """[B, C, H, W] -> [B, H * W * C], the order of Keras's Flatten."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


class _UnflattenLast(nn.Module):
    """[B, H * W * C] -> [B, C, H, W]."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.shape = (size, size, channels)

    def forward(self, values: Tensor) -> Tensor:
        return values.view(len(values), *self.shape).permute(0, 3, 1, 2)


def _build_keras(architecture: Architecture) -> tuple[nn.Module, nn.Module]:
    widths = architecture.widths
    bottom = architecture.image_size >> STAGES
    flat = widths[-1] * bottom * bottom
    down: list[nn.Module] = []
    for before, after in zip((3, *widths[:-1]), widths, strict=True):
        down += [_SameConv2d(before, after, 3, stride=2), *_keras_block(after)]
    up: list[nn.Module] = [nn.Linear(architecture.latent, flat), _UnflattenLast(widths[-1], bottom)]
    out_channels = (*reversed(widths[:-1]), 3)
    for before, after in zip((widths[-1], *out_channels[:-1]), out_channels, strict=True):
        up.append(_SameConvTranspose2d(before, after, 3, stride=2))
        if after != 3:
            up += _keras_block(after)
    encoder = nn.Sequential(*down, _FlattenLast(), nn.Linear(flat, 2 * architecture.latent))
    decoder = nn.Sequential(*up)
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            nn.init.xavier_uniform_(module.weight)
    # Keras makes two layers of this one, each with limits of its own.
    head = encoder[-1]
    assert isinstance(head, nn.Linear), "the encoder ends in its head"
    for half in head.weight.data.chunk(2):
        nn.init.xavier_uniform_(half)
    return encoder, decoder


def _keras_block(channels: int) -> list[nn.Module]:
    # Keras's momentum 0.99 is the share of the old value, torch's that of the new one.
    return [nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01), nn.LeakyReLU(0.3), nn.Dropout(0.25)]
