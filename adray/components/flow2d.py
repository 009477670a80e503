"""Steps of a normalising flow after each other, whose sub-networks are convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from adray.components.all_in_one_block import AllInOneBlock


def conv_subnet(kernel_size: int, hidden_ratio: float) -> Callable[[int, int], nn.Module]:
    """Two convolutions with a ReLU between, as `AllInOneBlock` wants them.

    Args:
        kernel_size: side of both convolutions, odd.
        hidden_ratio: hidden channels as a multiple of the input channels.
    """

    def build(channels_in: int, channels_out: int) -> nn.Module:
        hidden, padding = max(1, int(channels_in * hidden_ratio)), kernel_size // 2
        return nn.Sequential(
            nn.Conv2d(channels_in, hidden, kernel_size, padding=padding),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels_out, kernel_size, padding=padding),
        )

    return build


class Flow2d(nn.Module):
    """Coupling steps after each other, from a feature map to a latent one of the same shape.

    Args:
        channels: C of the feature map.
        steps: number of coupling steps.
        kernel_sizes: of the steps' sub-networks, in turn.
        hidden_ratio: see `conv_subnet`.
        clamp: see `AllInOneBlock`.
    """

    def __init__(
        self,
        channels: int,
        steps: int,
        kernel_sizes: Sequence[int],
        hidden_ratio: float,
        clamp: float,
    ) -> None:
        super().__init__()
        sizes = [kernel_sizes[i % len(kernel_sizes)] for i in range(steps)]
        self.steps = nn.ModuleList(
            AllInOneBlock(channels, conv_subnet(size, hidden_ratio), clamp) for size in sizes
        )

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The latent map z of (B, C, h, w), and log|det dz/dfeature|, (B,)."""
        z, log_det = feature, feature.new_zeros(len(feature))
        for step in self.steps:
            z, step_log_det = step(z)
            log_det = log_det + step_log_det
        return z, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """The feature map whose latent map is `z`, both (B, C, h, w)."""
        for step in reversed(self.steps):
            z = cast("AllInOneBlock", step).inverse(z)
        return z
