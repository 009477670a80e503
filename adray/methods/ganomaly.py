"""Hyperparameters of GANomaly, and what is known before its network is loaded.

The method itself: `adray.models.ganomaly`.
"""

from __future__ import annotations

from dataclasses import dataclass

from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, log_integers, log_uniform, option
from adray.language.sentence import Sentence
from adray.method import Method


@dataclass(frozen=True)
class GanomalyConfig:
    """Hyperparameters of GANomaly; defaults are the paper's."""

    latent_channels: int = option(
        100,
        low=1,
        high=4096,
        search=log_integers(32, 512, "the paper's 100; it tries up to 1000"),
    )
    """Values of the latent vector z (section 4)."""
    base_channels: int = option(64, low=1, high=512)
    """Channels after the first convolution; each further one doubles them."""
    adversarial_weight: float = option(1.0, low=0, high=1e4)
    """Weight of the distance between the discriminator's features (equation 4)."""
    contextual_weight: float = option(
        50.0,
        low=0,
        high=1e4,
        search=log_uniform(10.0, 200.0, "the paper's 50 relative to 1 for the others"),
    )
    """Weight of the absolute error of the drawing (equation 4)."""
    encoder_weight: float = option(
        1.0, low=0, high=1e4, search=log_uniform(0.3, 10.0, "that distance becomes the score")
    )
    """Weight of the distance between z and z' (equation 4)."""
    lr: float = option(
        2e-4, low=0, high=1, search=log_uniform(5e-5, 6e-4, "around the paper's 2e-4")
    )
    """Learning rate of Adam, constant (section 4)."""
    beta1: float = option(0.5, low=0, high=0.99999)
    """Decay of Adam's first moment (section 4)."""
    beta2: float = option(0.999, low=0, high=0.99999)
    """Decay of Adam's second moment (section 4)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)


def check_inputs(config: GanomalyConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    size = train_config.input_size
    below = 1 << (size.bit_length() - 1)  # the largest power of two up to the size
    if size != below:
        raise InputError(
            Sentence.of("method ganomaly size", size=size, below=below, above=2 * below)
        )

    if train_config.normalize != "minus1_1":
        raise InputError(
            Sentence.of("method ganomaly normalize", normalize=repr(train_config.normalize))
        )
    return []


METHODS = {
    "GanomalyTrainer": Method(
        GanomalyConfig,
        train_search={
            "num_epochs": log_integers(
                30, 200, "it gets worse when the adversary wins, so its end matters"
            )
        },
        check_inputs=check_inputs,
    ),
}
