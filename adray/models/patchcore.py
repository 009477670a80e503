"""PatchCore: Towards Total Recall in Industrial Anomaly Detection (K. Roth et al., CVPR 2022).

Paper: https://arxiv.org/abs/2106.08265
Reference: https://github.com/amazon-science/patchcore-inspection (Apache-2.0, facts only).

Features of two middle depths of a frozen backbone, averaged over their neighbourhood, describe each
patch. A memory bank keeps a small subset of all training patches that covers them (greedy
k-centre). A patch is as anomalous as it is far from its nearest neighbour in the bank, an image as
its worst patch, less where that neighbour is itself rare.

Memory: all training patches twice while fitting, 8 * N * h * w * D bytes on the host (1 GB for 320
images with ResNet-18 at 256 px), nearly three times with `soft_weights`. Afterwards and in the
checkpoint a `coreset_ratio` of once.

Differs from the paper: each layer's neighbourhood is averaged, not pooled to 1024 values; the
selection compares full features, not random projections, with one start point, which is kept.

With `soft_weights` the bank is SoftPatch's, for training images with defects among them:

SoftPatch: Unsupervised Anomaly Detection with Noisy Data (X. Jiang et al., NeurIPS 2022).
Paper: https://arxiv.org/abs/2403.14233
Reference: https://github.com/TencentYoutuResearch/AnomalyDetection-SoftPatch (Apache-2.0, facts only).

Each training patch is compared with those at its place in the other images. The most unlike never
enter the bank. What is left is chosen from as before, and squared distances to a patch of the bank
are multiplied by how unlike the others that patch is itself. The reference differs: it compares
random projections to 128 values, and its first pick may be a patch that it means to leave out.

Differs from the reference: the map is of distances, there of their squares, and the score is weighted
as in the paper's equation 7, there not (`num_neighbors: 1`); its published figures are unweighted.
The smoothing mirrors the border without the edge pixel, scipy's filter there repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from adray.components.blur import GaussianBlur2d
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.feature_source import FeatureSource
from adray.components.k_center_greedy import (
    k_center_greedy,
    select_by_folds,
    union_coreset,
)
from adray.components.nearest import SEARCH, BankSearch
from adray.components.patch_embedding import embed_patches, unusual_share
from adray.components.patch_outliers import outlier_factors, usual_coreset
from adray.components.shared_coreset import SharedCoreset, SharedNeighbors
from adray.methods.patchcore import METHODS, PatchcoreConfig
from adray.scores import Scores
from adray.trainer import BaseTrainer, BatchLoader, DividedImages, ImageBatches
from adray.types import Batch, Prediction

_EMBEDDING = 1
"""Raised by hand when `PatchcoreModel.embed` changes, so that no older coreset is taken."""


class PatchcoreModel(DynamicBufferMixin):
    """A frozen backbone and a memory bank of patches.

    Args:
        config: hyperparameters.
        input_size: height and width of the images in pixels, or the side of squares.
    """

    memory_bank: Tensor
    center: Tensor
    bank_weights: Tensor
    """(M,), of SoftPatch alone."""

    def __init__(self, config: PatchcoreConfig, input_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        shapes = dryrun_find_featuremap_dims(self.extractor, input_size)
        _, self.grid = shapes[config.layers[0]]
        self.num_neighbors = config.num_neighbors
        self.register_buffer("memory_bank", torch.empty(0))  # (M, D)
        self.register_buffer("center", torch.empty(0))  # (D,), the bank's mean
        self.is_soft = config.soft_weights != "none"
        if self.is_soft:
            self.register_buffer("bank_weights", torch.empty(0))
        self.neighbors = BankSearch()
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def embed(self, features: tuple[Tensor, ...]) -> Tensor:
        """Describe the patches (section 3.1).

        Args:
            features: one (B, C, h, w) per layer.

        Returns:
            Averages over 3x3 neighbours, on the first layer's grid, (B, h * w, D) float32.
        """
        return embed_patches(features, self.grid)

    def remember(self, patches: Tensor, weights: Tensor | None = None) -> None:
        """Make (M, D) patches the memory bank, with the weights (M,) of a soft one."""
        self.memory_bank = patches
        self.center = patches.mean(0)
        if weights is not None:
            self.bank_weights = weights

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how far each patch is from the bank (equations 5 to 7).

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed distances (B, 1, H, W), at least 0, and the weighted largest distance per
            image, (B,). Of a soft bank the squared distances, times the weights of the neighbours.
        """
        patches = self.embed(self.features(image) if features is None else features)  # (B, P, D)
        distance, neighbor = self.search(patches)
        return self.prediction(patches, distance, neighbor, (image.shape[2], image.shape[3]))

    def search(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest patches in the bank to the (B, P, D) of some images.

        Returns:
            The distance to each and its index in the bank, each (B, P).
        """
        # Half precision would pick other neighbours.
        with torch.autocast(patches.device.type, enabled=False):
            flat = patches.flatten(0, 1)
            distance, neighbor = self.neighbors.nearest(flat, self.memory_bank, self.center)
        return distance.view(len(patches), -1), neighbor.view(len(patches), -1)

    def prediction(
        self, patches: Tensor, distance: Tensor, neighbor: Tensor, size: tuple[int, int]
    ) -> Prediction:
        """Make scores and maps of what `search` found.

        Args:
            patches: (B, P, D).
            distance: to the nearest patch in the bank, (B, P).
            neighbor: its index, (B, P).
            size: H and W of the images.
        """
        with torch.autocast(patches.device.type, enabled=False):
            outlying = distance
            if self.is_soft:
                outlying = distance.square() * self.bank_weights[neighbor]
            pred_score = self.image_score(patches, outlying, distance, neighbor)

        height, width = self.grid
        distance_map = rearrange(outlying, "b (h w) -> b 1 h w", h=height, w=width)
        return Prediction(pred_score, self.blur.enlarge(distance_map, size))

    def image_score(
        self, patches: Tensor, outlying: Tensor, distance: Tensor, neighbor: Tensor
    ) -> Tensor:
        """Weigh the worst patch's score by how usual its nearest neighbour is, (B,).

        Args:
            patches: (B, P, D).
            outlying: score of each patch, (B, P): its distance, unless the bank is soft.
            distance: to the nearest patch in the bank, (B, P).
            neighbor: its index, (B, P).
        """
        worst = outlying.argmax(1, keepdim=True)  # (B, 1)
        highest_score = outlying.gather(1, worst).squeeze(1)  # (B,)
        count = min(self.num_neighbors, len(self.memory_bank))
        if count < 2:
            return highest_score

        largest = distance.gather(1, worst)  # (B, 1), equation 6
        usual = neighbor.gather(1, worst).squeeze(1)  # (B,)

        # The bank's patches around the usual one, itself the first: (B, b)
        around = self.neighbors.around(usual, count, self.memory_bank, self.center)

        image = torch.arange(len(patches), device=patches.device)
        worst_patch = patches[image, worst.squeeze(1)]  # (B, D)
        to_around = (worst_patch[:, None] - self.memory_bank[around]).norm(dim=2)  # (B, b)

        return unusual_share(largest, to_around) * highest_score


@dataclass(frozen=True)
class _Chosen:
    """A coreset that was chosen already of the patches of the next training."""

    source: FeatureSource
    """Has their features, and is that training's only where the images are the same."""
    patches: int
    """How many there are."""
    places: Tensor
    """(M,) of those that were chosen."""


class PatchcoreTrainer(BaseTrainer):
    """Sees the training images once, then chooses the coreset."""

    config: PatchcoreConfig
    model: PatchcoreModel
    method = METHODS["PatchcoreTrainer"]
    _chosen: _Chosen | None = None
    _coreset: SharedCoreset | None = None
    _neighbors: SharedNeighbors | None = None

    def build_model(self) -> PatchcoreModel:
        return PatchcoreModel(self.config, self.train_config.input_shape)

    def train_epoch(self, loader: BatchLoader) -> dict[str, float]:
        """See the training images, unless another trial has chosen as large a coreset already."""
        loader.set_epoch(self.epoch)
        self._coreset = None
        bank = None
        # A soft bank is chosen of other patches, by weights of its own.
        if self.source.shared is not None and not self.model.is_soft:
            self._coreset = SharedCoreset(self.source.shared, loader, (_EMBEDDING, self.seed))
            bank = self._coreset.read(self._part(self.config.coreset_ratio))

        if bank is None:
            return super().train_epoch(loader)
        self.model.remember(bank.to(self.device))
        self.step = self.total_steps
        return {}

    def on_train_start(self) -> None:
        self._patches = torch.empty(0)
        self._filled = 0

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        patches = self.model.embed(batch.features).flatten(0, 1)  # (B*P, D)

        # Allocated once: a list of batches would be held twice when it is joined.
        if self._filled == 0:
            per_image = len(patches) // len(batch.image)
            count = len(self.loaders.train.samples) * per_image
            self._patches = torch.empty(count, patches.shape[1])

        self._patches[self._filled : self._filled + len(patches)] = patches.cpu()
        self._filled += len(patches)
        return {}

    def on_train_end(self) -> None:
        patches = self._patches[: self._filled].to(self.device)
        self._patches = torch.empty(0)
        count = self._part(self.config.coreset_ratio)
        generator = torch.Generator().manual_seed(self.seed)
        if self.model.is_soft:
            self._remember_usual(patches, count, generator)
            return
        chosen = self._chosen
        if chosen is not None and chosen.source is self.source and chosen.patches == len(patches):
            self.model.remember(patches[chosen.places])
            return
        if self._coreset is None:
            self.model.remember(patches[k_center_greedy(patches, count, generator)])
            return

        # Selected once for all trials: as many as that one wants which wants most of them.
        largest = count
        if self.sharing is not None:
            largest = self._part(self.sharing.coreset_ratio)
        self.model.remember(self._coreset.select(patches, count, largest, generator))

    def _remember_usual(self, patches: Tensor, count: int, generator: torch.Generator) -> None:
        """Make `count` of (N * P, D) patches SoftPatch's bank."""
        height, width = self.model.grid
        by_image = patches.unflatten(0, (-1, height * width))  # (N, P, D)
        config = self.config
        factors = outlier_factors(by_image, config.soft_weights, config.soft_neighbors)
        bank, weights = usual_coreset(
            patches, factors.flatten(), config.soft_removed, count, generator
        )
        self.model.remember(bank, weights)

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        assert not len(removed), "nothing can be taken from a coreset"
        parts = []
        for batch in added:
            assert batch.features is not None, "images come with their features"
            parts.append(self.model.embed(batch.features).flatten(0, 1))

        height, width = self.model.grid
        total = (count + len(added.samples)) * height * width
        size = max(1, int(self.config.coreset_ratio * total))
        bank = union_coreset(self.model.memory_bank, torch.cat(parts), size, self.seed)
        self.model.remember(bank)

    def leave_out(
        self, images: DividedImages, members: Sequence[NDArray[np.int64]]
    ) -> Iterator[None] | None:
        return None if self.model.is_soft else self._leave_out(images, members)

    def _leave_out(
        self, images: ImageBatches, members: Sequence[NDArray[np.int64]]
    ) -> Iterator[None]:
        """See `leave_out`; of the coreset what is not of the fold stays, and others fill it up."""
        parts = []
        for batch in images:
            assert batch.features is not None, "images come with their features"
            parts.append(self.model.embed(batch.features))
        embedded = torch.cat(parts)  # (N, P, D)
        parts.clear()
        patches = embedded.flatten(0, 1)

        fold = torch.empty(embedded.shape[:2], dtype=torch.int64, device=patches.device)
        for number, places in enumerate(members):
            fold[torch.from_numpy(places).to(fold.device)] = number
        count = max(1, int(self.config.coreset_ratio * len(patches)))
        generator = torch.Generator().manual_seed(self.seed)
        selections = select_by_folds(patches, count, fold.flatten(), generator)
        for kept in selections.without:
            self.model.remember(patches[kept])
            yield
        self._chosen = _Chosen(self.source, len(patches), selections.chosen)

    def notes(self) -> list[str]:
        return [f"memory bank of {len(self.model.memory_bank)} patches, {SEARCH}"]

    def _part(self, ratio: float) -> int:
        """Count a part of all training patches, at least one."""
        height, width = self.model.grid
        return max(1, int(ratio * len(self.loaders.train.samples) * height * width))

    def predict(self, loader: BatchLoader, keep_maps: bool = True) -> Scores:
        """Score every image, with the neighbours that another trial found in the same coreset."""
        if self._coreset is None or self.source.shared is None:
            return super().predict(loader, keep_maps)

        keep = self.sharing is not None and self.sharing.same_coreset
        self._neighbors = SharedNeighbors(self._coreset, len(self.model.memory_bank), loader, keep)
        try:
            return super().predict(loader, keep_maps)
        finally:
            self._neighbors.close()
            self._neighbors = None

    def validation_step(self, batch: Batch) -> Prediction:
        if self._neighbors is None:
            return self.model(batch.image, batch.features)

        model = self.model
        features = model.features(batch.image) if batch.features is None else batch.features
        patches = model.embed(features)
        distance, neighbor = self._neighbors.get(batch.index, lambda: model.search(patches))
        size = (batch.image.shape[2], batch.image.shape[3])
        return model.prediction(patches, distance, neighbor, size)
