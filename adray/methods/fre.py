"""Hyperparameters of FRE, and what is known before its network is loaded.

The method itself: `adray.models.fre`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.fields import check_fields, choice, log_integers, log_uniform, option
from adray.method import Method


@dataclass(frozen=True)
class FreConfig:
    """Hyperparameters of FRE; defaults are the reference's."""

    backbone: str = "resnet50"
    """Architecture of the frozen feature extractor."""
    layer: str = option(
        "layer3",
        search=choice("layer2", "layer3", note="earlier stages see texture, later ones shape"),
    )
    """Stage whose map is used."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    pool: int = option(2, low=1, high=1024, search=choice(2, 4, note="small for small defects"))
    """Positions of the map, in each direction, that are averaged to one."""
    latent_dim: int = option(
        220,
        low=1,
        high=65536,
        search=log_integers(40, 640, "the reference's 220: too many and defects pass"),
    )
    """Values that an image's vector is squeezed to."""
    lr: float = option(
        1e-3, low=0, high=1, search=log_uniform(2e-4, 3e-3, "around the reference's 1e-3")
    )
    """Learning rate of Adam, constant."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """Give the stages that a weight file must have."""
        return (self.layer,)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "FreTrainer": Method(
        FreConfig,
        shares_features=True,
        train_search={"num_epochs": log_integers(50, 300, "the reference's 220")},
    ),
}
