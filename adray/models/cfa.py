"""CFA: Coupled-hypersphere-based Feature Adaptation for Target-Oriented Anomaly Localization.

Paper: S. Lee et al., IEEE Access 10, 2022, https://arxiv.org/abs/2206.04325
Reference: https://github.com/sungwool/CFA_for_anomaly_localization (no licence; facts only).

A 1x1 convolution, the descriptor, adapts a frozen backbone's patches to the product. The memory
bank holds the mean of the untrained descriptor's output at each position of the training images,
and stays. Training draws each patch into a hypersphere of radius r around its K nearest centers of
the bank and keeps the next J centers' spheres away from it. A patch is as anomalous as it is far
from its nearest center, more so where no other center is about as near.

The authors resize to 256 px and crop to 224, and so does `cfa`. `cfa-resnet18` is not cropped, as
in their second column of figures.

Memory: while training, the backbone's maps of all images in the feature cache (1.8 MB each for
ResNet-18 at 256 px, 5.6 MB for Wide ResNet-50 at 224 px); the bank is one descriptor map.

Differs from the paper: the centers are not updated while training, and the radius is learnt from
almost zero, as in the reference. (With the radius kept at 1e-5 the repulsion would never act.) Only
the K + J distances that the loss looks at have a gradient; the loss and its gradient are the same.
An odd last batch is trained on, and the mean weighs each image alike. The reference reports the
best epoch on the test set; here the last epoch counts. The smoothing mirrors the border without the
edge pixel, scipy's filter there repeats it.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.methods.cfa import METHODS, CfaConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_CHUNK_BYTES = 16 * 2**20
"""Of the distances between some patches and the whole bank that are held at once."""
_LOSS_SCALE = 1000.0
"""By which the reference multiplies both parts of the loss."""


class Descriptor(nn.Module):
    """A 1x1 convolution of joined maps, with two channels of coordinates (CoordConv).

    The maps are joined on the first one's grid. Enlarging is linear, alike for all channels, with
    weights that sum to one: so each map is convolved at its own size and its result enlarged, which
    takes a fifth of the multiplications and is the same up to rounding.

    Args:
        channels: of each map.
        dim: D of the descriptors.
        grid: height and width of the first map.
    """

    coordinates: Tensor

    def __init__(self, channels: tuple[int, ...], dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        self.grid = grid
        self.linear = nn.Linear(sum(channels) + 2, dim)

        height, width = grid
        rows = torch.linspace(-1, 1, height)
        columns = torch.linspace(-1, 1, width)
        coordinates = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=2)  # (h, w, 2)
        self.register_buffer("coordinates", coordinates, persistent=False)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Describe each patch.

        Args:
            features: one (B, h, w, C) map per layer, the first on `grid`.

        Returns:
            (B, h, w, D).
        """
        *weights, last = self.linear.weight.split([*self.channels, 2], dim=1)
        described = F.linear(self.coordinates, last, self.linear.bias)  # (h, w, D)
        for feature, weight in zip(features, weights, strict=True):
            described = described + self.enlarge(F.linear(feature, weight))
        return described

    def enlarge(self, part: Tensor) -> Tensor:
        """Bring (B, h', w', D) to the grid, bilinearly, (B, h, w, D)."""
        if part.shape[1:3] == self.grid:
            return part
        part = rearrange(part, "b h w d -> b d h w")
        part = F.interpolate(part, self.grid, mode="bilinear", align_corners=False)
        return rearrange(part, "b d h w -> b h w d")


class NearestDistances(torch.autograd.Function):
    """Squared distances of patches to their nearest centers, with a gradient for the patches only.

    Works in chunks and keeps indices: for each image at 256 px the matrix of all distances takes 67
    MB, and the differences that plain autograd would keep 0.2 GB with a Wide ResNet-50. Taken from
    differences, the distances are never negative, nor rounded otherwise in another batch.
    """

    @staticmethod
    def forward(ctx: Any, patches: Tensor, bank: Tensor, count: int) -> Tensor:
        """Measure the distances of patches to the nearest rows of the bank.

        Args:
            ctx: of autograd.
            patches: (Q, D).
            bank: (M, D).
            count: rows that are looked at for each patch.

        Returns:
            Squared and ascending, (Q, count).
        """
        center = bank.mean(0)  # less to round away
        centered = bank - center
        half_squares = 0.5 * centered.square().sum(1)

        distances = []
        indices = []
        for chunk in patches.split(max(1, _CHUNK_BYTES // (4 * len(bank)))):
            # |p - m|^2 = |p|^2 - 2 pm + |m|^2, of which |p|^2 does not change the nearest m: (q, M)
            nearness = torch.addmm(half_squares, chunk - center, centered.T, alpha=-1)
            nearest = nearness.topk(count, largest=False).indices
            exact = [(bank[chosen] - chunk).square_().sum(1) for chosen in nearest.unbind(1)]
            distances.append(torch.stack(exact, dim=1))  # (q, count)
            indices.append(nearest)

        # Sorted again: the search rounds otherwise than the distances.
        ascending, order = torch.cat(distances).sort(dim=1)
        ctx.save_for_backward(patches, bank, torch.cat(indices).gather(1, order))
        return ascending

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Add up twice the weighted differences.

        That is a sum of weights times the patch, less a weighted sum of centers.
        """
        patches, bank, indices = ctx.saved_tensors
        weights = 2 * gradients[0].contiguous()  # (Q, count)
        centers = F.embedding_bag(indices, bank, per_sample_weights=weights, mode="sum")  # (Q, D)
        return torch.addcmul(-centers, patches, weights.sum(1, keepdim=True)), None, None


class CfaModel(nn.Module):
    """A frozen backbone, the descriptor that is learnt, and the memory bank.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.

    Raises:
        InputError: where `gamma_c` leaves fewer centers than are compared, or `gamma_d` no channel.
    """

    memory_bank: Tensor

    def __init__(self, config: CfaConfig, input_size: int) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        shapes = dryrun_find_featuremap_dims(self.extractor, input_size)
        _, self.grid = shapes[config.layers[0]]
        channels = tuple(count for count, _ in shapes.values())

        height, width = self.grid
        count = height * width // config.gamma_c
        dim = sum(channels) // config.gamma_d
        if dim < 1 or count < config.num_compared:
            raise InputError(
                Sentence.of(
                    "fit compared",
                    channels=str((config.gamma_c, config.gamma_d)),
                    count=count,
                    dim=dim,
                    input_size=input_size,
                    num_compared=config.num_compared,
                )
            )

        self.num_nearest = config.num_nearest
        self.descriptor = Descriptor(channels, dim, self.grid)
        self.radius = nn.Parameter(torch.tensor(float(config.radius)))
        self.register_buffer("memory_bank", torch.zeros(count, dim))  # (M, D)
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Average the backbone's maps of (B, 3, H, W) over 3x3 neighbours.

        Returns:
            One (B, h, w, C) per layer.
        """
        averaged = []
        for feature in self.extractor(image):
            pooled = F.avg_pool2d(feature, 3, stride=1, padding=1)
            averaged.append(rearrange(pooled, "b c h w -> b h w c").contiguous())
        return tuple(averaged)

    @torch.no_grad()
    def remember(self, mean_features: tuple[Tensor, ...], seed: int) -> None:
        """Make the descriptors of an average image the memory bank.

        The descriptor is linear: that of the mean is the mean of those of the images.

        Args:
            mean_features: mean of `features` over the training images, one (1, h, w, C) per layer.
            seed: of k-means.
        """
        centers = self.patches(mean_features)
        if len(self.memory_bank) < len(centers):
            clusters = KMeans(len(self.memory_bank), random_state=seed).fit(centers.cpu().numpy())
            centers = torch.from_numpy(clusters.cluster_centers_)
        self.memory_bank.copy_(centers)

    def patches(self, features: tuple[Tensor, ...]) -> Tensor:
        """Describe the patches of `features`, (B * h * w, D) float32."""
        return self.descriptor(features).flatten(0, 2).float()  # (B, h, w, D) -> (B*h*w, D)

    def distances(self, patches: Tensor, count: int) -> Tensor:
        """Square the distances of (Q, D) patches to their `count` nearest centers.

        Returns:
            Ascending, (Q, count).
        """
        return NearestDistances.apply(patches, self.memory_bank, count)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure how far each patch is from the bank.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed scores (B, 1, H, W), at least 0, and their maximum per image, (B,).
        """
        patches = self.patches(self.features(image) if features is None else features)

        # Half precision would pick other neighbours.
        with torch.autocast(image.device.type, enabled=False):
            score = patch_score(self.distances(patches, self.num_nearest))  # (B*h*w,)
        height, width = self.grid
        score = rearrange(score, "(b h w) -> b 1 h w", h=height, w=width)

        anomaly_map = self.blur.enlarge(score, (image.shape[2], image.shape[3]))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def patch_score(distances: Tensor) -> Tensor:
    """Multiply the nearest distance by its softmin among the K nearest.

    Args:
        distances: squared, ascending, (Q, K).

    Returns:
        (Q,), at least 0.
    """
    lengths = distances.sqrt()
    return F.softmin(lengths, dim=1)[:, 0] * lengths[:, 0]


def cfa_loss(
    distances: Tensor, radius: Tensor, num_nearest: int, margin: float
) -> tuple[Tensor, Tensor]:
    """Attract patches to the K nearest centers and repel them from the J next ones.

    Args:
        distances: squared, ascending, (Q, K + J).
        radius: of the hyperspheres, scalar.
        num_nearest: K.
        margin: alpha, a squared distance.

    Returns:
        Attraction and repulsion, averaged over patches and centers, scalars of at least 0 that are
        added.
    """
    attraction = F.relu(distances[:, :num_nearest] - radius.square()).mean()
    repulsion = F.relu(radius.square() - distances[:, num_nearest:] - margin).mean()
    return _LOSS_SCALE * attraction, _LOSS_SCALE * repulsion


class CfaTrainer(BaseTrainer):
    """Fills the bank with the untrained descriptor, then trains that on the cached features."""

    config: CfaConfig
    model: CfaModel
    method = METHODS["CfaTrainer"]

    def build_model(self) -> CfaModel:
        return CfaModel(self.config, self.train_config.input_size)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        config = self.config
        learnt = [self.model.radius, *self.model.descriptor.parameters()]
        optimizer = torch.optim.AdamW(
            learnt, config.lr, weight_decay=config.weight_decay, amsgrad=True
        )
        return optimizer, None

    def on_fit_start(self) -> None:
        if self.epoch == 0:  # a training that is continued has the bank of its beginning
            self.model.remember(self._mean_features(), self.seed)

    @torch.no_grad()
    def _mean_features(self) -> tuple[Tensor, ...]:
        """Average the features of all training images, one (1, h, w, C) float32 per layer.

        That fills the feature cache on the way.
        """
        sums: list[Tensor] = []
        for batch in self.loaders.train:
            with self.autocast():
                features = self.with_features(batch).features
            assert features is not None, "the trainer gives the frozen stage's features"

            parts = [feature.double().sum(0, keepdim=True) for feature in features]
            if sums:
                for total, part in zip(sums, parts, strict=True):
                    total += part
            else:
                sums = parts

        count = len(self.loaders.train.samples)
        return tuple((total / count).float() for total in sums)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        config = self.config
        patches = self.model.patches(batch.features)

        # Half precision would pick other neighbours.
        with torch.autocast(self.device.type, enabled=False):
            distances = self.model.distances(patches, config.num_compared)
            attraction, repulsion = cfa_loss(
                distances, self.model.radius, config.num_nearest, config.margin
            )

        loss = attraction + repulsion
        self.optimize(loss)
        return {
            "loss": loss.detach(),
            "attraction": attraction.detach(),
            "repulsion": repulsion.detach(),
        }
