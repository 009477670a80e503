"""Shapes and signs that all rooms agree on.

Letters in shapes: B batch, C channels, H W image, h w feature map, D embedding, N images or
samples, P patches, K neighbours. A higher `pred_score` always means more anomalous; label 0 is
normal, 1 anomalous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


Json = dict[str, Any]
"""A JSON object: text to plain values."""


@dataclass(frozen=True)
class Batch:
    """Images that a loader yields together, all of it on the loader's device."""

    image: Tensor
    """(B, 3, H, W) float32, normalised as the registry row says."""
    label: Tensor
    """(B,) int64, 0 normal, 1 anomalous."""
    mask: Tensor | None
    """(B, 1, H, W) uint8 with 1 on defects, or None where the data set has no masks. An anomalous
    image without a mask beside others that have one is all zero here; `Loader.has_mask` tells them
    apart."""
    index: Tensor
    """(B,) int64, position in the loader's list of samples."""
    features: tuple[Tensor, ...] | None = None
    """What `XModel.features` gives for `image`, from the feature cache, or None."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of a batch."""

    pred_score: Tensor
    """(B,) float32, image level, higher is more anomalous, not scaled to a range."""
    anomaly_map: Tensor | None
    """(B, 1, H, W) float32 at the size of the input, or None for image-level methods."""
    explanation: tuple[str, ...] | None = None
    """B texts that say why, or None where the model writes none."""


@dataclass(frozen=True)
class Sharing:
    """What all trials of a sweep together want of one frozen stage, so that it is made once."""

    layers: tuple[str, ...]
    """Taps of the backbone that any of them reads."""
    coreset_ratio: float = 0.0
    """Largest part of the training patches that any of them keeps; 0 where none keeps patches."""
    same_coreset: bool = False
    """Whether another one keeps the same patches as this trial, and looks among them for
    neighbours."""
