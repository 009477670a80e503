"""Hyperparameters of FastFlow, and what is known before its network is loaded.

The method itself: `adray.models.fastflow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import VITS, check_vit
from adray.components.input_checks import check_kernel_sizes
from adray.config import TrainConfig
from adray.fields import check_fields, choice, log_integers, log_uniform, option
from adray.method import Method


@dataclass(frozen=True)
class FastflowConfig:
    """Hyperparameters of FastFlow.

    Defaults are the paper's and the reference's for a Wide ResNet-50.
    """

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor: one of `RESNETS` or of `VITS`."""
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    """Stages of a ResNet, or blocks of a transformer (``blocks.7``), that get a flow each
    (table 6)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    flow_steps: int = option(
        8,
        low=1,
        high=100,
        search=choice(4, 8, 12, 20, note="the paper's 8 for ResNets, 20 for transformers"),
    )
    """Coupling steps per flow."""
    kernel_sizes: tuple[int, ...] = option(
        (3, 1), search=choice((3, 1), (3,), note="[3] sees more around each position")
    )
    """Sides of the sub-networks' convolutions, odd, taken in turn by a flow's steps; the paper
    alternates 3 and 1."""
    hidden_ratio: float = option(
        1.0,
        low=0.01,
        high=16,
        search=choice(
            0.16,
            0.5,
            1.0,
            note="the paper's 0.16 for transformers, 1.0 for ResNets; small ones need less memory",
        ),
    )
    """Hidden channels of a sub-network as a multiple of its input channels."""
    clamp: float = option(2.0, low=0.01, high=10)
    """Bound of the log scale of one coupling."""
    lr: float = option(
        1e-3, low=0, high=1, search=log_uniform(1e-4, 3e-3, "around the paper's 1e-3")
    )
    """Learning rate of Adam, constant."""
    weight_decay: float = option(
        1e-5, low=0, high=1, search=log_uniform(1e-6, 1e-3, "around the paper's 1e-5")
    )
    """Weight decay of Adam."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)
        check_kernel_sizes(self.kernel_sizes, such_as="[3, 1] or [3]")

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def check_inputs(config: FastflowConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    if config.backbone in VITS:
        check_vit(config.backbone, config.layers, train_config.input_size)
    return []


METHODS = {
    "FastflowTrainer": Method(
        FastflowConfig,
        train_search={
            "num_epochs": log_integers(
                100, 500, "the paper's 500; small data sets are learnt by heart earlier"
            )
        },
        check_inputs=check_inputs,
    ),
}
