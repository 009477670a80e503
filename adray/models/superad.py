"""SuperAD: A Training-free Anomaly Classification and Segmentation Method for CVPR 2025 VAND 3.0.

Paper: https://arxiv.org/abs/2505.19750
Reference: https://github.com/Summerdayhurricane/SuperAD (Apache-2.0, facts only).

A frozen DINOv2 describes each patch after several blocks, each with the network's last layer norm,
and each block has a memory bank of its own. The banks are made of a few training images in several
turned views: of those whose class tokens lie farthest apart, so that rarer kinds of normal are among
them. A patch is as anomalous as the cosine to its nearest neighbour is below 1, averaged over the
blocks, an image as the mean of its worst hundredth of patches.

Memory: 4 * L * K * R * P * D bytes in the checkpoint, for K images in R views, of P patches of D
numbers after each of L blocks, and one block more while fitting: 100 MB for 16 images with ViT-S at
448 px, 4.8 GB in 8 views with ViT-L at 672 px.

Differs from the paper: nothing in the method but for sizes. Differs from the reference:

- Images are resized to a square, or with `aspect` to one rectangle for all of them, whose longer side
  has whole patches. There each keeps its shape, and is cut to whole patches. With `fit: pad` the
  aspect ratio stays too, and patches of the room around an image are not kept.
- There is no mask of the background. The reference has one for two of eight products.
- Views are turned after the image was resized.
- Thresholds are those of held-out normals. The published ones are the best of labelled test images,
  and sizes, masks and filled holes are set by product.
- Tokens are rounded to float16, as they lie in the files that trials share.
- The position embedding is resampled as in `adray.components.dinov2_extractor`.
- The map has the size that the model sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.architectures import DINOV2_PATCH
from adray.components.blur import GaussianBlur2d
from adray.components.dinov2_extractor import Dinov2Extractor, check_dinov2_file
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.frozen_network import check_features
from adray.components.inside import top_mean_inside
from adray.components.k_center_greedy import k_center_passes
from adray.components.nearest import SEARCH, BankSearch
from adray.components.rotation import turned_views
from adray.components.top_mean import TOP_PART, top_mean
from adray.methods.superad import METHODS, SuperadConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


class PatchBank(DynamicBufferMixin):
    """The memory bank of one block."""

    memory_bank: Tensor
    """(M, D), each of length 1."""
    center: Tensor
    """(D,), the bank's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory_bank", torch.empty(0))
        self.register_buffer("center", torch.empty(0))
        self.neighbors = BankSearch()

    def remember(self, patches: Tensor) -> None:
        """Make (M, D) patches of length 1 the bank."""
        self.memory_bank = patches
        self.center = patches.mean(0)

    def distance(self, patches: Tensor) -> Tensor:
        """Give one minus the cosine of (B, P, D) patches of length 1 to their neighbours, (B, P)."""
        euclidean, _ = self.neighbors.nearest(patches.flatten(0, 1), self.memory_bank, self.center)
        # Of two vectors of length 1 half the squared distance is one minus the cosine.
        return 0.5 * euclidean.square().view(patches.shape[:2])


class SuperadModel(nn.Module):
    """A frozen transformer, and a memory bank for each of its tapped blocks.

    Args:
        config: hyperparameters.
    """

    banks: Any
    """Modules, a `PatchBank` of each layer."""

    def __init__(self, config: SuperadConfig) -> None:
        super().__init__()
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        self.norm = self.extractor.last_norm()
        self.banks = nn.ModuleList(PatchBank() for _ in config.layers)
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe (B, 3, H, W), see `condense`."""
        return self.condense(self.extractor(image))

    @torch.no_grad()
    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalise the layers' (B, T, D) tokens.

        Returns:
            The patches of each layer, (B, P, D) float32 of length 1, and the class token of the
            last, (B, D), of the length that it has.
        """
        parts = []
        class_token = torch.empty(0)
        for tokens in maps:
            with torch.autocast(tokens.device.type, enabled=False):
                normed = self.norm(tokens.float())
                parts.append(F.normalize(normed[:, self.extractor.num_prefix :], dim=2))
            class_token = normed[:, 0]
        return (*parts, class_token)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how far each patch is from the banks.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed distances (B, 1, H, W) in [0, 2], and the mean of the largest hundredth of
            the distances before, (B,).
        """
        *layers, _ = self.features(image) if features is None else features
        size = (image.shape[2], image.shape[3])
        grid = (size[0] // DINOV2_PATCH, size[1] // DINOV2_PATCH)

        # Half precision would pick other neighbours.
        with torch.autocast(image.device.type, enabled=False):
            distances = []
            for bank, patches in zip(self.banks, layers, strict=True):
                distances.append(bank.distance(patches.float()))
            distance = torch.stack(distances).mean(0)  # (B, P)

        anomaly_map = self.blur.enlarge(distance.unflatten(1, (1, *grid)), size)
        return Prediction(top_mean(distance), anomaly_map)


def farthest_images(class_tokens: Tensor, count: int) -> Tensor:
    """Choose images whose class tokens lie far apart.

    The first is the one whose distances to all others have the largest sum of squares. Each next is
    the farthest from those chosen before.

    Args:
        class_tokens: (N, D).
        count: of images, at least 1; all are chosen where there are no more.

    Returns:
        (min(count, N),) int64 positions, in the order in which they were chosen.
    """
    values = class_tokens.double()
    if count >= len(values):
        return torch.arange(len(values), device=values.device)
    # The sum grows with the distance to the mean, and with nothing else.
    first = (values - values.mean(0)).square().sum(1).argmax()
    passes = k_center_passes(values, count, earlier=[first[None]])
    return torch.cat(passes)[:count]


class SuperadTrainer(BaseTrainer):
    """Sees the training images once, chooses some by their class tokens, and keeps their patches."""

    config: SuperadConfig
    model: SuperadModel
    method = METHODS["SuperadTrainer"]

    @classmethod
    def check_weight_file(cls, config: SuperadConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> SuperadModel:
        return SuperadModel(self.config)

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return top_mean_inside(anomaly_map, inside, TOP_PART)

    def on_train_start(self) -> None:
        self._class_tokens: list[Tensor] = []
        self._positions: list[Tensor] = []

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "images come with their features"
        self._class_tokens.append(batch.features[-1].float())
        self._positions.append(batch.index)
        return {}

    def on_train_end(self) -> None:
        chosen = self._chosen()
        self.on_train_start()

        # The banks are made one pass later, so that only the chosen images are ever kept.
        parts: list[list[Tensor]] = [[] for _ in self.model.banks]
        for batch in self.loaders.train:
            for patches in self._patches_of(batch, torch.isin(batch.index, chosen)):
                for part, layer in zip(parts, patches, strict=True):
                    part.append(layer)
        for bank, part in zip(self.model.banks, parts, strict=True):
            bank.remember(torch.cat(part))
            part.clear()

    def _chosen(self) -> Tensor:
        """Choose the images that the banks are made of, by their positions in the loader."""
        class_tokens = torch.cat(self._class_tokens)
        check_features(class_tokens)
        # So that the order of the pass does not choose between images that are alike.
        positions, order = torch.cat(self._positions).sort()
        return positions[farthest_images(class_tokens[order], self.config.num_images)]

    def _patches_of(self, batch: Batch, is_chosen: Tensor) -> Iterator[list[Tensor]]:
        """Yield the patches of each view of the chosen images of a batch, (n, D) of each layer."""
        if not bool(is_chosen.any()):
            return
        inside = None if batch.inside is None else batch.inside[is_chosen]
        some = replace(
            batch,
            image=batch.image[is_chosen],
            label=batch.label[is_chosen],
            mask=None,
            index=batch.index[is_chosen],
            features=None if batch.features is None else _rows(batch.features, is_chosen),
            inside=inside,
            tile=None if batch.tile is None else batch.tile[is_chosen],
        )
        insides = None
        if inside is not None:
            insides = list(turned_views(inside.float(), self.config.rotations))

        with self.autocast():
            features = self.with_features(some).features
        assert features is not None, "the model has a frozen stage"
        yield _counted(features, inside)

        for number, view in enumerate(turned_views(some.image, self.config.rotations)):
            with self.autocast():
                features = self.model.features(view)
            yield _counted(features, None if insides is None else insides[number] > 0.5)

    def notes(self) -> list[str]:
        sizes = [len(bank.memory_bank) for bank in self.model.banks]
        notes = [f"{len(sizes)} memory banks of {sizes[0]} patches each, {SEARCH}"]
        return [*notes, *self.model.extractor.notes()]


def _rows(features: tuple[Tensor, ...], is_chosen: Tensor) -> tuple[Tensor, ...]:
    """Take the features of some images of a batch."""
    return tuple(part[is_chosen] for part in features)


def _counted(features: tuple[Tensor, ...], inside: Tensor | None) -> list[Tensor]:
    """Give the patches of each layer, (n, D), without those on which nothing counts.

    Args:
        features: (B, P, D) of each layer, and the class token.
        inside: see `Batch.inside`.
    """
    *layers, _ = features
    if inside is None:
        return [layer.float().flatten(0, 1) for layer in layers]
    counts = F.max_pool2d(inside.float(), DINOV2_PATCH).flatten(1) > 0  # (B, P)
    return [layer.float()[counts] for layer in layers]
