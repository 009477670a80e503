"""Hyperparameters of DFKDE, and what is known before its network is loaded.

The method itself: `adray.models.dfkde`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.fields import check_fields, choice, log_integers, option
from adray.method import Method


@dataclass(frozen=True)
class DfkdeConfig:
    """Hyperparameters of DFKDE; defaults are the reference's."""

    backbone: str = "resnet18"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = option(
        ("layer4",),
        search=choice(
            ("layer2",),
            ("layer3",),
            ("layer4",),
            ("layer2", "layer3"),
            ("layer3", "layer4"),
            note="earlier stages see texture, later ones shape",
        ),
    )
    """Stages whose averages are joined to one vector."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    num_components: int = option(
        16,
        low=1,
        high=4096,
        search=log_integers(4, 64, "a kernel density needs few when there are few images"),
    )
    """Principal components that the density is estimated in, at most."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "DfkdeTrainer": Method(
        DfkdeConfig,
        single_pass=True,
        min_normals=2,
        shares_features=True,
        crosses=True,
        updates="exact",
        any_aspect=True,
    ),
}
