"""How alike two sets of pictures are, image by image; all take float images [B, 3, H, W] in [0, 1]."""

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW, _STD = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B], dB."""
    mse = (images - others).square().flatten(1).mean(1)
    return -10 * torch.log10(mse.clamp(min=1e-10))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity [B], the mean over channels and places of the whole 11x11 Gaussian window.

    Wang et al. 2004, equation 13, with its constants for a range of 1.
    """
    return _similarity(images, others)[0]


def ms_ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity over several scales [B] (Wang et al. 2003, equation 7); 11 px or more.

    The window stays 11x11, so pictures of less than 176 px have fewer than the paper's five scales: `scales` says how
    many. Their weights are the paper's, divided by their sum. Negative contrast counts as none.
    """
    weights = torch.tensor(_SCALE_WEIGHTS[: scales(min(images.shape[2:]))], dtype=images.dtype)
    weights = weights / weights.sum()
    product = images.new_ones(len(images))
    for scale, weight in enumerate(weights.tolist()):
        if scale:
            images, others = (functional.avg_pool2d(values, 2) for values in (images, others))
        whole, contrast = _similarity(images, others)
        last = scale == len(weights) - 1
        product = product * (whole if last else contrast).clamp(min=0) ** weight
    return product


def scales(side: int) -> int:
    """How many scales `ms_ssim` has for pictures of `side` px: those that hold a window, at most five."""
    return min(len(_SCALE_WEIGHTS), (side // _WINDOW).bit_length())


def _similarity(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Means over channels and places [B]: of the structural similarity, and of it without its term of brightness."""
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
    contrast = (2 * covariance + _C2) / (variance + other_variance + _C2)
    whole = (2 * mean * other_mean + _C1) / (mean.square() + other_mean.square() + _C1) * contrast
    return whole.flatten(1).mean(1), contrast.flatten(1).mean(1)


def detail(images: Tensor) -> Tensor:
    """Mean squared Laplacian of the brightness [B]: what blurring takes away first."""
    brightness = images.mean(1, keepdim=True)
    kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return functional.conv2d(brightness, kernel[None, None]).square().flatten(1).mean(1)
