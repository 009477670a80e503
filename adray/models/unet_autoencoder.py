"""A denoising U-Net, the autoencoder with skip connections.

Compare: O. Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015,
https://arxiv.org/abs/1505.04597 (the skip connections); P. Vincent et al., Extracting and Composing Robust Features
with Denoising Autoencoders, ICML 2008, https://doi.org/10.1145/1390156.1390294 (the training). The layers here are
adray's own.

Skip connections carry detail past the narrow latent map. Trained to rebuild whole images, such a network learns to
copy: it draws defects nearly as well as everything else. So it is given damaged images, with noise and patches of
random colour and texture, and has to draw the undamaged ones. At test time it draws what should be there: the map is
the squared error of each pixel, smoothed, and the score its maximum.

Differs from the papers: the largest level has no skip connection, since it carries single pixels and is hardly needed
for sharp edges; the damage is opaque patches with soft noise rather than pixels set to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.corruption import corrupt
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
class UnetAutoencoderConfig:
    """Hyperparameters of the denoising U-Net."""

    base_channels: int = 32
    """Channels after the first convolution; each further one doubles them."""
    num_blocks: int = 5
    """Convolutions of stride 2 on either side: the latent map is 2 ** num_blocks times smaller than the image."""
    latent_channels: int = 64
    """Channels of the latent map."""
    skips: int = 3
    """Skip connections, from the deepest level upwards; num_blocks - 1 connects all, 0 none."""
    corruption: float = 1.0
    """Share of the training images that are damaged."""
    noise_std: float = 0.05
    """Standard deviation of the noise on a damaged image, which lies in [0, 1]."""
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
        check_range("skips", self.skips, 0, self.num_blocks - 1)
        check_range("corruption", self.corruption, 0, 1)
        check_range("noise_std", self.noise_std, 0, 1)
        check_range("lr", self.lr, 0, 1)
        check_range("weight_decay", self.weight_decay, 0, 1)
        check_range("sigma", self.sigma, 0.1, 100)

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the latent map, in each direction."""
        return 2**self.num_blocks


class UnetAutoencoderModel(nn.Module):
    """Encoder, latent map, mirrored decoder, skip connections between them.

    Args:
        base_channels: channels after the first convolution.
        num_blocks: convolutions of stride 2 on either side.
        latent_channels: channels of the latent map.
        skips: skip connections, from the deepest level upwards.
        sigma: of the Gaussian that smooths the anomaly map, in pixels.
    """

    def __init__(
        self, base_channels: int, num_blocks: int, latent_channels: int, skips: int, sigma: float
    ) -> None:
        super().__init__()
        self.encoder = Encoder(base_channels, num_blocks, latent_channels)
        self.decoder = Decoder(base_channels, num_blocks, latent_channels, skips)
        self.blur = GaussianBlur2d(sigma)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Mend (B, 3, H, W), in [0, 1]; H and W are multiples of 2 ** num_blocks."""
        return self.decoder(*self.encoder(image))

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Where the network would mend the image.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: None, since there is no frozen stage.

        Returns:
            The smoothed squared error, mean over channels, (B, 1, H, W) in [0, 1], and its maximum per image, (B,).
        """
        anomaly_map = self.blur(squared_error_map(image, self.reconstruct(image)))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class UnetAutoencoderTrainer(BaseTrainer):
    """Trains by the mean squared error between the mended image and the undamaged one."""

    config: UnetAutoencoderConfig
    model: UnetAutoencoderModel
    config_class = UnetAutoencoderConfig

    def build_model(self) -> UnetAutoencoderModel:
        c = self.config
        return UnetAutoencoderModel(
            c.base_channels, c.num_blocks, c.latent_channels, c.skips, c.sigma
        )

    @classmethod
    def check_inputs(cls, config: UnetAutoencoderConfig, train_config: TrainConfig) -> list[str]:
        check_reconstruction_inputs("U-Net", config.stride, train_config)
        if config.skips and not config.corruption:
            return ["skip connections with corruption 0: the network learns to copy defects too"]
        return []

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        adam = torch.optim.Adam(
            self.model.parameters(), self.config.lr, weight_decay=self.config.weight_decay
        )
        return adam, None

    def on_fit_start(self) -> None:
        self.probe = QualityProbe(self.loaders.train, self.model.reconstruct)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        damaged = corrupt(batch.image, self.config.corruption, self.config.noise_std)
        loss = F.mse_loss(self.model.reconstruct(damaged).float(), batch.image)
        self.optimize(loss)
        return {"loss": loss.detach(), "psnr": peak_signal_to_noise(loss.detach())}

    def train_epoch(self, loader: BatchLoader) -> dict[str, float]:
        row = super().train_epoch(loader)
        self.model.eval()
        return row | self.probe.measure()
