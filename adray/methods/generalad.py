"""Hyperparameters of GeneralAD, and what is known before its network is loaded.

The method itself: `adray.models.generalad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import DINOV2S, dinov2_blocks
from adray.components.input_checks import check_dinov2_inputs
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class GeneraladConfig:
    """Hyperparameters of GeneralAD; defaults are the reference's for industrial images."""

    backbone: str = "dinov2_vitl14"
    """Architecture of the frozen transformer, one of `DINOV2S`."""
    layer: str = "blocks.23"
    """Block whose patches are judged, through the network's last layer norm."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the transformer."""
    heads: int = option(4, low=1, high=64)
    """Heads of the discriminator's attention, which share the width of a patch."""
    hidden: int = option(2048, low=1, high=65536)
    """Hidden width of the discriminator's MLP."""
    dropout: float = option(0.1, low=0, high=0.99, search=uniform(0.0, 0.3))
    """Dropout in the discriminator."""
    noise_std: float = option(
        0.25, low=0, high=100, search=log_uniform(0.05, 1.0, "around the paper's 0.25")
    )
    """Standard deviation of the noise that makes patches anomalous."""
    shuffle: bool = option(
        False, search=choice(False, True, note="true for parts that can be in wrong places")
    )
    """Also exchange random patches of an image with each other, which are then anomalous."""
    top_patches: int = option(10, low=1, high=10_000, search=choice(1, 5, 10, 20))
    """Worst patches whose mean scores an image."""
    lr: float = option(
        5e-4, low=0, high=1, search=log_uniform(1e-4, 2e-3, "around the reference's 5e-4")
    )
    """Learning rate of AdamW at the start."""
    final_lr: float = option(1e-4, low=0, high=1)
    """Learning rate at the end, reached along half a cosine."""
    weight_decay: float = option(1e-5, low=0, high=1)
    """Weight decay of AdamW."""
    sigma: float = option(16.0, low=0.1, high=100, unit="pixels")
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges, that the transformer has this block, and that its width can be shared."""
        check_fields(self)
        dinov2_blocks(self.backbone, self.layers)
        width = DINOV2S[self.backbone].width
        if width % self.heads:
            raise InputError(
                Sentence.of("method heads", heads=self.heads, width=width, backbone=self.backbone)
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """Give the block that is tapped, as other methods name several."""
        return (self.layer,)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "GeneraladTrainer": Method(
        GeneraladConfig, shares_features=True, check_inputs=check_dinov2_inputs
    ),
}
