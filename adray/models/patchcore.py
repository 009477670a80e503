"""PatchCore: Towards Total Recall in Industrial Anomaly Detection (K. Roth et al., CVPR 2022).

Paper: https://arxiv.org/abs/2106.08265
Reference: https://github.com/amazon-science/patchcore-inspection (Apache-2.0, facts only).

Features of two middle depths of a frozen backbone, averaged over their neighbourhood, describe each patch. A memory
bank keeps a small subset of all training patches that covers them (greedy k-centre). A patch is as anomalous as it is
far from its nearest neighbour in the bank, an image as its worst patch, less where that neighbour is itself rare.

Memory: all training patches while fitting, 4 * N * h * w * D bytes on the host (0.5 GB for 320 images with ResNet-18 at
256 px), a `coreset_ratio` of that afterwards and in the checkpoint.

Differs from the paper: each layer's neighbourhood is averaged, not pooled to 1024 values; the selection compares full
features, not random projections, with one start point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.k_center_greedy import k_center_greedy
from adray.components.shared_coreset import SharedCoreset, SharedNeighbors
from adray.fields import check_range
from adray.scores import Scores
from adray.trainer import BaseTrainer, BatchLoader
from adray.types import Batch, Prediction

_CHUNK_BYTES = 256 * 2**20
_EMBEDDING = 1
"""Raised by hand when `PatchcoreModel.embed` changes, so that no coreset of before is taken for one of now."""


@dataclass(frozen=True)
class PatchcoreConfig:
    """Hyperparameters of PatchCore."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = ("layer2", "layer3")
    """Stages whose features are joined (section 3.1)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    coreset_ratio: float = 0.1
    """Part of the training patches that the memory bank keeps (section 3.2)."""
    num_neighbors: int = 9
    """Bank neighbours b of the nearest neighbour that weigh an image's score (equation 7); 1 leaves it unweighted."""
    sigma: float = 4.0
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("coreset_ratio", self.coreset_ratio, 1e-6, 1)
        check_range("num_neighbors", self.num_neighbors, 1, 1000)
        check_range("sigma", self.sigma, 0.1, 100)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


class PatchcoreModel(DynamicBufferMixin):
    """A frozen backbone and a memory bank of patches.

    Args:
        backbone: one of `RESNETS`.
        layers: stages to tap; the first one's grid is the patches'.
        weights: ``"pretrained"`` or ``"random"``.
        input_size: side of the images in pixels.
        num_neighbors: see `PatchcoreConfig`.
        sigma: of the Gaussian that smooths the map, in pixels.
    """

    memory_bank: Tensor
    center: Tensor

    def __init__(
        self,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        input_size: int,
        num_neighbors: int = 9,
        sigma: float = 4.0,
    ) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(backbone, layers, weights)
        self.grid = next(iter(dryrun_find_featuremap_dims(self.extractor, input_size).values()))[1]
        self.num_neighbors = num_neighbors
        self.register_buffer("memory_bank", torch.empty(0))  # (M, D)
        self.register_buffer("center", torch.empty(0))  # (D,), the bank's mean
        self.blur = GaussianBlur2d(sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def embed(self, features: tuple[Tensor, ...]) -> Tensor:
        """Patch descriptors (section 3.1): maps averaged over 3x3 neighbours, on the first grid, (B, h * w, D)."""
        pooled = [F.avg_pool2d(feature, 3, stride=1, padding=1) for feature in features]
        joined = [F.interpolate(p, self.grid, mode="bilinear", align_corners=False) for p in pooled]
        return (
            torch.cat(joined, dim=1).flatten(2).transpose(1, 2).float()
        )  # (B, D, h, w) -> (B, h*w, D)

    def remember(self, patches: Tensor) -> None:
        """Make (M, D) patches the memory bank."""
        self.memory_bank, self.center = patches, patches.mean(0)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Distance of each patch to the bank (equations 5 to 7).

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed distances (B, 1, H, W), at least 0, and the weighted largest distance per image, (B,).
        """
        patches = self.embed(self.features(image) if features is None else features)  # (B, P, D)
        return self.prediction(patches, *self.search(patches), (image.shape[2], image.shape[3]))

    def search(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """What `nearest` gives for the (B, P, D) patches of some images, each (B, P)."""
        with torch.autocast(
            patches.device.type, enabled=False
        ):  # half precision would pick other neighbours
            distance, neighbor = self.nearest(patches.flatten(0, 1))
        return distance.view(len(patches), -1), neighbor.view(len(patches), -1)

    def prediction(
        self, patches: Tensor, distance: Tensor, neighbor: Tensor, size: tuple[int, int]
    ) -> Prediction:
        """What follows of the (B, P, D) patches and of what `search` found for them, for images of `size` H and W."""
        with torch.autocast(patches.device.type, enabled=False):
            pred_score = self.image_score(patches, distance, neighbor)
        distance_map = distance.reshape(-1, 1, *self.grid)  # (B, P) -> (B, 1, h, w)
        anomaly_map = self.blur.enlarge(distance_map, size)
        return Prediction(pred_score, anomaly_map)

    def nearest(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Euclidean distance of (Q, D) patches to their nearest neighbours in the bank, and its index, each (Q,).

        The neighbour is found by one matrix product; the distance to it is then computed from the difference, since
        the product's rounding depends on how many patches came together.
        """
        bank, distances, neighbors = self.memory_bank - self.center, [], []
        half_squares = 0.5 * bank.square().sum(1)
        for chunk in patches.split(max(1, _CHUNK_BYTES // (4 * len(bank)))):
            neighbor = torch.addmm(half_squares, chunk - self.center, bank.T, alpha=-1).argmin(1)
            distances.append((chunk - self.memory_bank[neighbor]).norm(dim=1))
            neighbors.append(neighbor)
        return torch.cat(distances), torch.cat(neighbors)

    def image_score(self, patches: Tensor, distance: Tensor, neighbor: Tensor) -> Tensor:
        """The worst patch's distance, weighted by how usual its nearest neighbour is (equations 6 and 7), (B,)."""
        worst = distance.argmax(1, keepdim=True)  # (B, 1)
        largest, usual = distance.gather(1, worst), neighbor.gather(1, worst).squeeze(1)
        count = min(self.num_neighbors, len(self.memory_bank))
        if count < 2:
            return largest.squeeze(1)
        patch = patches[
            torch.arange(len(patches), device=patches.device), worst.squeeze(1)
        ]  # (B, D)
        bank = self.memory_bank - self.center
        among = torch.addmm(0.5 * bank.square().sum(1), bank[usual], bank.T, alpha=-1)  # (B, M)
        around = among.topk(count, largest=False).indices  # (B, b), the neighbour itself first
        to_around = (patch[:, None] - self.memory_bank[around]).norm(dim=2)  # (B, b)
        # A ratio of exponentials that may overflow; the same minus the largest exponent cannot.
        highest = torch.maximum(to_around.amax(1, keepdim=True), largest)
        share = (largest - highest).exp() / (to_around - highest).exp().sum(1, keepdim=True)
        return ((1 - share) * largest).squeeze(1)


class PatchcoreTrainer(BaseTrainer):
    """Sees the training images once, then chooses the coreset."""

    config: PatchcoreConfig
    model: PatchcoreModel
    config_class = PatchcoreConfig
    single_pass = True
    shares_features = True
    _coreset: SharedCoreset | None = None
    _neighbors: SharedNeighbors | None = None

    def build_model(self) -> PatchcoreModel:
        config = self.config
        return PatchcoreModel(
            config.backbone,
            config.layers,
            config.weights,
            self.train_config.input_size,
            config.num_neighbors,
            config.sigma,
        )

    def train_epoch(self, loader: BatchLoader) -> dict[str, float]:
        """See the training images, unless another trial has chosen the same coreset, or a larger one, already."""
        loader.set_epoch(self.epoch)
        about = (_EMBEDDING, self.seed)
        self._coreset = (
            None if self.source.shared is None else SharedCoreset(self.source.shared, loader, about)
        )
        bank = (
            None
            if self._coreset is None
            else self._coreset.read(self._part(self.config.coreset_ratio))
        )
        if bank is None:
            return super().train_epoch(loader)
        self.model.remember(bank.to(self.device))
        self.step = self.total_steps
        return {}

    def _part(self, ratio: float) -> int:
        """A part of all training patches, at least one."""
        height, width = self.model.grid
        return max(1, int(ratio * len(self.loaders.train.samples) * height * width))

    def predict(self, loader: BatchLoader, keep_maps: bool = True) -> Scores:
        """Score every image of `loader`, with the neighbours that another trial has found in the same coreset."""
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
        model, image = self.model, batch.image
        patches = model.embed(model.features(image) if batch.features is None else batch.features)
        distance, neighbor = self._neighbors.get(batch.index, lambda: model.search(patches))
        return model.prediction(patches, distance, neighbor, (image.shape[2], image.shape[3]))

    def on_train_start(self) -> None:
        self._patches = torch.empty(0)
        self._filled = 0

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        patches = self.model.embed(batch.features).flatten(0, 1)  # (B*P, D)
        if self._filled == 0:
            count = len(self.loaders.train.samples) * (len(patches) // len(batch.image))
            self._patches = torch.empty(
                count, patches.shape[1]
            )  # allocated once: a list would be held twice
        self._patches[self._filled : self._filled + len(patches)] = patches.cpu()
        self._filled += len(patches)
        return {}

    def on_train_end(self) -> None:
        patches = self._patches[: self._filled].to(self.device)
        self._patches = torch.empty(0)
        count, generator = (
            self._part(self.config.coreset_ratio),
            torch.Generator().manual_seed(self.seed),
        )
        if self._coreset is None:
            self.model.remember(patches[k_center_greedy(patches, count, generator)])
            return
        largest = self._part(self.sharing.coreset_ratio if self.sharing else 0)
        self.model.remember(self._coreset.select(patches, count, largest, generator))
