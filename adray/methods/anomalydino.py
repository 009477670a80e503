"""Hyperparameters of AnomalyDINO, and what is known before its network is loaded.

The method itself: `adray.models.anomalydino`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from adray.components.architectures import (
    DINOV2S,
    check_dinov2,
    count_patches,
    dinov2_blocks,
)
from adray.components.input_checks import check_turned_views
from adray.components.soft_weights import (
    SOFT_NEIGHBORS,
    SOFT_REMOVED,
    bank_bytes,
    check_soft,
    check_soft_inputs,
    soft_normals,
)
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class AnomalydinoConfig:
    """Hyperparameters of AnomalyDINO; defaults are the reference's."""

    backbone: str = "dinov2_vits14"
    """Architecture of the frozen transformer, one of `DINOV2S`."""
    layer: str = option(
        "blocks.11",
        search=choice("blocks.8", "blocks.11", note="the last one as published, or an earlier one"),
    )
    """Block whose patches are compared, through the network's last layer norm."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the transformer."""
    rotations: int = option(1, low=1, high=360)
    """Views of each training image, turned by equal parts of a full turn, itself the first; the
    reference takes 8 for a few images."""
    mask: Literal["none", "plane", "column"] = "none"
    """Which patches of an image count: ``none`` for all. ``plane`` for its foreground, by the first
    component of its patches, dilated and closed by 3 x 3. ``column`` does that along the raster
    alone, as the reference's published figures had it."""
    mask_threshold: float = option(10.0, low=0, high=1e6)
    """What a patch's first component exceeds in the foreground; the reference's 10 is on the scale of
    a DINOv2 ViT-S."""
    coreset_ratio: float = option(
        1.0,
        low=1e-6,
        high=1,
        search=log_uniform(0.02, 1.0, "less is faster and forgets rarer normals"),
    )
    """Part of the training patches that the memory bank keeps, by greedy k-centre; the reference
    keeps all."""
    sigma: float = option(
        4.0, low=0.1, high=100, unit="pixels", search=uniform(1.0, 8.0, "moves the map alone")
    )
    """Standard deviation in pixels of the Gaussian that smooths the map."""
    soft_weights: Literal["none", "lof", "nearest", "gaussian"] = option("none", later=True)
    """How patches are compared with those at the same place of the other training images, after
    SoftPatch, for training images with defects among them: the most unlike are left out of the bank,
    and distances to the others are weighed by how unlike they are. ``none`` for a plain bank."""
    soft_neighbors: int = option(SOFT_NEIGHBORS, low=1, high=1000, later=True)
    """Images that ``lof`` compares with."""
    soft_removed: float = option(SOFT_REMOVED, low=0, high=0.9, later=True)
    """Part of the patches, the most unlike the others, that the bank leaves out."""
    batched: bool = option(False, later=True)
    """Whether the training images are a batch without labels, which may hold some defects. Then a
    patch is compared with many of the bank's and not with the nearest alone, and an image of the
    batch with all others and not with itself."""
    batched_part: float = option(0.001, low=1e-6, high=0.5, later=True)
    """Part of the patches of the other images, the nearest, with which a patch is compared where
    there is a batch without labels."""

    def __post_init__(self) -> None:
        """Check ranges, that the transformer has this block, and that weights are there if asked."""
        check_fields(self)
        check_soft(self)
        self._check_batched()
        dinov2_blocks(self.backbone, self.layers)

    def _check_batched(self) -> None:
        """Refuse what leaves out patches of a batch, or adds some.

        Raises:
            InputError: names the field and the value that goes with a batch.
        """
        for name, value in self.settled.items():
            found = getattr(self, name)
            if found != value:
                said = {"name": name, "found": str(found), "value": str(value)}
                raise InputError(Sentence.of("anomalydino batched", **said))

    @property
    def settled(self) -> dict[str, Any]:
        """Give the fields that a batch without labels leaves no choice of, with their values."""
        if not self.batched:
            return {}
        return {"rotations": 1, "coreset_ratio": 1.0, "soft_weights": "none"}

    @property
    def layers(self) -> tuple[str, ...]:
        """Give the block that is tapped, as other methods name several."""
        return (self.layer,)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()

    @property
    def min_normals(self) -> int:
        """Give the training normals that the bank needs."""
        return 2 if self.batched else soft_normals(self)


def check_inputs(config: AnomalydinoConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the method cannot take, see `adray.method.Method.check_inputs`."""
    check_dinov2(config.backbone, config.layers, train_config.input_size)
    check_soft_inputs(config, train_config)
    check_turned_views(config.rotations, train_config)
    return []


def fit_bytes(config: AnomalydinoConfig, train_config: TrainConfig, images: int) -> int:
    """Count the patches of all views, and what choosing a bank of them takes.

    See `adray.method.Method.fit_bytes`.
    """
    views = images * config.rotations
    places = count_patches(train_config.input_shape)
    width = DINOV2S[config.backbone].width
    if config.coreset_ratio == 1 and config.soft_weights == "none":
        return 4 * views * places * width
    return bank_bytes(config, views, places, width)


METHODS = {
    "AnomalydinoTrainer": Method(
        AnomalydinoConfig,
        single_pass=True,
        shares_features=True,
        crosses=True,
        updates="coreset",
        any_aspect=True,
        check_inputs=check_inputs,
        fit_bytes=fit_bytes,
    ),
}
