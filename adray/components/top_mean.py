"""The score of an image as the mean of its map's largest values."""

from __future__ import annotations

from torch import Tensor

TOP_PART = 0.01
"""Part of the values that is averaged, the largest."""


def top_mean(anomaly_map: Tensor) -> Tensor:
    """Average the largest hundredth of the values of each map, at least one value.

    Args:
        anomaly_map: (B, ...).

    Returns:
        (B,).
    """
    flat = anomaly_map.flatten(1)
    count = max(1, int(TOP_PART * flat.shape[1]))
    return flat.topk(count, dim=1, sorted=False).values.mean(1)
