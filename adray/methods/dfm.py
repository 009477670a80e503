"""Hyperparameters of DFM, and what is known before its network is loaded.

The method itself: `adray.models.dfm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.fields import check_fields, choice, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class DfmConfig:
    """Hyperparameters of DFM; defaults are the reference's."""

    backbone: str = "resnet50"
    """Architecture of the frozen feature extractor."""
    layer: str = option(
        "layer3",
        search=choice("layer2", "layer3", note="earlier stages see texture, later ones shape"),
    )
    """Stage whose map is used."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    pool: int = option(
        4,
        low=1,
        high=1024,
        search=choice(2, 4, 8, note="small for small defects, which takes more memory"),
    )
    """Positions of the map, in each direction, that are averaged to one."""
    variance: float = option(
        0.97,
        low=0.01,
        high=1,
        search=uniform(
            0.8, 0.999, "the paper's 0.97 to 0.995; more leaves less room for a defect to stand out"
        ),
    )
    """Part of the training vectors' variance that the kept components explain."""
    score_type: Literal["fre", "nll"] = option(
        "fre", search=choice("fre", "nll", note="the paper prefers fre for anomalies")
    )
    """``fre`` for the reconstruction error, ``nll`` for the negative log-likelihood, which gives no
    map."""

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
    "DfmTrainer": Method(
        DfmConfig,
        single_pass=True,
        min_normals=2,
        shares_features=True,
        crosses=True,
        updates="exact",
        any_aspect=True,
    ),
}
