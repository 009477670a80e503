"""Hyperparameters of CFLOW-AD, and what is known before its network is loaded.

The method itself: `adray.models.cflow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class CflowConfig:
    """Hyperparameters of CFLOW-AD.

    Defaults are the reference's for a Wide ResNet-50, but for the larger groups.
    """

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = ("layer2", "layer3", "layer4")
    """Stages that get a flow each."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    flow_steps: int = option(
        8, low=1, high=100, search=choice(4, 8, note="the paper's 8; 4 is half the work")
    )
    """Coupling steps per flow."""
    condition_channels: int = option(
        128,
        low=4,
        high=4096,
        search=choice(
            32,
            64,
            128,
            note="how much the position says; products that move in the image want less",
        ),
    )
    """Length of the position code, a multiple of 4."""
    clamp: float = option(
        1.9,
        low=0.01,
        high=10,
        search=uniform(1.0, 3.0, "lower is more stable, higher bends more"),
    )
    """Bound of the log scale of one coupling."""
    permute_soft: bool = option(True, search=choice(False, True))
    """Turn the channels at random between couplings, as the reference does. A permutation takes less
    memory."""
    rotation_degrees: float = option(0.0, low=0, high=180, unit="degrees")
    """Largest angle by which training images are turned at random. The reference turns by 5. Above 0
    the backbone runs in every epoch."""
    fiber_batch_size: int = option(1024, low=16)
    """Fibers per optimiser step and stage, at most."""
    lr: float = option(
        2e-4, low=0, high=1, search=log_uniform(5e-5, 1e-3, "around the reference's 2e-4")
    )
    """Largest learning rate of Adam."""
    warmup: float = option(0.08, low=0, high=1)
    """Part of the steps over which the rate rises from a tenth."""

    def __post_init__(self) -> None:
        """Check ranges, and that the position code can be split in four."""
        check_fields(self)
        if self.condition_channels % 4:
            raise InputError(
                Sentence.of("method condition_channels", condition_channels=self.condition_channels)
            )

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


METHODS = {
    "CflowTrainer": Method(CflowConfig),
}
