"""A convolutional variational autoencoder, and its variant with skip connections.

D. P. Kingma, M. Welling, Auto-Encoding Variational Bayes, ICLR 2014, https://arxiv.org/abs/1312.6114; beta of
I. Higgins et al., beta-VAE, ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl. No reference implementation; the
layers here are adray's own.

The encoder gives a Gaussian per latent value, the decoder draws the image from a sample of it, and the Gaussians are
kept close to a standard one, so that the latent map holds no more than it must and has little room for defects. Scores
use the mean and no sample: the map is the squared error of each pixel, smoothed, and the score its maximum.

With `skips` the decoder sees the encoder's levels too (``unet-vae``). They would carry defects past the latent map, so
that variant learns to mend damaged images instead of copying whole ones (`corruption`), and the largest level, which
carries single pixels, has no skip connection. Where the levels alone suffice to mend, little goes through the latent
map: the history's `divergence` falls to nearly 0, and the variant is a denoising U-Net.

Differs from the paper: the latent is a map, each position of which has its own Gaussians; the likelihood of a pixel is
a Gaussian of variance 1/2, so that the reconstruction loss is the plain sum of squares.
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

_LARGEST_LOGVAR = 10.0


@dataclass(frozen=True)
class VaeConfig:
    """Hyperparameters of the variational autoencoder."""

    base_channels: int = 32
    """Channels after the first convolution; each further one doubles them."""
    num_blocks: int = 5
    """Convolutions of stride 2 on either side: the latent map is 2 ** num_blocks times smaller than the image."""
    latent_channels: int = 64
    """Channels of the latent map, each with a mean and a variance."""
    beta: float = 1.0
    """Weight of the divergence from a standard Gaussian beside the squared errors, both summed over an image."""
    skips: int = 0
    """Skip connections, from the deepest level upwards; num_blocks - 1 connects all."""
    corruption: float = 0.0
    """Share of the training images that are damaged, which the network shall mend; skip connections need it."""
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
        check_range("beta", self.beta, 0, 1e6)
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


class VaeModel(nn.Module):
    """Encoder to means and variances, mirrored decoder.

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
        self.encoder = Encoder(base_channels, num_blocks, 2 * latent_channels)
        self.decoder = Decoder(base_channels, num_blocks, latent_channels, skips)
        self.blur = GaussianBlur2d(sigma)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Means and logarithms of variances, (B, latent_channels, h, w) float32 each, and the encoder's levels."""
        latent, levels = self.encoder(image)
        mu, logvar = latent.float().chunk(2, 1)  # (B, 2L, h, w) -> (B, L, h, w) each
        return mu, logvar.clamp(-_LARGEST_LOGVAR, _LARGEST_LOGVAR), levels

    def sample(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image drawn from a random latent map, (B, 3, H, W) in [0, 1], with that map's means and log-variances."""
        mu, logvar, levels = self.encode(image)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)  # section 2.4
        return self.decoder(z, levels), mu, logvar

    def reconstruct(self, image: Tensor) -> Tensor:
        """Rebuild (B, 3, H, W) from the means, in [0, 1]; H and W are multiples of 2 ** num_blocks."""
        mu, _, levels = self.encode(image)
        return self.decoder(mu, levels)

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Where the reconstruction from the means fails.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: None, since there is no frozen stage.

        Returns:
            The smoothed squared error, mean over channels, (B, 1, H, W) in [0, 1], and its maximum per image, (B,).
        """
        anomaly_map = self.blur(squared_error_map(image, self.reconstruct(image)))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def standard_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)), summed over an image, mean over the batch (appendix B).

    Args:
        mu: (B, L, h, w).
        logvar: (B, L, h, w).
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()


class VaeTrainer(BaseTrainer):
    """Trains by squared errors plus beta times the divergence, both summed over an image: equation 10, negated."""

    config: VaeConfig
    model: VaeModel
    config_class = VaeConfig

    def build_model(self) -> VaeModel:
        c = self.config
        return VaeModel(c.base_channels, c.num_blocks, c.latent_channels, c.skips, c.sigma)

    @classmethod
    def check_inputs(cls, config: VaeConfig, train_config: TrainConfig) -> list[str]:
        check_reconstruction_inputs("variational autoencoder", config.stride, train_config)
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
        config = self.config
        seen = (
            corrupt(batch.image, config.corruption, config.noise_std)
            if config.corruption
            else batch.image
        )
        rebuilt, mu, logvar = self.model.sample(seen)
        mse = F.mse_loss(rebuilt.float(), batch.image)
        squared_error = mse * batch.image[0].numel()  # sum per image, mean over the batch
        divergence = standard_divergence(mu, logvar)
        loss = squared_error + config.beta * divergence
        self.optimize(loss)
        values = {"loss": loss, "squared_error": squared_error, "divergence": divergence}
        return {name: value.detach() for name, value in values.items()} | {
            "psnr": peak_signal_to_noise(mse.detach())
        }

    def train_epoch(self, loader: BatchLoader) -> dict[str, float]:
        row = super().train_epoch(loader)
        self.model.eval()
        return row | self.probe.measure()
