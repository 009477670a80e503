"""Hyperparameters of CS-Flow, and what is known before its network is loaded.

The method itself: `adray.models.csflow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.input_checks import check_kernel_sizes
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method

SIDE = 128  # a stride of 32 at a quarter of the size


@dataclass(frozen=True)
class CsflowConfig:
    """Hyperparameters of CS-Flow; defaults are the paper's and the reference's."""

    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the EfficientNet-B5."""
    kernel_sizes: tuple[int, ...] = option(
        (3, 3, 3, 5),
        search=choice(
            (3, 3, 5),
            (3, 3, 3, 5),
            (3, 3, 3, 3),
            note="number of couplings and how far each looks",
        ),
    )
    """Sides of the convolutions of each coupling step, odd; their number is that of the steps."""
    hidden_channels: int = option(
        1024,
        low=1,
        high=8192,
        search=choice(256, 512, 1024, note="less is faster and fits small data sets better"),
    )
    """Hidden channels of the sub-networks."""
    clamp: float = option(
        3.0, low=0.01, high=10, search=uniform(1.0, 4.0, "the paper's alpha is 3")
    )
    """Alpha, which bounds the log scale of a coupling."""
    lr: float = option(
        2e-4, low=0, high=1, search=log_uniform(5e-5, 6e-4, "around the reference's 2e-4")
    )
    """Learning rate of Adam, constant."""
    weight_decay: float = option(
        1e-5, low=0, high=1, search=log_uniform(1e-6, 1e-3, "around the reference's 1e-5")
    )
    """Weight decay of Adam."""
    clip_norm: float = option(1.0, low=1e-6)
    """Largest norm of the gradients."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)
        check_kernel_sizes(self.kernel_sizes, such_as="[3, 3, 3, 5]")

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return ("efficientnet_b5",) if self.weights == "pretrained" else ()


def check_inputs(config: CsflowConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    size = train_config.input_size
    if size % SIDE:
        raise InputError(Sentence.of("method csflow size", size=size, side=SIDE))
    return []


METHODS = {
    "CsflowTrainer": Method(CsflowConfig, check_inputs=check_inputs),
}
