"""A convolutional autoencoder, the plain baseline of reconstruction methods.

Compare: P. Bergmann et al., Improving Unsupervised Defect Segmentation by Applying Structural
Similarity to Autoencoders, VISAPP 2019, https://arxiv.org/abs/1807.02011 (its L2 autoencoder). The
layers here are adray's own.

The image is squeezed through a small latent map and rebuilt. Trained on normal images only, the
network does not know how to draw defects: the map is the squared error of each pixel, smoothed, and
the score its maximum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.encoder_decoder import Decoder, Encoder
from adray.components.reconstruction import (
    QualityProbe,
    peak_signal_to_noise,
    squared_error_map,
)
from adray.methods.autoencoder import METHODS, AutoencoderConfig
from adray.trainer import BaseTrainer, BatchLoader
from adray.types import Batch, Prediction


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
    method = METHODS["AutoencoderTrainer"]

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
