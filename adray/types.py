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
    inside: Tensor | None = None
    """(B, 1, H, W) bool, true for the pixels that count; None where all of them do."""
    tile: Tensor | None = None
    """(B,) int64, number of each tile in its image, see `adray.tiling.TileGrid`; None for whole
    images."""


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


@dataclass(frozen=True)
class PixelRule:
    """How the numbers in image files become 8 bits: decided once, and kept with the model."""

    depth: str
    """``eight`` for 8-bit files, taken as they are. ``deep`` for whole numbers and ``float`` for
    others, of which `low` becomes 0 and `high` 255. ``dtype`` for each file by its own type."""
    low: float | None = None
    """Value that becomes 0; None for ``eight`` and ``dtype``."""
    high: float | None = None
    """Value that becomes 255; None for ``eight`` and ``dtype``."""
    channels: str | tuple[int, int, int] = "rgb"
    """``rgb``, ``gray`` for luminance, or the positions of the channels that become red, green and
    blue."""
    measured_on: int = 0
    """Number of training normals in which `low` and `high` were measured; 0 where they were given
    or declared."""

    @property
    def is_plain(self) -> bool:
        """Tell whether it is the rule of ordinary pictures: 8 bits, grey or RGB."""
        return self.depth == "eight" and self.channels == "rgb"


@dataclass(frozen=True)
class Roi:
    """The part of images that counts: a grid over an image of any size."""

    packed: str
    """Its cells as `adray.data.geometry.pack_cells` writes them."""


EIGHT_BITS = PixelRule("eight")
"""Of ordinary pictures."""
BY_TYPE = PixelRule("dtype")
"""Of models that were trained before there were rules, and of images that are no product."""
