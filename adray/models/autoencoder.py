"""A convolutional autoencoder, the plain baseline of reconstruction methods.

Compare: P. Bergmann et al., Improving Unsupervised Defect Segmentation by Applying Structural
Similarity to Autoencoders, VISAPP 2019, https://arxiv.org/abs/1807.02011 (its L2 autoencoder). The
layers here are adray's own.

The image is squeezed through a small latent map and rebuilt. Trained on normal images only, the
network does not know how to draw defects: the map is the squared error of each pixel, smoothed, and
the score its maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.encoder_decoder import Decoder, Encoder
from adray.components.reconstruction import (
    QualityProbe,
    check_reconstruction_inputs,
    peak_signal_to_noise,
    squared_error_map,
)
from adray.config import TrainConfig
from adray.fields import check_fields, choice, log_integers, log_uniform, option, uniform
from adray.trainer import BaseTrainer, BatchLoader
from adray.types import Batch, Prediction


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


class AutoencoderModel(nn.Module):
    """Encoder, latent map, mirrored decoder.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config.base_channels, config.num_blocks, config.latent_channels)
        self.decoder = Decoder(config.base_channels, config.num_blocks, config.latent_channels)
        self.blur = GaussianBlur2d(config.sigma)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Rebuild (B, 3, H, W), in [0, 1], H and W multiples of 2 ** num_blocks."""
        latent, levels = self.encoder(image)
        return self.decoder(latent, levels)

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Show where the reconstruction fails.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: None, since there is no frozen stage.

        Returns:
            The smoothed squared error, mean over channels, (B, 1, H, W) in [0, 1], and its maximum
            per image, (B,).
        """
        anomaly_map = self.blur(squared_error_map(image, self.reconstruct(image)))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class AutoencoderTrainer(BaseTrainer):
    """Trains the reconstruction by its mean squared error.

    PSNR is that of the training steps, SSIM and LPIPS are those of a probe.
    """

    config: AutoencoderConfig
    model: AutoencoderModel
    config_class = AutoencoderConfig
    train_search: ClassVar = {
        "num_epochs": log_integers(50, 400, "a longer training draws defects too")
    }

    @classmethod
    def check_inputs(cls, config: AutoencoderConfig, train_config: TrainConfig) -> list[str]:
        check_reconstruction_inputs("autoencoder", config.stride, train_config)
        return []

    def build_model(self) -> AutoencoderModel:
        return AutoencoderModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        config = self.config
        learnt = self.model.parameters()
        return torch.optim.Adam(learnt, config.lr, weight_decay=config.weight_decay), None

    def on_fit_start(self) -> None:
        self.probe = QualityProbe(self.loaders.train, self.model.reconstruct)

    def train_epoch(self, loader: BatchLoader) -> dict[str, float]:
        row = super().train_epoch(loader)
        self.model.eval()
        return row | self.probe.measure()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        loss = F.mse_loss(self.model.reconstruct(batch.image).float(), batch.image)
        self.optimize(loss)
        return {"loss": loss.detach(), "psnr": peak_signal_to_noise(loss.detach())}
