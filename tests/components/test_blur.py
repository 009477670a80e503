"""The smoothing against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d


@pytest.mark.parametrize("sigma", [1.0, 2.5, 4.0])
def test_it_is_scipys_gaussian_with_a_mirrored_border(sigma):
    image = np.random.default_rng(0).random((2, 3, 40, 50))
    ours = GaussianBlur2d(sigma)(torch.from_numpy(image).float()).numpy()
    theirs = ndimage.gaussian_filter(image, (0, 0, sigma, sigma), mode="mirror", truncate=4.0)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (16, 40)])
def test_enlarging_and_smoothing_is_torchs_enlarging_and_scipys_gaussian(size):
    small = torch.rand(2, 3, 16, 10, dtype=torch.float64)
    enlarged = F.interpolate(small, size, mode="bilinear", align_corners=False).numpy()
    theirs = ndimage.gaussian_filter(
        enlarged, (0, 0, 4.0, 4.0), mode="mirror" if min(size) > 16 else "nearest"
    )
    np.testing.assert_allclose(GaussianBlur2d(4.0).enlarge(small.float(), size), theirs, atol=1e-6)


def test_the_usual_sigma_has_33_taps_that_sum_to_one():
    kernel = GaussianBlur2d(4.0).kernel
    assert len(kernel) == 33
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-6)


def test_a_constant_stays_constant_also_where_the_image_is_smaller_than_the_kernel():
    for size in (7, 64):
        torch.testing.assert_close(
            GaussianBlur2d(4.0)(torch.full((1, 1, size, size), 3.0)).amin(), torch.tensor(3.0)
        )


def test_channels_and_images_do_not_mix():
    image = torch.zeros(2, 2, 32, 32)
    image[1, 0, 16, 16] = 1.0
    smooth = GaussianBlur2d(2.0)(image)
    assert smooth[1, 0].sum() > 0.99
    assert smooth[0].abs().sum() == smooth[1, 1].abs().sum() == 0


def test_the_kernel_is_not_part_of_checkpoints():
    assert not GaussianBlur2d(4.0).state_dict()


def test_under_autocast_maps_stay_float32():
    image = torch.rand(1, 1, 40, 40)
    blur = GaussianBlur2d(2.0)
    expected = blur(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(blur(image), expected)
        assert blur(image.bfloat16()).dtype == torch.float32
