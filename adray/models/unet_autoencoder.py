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
from adray.fields import (
    check_fields,
    check_range,
    integers,
    log_integers,
    log_uniform,
    option,
    uniform,
)
from adray.trainer import BaseTrainer, BatchLoader
from adray.types import Batch, Prediction


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
    config_class = UnetAutoencoderConfig

    @classmethod
    def check_inputs(cls, config: UnetAutoencoderConfig, train_config: TrainConfig) -> list[str]:
        check_reconstruction_inputs("U-Net", config.stride, train_config)
        if config.skips and not config.corruption:
            return ["skip connections with corruption 0: the network learns to copy defects too"]
        return []

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
