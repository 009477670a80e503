"""How PatchCore and what follows it describe patches, and weigh the worst one of an image.

K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def embed_patches(features: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Describe the patches of some images (section 3.1).

    Args:
        features: one (B, C, h, w) per layer.
        grid: rows and columns of the patches.

    Returns:
        Averages over 3x3 neighbours, (B, h * w, D) float32.
    """
    parts = []
    for feature in features:
        pooled = F.avg_pool2d(feature, 3, stride=1, padding=1)
        parts.append(F.interpolate(pooled, grid, mode="bilinear", align_corners=False))
    return rearrange(torch.cat(parts, dim=1), "b d h w -> b (h w) d").float()


def unusual_share(to_nearest: Tensor, to_around: Tensor) -> Tensor:
    """Give the weight of an image's worst patch (equation 7), (B,) in [0, 1].

    Args:
        to_nearest: its distance to the nearest patch in the bank, (B, 1).
        to_around: its distances to the patches around that one, (B, b).
    """
    # A ratio of exponentials, which may overflow; less the largest they cannot.
    highest = torch.maximum(to_around.amax(1, keepdim=True), to_nearest)
    share = (to_nearest - highest).exp() / (to_around - highest).exp().sum(1, keepdim=True)
    return (1 - share).squeeze(1)
