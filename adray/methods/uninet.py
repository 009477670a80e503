"""Hyperparameters of UniNet, and what is known before its network is loaded.

The method itself: `adray.models.uninet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import check_decoded
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, log_integers, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class UninetConfig:
    """Hyperparameters of UniNet; defaults are the paper's and the reference's."""

    backbone: str = "wide_resnet50_2"
    """Architecture of both teachers, and mirrored of the decoder."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights that both teachers start from; bottleneck and decoder always start at random."""
    temperature: float = option(2.0, low=0.01, high=100, search=log_uniform(0.1, 4.0))
    """Divides the cosines in the contrastive loss; the reference takes 0.1 for some categories."""
    cosine_weight: float = option(
        0.7, low=0, high=1, search=uniform(0.3, 0.95, "around the paper's 0.7")
    )
    """Weight of the cosine loss; the contrastive loss has the rest to 1."""
    margin: float = option(1.0, low=0, high=1)
    """Softmax probability of the own position from which on the margin loss is content."""
    lr: float = option(
        5e-3, low=0, high=1, search=log_uniform(5e-4, 1e-2, "around the reference's 5e-3")
    )
    """Learning rate of AdamW for bottleneck, decoder and feature selection, constant."""
    teacher_lr: float = option(
        1e-6,
        low=0,
        high=1,
        search=log_uniform(
            1e-7, 1e-5, "the target teacher hardly moves; more and it forgets what it knew"
        ),
    )
    """Learning rate of AdamW for the target teacher, constant."""
    weight_decay: float = option(1e-5, low=0, high=1)
    """Weight decay of all of them."""
    alpha: float = option(
        0.01, low=0, high=1, search=log_uniform(0.001, 0.1, "around the reference's 0.01")
    )
    """Part of the map's values that the score averages, per unit of the layers' largest
    distances."""
    beta: float = option(3e-5, low=0, high=1)
    """Smallest part of the map's values that the score averages."""
    sigma: float = option(4.0, low=0.1, high=100, unit="pixels")
    """Standard deviation in pixels of the Gaussian that smooths the map before its highest values
    are taken."""

    def __post_init__(self) -> None:
        """Check ranges, and that the backbone can be mirrored."""
        check_fields(self)
        check_decoded(self.backbone)

    @property
    def layers(self) -> tuple[str, ...]:
        """Give the stages that are compared, for which bottleneck and decoder are made."""
        return "layer1", "layer2", "layer3"

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def check_inputs(config: UninetConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    size = train_config.input_size
    if size % 32:
        below = size // 32 * 32
        near = f"{below} or {below + 32}" if below else "32"
        raise InputError(Sentence.of("method uninet size", size=size, near=near))
    return []


METHODS = {
    "UninetTrainer": Method(
        UninetConfig,
        train_search={"num_epochs": log_integers(20, 150, "the paper's 100")},
        check_inputs=check_inputs,
    ),
}
