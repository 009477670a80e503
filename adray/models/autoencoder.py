"""A convolutional autoencoder, the plain baseline of reconstruction methods.

Compare: P. Bergmann et al., Improving Unsupervised Defect Segmentation by Applying Structural Similarity to
Autoencoders, VISAPP 2019, https://arxiv.org/abs/1807.02011 (its L2 autoencoder). The layers here are adray's own.

The image is squeezed through a small latent map and rebuilt. Trained on normal images only, the network does not know
how to draw defects: the map is the squared error of each pixel, smoothed, and the score its maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from adray.fields import check_range
from adray.trainer import BaseTrainer, BatchLoader
from adray.types import Batch, Prediction


@dataclass(frozen=True)
class AutoencoderConfig:
    """Hyperparameters of the autoencoder."""

    base_channels: int = 32
    """Channels after the first convolution; each further one doubles them."""
    num_blocks: int = 5
    """Convolutions of stride 2 on either side: the latent map is 2 ** num_blocks times smaller than the image."""
    latent_channels: int = 64
    """Channels of the latent map; more than a few per cent of the image's values let defects through."""
    lr: float = 1e-3
    """Learning rate of Adam, constant."""
    weight_decay: float = 1e-5
    """Weight decay of Adam."""
    sigma: float = 4.0
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("base_channels", self.base_channels, 1, 512)
        check_range("num_blocks", self.num_blocks, 1, 8)
        check_range("latent_channels", self.latent_channels, 1, 4096)
        check_range("lr", self.lr, 0, 1)
        check_range("weight_decay", self.weight_decay, 0, 1)
        check_range("sigma", self.sigma, 0.1, 100)

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the latent map, in each direction."""
        return 2**self.num_blocks


class AutoencoderModel(nn.Module):
    """Encoder, latent map, mirrored decoder.

    Args:
        base_channels: channels after the first convolution.
        num_blocks: convolutions of stride 2 on either side.
        latent_channels: channels of the latent map.
        sigma: of the Gaussian that smooths the anomaly map, in pixels.
    """

    def __init__(
        self, base_channels: int, num_blocks: int, latent_channels: int, sigma: float
    ) -> None:
        super().__init__()
        self.encoder = Encoder(base_channels, num_blocks, latent_channels)
        self.decoder = Decoder(base_channels, num_blocks, latent_channels)
        self.blur = GaussianBlur2d(sigma)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Rebuild (B, 3, H, W), in [0, 1]; H and W are multiples of 2 ** num_blocks."""
        return self.decoder(*self.encoder(image))

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Where the reconstruction fails.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: None, since there is no frozen stage.

        Returns:
            The smoothed squared error, mean over channels, (B, 1, H, W) in [0, 1], and its maximum per image, (B,).
        """
        anomaly_map = self.blur(squared_error_map(image, self.reconstruct(image)))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class AutoencoderTrainer(BaseTrainer):
    """Trains the reconstruction by its mean squared error; PSNR is of training steps, SSIM and LPIPS of a probe."""

    config: AutoencoderConfig
    model: AutoencoderModel
    config_class = AutoencoderConfig

    def build_model(self) -> AutoencoderModel:
        config = self.config
        return AutoencoderModel(
            config.base_channels, config.num_blocks, config.latent_channels, config.sigma
        )

    @classmethod
    def check_inputs(cls, config: AutoencoderConfig, train_config: TrainConfig) -> list[str]:
        check_reconstruction_inputs("autoencoder", config.stride, train_config)
        return []

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        adam = torch.optim.Adam(
            self.model.parameters(), self.config.lr, weight_decay=self.config.weight_decay
        )
        return adam, None

    def on_fit_start(self) -> None:
        self.probe = QualityProbe(self.loaders.train, self.model.reconstruct)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        loss = F.mse_loss(self.model.reconstruct(batch.image).float(), batch.image)
        self.optimize(loss)
        return {"loss": loss.detach(), "psnr": peak_signal_to_noise(loss.detach())}

    def train_epoch(self, loader: BatchLoader) -> dict[str, float]:
        row = super().train_epoch(loader)
        self.model.eval()
        return row | self.probe.measure()
