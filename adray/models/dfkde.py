"""DFKDE: Deep Feature Kernel Density Estimation (the anomalib project, 2021; there is no paper).

Reference: https://github.com/open-edge-platform/anomalib (Apache-2.0, facts only).

A frozen backbone gives one feature vector per image, its last map averaged over positions. PCA
reduces it to a few values, whose density over the training images a Gaussian kernel at each of them
estimates. The less dense it is where an image lies, the more anomalous is the image. There is no
map. A weak baseline: it sees what an image shows rather than its details.

Differs from the reference: the score is minus the log-density, not a sigmoid of it, which would tie
all far outliers; layers are joined along channels, not as further images; vectors are not scaled,
which would add a constant to all scores, since the kernel has the shape of the data's covariance;
fewer images than components, but at least two, give fewer components, where the reference makes no
model; no limit of 40 000 images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.feature_extractor import TimmFeatureExtractor
from adray.components.kept_vectors import NAME, updated_vectors
from adray.components.pca import PCA
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.dfkde import METHODS, DfkdeConfig
from adray.trainer import BaseTrainer, ImageBatches
from adray.types import Batch, Prediction


class DfkdeModel(DynamicBufferMixin):
    """A frozen backbone, a PCA and a kernel at each training image.

    Args:
        config: hyperparameters.
    """

    scale: Tensor
    centers: Tensor

    def __init__(self, config: DfkdeConfig) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        self.pca = PCA(config.num_components)
        # A kernel's standard deviation along each component, (K,).
        self.register_buffer("scale", torch.empty(0))
        # The training images in units of it, (N, K).
        self.register_buffer("centers", torch.empty(0))

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give one vector per image of (B, 3, H, W), (B, D)."""
        return self.condense(self.extractor(image))

    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Join the averages of the layers' (B, C, h, w) maps over positions, (B, D)."""
        return (torch.cat([feature.float().mean((2, 3)) for feature in maps], dim=1),)

    def fit(self, vectors: Tensor) -> None:
        """Put a kernel at each of (N, D) vectors.

        Raises:
            InputError: for fewer than two different vectors.
        """
        self.pca.fit(vectors)
        count = len(vectors)
        size = len(self.pca.variance)
        if size == 0:
            raise InputError(Sentence.of("fit dfkde few"))

        # Along principal components the covariance is diagonal, so that whitening is a division.
        bandwidth = count ** (-1 / (size + 4))  # Scott's rule
        self.scale = bandwidth * self.pca.variance.sqrt()
        self.centers = self.pca.transform(vectors) / self.scale

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how rare each image is.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            Minus the log-density per image, (B,), of either sign, and no map.
        """
        (vectors,) = self.features(image) if features is None else features
        # A density's exponent is of no use in half precision.
        with torch.autocast(image.device.type, enabled=False):
            return Prediction(-self.log_density(vectors.float()), None)

    def log_density(self, vectors: Tensor) -> Tensor:
        """Estimate the natural logarithm of the density at (B, D), (B,).

        It is per unit of volume of the principal components.
        """
        points = self.pca.transform(vectors) / self.scale  # (B, K)
        # From differences, not from a matrix product, whose rounding depends on the batch: (B, N)
        distance = torch.cdist(points, self.centers, compute_mode="donot_use_mm_for_euclid_dist")

        # The sum of exponentials would be 0 in float32 beyond some 14 standard deviations.
        count, size = self.centers.shape
        volume = 0.5 * size * math.log(2 * math.pi) + self.scale.log().sum()
        return (-0.5 * distance.square()).logsumexp(1) - math.log(count) - volume


def _vectors_of(batches: ImageBatches) -> Iterator[Tensor]:
    """Yield the (B, D) vectors of batches."""
    for batch in batches:
        assert batch.features is not None, "images come with their features"
        yield batch.features[0].float()


class DfkdeTrainer(BaseTrainer):
    """Sees the training images once, then places the kernels."""

    config: DfkdeConfig
    model: DfkdeModel
    method = METHODS["DfkdeTrainer"]

    def build_model(self) -> DfkdeModel:
        return DfkdeModel(self.config)

    def on_train_start(self) -> None:
        self._vectors: list[Tensor] = []

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        self._vectors.append(batch.features[0].float())
        return {}

    def on_train_end(self) -> None:
        self._fit(torch.cat(self._vectors))
        self._vectors = []

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        vectors = updated_vectors(self.statistics, _vectors_of(added), _vectors_of(removed))
        self._fit(vectors.to(self.device))

    def _fit(self, vectors: Tensor) -> None:
        """Place the kernels at (N, D) vectors, which are kept for updates."""
        self.model.fit(vectors)
        self.statistics = {NAME: vectors.cpu()}
