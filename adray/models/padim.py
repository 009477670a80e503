"""PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization (T. Defard et al., ICPR 2020).

Paper: https://arxiv.org/abs/2011.08785
Reference: https://github.com/xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master (unofficial, facts only).

A frozen backbone gives features at three depths, which are put on one grid; at each position of it the training images
give a Gaussian. The map is the Mahalanobis distance to it, the score the maximum of the smoothed map. Instead of all
channels a random few are kept, which the paper found better than PCA.

Memory: 4 * (h * w) * d ** 2 bytes, also in the checkpoint: 164 MB for ResNet-18 at 256 px, 5 GB for Wide ResNet-50.

Differs from the paper: images are not cropped to 224 px unless `crop_size` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.multi_variate_gaussian import MultiVariateGaussian
from adray.config import check_range
from adray.errors import InputError
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


@dataclass(frozen=True)
class PadimConfig:
    """Hyperparameters of PaDiM."""

    backbone: str = "resnet18"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    """Stages whose features are joined (section 3.1)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    num_features: int = 100
    """Channels d that are kept of all (section 3.2): 100 of 448 for ResNet-18, 550 of 1792 for Wide ResNet-50."""
    regularization: float = 0.01
    """Added to the diagonal of each covariance (equation 1)."""
    sigma: float = 4.0
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("num_features", self.num_features, 1)
        check_range("regularization", self.regularization, 1e-9, 1e3)
        check_range("sigma", self.sigma, 0.1, 100)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


class PadimModel(nn.Module):
    """A frozen backbone and a Gaussian per position of its first tapped map.

    Args:
        backbone: one of `RESNETS`.
        layers: stages to tap.
        weights: ``"pretrained"`` or ``"random"``.
        input_size: side of the images in pixels.
        num_features: channels that are kept, chosen at random once and stored.
        regularization: see `MultiVariateGaussian`.
        sigma: of the Gaussian that smooths the map, in pixels.

    Raises:
        InputError: for more features than the layers have channels.
    """

    channels: Tensor

    def __init__(
        self,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        input_size: int,
        num_features: int = 100,
        regularization: float = 0.01,
        sigma: float = 4.0,
    ) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(backbone, layers, weights)
        shapes = list(dryrun_find_featuremap_dims(self.extractor, input_size).values())
        total = sum(channels for channels, _ in shapes)
        if num_features > total:
            raise InputError(
                f"num_features {num_features} is more than the {total} channels of {list(layers)}; lower it"
            )
        self.grid = shapes[0][1]
        self.register_buffer("channels", torch.randperm(total)[:num_features].sort().values)
        self.gaussian = MultiVariateGaussian(regularization)
        self.blur = GaussianBlur2d(sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def embed(self, features: tuple[Tensor, ...]) -> Tensor:
        """The kept channels of all layers on the first one's grid, (B, h * w, d)."""
        parts, first = [], 0
        for feature in features:
            inside = (self.channels >= first) & (self.channels < first + feature.shape[1])
            # The channels are taken, and lie, last: so the distance needs no copy of what it multiplies.
            kept = feature.permute(0, 2, 3, 1).index_select(3, self.channels[inside] - first).permute(0, 3, 1, 2)
            if kept.numel():  # a layer may have none of the kept channels
                parts.append(F.interpolate(kept, self.grid, mode="nearest"))
            first += feature.shape[1]
        return torch.cat(parts, dim=1).flatten(2).transpose(1, 2).float()  # (B, d, h, w) -> (B, h*w, d)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Distance to the Gaussians (equation 2).

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed distances (B, 1, H, W), at least 0, and their maximum per image, (B,).
        """
        embedding = self.embed(self.features(image) if features is None else features)
        with torch.autocast(image.device.type, enabled=False):  # a covariance is of no use in half precision
            distance = self.gaussian.distance(embedding).reshape(-1, 1, *self.grid)  # (B, h*w) -> (B, 1, h, w)
        size = (image.shape[2], image.shape[3])
        anomaly_map = self.blur.enlarge(distance, size)
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class PadimTrainer(BaseTrainer):
    """Sees the training images once and keeps only sums."""

    config: PadimConfig
    model: PadimModel
    config_class = PadimConfig
    single_pass = True
    shares_features = True

    def build_model(self) -> PadimModel:
        config = self.config
        return PadimModel(
            config.backbone,
            config.layers,
            config.weights,
            self.train_config.input_size,
            config.num_features,
            config.regularization,
            config.sigma,
        )

    def on_train_start(self) -> None:
        self.model.gaussian.reset()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        self.model.gaussian.update(self.model.embed(batch.features))
        return {}

    def on_train_end(self) -> None:
        if len(self.loaders.train.samples) < 2:
            raise InputError("PaDiM needs at least 2 training images; add some or lower holdout")
        self.model.gaussian.fit()
