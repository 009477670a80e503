"""A denoising U-Net, the autoencoder with skip connections.

Compare: O. Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation,
MICCAI 2015, https://arxiv.org/abs/1505.04597 (the skip connections); P. Vincent et al., Extracting
and Composing Robust Features with Denoising Autoencoders, ICML 2008,
https://doi.org/10.1145/1390156.1390294 (the training). The layers here are adray's own.

Skip connections carry detail past the narrow latent map. Trained to rebuild whole images, such a
network learns to copy: it draws defects nearly as well as everything else. So it is given damaged
images, with noise and patches of random colour and texture, and has to draw the undamaged ones. At
test time it draws what should be there: the map is the squared error of each pixel, smoothed, and
the score its maximum.

Differs from the papers: the largest level has no skip connection, since it carries single pixels
and is hardly needed for sharp edges; the damage is opaque patches with soft noise rather than
pixels set to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.corruption import corrupt
from adray.components.encoder_decoder import Decoder, Encoder
from adray.components.reconstruction import (
    QualityProbe,
    peak_signal_to_noise,
    squared_error_map,
)
from adray.methods.unet_autoencoder import METHODS, UnetAutoencoderConfig
from adray.trainer import BaseTrainer, BatchLoader
from adray.types import Batch, Prediction


class UnetAutoencoderModel(nn.Module):
    """Encoder, latent map, mirrored decoder, skip connections between them.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: UnetAutoencoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config.base_channels, config.num_blocks, config.latent_channels)
        self.decoder = Decoder(
            config.base_channels, config.num_blocks, config.latent_channels, config.skips
        )
        self.blur = GaussianBlur2d(config.sigma)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Mend (B, 3, H, W), in [0, 1], H and W multiples of 2 ** num_blocks."""
        latent, levels = self.encoder(image)
        return self.decoder(latent, levels)

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Show where the network would mend the image.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: None, since there is no frozen stage.

        Returns:
            The smoothed squared error, mean over channels, (B, 1, H, W) in [0, 1], and its maximum
            per image, (B,).
        """
        anomaly_map = self.blur(squared_error_map(image, self.reconstruct(image)))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class UnetAutoencoderTrainer(BaseTrainer):
    """Trains by the mean squared error between the mended image and the undamaged one."""

    config: UnetAutoencoderConfig
    model: UnetAutoencoderModel
    method = METHODS["UnetAutoencoderTrainer"]

    def build_model(self) -> UnetAutoencoderModel:
        return UnetAutoencoderModel(self.config)

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
        damaged = corrupt(batch.image, self.config.corruption, self.config.noise_std)
        loss = F.mse_loss(self.model.reconstruct(damaged).float(), batch.image)
        self.optimize(loss)
        return {"loss": loss.detach(), "psnr": peak_signal_to_noise(loss.detach())}
