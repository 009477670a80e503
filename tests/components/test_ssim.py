"""The structural similarity against a slow loop with scipy's Gaussian windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from adray.components.ssim import ssim_map


def slow_ssim(a: np.ndarray, b: np.ndarray, window_size: int) -> np.ndarray:
    """SSIM of two (C, H, W) images by equations 13 to 16 of the paper, window by window."""
    radius = window_size // 2
    impulse = np.zeros((window_size, window_size))
    impulse[radius, radius] = 1.0
    window = ndimage.gaussian_filter(impulse, 1.5, mode="constant", truncate=radius / 1.5)
    window /= window.sum()
    pad = ((0, 0), (radius, radius), (radius, radius))
    a, b = np.pad(a, pad, mode="reflect"), np.pad(b, pad, mode="reflect")
    out = np.zeros((a.shape[0], a.shape[1] - 2 * radius, a.shape[2] - 2 * radius))
    for c, i, j in np.ndindex(out.shape):
        x, y = (image[c, i : i + window_size, j : j + window_size] for image in (a, b))
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
        cov = (window * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        out[c, i, j] = luminance * (2 * cov + 0.03**2) / (var_x + var_y + 0.03**2)
    return out.mean(0)


@pytest.mark.parametrize("window_size", [5, 11])
def test_it_is_the_papers_formula_window_by_window(window_size):
    rng = np.random.default_rng(0)
    a = rng.random((2, 3, 16, 20))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    ours = ssim_map(torch.from_numpy(a), torch.from_numpy(b), window_size)
    assert ours.shape == (2, 1, 16, 20)
    for k in range(2):
        np.testing.assert_allclose(
            ours[k, 0].numpy(), slow_ssim(a[k], b[k], window_size), atol=1e-4
        )


def test_equal_images_have_similarity_one_and_negatives_a_negative_one():
    image = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(ssim_map(image, image), torch.ones(2, 1, 24, 24))
    assert ssim_map(image, 1 - image).mean() < 0


def test_the_order_of_the_images_does_not_matter():
    a, b = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ssim_map(a, b), ssim_map(b, a))


def test_as_a_loss_it_draws_a_noisy_image_to_the_clean_one():
    clean = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    guess = torch.full_like(clean, 0.5).requires_grad_()
    optimizer = torch.optim.Adam([guess], 0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = 1 - ssim_map(guess, clean).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.8
    assert losses[-1] < 0.1


def test_it_is_computed_in_full_precision_under_autocast():
    a, b = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = ssim_map(a, b)
    torch.testing.assert_close(half, ssim_map(a, b))
