"""Hyperparameters of RAD, and what is known before its network is loaded.

The method itself: `adray.models.rad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import (
    dinov2_blocks,
)
from adray.components.input_checks import all_patches_bytes, check_dinov2_inputs
from adray.fields import check_fields, choice, integers, log_integers, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class RadConfig:
    """Hyperparameters of RAD."""

    backbone: str = "dinov2_vitb14"
    """Architecture of the frozen transformer, one of `DINOV2S`."""
    layers: tuple[str, ...] = option(
        ("blocks.3", "blocks.6", "blocks.9", "blocks.11"),
        search=choice(
            ("blocks.3", "blocks.6", "blocks.9", "blocks.11"),
            ("blocks.6", "blocks.9"),
            ("blocks.9", "blocks.11"),
            note="earlier ones for small defects, later ones for wrong parts",
        ),
    )
    """Blocks whose patches are compared, through the network's last layer norm. The last one's class
    token finds the images to compare with."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the transformer."""
    num_images: int = option(
        150,
        low=1,
        high=100_000,
        search=log_integers(4, 150, "fewer are faster, and tell apart kinds of a product"),
    )
    """Training images that an image is compared with, those most like it; all where there are fewer.
    The reference takes 150 of all products of MVTec AD together."""
    radius: int = option(
        1,
        low=0,
        high=64,
        unit="patches",
        search=integers(0, 3, "more for products that do not lie in one place"),
    )
    """How far from its own place a patch is looked for, in rows and in columns. The reference chose 0
    to 2 by data set."""
    sigma: float = option(
        1.0, low=0.1, high=100, unit="pixels", search=uniform(1.0, 8.0, "moves map and score")
    )
    """Standard deviation in pixels of the Gaussian that smooths the map, cut off after two of them."""

    def __post_init__(self) -> None:
        """Check ranges, and that the transformer has these blocks."""
        check_fields(self)
        dinov2_blocks(self.backbone, self.layers)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "RadTrainer": Method(
        RadConfig,
        single_pass=True,
        shares_features=True,
        crosses=True,
        updates="exact",
        check_inputs=check_dinov2_inputs,
        fit_bytes=all_patches_bytes,
    ),
}
