"""Shapes and signs that all rooms agree on.

Letters in shapes: B batch, C channels, H W image, h w feature map, D embedding, N images or samples, P patches,
K neighbours. A higher `pred_score` always means more anomalous; label 0 is normal, 1 anomalous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a loader yields, all of it on the loader's device.

    Attributes:
        image: (B, 3, H, W) float32, normalised as the registry row says.
        label: (B,) int64, 0 normal, 1 anomalous.
        mask: (B, 1, H, W) uint8 with 1 on defects, or None where the data set has no masks. An anomalous image
            without a mask beside others that have one is all zero here; `Loader.has_mask` tells them apart.
        index: (B,) int64, position in the loader's list of samples.
        features: what `XModel.features` gives for `image`, from the feature cache, or None.
    """

    image: Tensor
    label: Tensor
    mask: Tensor | None
    index: Tensor
    features: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Prediction:
    """What a model says of a batch.

    Attributes:
        pred_score: (B,) float32, image level, higher is more anomalous, not scaled to a range.
        anomaly_map: (B, 1, H, W) float32 at the size of the input, or None for image-level methods.
        explanation: B texts that say why, or None where the model writes none.
    """

    pred_score: Tensor
    anomaly_map: Tensor | None
    explanation: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Sharing:
    """What all trials of a sweep together want that have the frozen stage of this one, so that it is made once.

    Attributes:
        layers: taps of the backbone that any of them reads.
        coreset_ratio: largest part of the training patches that any of them keeps; 0 where none keeps patches.
        same_coreset: whether another one keeps the same patches as this trial, and looks among them for neighbours.
    """

    layers: tuple[str, ...]
    coreset_ratio: float = 0.0
    same_coreset: bool = False
