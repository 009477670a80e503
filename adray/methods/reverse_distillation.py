"""Hyperparameters of reverse distillation, and what is known before its network is loaded.

The method itself: `adray.models.reverse_distillation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import check_decoded
from adray.components.input_checks import check_multiple
from adray.config import TrainConfig
from adray.fields import check_fields, choice, log_integers, log_uniform, option, uniform
from adray.method import Method

STRIDE = 32
"""Pixels of the image per position of the embedding, in each direction."""


@dataclass(frozen=True)
class ReverseDistillationConfig:
    """Hyperparameters of reverse distillation; defaults are the paper's and the reference's."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the teacher, and mirrored of the decoder."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the teacher; bottleneck and decoder always start at random."""
    lr: float = option(
        5e-3,
        low=0,
        high=1,
        search=log_uniform(5e-4, 1e-2, "around the reference's 5e-3; lower is calmer"),
    )
    """Learning rate of Adam, constant; single peaks of the loss are normal with it."""
    beta1: float = option(
        0.5,
        low=0,
        high=0.9999,
        search=choice(0.5, 0.9, note="the reference's 0.5, Adam's own 0.9"),
    )
    """Decay of Adam's mean of gradients."""
    beta2: float = option(0.999, low=0, high=0.999999)
    """Decay of Adam's mean of squared gradients."""
    sigma: float = option(4.0, low=0.1, high=100, unit="pixels", search=uniform(2.0, 8.0))
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check that the backbone has a mirror image, and ranges."""
        check_decoded(self.backbone)
        check_fields(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """Give the stages of the teacher that are compared.

        Bottleneck and decoder are made for these.
        """
        return "layer1", "layer2", "layer3"

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def check_inputs(config: ReverseDistillationConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    check_multiple("reverse distillation", STRIDE, train_config.input_size)
    return []


METHODS = {
    "ReverseDistillationTrainer": Method(
        ReverseDistillationConfig,
        train_search={
            "num_epochs": log_integers(
                40, 250, "the reference's 200; long training teaches to imitate defects too"
            )
        },
        check_inputs=check_inputs,
    ),
}
