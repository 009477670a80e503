"""Hyperparameters of CFA, and what is known before its network is loaded.

The method itself: `adray.models.cfa`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class CfaConfig:
    """Hyperparameters of CFA; defaults are the paper's and the reference's for a Wide ResNet-50."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    """Stages whose features are joined; the first one's grid is the patches'."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    gamma_c: int = option(1, low=1, high=1000)
    """Patches per center of the memory bank, chosen by k-means above 1."""
    gamma_d: int = option(
        1,
        low=1,
        high=1000,
        search=choice(1, 2, note="a narrower descriptor is faster and takes less memory"),
    )
    """Channels of the features per channel of the descriptor."""
    num_nearest: int = option(
        3,
        low=1,
        high=1000,
        search=choice(
            1, 3, 5, note="the paper's K = 3; more neighbours blur the score, fewer make it jump"
        ),
    )
    """Nearest centers K that attract a patch, and that its score compares."""
    num_negatives: int = option(
        3, low=1, high=1000, search=choice(1, 3, 5, note="the paper's J = 3")
    )
    """Next nearest centers J that repel a patch."""
    radius: float = option(1e-5, low=1e-9, high=1e3)
    """Radius r of the hyperspheres before training."""
    margin: float = option(
        0.1,
        low=0,
        high=1e3,
        search=log_uniform(
            0.02, 0.5, "the paper's alpha is 0.1, a squared distance of unit descriptors"
        ),
    )
    """Squared distance alpha by which the spheres of attraction and of repulsion differ."""
    lr: float = option(
        1e-3,
        low=0,
        high=1,
        search=log_uniform(2e-4, 3e-3, "long training at a high rate collapses the descriptors"),
    )
    """Learning rate of AdamW with AMSGrad, constant."""
    weight_decay: float = option(5e-4, low=0, high=1)
    """Weight decay of AdamW."""
    sigma: float = option(4.0, low=0.1, high=100, unit="pixels", search=uniform(2.0, 8.0))
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def num_compared(self) -> int:
        """Count the centers that the loss looks at for each patch, K + J."""
        return self.num_nearest + self.num_negatives

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "CfaTrainer": Method(CfaConfig),
}
