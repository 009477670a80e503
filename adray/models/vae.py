"""A convolutional variational autoencoder, and its variant with skip connections.

D. P. Kingma, M. Welling, Auto-Encoding Variational Bayes, ICLR 2014,
https://arxiv.org/abs/1312.6114; beta of I. Higgins et al., beta-VAE, ICLR 2017,
https://openreview.net/forum?id=Sy2fzU9gl. No reference implementation; the layers here are adray's
own.

The encoder gives a Gaussian per latent value, the decoder draws the image from a sample of it, and
the Gaussians are kept close to a standard one, so that the latent map holds no more than it must
and has little room for defects. Scores use the mean and no sample: the map is the squared error of
each pixel, smoothed, and the score its maximum.

With `skips` the decoder sees the encoder's levels too (``unet-vae``). They would carry defects past
the latent map, so that variant learns to mend damaged images instead of copying whole ones
(`corruption`), and the largest level, which carries single pixels, has no skip connection. Where
the levels alone suffice to mend, little goes through the latent map: the history's `divergence`
falls to nearly 0, and the variant is a denoising U-Net.

Differs from the paper: the latent is a map, each position of which has its own Gaussians; the
likelihood of a pixel is a Gaussian of variance 1/2, so that the reconstruction loss is the plain
sum of squares.
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
from adray.methods.vae import METHODS, VaeConfig
from adray.trainer import BaseTrainer, BatchLoader
from adray.types import Batch, Prediction

_LARGEST_LOGVAR = 10.0
"""Bound of the logarithm of a variance, on either side, so that its exponential stays finite."""


class VaeModel(nn.Module):
    """Encoder to means and variances, mirrored decoder.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        latent = config.latent_channels
        self.encoder = Encoder(config.base_channels, config.num_blocks, 2 * latent)
        self.decoder = Decoder(config.base_channels, config.num_blocks, latent, config.skips)
        self.blur = GaussianBlur2d(config.sigma)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Give the Gaussians of the latent map.

        Returns:
            Means and logarithms of variances, (B, latent_channels, h, w) float32 each, and the
            encoder's levels.
        """
        latent, levels = self.encoder(image)
        mu, logvar = latent.float().chunk(2, dim=1)  # (B, 2L, h, w) -> (B, L, h, w) each
        return mu, logvar.clamp(-_LARGEST_LOGVAR, _LARGEST_LOGVAR), levels

    def sample(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the image from a random latent map (section 2.4).

        Returns:
            The drawing, (B, 3, H, W) in [0, 1], with that map's means and log-variances.
        """
        mu, logvar, levels = self.encode(image)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        return self.decoder(z, levels), mu, logvar

    def reconstruct(self, image: Tensor) -> Tensor:
        """Rebuild (B, 3, H, W) from the means, in [0, 1], H and W multiples of 2 ** num_blocks."""
        mu, _, levels = self.encode(image)
        return self.decoder(mu, levels)

    def forward(self, image: Tensor, features: None = None) -> Prediction:
        """Show where the reconstruction from the means fails.

        Args:
            image: (B, 3, H, W) in [0, 1].
            features: None, since there is no frozen stage.

        Returns:
            The smoothed squared error, mean over channels, (B, 1, H, W) in [0, 1], and its maximum
            per image, (B,).
        """
        anomaly_map = self.blur(squared_error_map(image, self.reconstruct(image)))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def standard_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """Give KL(N(mu, exp(logvar)) || N(0, 1)), a sum per image, mean over the batch (appendix B).

    Args:
        mu: (B, L, h, w).
        logvar: (B, L, h, w).
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()


class VaeTrainer(BaseTrainer):
    """Trains by squared errors plus beta times the divergence: equation 10, negated.

    Both are summed over an image.
    """

    config: VaeConfig
    model: VaeModel
    method = METHODS["VaeTrainer"]

    def build_model(self) -> VaeModel:
        return VaeModel(self.config)

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
        config = self.config
        seen = batch.image
        if config.corruption:
            seen = corrupt(batch.image, config.corruption, config.noise_std)
        rebuilt, mu, logvar = self.model.sample(seen)

        # Both parts are sums over an image, so that beta weighs the same at every size.
        mse = F.mse_loss(rebuilt.float(), batch.image)
        squared_error = mse * batch.image[0].numel()
        divergence = standard_divergence(mu, logvar)
        loss = squared_error + config.beta * divergence
        self.optimize(loss)

        return {
            "loss": loss.detach(),
            "squared_error": squared_error.detach(),
            "divergence": divergence.detach(),
            "psnr": peak_signal_to_noise(mse.detach()),
        }
