"""PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization (T.

Defard et al., ICPR 2020).

Paper: https://arxiv.org/abs/2011.08785 Reference:
https://github.com/xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master (unofficial, facts
only).

A frozen backbone gives features at three depths, which are put on one grid; at each position of it
the training images give a Gaussian. The map is the Mahalanobis distance to it, the score the
maximum of the smoothed map. Instead of all channels a random few are kept, which the paper found
better than PCA.

Memory: 4 * (h * w) * d ** 2 bytes, also in the checkpoint: 164 MB for ResNet-18 at 256 px, 5 GB for
Wide ResNet-50.

Differs from the paper: images are not cropped to 224 px unless `crop_size` says so. Differs from the
reference: the smoothing mirrors the border without the edge pixel, scipy's filter there repeats it.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.multi_variate_gaussian import MultiVariateGaussian
from adray.errors import InputError
from adray.methods.padim import METHODS, PadimConfig
from adray.trainer import BaseTrainer, ImageBatches
from adray.types import Batch, Prediction


class PadimModel(nn.Module):
    """A frozen backbone and a Gaussian per position of its first tapped map.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.

    Raises:
        InputError: for more features than the layers have channels.
    """

    channels: Tensor

    def __init__(self, config: PadimConfig, input_size: int) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        shapes = list(dryrun_find_featuremap_dims(self.extractor, input_size).values())
        total = sum(channels for channels, _ in shapes)
        if config.num_features > total:
            raise InputError(
                f"num_features {config.num_features} is more than the {total} channels of "
                f"{list(config.layers)}; lower it"
            )

        _, self.grid = shapes[0]
        kept = torch.randperm(total)[: config.num_features].sort().values
        self.register_buffer("channels", kept)  # (d,)
        self.gaussian = MultiVariateGaussian(config.regularization)
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def embed(self, features: tuple[Tensor, ...]) -> Tensor:
        """Put the kept channels of all layers on the first one's grid, (B, h * w, d)."""
        parts = []
        first = 0
        for feature in features:
            inside = (self.channels >= first) & (self.channels < first + feature.shape[1])
            chosen = self.channels[inside] - first
            first += feature.shape[1]

            # The channels are taken, and lie, last: so the distance needs no copy of what it
            # multiplies.
            kept = rearrange(feature, "b c h w -> b h w c").index_select(3, chosen)
            if chosen.numel():  # a layer may have none of the kept channels
                kept = rearrange(kept, "b h w d -> b d h w")
                parts.append(F.interpolate(kept, self.grid, mode="nearest"))
        return rearrange(torch.cat(parts, dim=1), "b d h w -> b (h w) d").float()

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Measure the distance to the Gaussians (equation 2).

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed distances (B, 1, H, W), at least 0, and their maximum per image, (B,).
        """
        embedding = self.embed(self.features(image) if features is None else features)

        # A covariance is of no use in half precision.
        with torch.autocast(image.device.type, enabled=False):
            distance = self.gaussian.distance(embedding)  # (B, h*w)
        height, width = self.grid
        distance = rearrange(distance, "b (h w) -> b 1 h w", h=height, w=width)

        anomaly_map = self.blur.enlarge(distance, (image.shape[2], image.shape[3]))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class PadimTrainer(BaseTrainer):
    """Sees the training images once and keeps only sums."""

    config: PadimConfig
    model: PadimModel
    method = METHODS["PadimTrainer"]

    def build_model(self) -> PadimModel:
        return PadimModel(self.config, self.train_config.input_size)

    def on_train_start(self) -> None:
        self.model.gaussian.reset()

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        self.model.gaussian.update(self.model.embed(batch.features))
        return {}

    def update(self, count: int, added: ImageBatches, removed: ImageBatches) -> None:
        gaussian = self.model.gaussian
        gaussian.resume(count)
        for batch in added:
            assert batch.features is not None, "images come with their features"
            gaussian.update(self.model.embed(batch.features))
        for batch in removed:
            assert batch.features is not None, "images come with their features"
            gaussian.remove(self.model.embed(batch.features))
        gaussian.fit()

    def on_train_end(self) -> None:
        if len(self.loaders.train.samples) < 2:
            raise InputError("PaDiM needs at least 2 training images; add some or lower holdout")
        self.model.gaussian.fit()
