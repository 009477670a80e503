"""Hyperparameters of STFPM, and what is known before its network is loaded.

The method itself: `adray.models.stfpm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.fields import check_fields, choice, log_integers, log_uniform, option
from adray.method import Method


@dataclass(frozen=True)
class StfpmConfig:
    """Hyperparameters of STFPM; defaults are the paper's and the reference's."""

    backbone: str = "resnet18"
    """Architecture of teacher and student."""
    layers: tuple[str, ...] = option(
        ("layer1", "layer2", "layer3"),
        search=choice(
            ("layer1", "layer2", "layer3"),
            ("layer1", "layer2"),
            ("layer2", "layer3"),
            note="all three as published, or without the finest or the coarsest",
        ),
    )
    """Stages whose features the student matches."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the teacher; the student always starts at random."""
    lr: float = option(
        0.4,
        low=0,
        high=100,
        search=log_uniform(0.05, 0.8, "the paper's 0.4 is high and held constant"),
    )
    """Learning rate of SGD, constant."""
    momentum: float = option(0.9, low=0, high=1)
    """Momentum of SGD."""
    weight_decay: float = option(
        1e-4, low=0, high=1, search=log_uniform(1e-5, 1e-3, "around the paper's 1e-4")
    )
    """Weight decay of SGD."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """List the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "StfpmTrainer": Method(
        StfpmConfig, train_search={"num_epochs": log_integers(30, 200, "the paper's 100")}
    ),
}
