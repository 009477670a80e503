"""Maps and scores of images of which a part does not count: the room around them, or a region.

All take maps (B, 1, H, W) and `inside` (B, 1, H, W) bool, which is true for one pixel of each image
at least.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def with_lowest_outside(anomaly_map: Tensor, inside: Tensor) -> Tensor:
    """Give what does not count the lowest value of what does, image by image."""
    lowest = anomaly_map.masked_fill(~inside, torch.inf).amin((2, 3), keepdim=True)
    return torch.where(inside, anomaly_map, lowest)


def highest_inside(anomaly_map: Tensor, inside: Tensor) -> Tensor:
    """Give the highest value of what counts, (B,)."""
    return anomaly_map.masked_fill(~inside, -torch.inf).amax((1, 2, 3))


def mean_inside(anomaly_map: Tensor, inside: Tensor) -> Tensor:
    """Average what counts, (B,)."""
    total = anomaly_map.masked_fill(~inside, 0).sum((1, 2, 3))
    return total / inside.sum((1, 2, 3))


def highest_local_mean(anomaly_map: Tensor, inside: Tensor, window: int) -> Tensor:
    """Give the highest mean of what counts within a square window around a pixel, (B,).

    Args:
        anomaly_map: the map.
        inside: what counts.
        window: side in pixels, odd. At a border the mean is that of fewer pixels.
    """
    counted = inside.to(anomaly_map.dtype)
    sums = F.avg_pool2d(anomaly_map * counted, window, stride=1, padding=window // 2)
    parts = F.avg_pool2d(counted, window, stride=1, padding=window // 2)
    return highest_inside(sums / parts.clamp_min(1 / window**2), inside)


def top_mean_inside(anomaly_map: Tensor, inside: Tensor, part: float) -> Tensor:
    """Average the highest values of what counts, (B,).

    Args:
        anomaly_map: the map.
        inside: what counts.
        part: of the pixels that count, in (0, 1]. One counts at least.
    """
    values = anomaly_map.masked_fill(~inside, -torch.inf).flatten(1)
    most = max(1, int(part * values.shape[1]))
    highest = values.topk(most, dim=1).values  # (B, K), the highest first

    count = (part * inside.flatten(1).sum(1, keepdim=True)).long().clamp_min(1)  # (B, 1)
    taken = torch.arange(most, device=values.device) < count  # (B, K)
    return highest.masked_fill(~taken, 0).sum(1) / count.squeeze(1)
