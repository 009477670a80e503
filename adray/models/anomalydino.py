"""AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2 (S. Damm et al., WACV 2025).

Paper: https://arxiv.org/abs/2405.14529
Reference: https://github.com/dammsi/AnomalyDINO (Apache-2.0, facts only).

The last block of a frozen DINOv2, with its last layer norm, describes each patch, and a memory bank
keeps the patches of the training images, of a few in several turned views. A patch is as anomalous
as the cosine to its nearest neighbour in the bank is below 1, an image as the mean of its worst
hundredth of patches. Patches of the background can be left out by the first component of the image's
own patches: of an image that is judged alone, never of one that is learnt. They count as distances
of 0, and the component's threshold of 10 is that of a ViT-S.

Memory: all patches while fitting and in the checkpoint, 4 * N * P * D bytes for P patches of D
numbers in each of N views: 13 MB for one image in 8 views with ViT-S at 448 px. A `coreset_ratio`
of that afterwards, for whose choice all patches are held twice, and with `soft_weights` nearly three
times.

Differs from the paper: nothing in the method. A coreset is there where it is asked for. With
`batched` the training images are the paper's batch without labels, of which the test images may be
a part. Differs from the reference:

- Images are resized to a square, or with `aspect` to one rectangle for all of them, whose longer side
  has whole patches. There each keeps its shape, and is cut to whole patches.
- Views are turned after the image was resized, about the middle of its pixels, not half a pixel
  beside it, and in the configurations for a few images alone. The reference turns those of many, too.
- A bank may keep a part of the patches alone (`coreset_ratio`), and weigh them as SoftPatch does
  (`soft_weights`, see `adray.models.patchcore`), where defects may be among the training images.
- Whether there is a mask is one choice for all images, not made by looking at one of each product.
- Tokens are rounded to float16, as they lie in the files that trials share.
- The position embedding is resampled as in `adray.components.dinov2_extractor`.
- The map has the size that the model sees, and its smoothing mirrors the border without the edge
  pixel, scipy's filter there repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from adray.components.architectures import DINOV2_PATCH
from adray.components.blur import GaussianBlur2d
from adray.components.dinov2_extractor import Dinov2Extractor, check_dinov2_file
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.frozen_network import check_features
from adray.components.inside import top_mean_inside
from adray.components.k_center_greedy import k_center_greedy, union_coreset
from adray.components.nearest import SEARCH, BankSearch
from adray.components.patch_outliers import outlier_factors, usual_coreset
from adray.components.rotation import turned_views
from adray.components.top_mean import TOP_PART, top_mean
from adray.methods.anomalydino import METHODS, AnomalydinoConfig
from adray.trainer import BaseTrainer, ImageBatches
from adray.types import Batch, Prediction

_MARGIN = 0.2
"""Part of the grid on each side that is no part of its centre."""
_CENTER_SHARE = 0.35
"""Of the centre, at most so much foreground means that the component's sign is the wrong one."""
_CHUNK_NUMBERS = 16 * 2**20
"""Distances between patches of an image and those of a batch that are held at once."""
_SAME_IMAGE = 0.01
"""Mean distance of patches below which two images are the same one."""


class AnomalydinoModel(DynamicBufferMixin):
    """A frozen transformer and a memory bank of patches.

    Args:
        config: hyperparameters.
    """

    memory_bank: Tensor
    """(M, D), each of length 1."""
    center: Tensor
    """(D,), the bank's mean."""
    bank_weights: Tensor
    """(M,), with `soft_weights` alone."""

    def __init__(self, config: AnomalydinoConfig) -> None:
        super().__init__()
        self.mask = config.mask
        self.mask_threshold = config.mask_threshold
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        self.norm = self.extractor.last_norm()
        self.register_buffer("memory_bank", torch.empty(0))
        self.register_buffer("center", torch.empty(0))
        self.batched_part = config.batched_part if config.batched else None
        self.is_soft = config.soft_weights != "none"
        if self.is_soft:
            self.register_buffer("bank_weights", torch.empty(0))
        self.neighbors = BankSearch()
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe the patches of (B, 3, H, W), (B, P, D)."""
        return self.condense(self.extractor(image))

    @torch.no_grad()
    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalise the patches of the layer's (B, T, D) tokens, (B, P, D) float32.

        Class token and registers are left out.
        """
        (tokens,) = maps
        patches = tokens[:, self.extractor.num_prefix :].float()
        with torch.autocast(patches.device.type, enabled=False):
            return (self.norm(patches),)

    def remember(self, patches: Tensor, weights: Tensor | None = None) -> None:
        """Make (M, D) patches of length 1 the memory bank, with the weights (M,) of a soft one."""
        self.memory_bank = patches
        self.center = patches.mean(0)
        if weights is not None:
            self.bank_weights = weights

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how far each patch is from the bank.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed distances (B, 1, H, W) in [0, 2], and the mean of the largest hundredth of
            the distances before, (B,). Of a soft bank both are times the weights of the neighbours.
        """
        (patches,) = self.features(image) if features is None else features
        size = (image.shape[2], image.shape[3])
        grid = (size[0] // DINOV2_PATCH, size[1] // DINOV2_PATCH)

        # Half precision would pick other neighbours.
        with torch.autocast(image.device.type, enabled=False):
            distance = self.distance(patches.float())  # (B, P)
            if self.mask != "none":
                is_object = foreground(
                    patches.float(), grid, self.mask_threshold, along_raster=self.mask == "column"
                )
                distance = distance * is_object

        anomaly_map = self.blur.enlarge(distance.unflatten(1, (1, *grid)), size)
        return Prediction(top_mean(distance), anomaly_map)

    def distance(self, patches: Tensor) -> Tensor:
        """Give one minus the cosine of (B, P, D) patches to their nearest neighbours, (B, P).

        Of a soft bank it is multiplied by the weights of the neighbours. Where the bank is a batch
        without labels, see `distance_to_others`.
        """
        if self.batched_part is not None:
            unit = F.normalize(patches, dim=2)
            rows = [distance_to_others(own, self.memory_bank, self.batched_part) for own in unit]
            return torch.stack(rows)

        queries = F.normalize(patches.flatten(0, 1), dim=1)
        euclidean, neighbor = self.neighbors.nearest(queries, self.memory_bank, self.center)
        # Of two vectors of length 1 half the squared distance is one minus the cosine.
        distance = 0.5 * euclidean.square()
        if self.is_soft:
            distance = distance * self.bank_weights[neighbor]
        return distance.view(len(patches), -1)


def distance_to_others(patches: Tensor, bank: Tensor, part: float) -> Tensor:
    """Average the distances of an image's patches to the nearest ones of a batch.

    Of the patches of M other images, K is a part, rounded down. What is below the K-th smallest
    distance is averaged, which are K - 1 distances where no two are equal, or the smallest alone
    where there is none. An image that is in the batch is not compared with itself.

    Args:
        patches: (P, D) of length 1.
        bank: (N * P, D) of length 1, those of one image after the other.
        part: of the bank's patches.

    Returns:
        (P,), one minus the cosine, in [0, 2].
    """
    images = bank.unflatten(0, (-1, len(patches)))  # (N, P, D)
    is_same = 1 - (images * patches).sum(2).mean(1) < _SAME_IMAGE  # (N,)
    is_same = is_same & ~is_same.all()
    is_hidden = is_same[:, None].expand(-1, len(patches)).flatten()  # (N * P,)
    rank = (part * (~is_hidden).sum().double()).floor().clamp(min=1).long()
    most = max(1, int(part * len(bank)))

    found = []
    for rows in patches.split(max(1, _CHUNK_NUMBERS // len(bank))):
        distance = (1 - rows @ bank.T).clamp(min=0).masked_fill(is_hidden, torch.inf)
        rising = distance.topk(most, dim=1, largest=False).values
        is_below = rising < rising[:, rank - 1, None]
        count = is_below.sum(1)
        total = rising.masked_fill(~is_below, 0).sum(1)
        found.append(torch.where(count > 0, total / count.clamp(min=1), rising[:, 0]))
    return torch.cat(found)


@torch.no_grad()
def foreground(
    patches: Tensor, grid: tuple[int, int], threshold: float, along_raster: bool = False
) -> Tensor:
    """Find the patches of the object by the first principal component of each image's own.

    Args:
        patches: (B, P, D), not of length 1.
        grid: rows and columns of the P patches.
        threshold: of the component.
        along_raster: dilate and close along the row-by-row order of the patches alone.

    Returns:
        (B, P) bool.
    """
    projection = first_component(patches).unflatten(1, grid)  # (B, h, w)
    center = projection[:, _middle(grid[0]), _middle(grid[1])]
    above = (center > threshold).flatten(1)
    # In float64, and no quotient, which would round otherwise.
    is_right = above.double().sum(1) > _CENTER_SHARE * above.shape[1]
    sign = torch.where(is_right, 1.0, -1.0).to(projection)
    found = projection * sign[:, None, None] > threshold

    plane = found.float()[:, None]  # (B, 1, h, w)
    if along_raster:
        plane = plane.flatten(2)[..., None]  # (B, 1, P, 1)
    dilated = F.max_pool2d(plane, 3, stride=1, padding=1)
    # Closing: dilated once more, and eroded.
    closed = -F.max_pool2d(-F.max_pool2d(dilated, 3, stride=1, padding=1), 3, stride=1, padding=1)
    return closed.flatten(1) > 0.5


def first_component(patches: Tensor) -> Tensor:
    """Give the coordinates of (B, P, D) along the first principal component of each image, (B, P).

    The component's largest entry is positive, as scikit-learn has it.
    """
    centered = (patches - patches.mean(1, keepdim=True)).double()
    _, directions = torch.linalg.eigh(centered.transpose(1, 2) @ centered)
    direction = directions[:, :, -1]  # (B, D), of the largest variance
    largest = direction.gather(1, direction.abs().argmax(1, keepdim=True))
    direction = direction * largest.sign()
    return (centered @ direction[:, :, None]).squeeze(2)


def _middle(count: int) -> slice:
    """Give the centre of so many rows or columns."""
    return slice(int(count * _MARGIN), max(1, int(count * (1 - _MARGIN))))


class AnomalydinoTrainer(BaseTrainer):
    """Sees the training images once and keeps their patches, or a coreset of them."""

    config: AnomalydinoConfig
    model: AnomalydinoModel
    method = METHODS["AnomalydinoTrainer"]

    @classmethod
    def check_weight_file(cls, config: AnomalydinoConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> AnomalydinoModel:
        return AnomalydinoModel(self.config)

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return top_mean_inside(anomaly_map, inside, TOP_PART)

    def on_train_start(self) -> None:
        self._patches = torch.empty(0)
        self._filled = 0
        self._per_view = 0

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        for patches in self._patches_of(batch):
            self._keep(patches, len(self.loaders.train.samples))
        return {}

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        assert not len(removed), "nothing can be taken from a coreset"
        parts = [self.model.memory_bank]
        for batch in added:
            parts += [patches.flatten(0, 1) for patches in self._patches_of(batch)]

        views = (count + len(added.samples)) * self.config.rotations
        per_view = sum(map(len, parts[1:])) // (len(added.samples) * self.config.rotations)
        size = max(1, int(self.config.coreset_ratio * views * per_view))
        self.model.remember(union_coreset(parts[0], torch.cat(parts[1:]), size, self.seed))

    def _patches_of(self, batch: Batch) -> Iterator[Tensor]:
        """Yield the patches of a batch's images and of their turned views, (B, P, D) of length 1."""
        assert batch.features is not None, "images come with their features"
        yield F.normalize(batch.features[0].float(), dim=2)
        for view in turned_views(batch.image, self.config.rotations):
            yield F.normalize(self.model.features(view)[0].float(), dim=2)

    def _keep(self, patches: Tensor, images: int) -> None:
        """Keep (B, P, D) patches of one view, of so many images in all, on the host."""
        # Allocated once: a list of batches would be held twice when it is joined.
        if self._filled == 0:
            views = images * self.config.rotations
            self._patches = torch.empty(views * patches.shape[1], patches.shape[2])
        self._per_view = patches.shape[1]
        flat = patches.flatten(0, 1)
        self._patches[self._filled : self._filled + len(flat)] = flat.cpu()
        self._filled += len(flat)

    def on_train_end(self) -> None:
        patches = self._patches[: self._filled].to(self.device)
        self._patches = torch.empty(0)
        check_features(patches)
        count = max(1, int(self.config.coreset_ratio * len(patches)))
        generator = torch.Generator().manual_seed(self.seed)
        if self.model.is_soft:
            by_view = patches.unflatten(0, (-1, self._per_view))  # (V, P, D)
            config = self.config
            factors = outlier_factors(by_view, config.soft_weights, config.soft_neighbors)
            bank = usual_coreset(patches, factors.flatten(), config.soft_removed, count, generator)
            self.model.remember(*bank)
            return
        if count < len(patches):
            patches = patches[k_center_greedy(patches, count, generator)]
        self.model.remember(patches)

    def notes(self) -> list[str]:
        bank = f"memory bank of {len(self.model.memory_bank)} patches, {SEARCH}"
        if self.config.batched:
            bank = f"batch without labels of {len(self.model.memory_bank)} patches, {SEARCH}"
        return [bank, *self.model.extractor.notes()]
