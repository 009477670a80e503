"""MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring (ICLR 2024).

Paper: https://arxiv.org/abs/2401.16753
Reference: https://github.com/xrli-U/MuSc (MIT, facts only).

Nothing is learnt, and no image has to be known as normal. A frozen DINOv2 describes each patch of a
batch of unlabelled images, mostly normal ones. A normal patch has one like it in many of the other
images, a defect in few. So a patch is as anomalous as it is far, on average, from its nearest
neighbours in those images that come nearest, three tenths of them. This is done after some blocks,
and with patches averaged over squares of some sizes, and the results are averaged. An image is as
anomalous as the highest value of its map.

The batch is what the model is trained on. An image of the batch is compared with all others but not
with itself, so that predicting the batch is the mutual scoring of the paper. A new image is compared
with the whole batch.

Memory: 2 * L * N * P * D bytes for N images, P patches of D numbers after each of L blocks, while
fitting and in the checkpoint: 3.1 MB an image for four blocks of a ViT-S at 448 px. Time: each image
takes L * R * N * P ** 2 * D products for R sizes of squares, so that a whole batch takes the square
of its number.

Differs from the paper:

- Scores of images are not averaged with those of the images most like them. The published figures
  of whole images have that step, which makes the score of an image depend on the scores of others.
- The transformer is a DINOv2. The paper's is a CLIP ViT-L/14. The authors' code takes both.

Differs from the reference:

- At least one image is taken where three tenths of the others are less than one.
- An image that is in the batch twice is compared with neither of the two.
- Patches are rounded to float16, as tokens in the files that trials share.
- The position embedding is resampled as in `adray.components.dinov2_extractor`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from adray.components.architectures import DINOV2_PATCH
from adray.components.dinov2_extractor import Dinov2Extractor, check_dinov2_file, normed_patches
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.frozen_network import check_features
from adray.components.nearest import SEARCH
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.musc import METHODS, MuscConfig
from adray.trainer import BaseTrainer, ImageBatches
from adray.types import Batch, Prediction

_CHUNK_NUMBERS = 16 * 2**20
"""Cosines between the patches of an image and of some others that are held at once."""
_SAME_IMAGE = 0.01
"""Mean distance of patches of length 1 below which two images are the same one."""


class MuscModel(DynamicBufferMixin):
    """A frozen transformer, and the patches of a batch of unlabelled images.

    Args:
        config: hyperparameters.
    """

    memory_bank: Tensor
    """(L, N, P, D) float16."""

    def __init__(self, config: MuscConfig) -> None:
        super().__init__()
        self.kernel_sizes = config.kernel_sizes
        self.nearest_part = config.nearest_part
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        self.norm = self.extractor.last_norm()
        self.register_buffer("memory_bank", torch.empty(0, dtype=torch.float16))

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe the patches of (B, 3, H, W), see `condense`."""
        return self.condense(self.extractor(image))

    @torch.no_grad()
    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalise the patches of the layers' (B, T, D) tokens, each (B, P, D) float16.

        Each patch goes through the layer norm of the network. Then all numbers of an image together
        get mean 0 and variance 1. Class token and registers are left out.
        """
        parts = []
        for tokens in maps:
            patches = normed_patches(tokens, self.norm, self.extractor.num_prefix)
            with torch.autocast(patches.device.type, enabled=False):
                parts.append(F.layer_norm(patches, patches.shape[1:]).half())
        return tuple(parts)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how far each patch is from those of the images that come nearest to it.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            The distances (B, 1, H, W) in [0, 2], enlarged, and their highest value, (B,).
        """
        layers = self.features(image) if features is None else features
        size = (image.shape[2], image.shape[3])
        grid = (size[0] // DINOV2_PATCH, size[1] // DINOV2_PATCH)

        # Half precision would find other neighbours.
        with torch.autocast(image.device.type, enabled=False):
            rows = []
            for number in range(len(image)):
                rows.append(self._score([layer[number] for layer in layers], grid))
            small = torch.stack(rows).unflatten(1, (1, *grid))
            anomaly_map = F.interpolate(small, size, mode="bilinear", align_corners=True)
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)

    def _score(self, layers: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Score the patches of one image, of which each layer gives (P, D): (P,)."""
        scores = []
        for kernel_size in self.kernel_sizes:
            for stored, patches in zip(self.memory_bank, layers, strict=True):
                distance = least_distances(patches, stored, grid, kernel_size)
                scores.append(mean_of_nearest(distance, self.nearest_part))
        return torch.stack(scores).mean(0)


def averaged(patches: Tensor, grid: tuple[int, int], kernel_size: int) -> Tensor:
    """Average patches with those around them, and bring them to length 1.

    Args:
        patches: (N, P, D).
        grid: rows and columns of the P patches.
        kernel_size: side of the square that is averaged, odd. Beyond the border there is nothing.

    Returns:
        (N, P, D) float32.
    """
    plane = patches.float().transpose(1, 2).unflatten(2, grid)  # (N, D, h, w)
    means = F.avg_pool2d(plane, kernel_size, stride=1, padding=kernel_size // 2)
    return F.normalize(means.flatten(2).transpose(1, 2), dim=2)


def least_distances(
    patches: Tensor, stored: Tensor, grid: tuple[int, int], kernel_size: int
) -> Tensor:
    """Give the distance of each patch to its nearest neighbour in each of some images.

    Args:
        patches: (P, D) of one image.
        stored: (N, P, D) of the others.
        grid: rows and columns of the P patches.
        kernel_size: see `averaged`.

    Returns:
        (P, N), Euclidean, between vectors of length 1.
    """
    own = averaged(patches[None], grid, kernel_size)[0]
    found = []
    for images in stored.split(max(1, _CHUNK_NUMBERS // len(own) ** 2)):
        others = averaged(images, grid, kernel_size)  # (n, P, D)
        cosine = own @ others.flatten(0, 1).T  # (P, n * P)
        nearest = cosine.unflatten(1, (len(others), -1)).argmax(2)  # (P, n)

        # From the difference: the product's rounding depends on how many vectors came together.
        number = torch.arange(len(others), device=own.device)
        found.append((own[:, None] - others[number, nearest]).norm(dim=2))
    return torch.cat(found, 1)


def mean_of_nearest(distance: Tensor, part: float) -> Tensor:
    """Average each patch's distances to a part of the images, those that come nearest to it.

    An image all of whose patches are found is the same one, and is left out unless all are.

    Args:
        distance: (P, N) to the nearest patch in each of N images.
        part: of the images, in (0, 1]; one at least.

    Returns:
        (P,).
    """
    is_same = distance.mean(0) < _SAME_IMAGE  # (N,)
    is_same = is_same & ~is_same.all()
    others = distance.shape[1] - is_same.sum()
    taken = (part * others.double()).floor().clamp(min=1).long()

    rising = distance.masked_fill(is_same, torch.inf).sort(1).values
    is_far = torch.arange(distance.shape[1], device=distance.device) >= taken
    return rising.masked_fill(is_far, 0).sum(1) / taken


class MuscTrainer(BaseTrainer):
    """Sees the images of the batch once and keeps their patches."""

    config: MuscConfig
    model: MuscModel
    method = METHODS["MuscTrainer"]

    @classmethod
    def check_weight_file(cls, config: MuscConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> MuscModel:
        return MuscModel(self.config)

    def on_train_start(self) -> None:
        self._patches = torch.empty(0, dtype=torch.float16)
        self._filled = 0

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        patches = _kept(batch)  # (L, B, P, D)

        # Allocated once: a list of batches would be held twice when it is joined.
        if self._filled == 0:
            layers, _, places, width = patches.shape
            images = len(self.loaders.train.samples)
            self._patches = torch.empty((layers, images, places, width), dtype=torch.float16)

        end = self._filled + patches.shape[1]
        self._patches[:, self._filled : end] = patches.cpu()
        self._filled = end
        return {}

    def on_train_end(self) -> None:
        patches = self._patches[:, : self._filled]
        self.on_train_start()
        check_features(patches)
        self.model.memory_bank = patches.to(self.device)

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        # Added first, so that there are others left to compare with.
        parts = [self.model.memory_bank]
        parts += [_kept(batch).to(self.model.memory_bank) for batch in added]
        self.model.memory_bank = torch.cat(parts, dim=1)

        for batch in removed:
            for patches in _kept(batch)[0]:
                self._forget(patches)

    def _forget(self, patches: Tensor) -> None:
        """Take the image of which the first block gave these (P, D) patches out of the bank."""
        bank = self.model.memory_bank
        if bank.shape[1] <= MuscTrainer.min_normals:
            raise InputError(Sentence.of("fit few compared", min_normals=MuscTrainer.min_normals))
        own = patches.to(bank.device).float()
        # One by one: all in float32 would take twice the bank.
        distance = torch.stack([(one.float() - own).norm(dim=1).mean() for one in bank[0]])
        if float(distance.min()) > _SAME_IMAGE * float(own.norm(dim=1).mean()):
            raise InputError(Sentence.of("update image unknown"))
        kept = torch.arange(len(distance), device=bank.device) != distance.argmin()
        self.model.memory_bank = bank[:, kept]

    def notes(self) -> list[str]:
        _, images, places, _ = self.model.memory_bank.shape
        bank = f"batch of {images} images of {places} patches, each compared with the others"
        return [f"{bank}, {SEARCH}", *self.model.extractor.notes()]


def _kept(batch: Batch) -> Tensor:
    """Give what the bank keeps of a batch, (L, B, P, D) float16."""
    assert batch.features is not None, "images come with their features"
    return torch.stack(batch.features).half()
