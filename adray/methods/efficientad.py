"""Hyperparameters of EfficientAD, and what is known before its network is loaded.

The method itself: `adray.models.efficientad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_integers, log_uniform, option
from adray.language.sentence import Sentence
from adray.method import Method

SMALLEST = 33
"""Side in pixels of what a cell of the map sees."""


@dataclass(frozen=True)
class EfficientadConfig:
    """Hyperparameters of EfficientAD; defaults are the paper's."""

    model_size: Literal["small", "medium"] = "small"
    """EfficientAD-S or EfficientAD-M: width and depth of teacher and student (section 3.1)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the teacher."""
    auxiliary: str = "imagenette2"
    """Photographs for the penalty: a known set, or any folder of images (section 3.2)."""
    hard_quantile: float = option(
        0.999,
        low=0,
        high=1,
        search=choice(0.99, 0.995, 0.999, note="the paper learns from the largest thousandth"),
    )
    """Part of the squared differences that the student's loss leaves out, the smallest (section
    3.2)."""
    dropout: float = option(0.2, low=0, high=0.99, search=choice(0.0, 0.2, 0.4))
    """Dropout probability in the autoencoder's decoder (appendix)."""
    quantiles: tuple[float, float] = (0.9, 0.995)
    """Quantiles of a held-out map that become 0 and 0.1 (section 3.4)."""
    lr: float = option(
        1e-4, low=0, high=1, search=log_uniform(3e-5, 3e-4, "around the paper's 1e-4")
    )
    """Learning rate of Adam, a tenth of it in the last twentieth of the steps."""
    weight_decay: float = option(
        1e-5, low=0, high=1, search=log_uniform(1e-6, 1e-4, "around the paper's 1e-5")
    )
    """Weight decay of Adam."""

    def __post_init__(self) -> None:
        """Check ranges, and that the quantiles rise."""
        check_fields(self)
        if len(self.quantiles) != 2 or not 0 <= self.quantiles[0] < self.quantiles[1] <= 1:
            raise InputError(Sentence.of("method quantiles", quantiles=str(list(self.quantiles))))

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (f"efficientad_teacher_{self.model_size}",) if self.weights == "pretrained" else ()


def check_inputs(config: EfficientadConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    size = train_config.input_size
    if size < SMALLEST:
        raise InputError(Sentence.of("method efficientad size", size=size, smallest=SMALLEST))

    normalize = train_config.normalize
    if normalize != "none":
        raise InputError(Sentence.of("method efficientad normalize", normalize=repr(normalize)))

    # Normals that were trained on have smaller distances than new ones.
    if train_config.holdout == 0:
        return [
            "no held-out normals (holdout: 0), EfficientAD's map quantiles come from the "
            "training images"
        ]
    return []


METHODS = {
    "EfficientadTrainer": Method(
        EfficientadConfig,
        train_search={
            "max_steps": log_integers(
                10_000, 70_000, "the paper's 70,000 are many for a simple product"
            )
        },
        check_inputs=check_inputs,
    ),
}
