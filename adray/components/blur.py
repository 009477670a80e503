"""Separable Gaussian smoothing of anomaly maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GaussianBlur2d(nn.Module):
    """Smooths each channel with a Gaussian.

    Args:
        sigma: standard deviation in pixels.
        truncate: half width of the kernel in standard deviations; 4 gives 33 taps for the usual sigma of 4.
    """

    kernel: Tensor

    def __init__(self, sigma: float, truncate: float = 4.0) -> None:
        super().__init__()
        radius = math.ceil(truncate * sigma)
        offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
        weight = torch.exp(-0.5 * (offset / sigma) ** 2)
        self.register_buffer("kernel", (weight / weight.sum()).float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Smooth (B, C, H, W) to float32.

        The border is mirrored without repeating the edge; where H or W is too small, it is repeated.
        """
        radius, (b, c, h, w) = len(self.kernel) // 2, image.shape
        mode = "reflect" if min(h, w) > radius else "replicate"
        flat = F.pad(image.float().reshape(b * c, 1, h, w), (radius,) * 4, mode=mode)  # (B*C, 1, H+2r, W+2r)
        with torch.autocast(image.device.type, enabled=False):  # maps stay float32 whatever the model ran in
            flat = F.conv2d(flat, self.kernel.view(1, 1, 1, -1))
            flat = F.conv2d(flat, self.kernel.view(1, 1, -1, 1))
        return flat.reshape(b, c, h, w)
