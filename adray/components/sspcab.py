"""A block that predicts each position from its surroundings: SSPCAB.

N.-C. Ristea et al., Self-Supervised Predictive Convolutional Attentive Block for Anomaly Detection,
CVPR 2022, https://arxiv.org/abs/2111.09099.
Reference: https://github.com/ristea/sspcab (CC BY-NC-SA 4.0; facts only).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SSPCAB(nn.Module):
    """Convolution whose centre is masked out, then attention over channels.

    The mean squared difference of output and input, which the surrounding network adds to its loss
    (the paper weights it 0.1), makes the block predict what is normal at a place it cannot see.

    Args:
        channels: C of input and output.
        kernel_size: side of the four kernels at the corners of the receptive field.
        dilation: distance between those kernels and the masked centre, as the paper counts it.
        reduction: channels per hidden unit of the attention.
    """

    def __init__(
        self, channels: int, kernel_size: int = 1, dilation: int = 1, reduction: int = 8
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.padding = kernel_size + dilation
        self.corners = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size) for _ in range(4))
        self.attention = nn.Sequential(
            nn.Linear(channels, channels // reduction),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels),
            nn.Sigmoid(),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Predict (B, C, h, w) from the surroundings of each position, zeros outside of the map."""
        predicted = F.relu(self.predict(feature))
        weight = self.attention(predicted.mean((2, 3)))  # (B, C)
        return predicted * weight[..., None, None]

    def predict(self, feature: Tensor) -> Tensor:
        """Add what the four kernels see of (B, C, h, w), (B, C, h, w)."""
        # To give h x w outputs a kernel slides over this many rows and columns, in its own corner.
        height = feature.shape[2] + self.kernel_size - 1
        width = feature.shape[3] + self.kernel_size - 1
        padded = F.pad(feature, (self.padding,) * 4)
        seen = (
            padded[..., :height, :width],
            padded[..., :height, -width:],
            padded[..., -height:, :width],
            padded[..., -height:, -width:],
        )

        parts = [conv(part) for conv, part in zip(self.corners, seen, strict=True)]
        return torch.stack(parts).sum(0)
