"""Hyperparameters of SuperSimpleNet, and what is known before its network is loaded.

The method itself: `adray.models.supersimplenet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.fields import check_fields, log_uniform, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class SupersimplenetConfig:
    """Hyperparameters of SuperSimpleNet; defaults are the paper's and the reference's."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen network; the noise's size is meant for torchvision's first (V1)
    weights."""
    layers: tuple[str, ...] = ("layer2", "layer3")
    """Stages whose maps are joined, the largest first."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the backbone."""
    hidden_channels: int = option(1024, low=1, high=65536)
    """Channels between the two layers of the segmentation head."""
    perlin_threshold: float = option(0.2, low=-1, high=1, search=uniform(0.0, 0.7))
    """Of the Perlin noise that forms the patches, in [-1, 1], by data set: 0.2 for MVTec AD, 0.6
    for VisA and for supervised training; higher gives fewer and smaller patches."""
    anomaly_probability: float = option(0.5, low=0, high=1)
    """Part of the training features that get patches at all."""
    noise_std: float = option(
        0.015,
        low=0,
        high=100,
        search=log_uniform(0.005, 0.05, "larger is easier to see, and teaches less"),
    )
    """Standard deviation of the noise on adapted features."""
    margin: float = option(0.5, low=0, high=100, search=uniform(0.2, 1.0, "around the paper's 0.5"))
    """Logit on either side of 0 from which on the truncated L1 loss is content."""
    adaptor_lr: float = option(
        1e-4, low=0, high=1, search=log_uniform(2e-5, 5e-4, "around the paper's 1e-4")
    )
    """Learning rate of AdamW for the adaptor, times 0.4 at 80 % and at 90 % of the steps."""
    adaptor_weight_decay: float = option(1e-2, low=0, high=100)
    """Weight decay of the adaptor (reference)."""
    head_lr: float = option(
        2e-4, low=0, high=1, search=log_uniform(5e-5, 1e-3, "around the paper's 2e-4")
    )
    """Learning rate of AdamW for both heads, with the same schedule."""
    head_weight_decay: float = option(1e-5, low=0, high=100)
    """Weight decay of both heads."""
    clip_norm: float = option(1.0, low=1e-6, high=1e6)
    """Largest norm of all gradients together, in supervised training only."""
    flip_probability: float = option(0.5, low=0, high=1)
    """Part of the defective images that are mirrored along each axis, in supervised training only.
    Half of them shows the four ways of the reference equally often."""
    flip_normals: bool = False
    """Mirror normal images as well, for products that lie in any direction."""
    sigma: float = option(4.0, low=0.1, high=100, unit="pixels", search=uniform(2.0, 8.0))
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "SupersimplenetTrainer": Method(SupersimplenetConfig),
    "SupersimplenetSupervisedTrainer": Method(SupersimplenetConfig, supervised=True),
}
