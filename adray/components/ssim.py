"""Structural similarity of two images.

Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, Image Quality Assessment: From Error
Visibility to Structural Similarity, IEEE TIP 13(4), 2004, https://doi.org/10.1109/TIP.2003.819861.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SIGMA = 1.5
"""Standard deviation of the Gaussian window in pixels."""
_C1 = 0.01**2
"""Keeps the luminance finite where both images are dark."""
_C2 = 0.03**2
"""Keeps contrast and structure finite where both images are even."""


def ssim_map(image: Tensor, other: Tensor, window_size: int = 11) -> Tensor:
    """Give the structural similarity at every pixel, for values in [0, 1] (equation 13).

    `1 - ssim_map(x, y).mean()` is a loss: a mean over the batch, 0 for equal images.

    Args:
        image: (B, C, H, W) in [0, 1].
        other: (B, C, H, W) in [0, 1]; the order of the two does not matter.
        window_size: odd side in pixels of the Gaussian window, whose standard deviation is 1.5. The
            border is mirrored without repeating the edge, so H and W must be larger than half of
            it.

    Returns:
        The mean over channels, (B, 1, H, W) float32 in [-1, 1]; 1 where the images agree.
    """
    x = image.float()
    y = other.float()

    # The variances are small differences of large numbers, of which half precision leaves nothing.
    with torch.autocast(x.device.type, enabled=False):
        local = _local_mean(torch.stack([x, y, x * x, y * y, x * y]), window_size)
    mean_x, mean_y, square_x, square_y, product = local.unbind()  # (B, C, H, W) each

    variances = square_x - mean_x.square() + square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return (luminance * structure).mean(1, keepdim=True)


def _local_mean(values: Tensor, window_size: int) -> Tensor:
    """Average (N, B, C, H, W) under a Gaussian window around each pixel."""
    height, width = values.shape[-2:]
    down = _window_matrix(height, window_size, values)
    right = _window_matrix(width, window_size, values)
    along_rows = values.reshape(-1, width) @ right
    return down.T @ along_rows.view_as(values)


def _window_matrix(size: int, window_size: int, like: Tensor) -> Tensor:
    """Weigh the neighbours of pixel j in column j: (size, size).

    On a CPU the product with it takes a quarter of the time of a convolution with one channel.
    """
    radius = window_size // 2
    offset = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    weight = torch.softmax(-0.5 * (offset / _SIGMA) ** 2, 0)

    # Row i is pixel i alone: the window at j sees in it the weight of i in the mean at j.
    pixels = torch.eye(size, device=like.device, dtype=like.dtype)
    mirrored = F.pad(pixels[None], (radius, radius), mode="reflect")[0]
    return mirrored.unfold(1, window_size, 1) @ weight
