"""FRE: A Fast Method for Anomaly Detection and Segmentation (I. Ndiour et al., BMVC 2023).

Paper: https://arxiv.org/abs/2211.12650
Reference: https://github.com/open-edge-platform/anomalib (Apache-2.0, facts only).

A middle map of a frozen backbone, pooled to a coarse grid, is one long vector per image. A linear
autoencoder with tied weights learns to squeeze the training images' vectors through a few hundred
values and back. What it cannot rebuild of an image is anomalous: the map is the squared error
summed over channels, the score its sum. Trained to the end it spans the principal components, so
that it is DFM without an eigenvalue problem.

Differs from the paper: vectors are taken less their mean over the training images, which equals
biases that start there instead of at zero (of the decoder at the mean m, of the encoder at -W m);
from zero most of the training goes into finding that mean. A grid that `pool` does not divide is
pooled in windows that overlap rather than cut off at the border. Scores grow with the number of
features: they do not compare across sizes, layers and poolings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import TimmFeatureExtractor
from adray.components.inside import mean_inside
from adray.methods.fre import METHODS, FreConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


def pool_map(feature: Tensor, pool: int) -> Tensor:
    """Average (B, C, h, w) over windows of pool x pool positions.

    The last windows overlap where they do not fit.
    """
    height = math.ceil(feature.shape[2] / pool)
    width = math.ceil(feature.shape[3] / pool)
    return F.adaptive_avg_pool2d(feature, (height, width))


class TiedAutoencoder(nn.Module):
    """Linear encoder, and as decoder its transpose.

    Args:
        size: length D of the vectors.
        latent_dim: length K of what they are squeezed to.
    """

    center: Tensor

    def __init__(self, size: int, latent_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(latent_dim, size)))
        self.encoder_bias = nn.Parameter(torch.zeros(latent_dim))
        self.decoder_bias = nn.Parameter(torch.zeros(size))
        self.register_buffer("center", torch.zeros(size))

    def residual(self, vectors: Tensor) -> Tensor:
        """Take from (B, D) vectors what can be rebuilt of them, (B, D)."""
        centered = vectors - self.center
        latent = F.linear(centered, self.weight, self.encoder_bias)  # (B, K)
        return centered - F.linear(latent, self.weight.T, self.decoder_bias)


class FreModel(nn.Module):
    """A frozen backbone and a linear autoencoder of its pooled map.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels, which decides the autoencoder's size.
    """

    def __init__(self, config: FreConfig, input_size: int) -> None:
        super().__init__()
        self.pool = config.pool
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        (feature,) = self.features(torch.zeros(1, 3, input_size, input_size))
        self.autoencoder = TiedAutoencoder(feature.numel(), config.latent_dim)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the pooled map of (B, 3, H, W), (B, C, h, w)."""
        return self.condense(self.extractor(image))

    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Pool the backbone's (B, C, h, w) map to the features."""
        (feature,) = maps
        return (pool_map(feature.float(), self.pool),)

    def error(self, features: tuple[Tensor, ...]) -> Tensor:
        """Square the difference of the pooled map and its reconstruction, (B, C, h, w)."""
        (feature,) = features
        # Errors are small differences of large values, of which half precision leaves nothing.
        with torch.autocast(feature.device.type, enabled=False):
            residual = self.autoencoder.residual(feature.float().flatten(1))  # (B, C*h*w)
        return residual.view_as(feature).square()

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Show where the reconstruction fails.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The squared error per position, summed over channels, (B, 1, H, W), at least 0, and its
            sum over the coarse grid, (B,).
        """
        error = self.error(self.features(image) if features is None else features)
        by_position = error.sum(1, keepdim=True)  # (B, 1, h, w)
        size = (image.shape[2], image.shape[3])
        anomaly_map = F.interpolate(by_position, size, mode="bilinear", align_corners=False)
        return Prediction(by_position.flatten(1).sum(1), anomaly_map)


class FreTrainer(BaseTrainer):
    """Trains the autoencoder on the backbone's cached features."""

    config: FreConfig
    model: FreModel
    method = METHODS["FreTrainer"]

    def build_model(self) -> FreModel:
        return FreModel(self.config, self.train_config.input_size)

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return mean_inside(anomaly_map, inside)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        return torch.optim.Adam(self.model.autoencoder.parameters(), self.config.lr), None

    def on_fit_start(self) -> None:
        if self.epoch == 0:  # a training that is continued has its mean already
            self.model.autoencoder.center = self._mean_vector()

    def _mean_vector(self) -> Tensor:
        """Average the training images' vectors, (D,).

        The features stay in the trainer's cache.
        """
        loader = self.loaders.train
        loader.set_epoch(0)
        total = torch.zeros_like(self.model.autoencoder.center, dtype=torch.float64)

        for batch in loader:
            features = self.with_features(batch).features
            assert features is not None, "the trainer gives the frozen stage's features"
            total += features[0].flatten(1).sum(0, dtype=torch.float64)
        return (total / len(loader.samples)).float()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = self.model.error(batch.features).mean()
        self.optimize(loss)
        return {"loss": loss.detach()}
