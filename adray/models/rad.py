"""RAD: Is Task-Specific Training Necessary for Anomaly Detection? (ICML 2026).

Paper: https://arxiv.org/abs/2601.22763
Reference: https://github.com/longkukuhi/RAD (no licence, facts only).

Nothing is learnt. Of every training image a bank keeps the patches after some blocks of a frozen
transformer, each at its place, and the class token. An image is compared with the training images
whose class tokens are most like its own. A patch is as anomalous as the cosine to the best of their
patches around the same place is below 1, averaged over the blocks. An image is as anomalous as the
worst hundredth of its smoothed map.

Memory: 2 * L * N * P * D bytes for N images, P patches of D numbers after each of L blocks, while
fitting and in the checkpoint: 6.3 MB an image for four blocks of a ViT-B at 448 px.

Differs from the paper: nothing in the method. Differs from the reference:

- The transformer is a DINOv2 with patches of 14 pixels. Published figures are of a DINOv3 with
  patches of 16, whose weights cannot be passed on.
- A bank is of the images of one training, mostly of one product. The reference keeps one of all
  products, and sets the number of images and the radius by data set, by figures on its test images.
- The map has the size that the model sees. There it has 256 pixels whatever the input, so that the
  same smoothing is stronger.
- Patches are rounded to float16 in the bank, and tokens as they lie in the files that trials share.
"""

from __future__ import annotations

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
from adray.components.nearest import SEARCH
from adray.components.top_mean import TOP_PART, top_mean
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.rad import METHODS, RadConfig
from adray.trainer import BaseTrainer, ImageBatches
from adray.types import Batch, Prediction

_CHUNK_NUMBERS = 16 * 2**20
"""Numbers of the bank and of the patches around them that are compared at once."""
_SAME_IMAGE = 1e-3
"""Distance of two class tokens of length 1 up to which they are of one image."""


class RadModel(DynamicBufferMixin):
    """A frozen transformer, and the patches and class tokens of the training images.

    Args:
        config: hyperparameters.
    """

    memory_bank: Tensor
    """(L, N, P, D) float16, patches of length 1."""
    class_bank: Tensor
    """(N, D), class tokens of length 1."""

    def __init__(self, config: RadConfig) -> None:
        super().__init__()
        self.num_images = config.num_images
        self.radius = config.radius
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        self.norm = self.extractor.last_norm()
        self.register_buffer("memory_bank", torch.empty(0, dtype=torch.float16))
        self.register_buffer("class_bank", torch.empty(0))
        self.blur = GaussianBlur2d(config.sigma, truncate=2.0)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe (B, 3, H, W), see `condense`."""
        return self.condense(self.extractor(image))

    @torch.no_grad()
    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalise the layers' (B, T, D) tokens to length 1.

        Returns:
            The patches of each layer, (B, P, D) float32, and the class token of the last, (B, D).
        """
        parts = []
        class_token = torch.empty(0)
        for tokens in maps:
            with torch.autocast(tokens.device.type, enabled=False):
                normed = F.normalize(self.norm(tokens.float()), dim=2)
            parts.append(normed[:, self.extractor.num_prefix :])
            class_token = normed[:, 0]
        return (*parts, class_token)

    def remember(self, patches: Tensor, class_tokens: Tensor) -> None:
        """Make (L, N, P, D) patches and (N, D) class tokens the bank."""
        self.memory_bank = patches.half()
        self.class_bank = class_tokens

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how far each patch is from those around its place in the most similar images.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed distances (B, 1, H, W) in [0, 2], and the mean of their largest hundredth,
            (B,).
        """
        *layers, class_token = self.features(image) if features is None else features
        size = (image.shape[2], image.shape[3])
        grid = (size[0] // DINOV2_PATCH, size[1] // DINOV2_PATCH)
        near = places_around(grid, self.radius).to(image.device)

        # Half precision would find other images and patches.
        with torch.autocast(image.device.type, enabled=False):
            rows = []
            for number, token in enumerate(class_token.float()):
                patches = [layer[number].float() for layer in layers]
                rows.append(self._distance(patches, token, near))

        distance_map = torch.stack(rows).unflatten(1, (1, *grid))
        anomaly_map = self.blur.enlarge(distance_map, size)
        return Prediction(top_mean(anomaly_map), anomaly_map)

    def _distance(self, layers: list[Tensor], class_token: Tensor, near: Tensor) -> Tensor:
        """Average the distances of one image's patches over the layers, (P,).

        Args:
            layers: (P, D) each.
            class_token: (D,).
            near: of `places_around`.
        """
        bank = self.memory_bank
        if self.num_images < len(self.class_bank):
            similar = (self.class_bank @ class_token).topk(self.num_images).indices
            bank = bank[:, similar]

        total = torch.zeros(len(near), device=class_token.device)
        for stored, patches in zip(bank, layers, strict=True):
            total += 1 - best_cosine(stored, patches, near)
        return total / len(layers)


def places_around(grid: tuple[int, int], radius: int) -> Tensor:
    """List the places around each place of a grid of patches.

    Args:
        grid: rows and columns.
        radius: how many rows, and columns, a place may be away.

    Returns:
        (P, O) int64 for P places by row: -1 in place of those beyond the border.
    """
    height, width = grid
    down = torch.arange(-min(radius, height - 1), min(radius, height - 1) + 1)
    right = torch.arange(-min(radius, width - 1), min(radius, width - 1) + 1)
    row = torch.arange(height)[:, None] + down  # (h, a)
    column = torch.arange(width)[:, None] + right  # (w, b)

    is_row = (row >= 0) & (row < height)
    is_column = (column >= 0) & (column < width)
    place = row[:, None, :, None] * width + column[None, :, None, :]  # (h, w, a, b)
    exists = is_row[:, None, :, None] & is_column[None, :, None, :]
    return place.masked_fill(~exists, -1).flatten(2).flatten(0, 1)


def best_cosine(stored: Tensor, patches: Tensor, near: Tensor) -> Tensor:
    """Give each patch's highest cosine to the stored ones around its place, (P,).

    Being near goes both ways. So each part of the bank is read once, and compared with the patches
    of the image around its place.

    Args:
        stored: (N, P, D) of length 1.
        patches: (P, D) of length 1.
        near: of `places_around`.
    """
    best = patches.new_full((len(patches),), -1.0)  # no cosine is lower
    per_place = (len(stored) + near.shape[1]) * patches.shape[1]
    size = max(1, _CHUNK_NUMBERS // per_place)
    for first in range(0, len(near), size):
        places = near[first : first + size]  # (p, O)
        exists = places >= 0
        around = patches[places.clamp(min=0)]  # (p, O, D)
        part = stored[:, first : first + size].transpose(0, 1)  # (p, N, D)
        part = part.to(patches.device, patches.dtype)

        cosine = (part @ around.transpose(1, 2)).amax(1)  # (p, O)
        best.scatter_reduce_(0, places[exists], cosine[exists], "amax")
    return best


class RadTrainer(BaseTrainer):
    """Sees the training images once and keeps their patches."""

    config: RadConfig
    model: RadModel
    method = METHODS["RadTrainer"]

    @classmethod
    def check_weight_file(cls, config: RadConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> RadModel:
        return RadModel(self.config)

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return top_mean_inside(anomaly_map, inside, TOP_PART)

    def on_train_start(self) -> None:
        self._patches = torch.empty(0)
        self._class_tokens: list[Tensor] = []

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        patches, class_token = _kept(batch)  # (L, B, P, D), (B, D)

        # Allocated once: a list of batches would be held twice when it is joined.
        if not self._class_tokens:
            layers, _, places, width = patches.shape
            images = len(self.loaders.train.samples)
            shape = (layers, images, places, width)
            self._patches = torch.empty(shape, dtype=torch.float16)

        filled = sum(map(len, self._class_tokens))
        self._patches[:, filled : filled + len(class_token)] = patches.cpu()
        self._class_tokens.append(class_token.cpu())
        return {}

    def on_train_end(self) -> None:
        class_tokens = torch.cat(self._class_tokens)
        patches = self._patches[:, : len(class_tokens)]
        self.on_train_start()
        check_features(class_tokens)
        self.model.remember(patches.to(self.device), class_tokens.to(self.device))

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        model = self.model
        for batch in removed:
            for class_token in _kept(batch)[1]:
                self._forget(class_token)

        patches = [model.memory_bank]
        class_tokens = [model.class_bank]
        for batch in added:
            more, class_token = _kept(batch)
            patches.append(more.to(model.memory_bank))
            class_tokens.append(class_token.to(model.class_bank))
        model.remember(torch.cat(patches, dim=1), torch.cat(class_tokens))

    def _forget(self, class_token: Tensor) -> None:
        """Take the image with a class token (D,) out of the bank."""
        model = self.model
        distance = (model.class_bank - class_token.to(model.class_bank)).norm(dim=1)
        if len(distance) < 2:
            raise InputError(Sentence.of("update none left"))
        if float(distance.min()) > _SAME_IMAGE:
            raise InputError(Sentence.of("update image unknown"))
        kept = torch.arange(len(distance), device=distance.device) != distance.argmin()
        model.remember(model.memory_bank[:, kept], model.class_bank[kept])

    def notes(self) -> list[str]:
        _, images, places, _ = self.model.memory_bank.shape
        compared = min(images, self.config.num_images)
        bank = f"memory bank of {images} images of {places} patches, {compared} compared with each"
        return [f"{bank}, {SEARCH}", *self.model.extractor.notes()]


def _kept(batch: Batch) -> tuple[Tensor, Tensor]:
    """Give what the bank keeps of a batch: patches (L, B, P, D) float16, and class tokens (B, D)."""
    assert batch.features is not None, "images come with their features"
    *layers, class_token = batch.features
    return torch.stack(layers).half(), class_token.float()
