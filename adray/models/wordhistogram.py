"""Word histogram: how many patches of each kind an image has, for something missing or too many.

A method of this program, of parts that others published: visual words of DINOv2's patches, counted
as anofit's ``dhist`` does, and Gaussians of counts in the whole image and in its quarters, as the
patch histogram of CSAD (Y.-H. Hsieh, S.-H. Lai, 2024, https://arxiv.org/abs/2408.15628) has
them for segments. Covariances are shrunk as O. Ledoit and M. Wolf do (2004).

A frozen transformer describes each patch. k-means of the training patches gives the words. An image
is the square roots of the parts of its patches that each word has, in the whole and in each quarter.
It is as anomalous as these are far from those of the training images, by the Mahalanobis distance.
What one patch changes is added to the covariance: the counts of some products never vary.

It has no map: a count says that something is missing, not where. And it misses small defects, which
change no count. So it stands beside a method of patches in a team (`python -m adray ensemble`),
which brings both to one scale by held-out normals.

Words of a patch are shared among the nearest (`temperature`). A hard choice would let rounding move
a whole patch from one count to another.

Memory: 4 * N * P * D bytes while fitting for N images of P patches with D numbers, 1.6 MB an image
for ViT-S at 448 px. The checkpoint keeps 5 * `num_words` numbers of each image for updates. Those
leave the words as they are: the model is then the same as one that was fitted on all images with
these words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.nn import functional as F

from adray.components.architectures import DINOV2_PATCH
from adray.components.dinov2_extractor import Dinov2Extractor, check_dinov2_file
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.frozen_network import check_features
from adray.components.kept_vectors import NAME, updated_vectors
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.wordhistogram import METHODS, WordhistogramConfig
from adray.trainer import BaseTrainer, ImageBatches
from adray.types import Batch, Prediction

_SAMPLED_PATCHES = 20_000
"""Training patches of which the words are made, at most."""
_RESTARTS = 5
"""Of k-means, of which the best counts."""


class WordhistogramModel(DynamicBufferMixin):
    """A frozen transformer, visual words, and Gaussians of how often they occur.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.
    """

    regions: Tensor
    """(5, P): each row averages the patches of the whole image, or of a quarter."""
    words: Tensor
    """(K, D), each of length 1."""
    mean: Tensor
    """(5 * K,), of the training images' histograms."""
    whole: Tensor
    """(K, K), lower triangular: W with W^T W the inverse covariance of the whole image's part."""
    quarters: Tensor
    """(4 * K, 4 * K), likewise of the quarters' part."""

    def __init__(self, config: WordhistogramConfig, input_size: int) -> None:
        super().__init__()
        self.side = input_size // DINOV2_PATCH
        self.temperature = config.temperature
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        self.norm = self.extractor.last_norm()
        self.register_buffer("regions", region_averages(self.side), persistent=False)
        self.register_buffer("words", torch.empty(0))
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("whole", torch.empty(0))
        self.register_buffer("quarters", torch.empty(0))

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe the patches of (B, 3, H, W), (B, P, D)."""
        return self.condense(self.extractor(image))

    @torch.no_grad()
    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalise the patches of the layer's (B, T, D) tokens to length 1, (B, P, D) float32.

        Class token and registers are left out.
        """
        (tokens,) = maps
        patches = tokens[:, self.extractor.num_prefix :].float()
        with torch.autocast(patches.device.type, enabled=False):
            return (F.normalize(self.norm(patches), dim=2),)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how unusual the counts of words are.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            No map, and the mean of two squared Mahalanobis distances, each divided by its number of
            dimensions, (B,): about 1 for a normal image.
        """
        (patches,) = self.features(image) if features is None else features
        with torch.autocast(patches.device.type, enabled=False):
            return Prediction(self.distance(self.histogram(patches.float())), None)

    def histogram(self, patches: Tensor) -> Tensor:
        """Count words.

        Args:
            patches: (B, P, D) of length 1.

        Returns:
            Square roots of the parts of patches that each word has: in the whole image, and in its
            upper left, upper right, lower left and lower right quarter, (B, 5 * K). Roots vary alike
            for rare and for frequent words.
        """
        share = (patches @ self.words.T / self.temperature).softmax(2)  # (B, P, K)
        return (self.regions @ share).sqrt().flatten(1)

    def distance(self, histograms: Tensor) -> Tensor:
        """Measure how far (B, 5 * K) histograms are from the training images', (B,), at least 0."""
        count = len(self.words)
        centered = histograms - self.mean
        whole = (centered[:, :count] @ self.whole.T).square().mean(1)
        quarters = (centered[:, count:] @ self.quarters.T).square().mean(1)
        return 0.5 * (whole + quarters)

    def learn_words(self, patches: Tensor, count: int, seed: int) -> None:
        """Make the centres of k-means the words.

        Args:
            patches: (N, D) of length 1.
            count: number of words.
            seed: of the sample and of the first centres.

        Raises:
            InputError: for fewer patches than words, and for those that are not finite.
        """
        check_features(patches)
        if len(patches) < count:
            raise InputError(Sentence.of("fit num_words", count=count, number=len(patches)))
        order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))
        sample = patches[order[:_SAMPLED_PATCHES]].cpu().numpy()
        clusters = KMeans(count, n_init=_RESTARTS, random_state=seed).fit(sample)
        centers = torch.from_numpy(clusters.cluster_centers_)
        self.words = F.normalize(centers, dim=1).to(self.words)

    def learn_counts(self, histograms: Tensor) -> None:
        """Find the Gaussians of (N, 5 * K) histograms."""
        values = histograms.double().cpu().numpy()
        count = len(self.words)
        in_quarter = (self.side // 2) ** 2
        self.mean = torch.from_numpy(values.mean(0)).to(self.words)
        whole = _whitening(values[:, :count], _resolution(count, self.side**2))
        quarters = _whitening(values[:, count:], _resolution(count, in_quarter))
        self.whole = whole.to(self.words)
        self.quarters = quarters.to(self.words)


def region_averages(side: int) -> Tensor:
    """Give what averages over a grid of `side` x `side` patches, and over its quarters, (5, P)."""
    half = side // 2
    masks = torch.zeros(5, side, side)
    masks[0] = 1
    masks[1, :half, :half] = 1
    masks[2, :half, half:] = 1
    masks[3, half:, :half] = 1
    masks[4, half:, half:] = 1
    flat = masks.flatten(1)
    return flat / flat.sum(1, keepdim=True)


def _resolution(words: int, patches: int) -> float:
    """Give how far the root of a word's part moves with one patch, where words share alike."""
    return 0.5 * words**0.5 / patches


def _whitening(values: np.ndarray, resolution: float) -> Tensor:
    """Give W with W^T W the inverse of a covariance, (D, D) float64.

    Args:
        values: (N, D). Their shrunk covariance is taken.
        resolution: standard deviation that is added to each, so that counts which never varied may.
    """
    covariance = torch.from_numpy(LedoitWolf().fit(values).covariance_)
    covariance.diagonal().add_(resolution**2)
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(len(factor), dtype=torch.float64)
    return torch.linalg.solve_triangular(factor, identity, upper=False)


class WordhistogramTrainer(BaseTrainer):
    """Sees the training images once, then makes the words and counts them."""

    config: WordhistogramConfig
    model: WordhistogramModel
    method = METHODS["WordhistogramTrainer"]

    @classmethod
    def check_weight_file(cls, config: WordhistogramConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> WordhistogramModel:
        return WordhistogramModel(self.config, self.train_config.input_size)

    def on_train_start(self) -> None:
        self._patches = torch.empty(0)
        self._filled = 0

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        patches = _patches_of(batch)  # (B, P, D)
        # Allocated once: a list of batches would be held twice when it is joined.
        if self._filled == 0:
            self._patches = torch.empty(len(self.loaders.train.samples), *patches.shape[1:])

        self._patches[self._filled : self._filled + len(patches)] = patches.cpu()
        self._filled += len(patches)
        return {}

    def on_train_end(self) -> None:
        patches = self._patches[: self._filled]  # (N, P, D)
        self._patches = torch.empty(0)
        self.model.learn_words(patches.flatten(0, 1), self.config.num_words, self.seed)

        parts = []
        for part in patches.split(self.train_config.batch_size):
            parts.append(self.model.histogram(part.to(self.device)))
        self._learn_counts(torch.cat(parts))

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        self._learn_counts(
            updated_vectors(self.statistics, self._histograms(added), self._histograms(removed))
        )

    def _histograms(self, batches: ImageBatches) -> Iterator[Tensor]:
        """Yield the histograms (B, 5 * K) of batches."""
        for batch in batches:
            yield self.model.histogram(_patches_of(batch))

    def _learn_counts(self, histograms: Tensor) -> None:
        """Find the Gaussians of (N, 5 * K) histograms, which are kept for updates."""
        self.model.learn_counts(histograms)
        self.statistics = {NAME: histograms.cpu()}

    def notes(self) -> list[str]:
        return [f"{len(self.model.words)} visual words", *self.model.extractor.notes()]


def _patches_of(batch: Batch) -> Tensor:
    """Give the patches of a batch, (B, P, D) of length 1."""
    assert batch.features is not None, "images come with their features"
    return batch.features[0].float()
