"""What the methods that rebuild images share: allowed sizes, the map, and figures of quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from adray.components.lpips import LPIPS_SMALLEST, find_lpips
from adray.components.ssim import ssim_map
from adray.config import TrainConfig
from adray.errors import InputError
from adray.types import Batch

_PROBED = 8
"""Images at most of which the quality is measured."""


def check_reconstruction_inputs(network: str, stride: int, train_config: TrainConfig) -> None:
    """Refuse images that a network of several halvings and a final sigmoid cannot rebuild.

    Args:
        network: its name in messages.
        stride: pixels of the image per position of the latent map, in each direction.
        train_config: size and normalisation.

    Raises:
        InputError: for a size that `stride` does not divide, and for images that are not in [0, 1].
    """
    check_multiple(f"the {network}", stride, train_config.input_size)
    if train_config.normalize != "none":
        raise InputError(
            f"normalize {train_config.normalize!r} does not suit the {network}, "
            "which draws in [0, 1]; use none"
        )


def check_multiple(network: str, stride: int, size: int) -> None:
    """Refuse a size that leaves a part of a position.

    Args:
        network: its name in messages, with an article where one belongs there.
        stride: pixels of the image per position of the smallest map, in each direction.
        size: side of the images in pixels.

    Raises:
        InputError: with the nearest sizes.
    """
    if size % stride == 0:
        return

    below = size // stride * stride
    near = f"{below} or {below + stride}" if below else str(stride)
    raise InputError(
        f"input size {size} does not suit {network}: img_size (or crop_size) must be a multiple of "
        f"{stride}; use {near}"
    )


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
