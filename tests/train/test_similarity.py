import numpy as np
import pytest
import torch

from train.similarity import detail, psnr, ssim


def test_psnr_is_that_of_each_image() -> None:
    images = torch.zeros(2, 3, 4, 4)
    others = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    torch.testing.assert_close(psnr(images, others), torch.tensor([20.0, 40.0]))
    assert float(psnr(images, images)[0]) == 100


def gaussian_window() -> np.ndarray:
    profile = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(profile, profile)
    return window / window.sum()


def test_ssim_is_wangs_place_by_place() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((14, 13)), rng.random((14, 13))
    window, found = gaussian_window(), []
    for y in range(14 - 10):
        for x in range(13 - 10):
            a, b = one[y : y + 11, x : x + 11], other[y : y + 11, x : x + 11]
            mean, other_mean = (window * a).sum(), (window * b).sum()
            variance = (window * (a - mean) ** 2).sum()
            other_variance = (window * (b - other_mean) ** 2).sum()
            covariance = (window * (a - mean) * (b - other_mean)).sum()
            top = (2 * mean * other_mean + 1e-4) * (2 * covariance + 9e-4)
            found.append(top / ((mean**2 + other_mean**2 + 1e-4) * (variance + other_variance + 9e-4)))
    images = [torch.from_numpy(image)[None, None].repeat(2, 3, 1, 1) for image in (one, other)]
    torch.testing.assert_close(ssim(*images), torch.full((2,), np.mean(found), dtype=torch.float64))


def test_ssim_of_equal_pictures_is_one_and_noise_lowers_it() -> None:
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    assert (ssim(images, (images + 0.2 * torch.randn_like(images)).clamp(0, 1)) < 0.95).all()


def test_detail_is_the_laplacians_and_blurring_takes_it_away() -> None:
    image = torch.zeros(1, 3, 5, 5)
    image[0, :, 2, 2] = 1
    assert float(detail(image)) == pytest.approx((16 + 4) / 9)
    blurred = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 32, 32), 3, 1, 1)
    assert (detail(torch.nn.functional.avg_pool2d(blurred, 3, 1, 1)) < detail(blurred)).all()
