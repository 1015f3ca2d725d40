"""Encoders and decoders, by `kind`; all halve and double the size once a stage.

conv      convolution, GroupNorm and SiLU; transposed convolutions up
residual  pre-activation residual blocks (He et al. 2016, arXiv 1603.05027) between strided convolutions down and
          nearest-neighbour upsampling
keras     the Keras CelebA VAE of "Generative Deep Learning" (Foster 2019, chapter 3), layer by layer
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError

LARGE = 96
"""From this image size on, `residual` is by default the larger model of the two."""


@dataclass(frozen=True)
class Architecture:
    """All that it takes to build the model again."""

    kind: str
    image_size: int
    latent: int
    widths: tuple[int, ...]
    """Channels of each stage, the one with the largest images first."""
    depth: int = 1
    """Residual blocks a stage, in the encoder and in the decoder; `residual` only."""

    @classmethod
    def of(
        cls, kind: str, image_size: int, latent: int | None, widths: tuple[int, ...] | None, depth: int | None
    ) -> "Architecture":
        """The values given, and defaults for those that are None."""
        large = image_size >= LARGE
        latents = {"conv": 128, "residual": 256 if large else 128, "keras": 200}
        residual_widths = (48, 96, 192, 256, 256) if large else (64, 128, 256, 256)
        stages = {"conv": (32, 64, 128, 256), "residual": residual_widths, "keras": (32, 64, 64, 64)}
        depths = {"residual": 2 if large else 1}
        return cls(kind, image_size, latent or latents[kind], widths or stages[kind], depth or depths.get(kind, 1))

    def __post_init__(self) -> None:
        step = 2 ** len(self.widths)
        if self.image_size % step or self.image_size < 2 * step:
            raise ConfigError(
                f"the image size must be a multiple of {step} from {2 * step} on for {len(self.widths)} stages; "
                f"got {self.image_size}. Make the shards with --size 64 or --size 128."
            )


def build(architecture: Architecture) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder [B, 3, H, W] -> [B, 2 * latent], and decoder [B, latent] -> [B, 3, H, W] before the sigmoid."""
    builders = {"conv": _build_conv, "residual": _build_residual, "keras": _build_keras}
    return builders[architecture.kind](architecture)


def _build_conv(architecture: Architecture) -> tuple[nn.Sequential, nn.Sequential]:
    widths = architecture.widths
    bottom = architecture.image_size >> len(widths)
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


def _build_residual(architecture: Architecture) -> tuple[nn.Sequential, nn.Sequential]:
    widths, depth = architecture.widths, architecture.depth
    bottom = architecture.image_size >> len(widths)
    flat = widths[-1] * bottom * bottom
    down: list[nn.Module] = []
    for before, after in zip((3, *widths[:-1]), widths, strict=True):
        down += [nn.Conv2d(before, after, 3, stride=2, padding=1), *(_Residual(after) for _ in range(depth))]
    down += [_group_norm(widths[-1]), nn.SiLU()]
    # The last image is made from half the channels of the stage before: at full size each one is dear.
    narrow = max(1, widths[0] // 2)
    up: list[nn.Module] = [nn.Linear(architecture.latent, flat), nn.Unflatten(1, (widths[-1], bottom, bottom))]
    for before, after in zip(reversed(widths), (*reversed(widths[:-1]), narrow), strict=True):
        up += [*(_Residual(before) for _ in range(depth)), nn.Upsample(scale_factor=2)]
        up.append(nn.Conv2d(before, after, 3, padding=1))
    up += [_group_norm(narrow), nn.SiLU(), nn.Conv2d(narrow, 3, 3, padding=1)]
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, 2 * architecture.latent))
    decoder = nn.Sequential(*up)
    _calm(encoder, decoder)
    return encoder, decoder


class _Residual(nn.Module):
    """[B, C, H, W] -> the same, plus two 3x3 convolutions of it, each after GroupNorm and SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [_group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.branch = nn.Sequential(*layers)
        last = self.branch[-1]
        assert isinstance(last, nn.Conv2d), "the branch ends in a convolution"
        assert last.bias is not None, "it has one"
        # Every block begins as the identity, so that depth costs the first updates nothing (arXiv 1706.02677).
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = values + self.branch(values)
        return result


def _calm(encoder: nn.Sequential, decoder: nn.Sequential) -> None:
    """Begin near N(0, I) and a grey picture: the first loss is finite in fp16, the first update small."""
    head, last = encoder[-1], decoder[-1]
    assert isinstance(head, nn.Linear), "the encoder ends in its head"
    assert isinstance(last, nn.Conv2d), "the decoder ends in a convolution"
    for layer in (head, last):
        assert layer.bias is not None, "both have one"
        nn.init.normal_(layer.weight, std=0.1 / math.sqrt(layer.weight[0].numel()))
        nn.init.zeros_(layer.bias)


def _group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels, or the next number above that divides them (Wu and He 2018, arXiv 1803.08494).

    They found that number best. A CPU adds up channels-last values 16 at a time: with 8 groups of 4 channels the
    forward and backward pass of a layer took five times as long.
    """
    groups = max((groups for groups in range(1, channels // 16 + 1) if channels % groups == 0), default=1)
    return nn.GroupNorm(groups, channels)


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


def _build_keras(architecture: Architecture) -> tuple[nn.Sequential, nn.Sequential]:
    widths = architecture.widths
    bottom = architecture.image_size >> len(widths)
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
