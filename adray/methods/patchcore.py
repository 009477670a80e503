"""Hyperparameters of PatchCore, and what is known before its network is loaded.

The method itself: `adray.models.patchcore`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import count_places
from adray.components.soft_weights import (
    SOFT_NEIGHBORS,
    SOFT_REMOVED,
    bank_bytes,
    check_soft,
    check_soft_inputs,
    soft_normals,
)
from adray.config import TrainConfig
from adray.fields import check_fields, choice, log_uniform, option
from adray.method import Method


@dataclass(frozen=True)
class PatchcoreConfig:
    """Hyperparameters of PatchCore."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = option(
        ("layer2", "layer3"),
        search=choice(
            ("layer2", "layer3"),
            ("layer2",),
            ("layer3",),
            note="finer stages for small defects in texture, coarser ones for shape",
        ),
    )
    """Stages whose features are joined (section 3.1)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    coreset_ratio: float = option(
        0.1,
        low=1e-6,
        high=1,
        search=log_uniform(
            0.01, 0.25, "the paper's range: a larger bank remembers rarer normals and is slower"
        ),
    )
    """Part of the training patches that the memory bank keeps (section 3.2)."""
    num_neighbors: int = option(
        9,
        low=1,
        high=1000,
        search=choice(1, 3, 5, 9, note="the reference has 9"),
    )
    """Bank neighbours b of the nearest neighbour that weigh an image's score (equation 7); 1 leaves
    it unweighted."""
    sigma: float = option(4.0, low=0.1, high=100, unit="pixels")
    """Standard deviation in pixels of the Gaussian that smooths the map."""
    soft_weights: Literal["none", "lof", "nearest", "gaussian"] = option("none", later=True)
    """How patches are compared with those at the same place of the other training images, after
    SoftPatch, for training images with defects among them: the most unlike are left out of the bank,
    and distances to the others are weighed by how unlike they are. ``none`` for a plain bank."""
    soft_neighbors: int = option(SOFT_NEIGHBORS, low=1, high=1000, later=True)
    """Images that ``lof`` compares with."""
    soft_removed: float = option(SOFT_REMOVED, low=0, high=0.9, later=True)
    """Part of the patches, the most unlike the others, that the bank leaves out."""

    def __post_init__(self) -> None:
        """Check ranges, and that nothing is asked of weights that are not there."""
        check_fields(self)
        check_soft(self)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()

    @property
    def min_normals(self) -> int:
        """Give the training normals that the bank needs."""
        return soft_normals(self)


def check_inputs(config: PatchcoreConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the method cannot take, see `adray.method.Method.check_inputs`."""
    check_soft_inputs(config, train_config)
    return []


def fit_bytes(config: PatchcoreConfig, train_config: TrainConfig, images: int) -> int:
    """Count what choosing the coreset takes, see `adray.method.Method.fit_bytes`."""
    places, width = count_places(config.backbone, config.layers, train_config.input_shape)
    return bank_bytes(config, images, places, width)


METHODS = {
    "PatchcoreTrainer": Method(
        PatchcoreConfig,
        single_pass=True,
        shares_features=True,
        crosses=True,
        updates="coreset",
        any_aspect=True,
        check_inputs=check_inputs,
        fit_bytes=fit_bytes,
    ),
}
