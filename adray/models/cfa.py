"""CFA: Coupled-hypersphere-based Feature Adaptation for Target-Oriented Anomaly Localization (S. Lee et al., 2022).

Venue: IEEE Access 10, 2022. Paper: https://arxiv.org/abs/2206.04325
Reference: https://github.com/sungwool/CFA_for_anomaly_localization (no licence; facts only).

A 1x1 convolution, the descriptor, adapts a frozen backbone's patches to the product. The memory bank holds the mean of
the untrained descriptor's output at each position of the training images, and stays. Training draws each patch into a
hypersphere of radius r around its K nearest centers of the bank and keeps the next J centers' spheres away from it. A
patch is as anomalous as it is far from its nearest center, more so where no other center is about as near.

Memory: while training, the backbone's maps of all images (1.8 MB each for ResNet-18 at 256 px, 7.3 MB for Wide
ResNet-50) in the feature cache; the bank is one descriptor map.

Differs from the paper: the centers are not updated while training, and the radius is learnt from almost zero, as in the
reference. (With the radius kept at 1e-5 the repulsion would never act.) Only the K + J distances that the loss looks at
have a gradient; the loss and its gradient are the same. An odd last batch is trained on, and the mean weighs each image
alike. The reference reports the best epoch on the test set; here the last epoch counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.errors import InputError
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_CHUNK_BYTES = 16 * 2**20
_LOSS_SCALE = 1000.0


@dataclass(frozen=True)
class CfaConfig:
    """Hyperparameters of CFA; defaults are the paper's and the reference's for a Wide ResNet-50."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    """Stages whose features are joined; the first one's grid is the patches'."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    gamma_c: int = 1
    """Patches per center of the memory bank, chosen by k-means above 1."""
    gamma_d: int = 1
    """Channels of the features per channel of the descriptor."""
    num_nearest: int = 3
    """Nearest centers K that attract a patch, and that its score compares."""
    num_negatives: int = 3
    """Next nearest centers J that repel a patch."""
    radius: float = 1e-5
    """Radius r of the hyperspheres before training."""
    margin: float = 0.1
    """Squared distance alpha by which the spheres of attraction and of repulsion differ."""
    lr: float = 1e-3
    """Learning rate of AdamW with AMSGrad, constant."""
    weight_decay: float = 5e-4
    """Weight decay of AdamW."""
    sigma: float = 4.0
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("gamma_c", "gamma_d", "num_nearest", "num_negatives"):
            check_range(name, getattr(self, name), 1, 1000)
        check_range("radius", self.radius, 1e-9, 1e3)
        check_range("margin", self.margin, 0, 1e3)
        check_range("lr", self.lr, 0, 1)
        check_range("weight_decay", self.weight_decay, 0, 1)
        check_range("sigma", self.sigma, 0.1, 100)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


class Descriptor(nn.Module):
    """A 1x1 convolution of maps that are joined on the first one's grid, with two channels of coordinates (CoordConv).

    Enlarging is linear, alike for all channels, with weights that sum to one: so each map is convolved at its own size
    and its result enlarged, which takes a fifth of the multiplications and is the same up to rounding.

    Args:
        channels: of each map.
        dim: D of the descriptors.
        grid: height and width of the first map.
    """

    coordinates: Tensor

    def __init__(self, channels: tuple[int, ...], dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.channels, self.grid = channels, grid
        self.linear = nn.Linear(sum(channels) + 2, dim)
        rows, columns = (torch.linspace(-1, 1, side) for side in grid)
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
        enlarged = F.interpolate(
            part.permute(0, 3, 1, 2), self.grid, mode="bilinear", align_corners=False
        )
        return enlarged.permute(0, 2, 3, 1)  # (B, D, h, w) -> (B, h, w, D)


class CfaModel(nn.Module):
    """A frozen backbone, the descriptor that is learnt, and the memory bank.

    Args:
        backbone: one of `RESNETS`.
        layers: stages to tap; the first one's grid is the patches'.
        weights: ``"pretrained"`` or ``"random"``.
        input_size: side of the images in pixels.
        reduction: `gamma_c` and `gamma_d` of `CfaConfig`.
        neighbors: `num_nearest` and `num_negatives` of `CfaConfig`.
        radius: of the hyperspheres before training.
        sigma: of the Gaussian that smooths the map, in pixels.

    Raises:
        InputError: where `reduction` leaves fewer centers than `neighbors` asks for, or no channel.
    """

    memory_bank: Tensor

    def __init__(
        self,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        input_size: int,
        reduction: tuple[int, int] = (1, 1),
        neighbors: tuple[int, int] = (3, 3),
        radius: float = 1e-5,
        sigma: float = 4.0,
    ) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(backbone, layers, weights)
        shapes = list(dryrun_find_featuremap_dims(self.extractor, input_size).values())
        channels, self.grid = tuple(count for count, _ in shapes), shapes[0][1]
        dim, count = sum(channels) // reduction[1], self.grid[0] * self.grid[1] // reduction[0]
        if dim < 1 or count < sum(neighbors):
            raise InputError(
                f"gamma_c and gamma_d {reduction} leave {count} centers of {dim} channels at input size {input_size}, "
                f"but {sum(neighbors)} centers are compared; lower them"
            )
        self.num_nearest, self.num_negatives = neighbors
        self.descriptor = Descriptor(channels, dim, self.grid)
        self.radius = nn.Parameter(torch.tensor(float(radius)))
        self.register_buffer("memory_bank", torch.zeros(count, dim))  # (M, D)
        self.blur = GaussianBlur2d(sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, 3, H, W), averaged over 3x3 neighbours, one (B, h, w, C) per layer."""
        pooled = (
            F.avg_pool2d(feature, 3, stride=1, padding=1) for feature in self.extractor(image)
        )
        return tuple(
            p.permute(0, 2, 3, 1).contiguous() for p in pooled
        )  # (B, C, h, w) -> (B, h, w, C)

    def patches(self, features: tuple[Tensor, ...]) -> Tensor:
        """Descriptors of `features`, (B * h * w, D) float32."""
        return self.descriptor(features).flatten(0, 2).float()  # (B, h, w, D) -> (B*h*w, D)

    @torch.no_grad()
    def remember(self, mean_features: tuple[Tensor, ...], seed: int) -> None:
        """Make the descriptors of an average image the memory bank.

        The descriptor is linear: that of the mean is the mean of those of the images.

        Args:
            mean_features: the mean of `features` over the training images, one (1, h, w, C) per layer.
            seed: of k-means.
        """
        centers = self.patches(mean_features)
        if len(self.memory_bank) < len(centers):
            clusters = KMeans(len(self.memory_bank), random_state=seed).fit(centers.cpu().numpy())
            centers = torch.from_numpy(clusters.cluster_centers_)
        self.memory_bank.copy_(centers)

    def distances(self, patches: Tensor, count: int) -> Tensor:
        """Squared distances of (Q, D) patches to their `count` nearest centers, ascending, (Q, count)."""
        return NearestDistances.apply(patches, self.memory_bank, count)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """How far each patch is from the bank.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed scores (B, 1, H, W), at least 0, and their maximum per image, (B,).
        """
        patches = self.patches(self.features(image) if features is None else features)
        with torch.autocast(
            image.device.type, enabled=False
        ):  # half precision would pick other neighbours
            score = patch_score(self.distances(patches, self.num_nearest)).view(
                -1, 1, *self.grid
            )  # (B, 1, h, w)
        size = (image.shape[2], image.shape[3])
        anomaly_map = self.blur.enlarge(score, size)
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class NearestDistances(torch.autograd.Function):
    """Squared distances of patches to their nearest centers, with a gradient for the patches only.

    Works in chunks and keeps indices: for each image at 256 px the matrix of all distances takes 67 MB, and the
    differences that plain autograd would keep 0.2 GB with a Wide ResNet-50. Taken from differences, the distances are
    never negative, nor rounded otherwise in another batch.
    """

    @staticmethod
    def forward(ctx: Any, patches: Tensor, bank: Tensor, count: int) -> Tensor:
        """Distances of (Q, D) patches to the nearest `count` rows of (M, D) `bank`, ascending, (Q, count)."""
        center = bank.mean(0)  # less to round away
        centered = bank - center
        half_squares = 0.5 * centered.square().sum(1)
        distances, indices = [], []
        for chunk in patches.split(max(1, _CHUNK_BYTES // (4 * len(bank)))):
            nearness = torch.addmm(half_squares, chunk - center, centered.T, alpha=-1)  # (q, M)
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
        """Twice the weighted sum of differences, as sum of weights times patch less weighted sum of centers."""
        patches, bank, indices = ctx.saved_tensors
        weights = 2 * gradients[0].contiguous()  # (Q, count)
        centers = F.embedding_bag(indices, bank, per_sample_weights=weights, mode="sum")  # (Q, D)
        return torch.addcmul(-centers, patches, weights.sum(1, keepdim=True)), None, None


def cfa_loss(
    distances: Tensor, radius: Tensor, num_nearest: int, margin: float
) -> tuple[Tensor, Tensor]:
    """Attraction to the K nearest centers and repulsion from the J next ones, averaged over patches and centers.

    Args:
        distances: squared, ascending, (Q, K + J).
        radius: of the hyperspheres, scalar.
        num_nearest: K.
        margin: alpha, a squared distance.

    Returns:
        Attraction and repulsion, scalars of at least 0 that are added.
    """
    attraction = F.relu(distances[:, :num_nearest] - radius.square()).mean()
    repulsion = F.relu(radius.square() - distances[:, num_nearest:] - margin).mean()
    return _LOSS_SCALE * attraction, _LOSS_SCALE * repulsion


def patch_score(distances: Tensor) -> Tensor:
    """The nearest distance times its softmin among the K nearest, (Q,); `distances` (Q, K) squared."""
    lengths = distances.sqrt()
    return F.softmin(lengths, dim=1)[:, 0] * lengths[:, 0]


class CfaTrainer(BaseTrainer):
    """Fills the bank with the untrained descriptor, then trains the descriptor on the backbone's cached features."""

    config: CfaConfig
    model: CfaModel
    config_class = CfaConfig

    def build_model(self) -> CfaModel:
        config = self.config
        return CfaModel(
            config.backbone,
            config.layers,
            config.weights,
            self.train_config.input_size,
            (config.gamma_c, config.gamma_d),
            (config.num_nearest, config.num_negatives),
            config.radius,
            config.sigma,
        )

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        learnt = [self.model.radius, *self.model.descriptor.parameters()]
        config = self.config
        return torch.optim.AdamW(
            learnt, config.lr, weight_decay=config.weight_decay, amsgrad=True
        ), None

    def on_fit_start(self) -> None:
        if self.epoch == 0:  # a training that is continued has the bank of its beginning
            self.model.remember(self._mean_features(), self.seed)

    @torch.no_grad()
    def _mean_features(self) -> tuple[Tensor, ...]:
        """Means over all training images, one (1, h, w, C) float32 per layer; fills the feature cache on the way."""
        sums: list[Tensor] = []
        for batch in self.loaders.train:
            with self.autocast():
                features = self.with_features(batch).features
            parts = [feature.double().sum(0, keepdim=True) for feature in features or ()]
            sums = [s + p for s, p in zip(sums, parts, strict=True)] if sums else parts
        return tuple((s / len(self.loaders.train.samples)).float() for s in sums)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        config, model = self.config, self.model
        patches = model.patches(batch.features)
        with torch.autocast(self.device.type, enabled=False):
            distances = model.distances(patches, config.num_nearest + config.num_negatives)
            attraction, repulsion = cfa_loss(
                distances, model.radius, config.num_nearest, config.margin
            )
        loss = attraction + repulsion
        self.optimize(loss)
        return {
            "loss": loss.detach(),
            "attraction": attraction.detach(),
            "repulsion": repulsion.detach(),
        }
