"""SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling (CVPR 2026).

Paper: https://arxiv.org/abs/2602.23013
Reference: https://github.com/CLendering/SubspaceAD (Apache-2.0, facts only).

A frozen DINOv2 describes each patch by the mean of its tokens after some middle blocks, before the
network's last layer norm. PCA of all patches of the training images gives the subspace that normal
patches lie in. A patch is as anomalous as it lies outside: the square of its distance to the
subspace. Nothing else is learnt, so that a single image is enough, of which turned views are then
learnt too (`rotations`).

Of the images nothing is kept but the number of patches, their mean and their covariance, in float64.
So images can be added later, and taken away, as if all had been there from the start.

Memory: 8 * D ** 2 bytes while fitting and in the checkpoint, besides at most half of that for the
components: 1.2 MB for ViT-S, 19 MB for the giant.

Differs from the paper: nothing in the method. Its batch of unlabelled images is trained on and then
predicted. Differs from the reference:

- Mean and covariance come from the same views. The reference turns the images anew for each of the
  two.
- A view's angle follows from seed, name of the image and number of the view, so that an image has
  the same views whichever come with it.
- Views are turned after the image was resized, not before, and of all products. The reference turns
  none of MVTec AD's transistor.
- Tokens are rounded to float16, as they lie in the files that trials share.
- The position embedding of a transformer without registers is resampled as in
  `adray.components.dinov2_extractor`, which moves tokens by about a hundredth. With registers both
  do the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adray.components.architectures import DINOV2_PATCH
from adray.components.blur import GaussianBlur2d
from adray.components.dinov2_extractor import Dinov2Extractor, check_dinov2_file
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.frozen_network import check_features
from adray.components.inside import highest_inside, top_mean_inside
from adray.components.moments import Moments
from adray.components.pca import count_components
from adray.components.rotation import rotate
from adray.components.top_mean import TOP_PART, top_mean
from adray.methods.subspacead import METHODS, SubspaceadConfig
from adray.trainer import BaseTrainer, ImageBatches
from adray.types import Batch, Prediction

_LARGEST_ANGLE = 345.0
"""In degrees, of a turned view."""
_IMAGENET_BLACK = (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225)
"""A black pixel after normalisation."""


class Subspace(DynamicBufferMixin):
    """The directions in which vectors vary most, from sums that can be added to and taken from.

    The sums are `Moments`.
    """

    count: Tensor
    """Number of vectors, a float64 scalar."""
    mean: Tensor
    """(D,) float64."""
    scatter: Tensor
    """(D, D) float64: sum of the products of the vectors less their mean."""
    center: Tensor
    """(D,) float32, the mean as the residual takes it."""
    components: Tensor
    """(D, K) float32, orthonormal."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.empty(0, dtype=torch.float64))
        self.register_buffer("scatter", torch.empty(0, dtype=torch.float64))
        self.register_buffer("center", torch.empty(0))
        self.register_buffer("components", torch.empty(0))

    def reset(self) -> None:
        """Forget all vectors."""
        self.count = torch.zeros_like(self.count)

    @torch.no_grad()
    def add(self, vectors: Tensor) -> None:
        """Add (N, D) vectors, at least one, to the sums."""
        added = Moments.of(vectors)
        self._set(added if float(self.count) == 0 else self._moments().joined(added))

    @torch.no_grad()
    def remove(self, vectors: Tensor) -> None:
        """Take (N, D) vectors that were added before away from the sums.

        Raises:
            ValueError: where none would be left.
        """
        self._set(self._moments().without(Moments.of(vectors)))

    def _moments(self) -> Moments:
        return Moments(float(self.count), self.mean, self.scatter)

    def _set(self, moments: Moments) -> None:
        self.count = torch.full_like(self.count, moments.count)
        self.mean = moments.mean
        self.scatter = moments.scatter

    @torch.no_grad()
    def fit(self, variance: float) -> None:
        """Find the fewest components that explain a part of the variance.

        Raises:
            InputError: for vectors that were not finite.
        """
        check_features(self.scatter.diagonal())
        # The sums of squares along the directions: eigenvalues, which `eigh` gives rising.
        squares, directions = torch.linalg.eigh(self.scatter)
        size = count_components(squares.flip(0), float(variance))
        self.components = directions.flip(1)[:, :size].float().contiguous()
        self.center = self.mean.float()

    def residual(self, vectors: Tensor) -> Tensor:
        """Give the square of the distance of (..., D) vectors to the subspace, (...), at least 0."""
        centered = vectors - self.center
        inside = (centered @ self.components) @ self.components.T
        return (centered - inside).square().sum(-1)


class SubspaceadModel(torch.nn.Module):
    """A frozen transformer and the subspace of normal patches.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: SubspaceadConfig) -> None:
        super().__init__()
        self.image_score = config.image_score
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        self.subspace = Subspace()
        # 3 x 3 and nearly flat, as the reference's kernel is in spite of its standard deviation.
        self.blur = GaussianBlur2d(4.0, truncate=0.25)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe the patches of (B, 3, H, W), (B, P, D)."""
        return self.condense(self.extractor(image))

    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Average the patches of the layers' (B, T, D) tokens, (B, P, D) float32.

        Class token and registers are left out.
        """
        total = maps[0].float()
        for tokens in maps[1:]:
            total = total + tokens.float()
        return (total[:, self.extractor.num_prefix :] / len(maps),)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how far each patch lies outside of the subspace.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed squares of the distances, (B, 1, H, W), at least 0, and the score (B,) that
            `image_score` makes of them.
        """
        (patches,) = self.features(image) if features is None else features
        # A residual is a small difference of large values, of which half precision leaves nothing.
        with torch.autocast(image.device.type, enabled=False):
            distance = self.subspace.residual(patches.float())  # (B, P)

        height = image.shape[2]
        width = image.shape[3]
        small = distance.unflatten(1, (1, height // DINOV2_PATCH, width // DINOV2_PATCH))
        anomaly_map = self.blur.enlarge(small, (height, width))
        if self.image_score == "max":
            return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)
        return Prediction(top_mean(anomaly_map), anomaly_map)


def view_angles(seed: int, name: str, count: int) -> Tensor:
    """Draw the angles of an image's turned views.

    Args:
        seed: of the training.
        name: of the image's file.
        count: number of views. Fewer are the first of more.

    Returns:
        (count,) degrees.
    """
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(count, generator=generator, dtype=torch.float64) * _LARGEST_ANGLE


def turned(image: Tensor, degrees: Tensor) -> Tensor:
    """Turn (B, 3, H, W) images, normalised as imagenet, by (B,) degrees; corners become black."""
    black = torch.tensor(_IMAGENET_BLACK, device=image.device).view(1, 3, 1, 1)
    return rotate(image - black, degrees, "nearest", "zeros") + black


class SubspaceadTrainer(BaseTrainer):
    """Sees the training images once and keeps only sums."""

    config: SubspaceadConfig
    model: SubspaceadModel
    method = METHODS["SubspaceadTrainer"]

    @classmethod
    def check_weight_file(cls, config: SubspaceadConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> SubspaceadModel:
        return SubspaceadModel(self.config)

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        if self.config.image_score == "max":
            return highest_inside(anomaly_map, inside)
        return top_mean_inside(anomaly_map, inside, TOP_PART)

    def on_train_start(self) -> None:
        self.model.subspace.reset()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        for patches in self._patches(batch, self.loaders.train.samples):
            self.model.subspace.add(patches)
        return {}

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        subspace = self.model.subspace
        for batch in added:
            for patches in self._patches(batch, added.samples):
                subspace.add(patches)
        for batch in removed:
            for patches in self._patches(batch, removed.samples):
                subspace.remove(patches)
        subspace.fit(self.config.variance)

    def _patches(self, batch: Batch, samples: Sequence[Any]) -> Iterator[Tensor]:
        """Yield the patches of a batch's images, and of each turned view of them, (B*P, D)."""
        assert batch.features is not None, "images come with their features"
        yield batch.features[0].flatten(0, 1)
        for view in self._views(batch, samples):
            (patches,) = self.model.features(view)
            yield patches.flatten(0, 1)

    def _views(self, batch: Batch, samples: Sequence[Any]) -> Iterator[Tensor]:
        """Yield each turned view of all images of a batch, (B, 3, H, W)."""
        if not self.config.rotations:
            return
        names = [samples[index].path.name for index in batch.index.tolist()]
        angles = [view_angles(self.seed, name, self.config.rotations) for name in names]
        for degrees in torch.stack(angles, dim=1):  # (B,)
            yield turned(batch.image, degrees)

    def on_train_end(self) -> None:
        self.model.subspace.fit(self.config.variance)

    def notes(self) -> list[str]:
        subspace = self.model.subspace
        kept = subspace.components.shape[1]
        total = len(subspace.mean)
        notes = [f"subspace of {kept} of {total} dimensions, from {int(subspace.count)} patches"]
        return [*notes, *self.model.extractor.notes()]
