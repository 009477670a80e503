"""What the methods that rebuild images share: allowed sizes, the map, and figures of quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from adray.components.lpips import LPIPS_SMALLEST, find_lpips
from adray.components.ssim import ssim_map
from adray.types import Batch

_PROBED = 8
"""Images at most of which the quality is measured."""


def squared_error_map(image: Tensor, rebuilt: Tensor) -> Tensor:
    """Average the squared error over channels: (B, C, H, W) twice to (B, 1, H, W) float32."""
    return (image - rebuilt.float()).square().mean(1, keepdim=True)


def peak_signal_to_noise(mean_squared_error: Tensor) -> Tensor:
    """Give the PSNR in dB of images in [0, 1], the higher the better."""
    return -10.0 * mean_squared_error.log10()


class QualityProbe:
    """Measures one fixed batch of training images once per epoch.

    SSIM in every step would cost as much as learning.

    Args:
        loader: its first batch is taken, at most 8 images.
        reconstruct: the network under training, (B, 3, H, W) to (B, 3, H, W), both in [0, 1].
    """

    def __init__(self, loader: Iterable[Batch], reconstruct: Callable[[Tensor], Tensor]) -> None:
        self.image = next(iter(loader)).image[:_PROBED]
        self.reconstruct = reconstruct
        self.lpips = None
        if min(self.image.shape[-2:]) >= LPIPS_SMALLEST:
            self.lpips = find_lpips()
        if self.lpips is not None:
            self.lpips.to(self.image.device)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Give ``ssim``, and ``lpips`` where its weight files are there.

        Returns:
            ``ssim`` of at most 1, the higher the better, and ``lpips`` of at least 0, the lower the
            better.
        """
        rebuilt = self.reconstruct(self.image).float()
        quality = {"ssim": float(ssim_map(self.image, rebuilt).mean())}
        if self.lpips is not None:
            quality["lpips"] = float(self.lpips(self.image, rebuilt).mean())
        return quality
