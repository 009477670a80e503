"""Hyperparameters of PaDiM, and what is known before its network is loaded.

The method itself: `adray.models.padim`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.fields import check_fields, choice, log_integers, log_uniform, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class PadimConfig:
    """Hyperparameters of PaDiM."""

    backbone: str = "resnet18"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = option(
        ("layer1", "layer2", "layer3"),
        search=choice(
            ("layer1", "layer2", "layer3"),
            ("layer1", "layer2"),
            ("layer2", "layer3"),
            note="all three as published, or without the finest or the coarsest",
        ),
    )
    """Stages whose features are joined (section 3.1)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    num_features: int = option(
        100,
        low=1,
        search=log_integers(50, 180, "the first two stages of ResNet-18 have 192"),
    )
    """Channels d that are kept of all (section 3.2): 100 of 448 for ResNet-18, 550 of 1792 for
    Wide ResNet-50."""
    regularization: float = option(
        0.01,
        low=1e-9,
        high=1e3,
        search=log_uniform(1e-4, 0.3, "few images per product want more"),
    )
    """Added to the diagonal of each covariance (equation 1)."""
    sigma: float = option(
        4.0,
        low=0.1,
        high=100,
        unit="pixels",
        search=uniform(1.0, 8.0, "small for scratches, large for stains"),
    )
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """List the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "PadimTrainer": Method(
        PadimConfig,
        single_pass=True,
        min_normals=2,
        shares_features=True,
        crosses=True,
        updates="exact",
        by_tile=True,
    ),
}
