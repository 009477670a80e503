"""Hyperparameters of L2BT, and what is known before its network is loaded.

The method itself: `adray.models.l2bt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import dinov2_blocks
from adray.components.input_checks import check_dinov2_inputs
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class L2btConfig:
    """Hyperparameters of L2BT; defaults are the authors'."""

    backbone: str = "dinov2_vitb14_reg4"
    """Architecture of the frozen transformer, one of `DINOV2S`."""
    layers: tuple[str, ...] = option(
        ("blocks.7", "blocks.11"),
        search=choice(
            ("blocks.7", "blocks.11"),
            ("blocks.5", "blocks.8"),
            note="two as published, or earlier ones for finer defects",
        ),
    )
    """The two blocks that are predicted from each other, through the network's last layer norm."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the transformer."""
    lr: float = option(
        1e-4,
        low=0,
        high=1,
        search=log_uniform(3e-5, 1e-3, "the repository's 1e-4, the paper's 1e-3"),
    )
    """Learning rate of Adam, constant."""
    score_part: float = option(
        0.001, low=1e-6, high=1, search=log_uniform(3e-4, 0.01, "more for larger defects")
    )
    """Part of the map's pixels, the highest, whose mean scores an image."""

    def __post_init__(self) -> None:
        """Check ranges, and that there are two blocks that the transformer has."""
        check_fields(self)
        dinov2_blocks(self.backbone, self.layers)
        if len(self.layers) != 2:
            raise InputError(Sentence.of("method two layers", layers=str(list(self.layers))))

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "L2btTrainer": Method(L2btConfig, shares_features=True, check_inputs=check_dinov2_inputs),
}
