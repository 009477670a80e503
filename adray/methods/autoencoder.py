"""Hyperparameters of the autoencoder, and what is known before its network is loaded.

The method itself: `adray.models.autoencoder`.
"""

from __future__ import annotations

from dataclasses import dataclass

from adray.components.input_checks import check_reconstruction_inputs
from adray.config import TrainConfig
from adray.fields import check_fields, choice, log_integers, log_uniform, option, uniform
from adray.method import Method


@dataclass(frozen=True)
class AutoencoderConfig:
    """Hyperparameters of the autoencoder."""

    base_channels: int = option(32, low=1, high=512)
    """Channels after the first convolution; each further one doubles them."""
    num_blocks: int = option(
        5,
        low=1,
        high=8,
        search=choice(4, 5, 6, note="4 keeps a latent map of 16 x 16 at 256 px, 6 one of 4 x 4"),
    )
    """Convolutions of stride 2 on either side: the latent map is 2 ** num_blocks times smaller than
    the image."""
    latent_channels: int = option(
        64,
        low=1,
        high=4096,
        search=log_integers(
            16, 256, "too wide and defects pass, too narrow and fine texture is lost everywhere"
        ),
    )
    """Channels of the latent map; more than a few per cent of the image's values let defects
    through."""
    lr: float = option(
        1e-3, low=0, high=1, search=log_uniform(2e-4, 3e-3, "around Adam's usual 1e-3")
    )
    """Learning rate of Adam, constant."""
    weight_decay: float = option(1e-5, low=0, high=1)
    """Weight decay of Adam."""
    sigma: float = option(
        4.0,
        low=0.1,
        high=100,
        unit="pixels",
        search=uniform(2.0, 8.0, "small for scratches, large for stains"),
    )
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)

    @property
    def stride(self) -> int:
        """Count the pixels of the image per position of the latent map, in each direction."""
        return 2**self.num_blocks


def check_inputs(config: AutoencoderConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    check_reconstruction_inputs("autoencoder", config.stride, train_config)
    return []


METHODS = {
    "AutoencoderTrainer": Method(
        AutoencoderConfig,
        train_search={"num_epochs": log_integers(50, 400, "a longer training draws defects too")},
        check_inputs=check_inputs,
    ),
}
