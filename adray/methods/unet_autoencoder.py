"""Hyperparameters of the denoising U-Net, and what is known before its network is loaded.

The method itself: `adray.models.unet_autoencoder`.
"""

from __future__ import annotations

from dataclasses import dataclass

from adray.components.input_checks import check_reconstruction_inputs, skip_remarks
from adray.config import TrainConfig
from adray.fields import (
    check_fields,
    check_range,
    integers,
    log_integers,
    log_uniform,
    option,
    uniform,
)
from adray.method import Method


@dataclass(frozen=True)
class UnetAutoencoderConfig:
    """Hyperparameters of the denoising U-Net."""

    base_channels: int = option(32, low=1, high=512)
    """Channels after the first convolution; each further one doubles them."""
    num_blocks: int = option(5, low=1, high=8)
    """Convolutions of stride 2 on either side: the latent map is 2 ** num_blocks times smaller than
    the image."""
    latent_channels: int = option(64, low=1, high=4096, search=log_integers(16, 256))
    """Channels of the latent map."""
    skips: int = option(
        3,
        low=0,
        high=7,
        search=integers(0, 4, "none for smooth products, many where fine texture is normal"),
    )
    """Skip connections, from the deepest level upwards; num_blocks - 1 connects all, 0 none."""
    corruption: float = option(
        1.0, low=0, high=1, search=uniform(0.5, 1.0, "skip connections need it high")
    )
    """Share of the training images that are damaged."""
    noise_std: float = option(0.05, low=0, high=1, search=log_uniform(0.01, 0.2))
    """Standard deviation of the noise on a damaged image, which lies in [0, 1]."""
    lr: float = option(
        1e-3, low=0, high=1, search=log_uniform(2e-4, 3e-3, "around Adam's usual 1e-3")
    )
    """Learning rate of Adam, constant."""
    weight_decay: float = option(1e-5, low=0, high=1)
    """Weight decay of Adam."""
    sigma: float = option(4.0, low=0.1, high=100, unit="pixels", search=uniform(2.0, 8.0))
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)
        check_range("skips", self.skips, 0, self.num_blocks - 1)

    @property
    def stride(self) -> int:
        """Count the pixels of the image per position of the latent map, in each direction."""
        return 2**self.num_blocks


def check_inputs(config: UnetAutoencoderConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    check_reconstruction_inputs("U-Net", config.stride, train_config)
    return skip_remarks(config.skips, config.corruption)


METHODS = {
    "UnetAutoencoderTrainer": Method(UnetAutoencoderConfig, check_inputs=check_inputs),
}
