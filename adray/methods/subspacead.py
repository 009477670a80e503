"""Hyperparameters of SubspaceAD, and what is known before its network is loaded.

The method itself: `adray.models.subspacead`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import check_dinov2, dinov2_blocks
from adray.config import CROSS, TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class SubspaceadConfig:
    """Hyperparameters of SubspaceAD; defaults are the reference's for a ViT-S."""

    backbone: str = "dinov2_vits14"
    """Architecture of the frozen transformer, one of `DINOV2S`."""
    layers: tuple[str, ...] = option(
        ("blocks.7", "blocks.8"),
        search=choice(
            ("blocks.7", "blocks.8"),
            ("blocks.3", "blocks.6", "blocks.9"),
            note="the reference's, and the earlier ones that its author advises for small defects",
        ),
    )
    """Blocks whose patches are averaged, ``blocks.0`` the first."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the transformer."""
    variance: float = option(
        0.99,
        low=0.01,
        high=1,
        search=uniform(0.9, 0.999, "more leaves less room for a defect to stand out"),
    )
    """Part of the training patches' variance that the kept components explain."""
    rotations: int = option(0, low=0, high=1000)
    """Turned views of each training image that are learnt beside it; the reference takes 30 for a
    few images and none for many."""
    image_score: Literal["top", "max"] = option(
        "top", search=choice("top", "max", note="the highest value for small defects")
    )
    """What of the map scores an image: ``top`` for the mean of its largest hundredth, ``max`` for
    the largest."""

    def __post_init__(self) -> None:
        """Check ranges, and that the transformer has these blocks."""
        check_fields(self)
        dinov2_blocks(self.backbone, self.layers)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def check_inputs(config: SubspaceadConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the method cannot take, see `adray.method.Method.check_inputs`."""
    check_dinov2(config.backbone, config.layers, train_config.input_size)
    if config.rotations and train_config.calibration == CROSS:
        raise InputError(Sentence.of("method cross turns", rotations=config.rotations))
    if config.rotations and train_config.normalize != "imagenet":
        raise InputError(
            Sentence.of(
                "method turned corners",
                normalize=train_config.normalize,
                rotations=config.rotations,
            )
        )
    return []


METHODS = {
    "SubspaceadTrainer": Method(
        SubspaceadConfig,
        single_pass=True,
        shares_features=True,
        crosses=True,
        updates="exact",
        any_aspect=True,
        check_inputs=check_inputs,
    ),
}
