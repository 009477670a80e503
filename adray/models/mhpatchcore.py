"""MH-PatchCore: PatchCore whose memory does not grow with the number of training images (2026).

Paper: https://arxiv.org/abs/2605.27748
Reference: https://github.com/NickF93/MH-PatchCore (MIT, facts only).

Patches are described as PatchCore does. A first look at the training images gives their mean and
covariance, and by them the directions in which patches vary and how much. Along these, divided by
the standard deviations, Euclidean distances are Mahalanobis distances. A second look chooses the
memory bank batch by batch, of which summaries alone are kept. A patch is as anomalous as the square
of its distance to the nearest in the bank, an image as its worst patch, less where that neighbour is
itself rare.

Memory: 32 * D ** 2 bytes for the covariance, 4 * `bank_size` * D for each binary digit of the number
of batches, and one batch of patches. 0.4 GB at most for the Wide ResNet at 224 px, of which the
checkpoint has 16 MB at most.

An update leaves the scale as the first training found it, and chooses the bank anew of the old one
and the new patches.

Differs from the paper and the reference:

- Each layer's neighbourhood is averaged and all channels are kept, there they are pooled to 1024
  values.
- Mean and covariance of the patches say all that both of its first looks find: the variances along
  principal directions are the whole covariance there. So there are two looks rather than three.
- Each summary is as large as the bank. Those of the reference have 256 patches, so that its bank has
  256 for each one among the binary digits of the number of batches, 1000 at most.
- Smoothing mirrors the border without the edge pixel.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from adray.components.blur import GaussianBlur2d
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.frozen_network import check_features
from adray.components.k_center_greedy import union_coreset
from adray.components.moments import Moments
from adray.components.nearest import SEARCH, BankSearch
from adray.components.patch_embedding import embed_patches, unusual_share
from adray.components.pca import count_components
from adray.components.streamed_coreset import StreamedCoreset
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.mhpatchcore import METHODS, MhpatchcoreConfig
from adray.progress_lines import watched
from adray.trainer import BaseTrainer, ImageBatches
from adray.types import Batch, Prediction


class MhpatchcoreModel(DynamicBufferMixin):
    """A frozen backbone, the scale of normal patches and a memory bank on it.

    Args:
        config: hyperparameters.
        input_size: height and width of the images in pixels, or the side of squares.
    """

    mean: Tensor
    """(D,), of the training patches."""
    whitening: Tensor
    """(D, K): directions in which patches vary, divided by their standard deviations."""
    memory_bank: Tensor
    """(M, K), whitened."""
    center: Tensor
    """(K,), the bank's mean."""

    def __init__(self, config: MhpatchcoreConfig, input_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        shapes = dryrun_find_featuremap_dims(self.extractor, input_size)
        _, self.grid = shapes[config.layers[0]]
        self.num_neighbors = config.num_neighbors
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("whitening", torch.empty(0))
        self.register_buffer("memory_bank", torch.empty(0))
        self.register_buffer("center", torch.empty(0))
        self.neighbors = BankSearch()
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def embed(self, features: tuple[Tensor, ...]) -> Tensor:
        """Describe the patches of the backbone's maps, (B, h * w, D) float32."""
        return embed_patches(features, self.grid)

    @torch.no_grad()
    def scale_by(self, moments: Moments, variance: float, shrinkage: float) -> None:
        """Take the scale from the training patches.

        Args:
            moments: of all of them, (D,).
            variance: part of theirs that the kept directions explain.
            shrinkage: how far the variances are moved towards their mean, in [0, 1].

        Raises:
            InputError: for patches that are not finite, or all the same.
        """
        check_features(moments.scatter.diagonal())
        # The sums of squares along the directions: eigenvalues, which `eigh` gives rising.
        squares, directions = torch.linalg.eigh(moments.scatter)
        squares = squares.flip(0)
        size = count_components(squares, float(variance))
        if size == 0:
            raise InputError(Sentence.of("fit same patches"))

        variances = squares[:size] / max(1.0, moments.count - 1)
        shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
        whitening = directions.flip(1)[:, :size] / shrunk.sqrt()
        self.mean = moments.mean.float()
        self.whitening = whitening.float().contiguous()

    def whiten(self, patches: Tensor) -> Tensor:
        """Bring (..., D) patches to the scale of normal ones, (..., K)."""
        # Half precision would pick other neighbours.
        with torch.autocast(patches.device.type, enabled=False):
            return (patches - self.mean) @ self.whitening

    def remember(self, patches: Tensor) -> None:
        """Make (M, K) whitened patches the memory bank."""
        self.memory_bank = patches
        self.center = patches.mean(0)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how far each patch is from the bank.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed squares of the distances (B, 1, H, W), at least 0, and the weighted largest
            one per image, (B,).
        """
        found = self.features(image) if features is None else features
        patches = self.whiten(self.embed(found))  # (B, P, K)

        with torch.autocast(image.device.type, enabled=False):
            flat = patches.flatten(0, 1)
            distance, neighbor = self.neighbors.nearest(flat, self.memory_bank, self.center)
            squares = distance.square().view(len(image), -1)  # (B, P)
            pred_score = self.image_score(patches, squares, neighbor.view_as(squares))

        height, width = self.grid
        square_map = rearrange(squares, "b (h w) -> b 1 h w", h=height, w=width)
        anomaly_map = self.blur.enlarge(square_map, (image.shape[2], image.shape[3]))
        return Prediction(pred_score, anomaly_map)

    def image_score(self, patches: Tensor, squares: Tensor, neighbor: Tensor) -> Tensor:
        """Weigh the worst patch's square by how usual its nearest neighbour is, (B,).

        Args:
            patches: whitened, (B, P, K).
            squares: of the distances to the bank, (B, P).
            neighbor: place in the bank of the nearest patch, (B, P).
        """
        worst = squares.argmax(1, keepdim=True)  # (B, 1)
        largest = squares.gather(1, worst)  # (B, 1)
        count = min(self.num_neighbors, len(self.memory_bank))
        if count < 2:
            return largest.squeeze(1)

        # The bank's patches around the nearest one, itself the first: (B, b)
        usual = neighbor.gather(1, worst).squeeze(1)
        around = self.neighbors.around(usual, count, self.memory_bank, self.center)

        image = torch.arange(len(patches), device=patches.device)
        worst_patch = patches[image, worst.squeeze(1)]  # (B, K)
        to_around = (worst_patch[:, None] - self.memory_bank[around]).square().sum(2)  # (B, b)
        return unusual_share(largest, to_around) * largest.squeeze(1)


class MhpatchcoreTrainer(BaseTrainer):
    """Sees the training images twice: for the scale, then for the bank."""

    config: MhpatchcoreConfig
    model: MhpatchcoreModel
    method = METHODS["MhpatchcoreTrainer"]

    def build_model(self) -> MhpatchcoreModel:
        return MhpatchcoreModel(self.config, self.train_config.input_shape)

    def on_train_start(self) -> None:
        self._moments: Moments | None = None

    @torch.no_grad()
    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        seen = Moments.of(self._patches(batch))
        self._moments = seen if self._moments is None else self._moments.joined(seen)
        return {}

    def on_train_end(self) -> None:
        assert self._moments is not None, "there is at least one batch"
        self.model.scale_by(self._moments, self.config.variance, self.config.shrinkage)
        self._moments = None

        # The same images in the same order. Kept features, where there are some, serve again.
        bank = StreamedCoreset(self.config.bank_size)
        for batch in watched(self.loaders.train, "memory bank"):
            with self.autocast():
                batch = self.with_features(batch)
            bank.add(self.model.whiten(self._patches(batch)))
        self.model.remember(bank.coreset())

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        assert not len(removed), "nothing can be taken from a coreset"
        parts = [self.model.whiten(self._patches(batch)) for batch in added]
        size = self.config.bank_size
        self.model.remember(
            union_coreset(self.model.memory_bank, torch.cat(parts), size, self.seed)
        )

    def _patches(self, batch: Batch) -> Tensor:
        """Describe the patches of a batch's images, (B*P, D)."""
        assert batch.features is not None, "images come with their features"
        return self.model.embed(batch.features).flatten(0, 1)

    def notes(self) -> list[str]:
        patches, kept = self.model.memory_bank.shape
        total = len(self.model.mean)
        bank = f"memory bank of {patches} patches in {kept} of {total} dimensions"
        return [f"{bank}, {SEARCH}"]
