"""How alike two sets of pictures are, image by image; all take float images [B, 3, H, W] in [0, 1]."""

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW, _STD = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B], dB."""
    mse = (images - others).square().flatten(1).mean(1)
    return -10 * torch.log10(mse.clamp(min=1e-10))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity [B], the mean over channels and places of the whole 11x11 Gaussian window.

    Wang et al. 2004, equation 13, with its constants for a range of 1.
    """
    channels = images.shape[1]
    distance = torch.arange(_WINDOW, dtype=images.dtype, device=images.device) - _WINDOW // 2
    profile = torch.exp(-distance.square() / (2 * _STD**2))
    profile = profile / profile.sum()

    def blurred(values: Tensor) -> Tensor:
        for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
            values = functional.conv2d(values, profile.view(shape).repeat(channels, 1, 1, 1), groups=channels)
        return values

    mean, other_mean = blurred(images), blurred(others)
    variance = blurred(images.square()) - mean.square()
    other_variance = blurred(others.square()) - other_mean.square()
    covariance = blurred(images * others) - mean * other_mean
    similarity = (2 * mean * other_mean + _C1) * (2 * covariance + _C2)
    similarity = similarity / ((mean.square() + other_mean.square() + _C1) * (variance + other_variance + _C2))
    return similarity.flatten(1).mean(1)


def detail(images: Tensor) -> Tensor:
    """Mean squared Laplacian of the brightness [B]: what blurring takes away first."""
    brightness = images.mean(1, keepdim=True)
    kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return functional.conv2d(brightness, kernel[None, None]).square().flatten(1).mean(1)
