"""What pictures are compared by: numbers made of a picture without a network, or by a TorchScript network from a file.

uint8 [B, 3, H, W] --> Pyramid     low-pass picture and local detail --> PCA  --> float32 [B, 64]
                   \\-> Extractor   a person's own .pt file, e.g. Inception    --> float32 [B, F]
"""

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from explore.measures.distances import laplacian_pyramid
from pipeline.errors import UserError

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""NVIDIA's inception-2015-12-05.pt, by which StyleGAN and EDM compute FID; it resizes to 299 px itself."""
INCEPTION = "inception"
DIMENSIONS = 64
"""Principal components that `Pyramid` keeps, where there are so many."""
_COARSE, _CELLS = 16, 8


class Features(Protocol):
    """A way from a picture to numbers."""

    @property
    def name(self) -> str:
        """What figures on these features are called by."""

    @property
    def dimensions(self) -> int:
        """Numbers a picture."""

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 [B, dimensions] on the CPU, of images uint8 [B, 3, H, W]."""

    def describe(self) -> dict[str, Any]:
        """What is stored with the figures."""


@dataclass(frozen=True)
class Pyramid:
    """Principal components of a picture's 16 px version and of how much detail lies where, scale by scale.

    Both kinds weigh the same, each scale by its own variance. Cheap, and of no model: but no published figure is
    computed on these features.
    """

    mean: Tensor
    """float32 [D]"""
    components: Tensor
    """float32 [D, dimensions]: unit variance a scale, then the principal axes."""
    images: int
    """Training images that it is fitted to."""
    explained: float
    """Share of the variance that the components keep."""

    @property
    def name(self) -> str:
        """What figures on these features are called by."""
        return f"pyramid-pca{self.dimensions}"

    @property
    def dimensions(self) -> int:
        """Numbers a picture."""
        return self.components.shape[1]

    @classmethod
    @torch.inference_mode()
    def fit(cls, batches: Iterable[Tensor]) -> "Pyramid":
        """Fit to real pictures uint8 [B, 3, H, W], streamed; `UserError` for fewer than two."""
        first, second, count = torch.zeros(0), torch.zeros(0), 0
        blocks: list[int] = []
        for images in batches:
            parts = _raw(images)
            blocks = [part.shape[1] for part in parts]
            values = torch.cat(parts, 1).double()
            if not count:
                first = torch.zeros(values.shape[1], dtype=torch.float64)
                second = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64)
            first += values.sum(0)
            second.addmm_(values.T, values)
            count += len(values)
        if count < 2:
            raise UserError(f"features must be fitted to two images or more; got {count}. Use a larger training split.")
        mean = first / count
        # In place: the matrix is the largest thing here.
        covariance = second.div_(count).addr_(mean, mean, alpha=-1)
        scale = torch.cat(
            [
                (1 / part.sum().clamp(min=1e-12).sqrt()).expand(len(part))
                for part in torch.split(covariance.diag(), blocks)
            ]
        )
        variances, axes = torch.linalg.eigh(covariance.mul_(scale[:, None]).mul_(scale[None, :]))
        kept = min(DIMENSIONS, count - 1, len(variances))
        explained = variances[-kept:].sum() / variances.sum().clamp(min=1e-12)
        components = (scale[:, None] * axes[:, -kept:]).float()
        return cls(mean.float(), components, count, float(explained))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Float32 [B, dimensions]."""
        return (torch.cat(_raw(images), 1) - self.mean) @ self.components

    def describe(self) -> dict[str, Any]:
        """What is stored with the figures."""
        return {
            "name": self.name,
            "dimensions": self.dimensions,
            "what": f"{self.dimensions} principal components of the {_COARSE} px picture and of the detail in "
            f"{_CELLS}x{_CELLS} cells at each scale; not comparable with published figures",
            "fitted_images": self.images,
            "fitted_split": "train",
            "explained_variance": self.explained,
        }


def _raw(images: Tensor) -> list[Tensor]:
    """Blocks of numbers [B, D]: the coarse picture, then each finer scale's mean absolute detail in cells."""
    *finer, coarse = laplacian_pyramid(images.cpu().float() / 255)
    blocks = [functional.adaptive_avg_pool2d(coarse, _COARSE)]
    blocks += [functional.adaptive_avg_pool2d(level.abs().mean(1, keepdim=True), _CELLS) for level in finer]
    return [block.flatten(1) for block in blocks]


@dataclass(frozen=True)
class Extractor:
    """A TorchScript network of a person's own."""

    module: Any
    name: str
    path: Path
    sha256: str
    dimensions: int
    arguments: dict[str, Any]
    size: int | None
    """Side in pixels that pictures are resized to first; None: they are given as they are."""
    device: torch.device

    @classmethod
    def load(cls, path: Path, name: str | None, size: int | None, image_size: int, device: torch.device) -> "Extractor":
        """The network of a file; it takes float32 [B, 3, H, W] from 0 to 255 and gives features [B, F].

        One that has an argument `return_features`, as NVIDIA's have, is given it. Raises `UserError` for a file that
        is missing or no TorchScript, and for a network that gives something else.
        """
        if not path.is_file():
            raise UserError(
                f"--features must be a TorchScript file; got {path}, where there is none. Check the path: "
                "nothing is downloaded."
            )
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # There is no other reader of such files.
                load: Any = torch.jit.load
                module = load(str(path), map_location=device).eval()
            known = {argument.name for argument in module.forward.schema.arguments}
        except (RuntimeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} must be a TorchScript network; got '{_one_line(error)}'. Save one with torch.jit.save."
            ) from error
        arguments = {"return_features": True} if "return_features" in known else {}
        called = name or (INCEPTION if sha256 == INCEPTION_SHA256 else path.name)
        found = cls(module, called, path, sha256, 0, arguments, size, device)
        shape = found(torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)).shape
        return cls(module, called, path, sha256, shape[1], arguments, size, device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Float32 [B, dimensions] on the CPU; `UserError` where the network gives something else."""
        pixels = images.to(self.device).float()
        if self.size is not None and self.size != pixels.shape[-1]:
            sides = (self.size, self.size)
            pixels = functional.interpolate(pixels, sides, mode="bilinear", antialias=True).clamp(0, 255)
        try:
            features = self.module(pixels, **self.arguments)
        except RuntimeError as error:
            raise UserError(
                f"{self.path} must take images float32 {list(pixels.shape)}; got '{_one_line(error)}'. "
                "Give the size that it takes with --features-size."
            ) from error
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images) or not shape[1]:
            raise UserError(
                f"{self.path} must give features [{len(images)}, F] for {len(images)} images; got {shape}. "
                "Wrap it in a module that pools and flattens."
            )
        if not features.isfinite().all():
            raise UserError(f"{self.path} must give finite features; got inf or nan. It takes values from 0 to 255.")
        return features.float().cpu()

    def describe(self) -> dict[str, Any]:
        """What is stored with the figures."""
        return {
            "name": self.name,
            "dimensions": self.dimensions,
            "file": self.path.name,
            "sha256": self.sha256,
            "resized_to_px": self.size,
            "arguments": self.arguments,
        }


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript's own message ends with the reason and begins with where the program stands.
    return (lines[-1] if lines else type(error).__name__)[:200]
