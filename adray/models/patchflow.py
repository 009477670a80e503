"""PatchFlow: Leveraging a Flow-Based Model with Patch Features.

B. Zhang et al., 2026. Paper: https://arxiv.org/abs/2602.05238
Reference: https://github.com/BOX-LEO/PatchFlow (no licence, facts only), which lacks the network's
file, and the port that it points to, anomalib's (Apache-2.0,
https://github.com/open-edge-platform/anomalib, facts only).

A frozen backbone sees each image at several sizes. Its maps are averaged over small squares, brought
to one size and joined, so that each place is described together with what lies around it. A
projection to few channels adapts them, and one invertible step, whose sub-network are two
convolutions, learns to map what is normal to independent standard normal values. A place is as
anomalous as its values are unlikely, an image as its most unlikely place.

Differs from the paper:

- The adaptor is a random orthogonal projection that is never trained. Trained by the likelihood,
  whose volume does not count it, it makes everything likely by shrinking all features to a point.
- The joined channels get the mean 0 and variance 1 that they have over the training images before
  they are projected, since a projection that learns nothing would follow the largest alone.
- The backbone is a ResNet or EfficientNet-Lite0. The published figures are of an EfficientNet-B5.

Budget `paper` is not the authors'. Here it is 100 epochs at 256 px, of which the last counts. Their
README trains 10 epochs at 768 px, and their code keeps the one that is best on a fifth of the training
images with painted defects. The port has at most 200 epochs, which the test set stops.

Differs from the port: the map is the energy of a place, half the mean square of its values. There it
is minus the density, which is 0 for all that is very unlikely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.all_in_one_block import AllInOneBlock, CouplingSteps
from adray.components.feature_extractor import TimmFeatureExtractor
from adray.methods.patchflow import METHODS, PatchflowConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_LEAST_VARIANCE = 1e-5
_SLOPE = 0.2
"""Of the leaky ReLU that ends a sub-network."""


def orthogonal_projection(channels_in: int, channels_out: int) -> Tensor:
    """Draw an orthogonal projection at random, (channels_out, channels_in) with orthonormal rows."""
    drawn = torch.randn(channels_in, channels_out, dtype=torch.float64)
    directions, _ = torch.linalg.qr(drawn)
    return directions.T.float().contiguous()


def coupling_subnet(hidden: int) -> Callable[[int, int], nn.Module]:
    """Give a builder of a step's sub-network, as `AllInOneBlock` wants it.

    Args:
        hidden: channels between its two convolutions.
    """

    def build(channels_in: int, channels_out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels_in, hidden, 3, padding=1),
            nn.Conv2d(hidden, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.LeakyReLU(_SLOPE),
        )

    return build


class PatchflowModel(nn.Module):
    """A frozen backbone, a fixed projection of its maps, and a flow.

    Args:
        config: hyperparameters.
    """

    projection: Tensor
    """(C, E) for E joined channels."""
    joined_mean: Tensor
    """(E,), over the places of the training images."""
    joined_std: Tensor
    """(E,), likewise."""

    def __init__(self, config: PatchflowConfig) -> None:
        super().__init__()
        self.num_scales = config.num_scales
        self.kernel_size = config.kernel_size
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        # A buffer: it is random, and a checkpoint without it would be another model.
        joined = config.joined_channels
        self.register_buffer("projection", orthogonal_projection(joined, config.channels))
        self.register_buffer("joined_mean", torch.zeros(joined))
        self.register_buffer("joined_std", torch.ones(joined))

        self.flow = CouplingSteps(config.channels)
        for _ in range(config.flow_steps):
            self.flow.append(
                AllInOneBlock,
                subnet_constructor=coupling_subnet(config.hidden),
                affine_clamping=config.clamp,
            )

    @torch.no_grad()
    def joined(self, image: Tensor) -> Tensor:
        """Join the averaged maps of (B, 3, H, W) at all sizes, (B, E, h, w), as the first is large."""
        parts: list[Tensor] = []
        for number in range(self.num_scales):
            for feature in self.extractor(_halved(image, number)):
                pooled = F.avg_pool2d(
                    feature.float(), self.kernel_size, stride=1, padding=self.kernel_size // 2
                )
                size = parts[0].shape[2:] if parts else pooled.shape[2:]
                parts.append(F.interpolate(pooled, size, mode="bilinear", align_corners=False))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe each place of (B, 3, H, W) by (B, C, h, w), at the first layer's size."""
        joined = self.joined(image).float()
        with torch.autocast(image.device.type, enabled=False):
            standard = (joined - self.joined_mean[:, None, None]) / self.joined_std[:, None, None]
            return (torch.einsum("ce,behw->bchw", self.projection, standard),)

    def measure(self, images: Iterable[Tensor]) -> None:
        """Measure mean and standard deviation of the joined channels of batches of images."""
        count = 0
        total = torch.zeros_like(self.joined_mean, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for image in images:
            values = self.joined(image).double().transpose(0, 1).flatten(1)  # (E, B * h * w)
            count += values.shape[1]
            total += values.sum(1)
            squares += values.square().sum(1)

        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        self.joined_mean = mean.float()
        # A channel that never moves says nothing, whatever it is divided by.
        self.joined_std = (variance + _LEAST_VARIANCE).sqrt().float()

    def latent(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Map the `features` of a batch to z (B, C, h, w) and log|det J| (B,)."""
        return self.flow(features[0])

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Say how unlikely each place is.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The energies (B, 1, H, W), at least 0, and the highest one of each image, (B,).
        """
        z, _ = self.latent(self.features(image) if features is None else features)
        energy = 0.5 * z.float().square().mean(1, keepdim=True)
        size = (image.shape[2], image.shape[3])
        anomaly_map = F.interpolate(energy, size, mode="bilinear", align_corners=False)
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def _halved(image: Tensor, number: int) -> Tensor:
    """Halve the sides of (B, 3, H, W) images some times."""
    if number == 0:
        return image
    size = (image.shape[2] // 2**number, image.shape[3] // 2**number)
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def patchflow_loss(z: Tensor, log_det: Tensor) -> Tensor:
    """Give the negative log-likelihood of a number, up to a constant, mean over the batch.

    Args:
        z: (B, C, h, w).
        log_det: (B,), of the Jacobian of z.
    """
    energy = 0.5 * z.float().square().flatten(1).sum(1)  # (B,)
    return (energy - log_det).mean() / z[0].numel()


class PatchflowTrainer(BaseTrainer):
    """Trains the flow on the cached projections."""

    config: PatchflowConfig
    model: PatchflowModel
    method = METHODS["PatchflowTrainer"]
    # With channels last a step, which permutes channels, takes a fifth longer.
    memory_format = torch.contiguous_format

    def build_model(self) -> PatchflowModel:
        return PatchflowModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        learnt = self.model.flow.parameters()
        return torch.optim.Adam(learnt, self.config.lr, weight_decay=self.config.weight_decay), None

    def on_fit_start(self) -> None:
        with self.autocast():
            self.model.measure(batch.image for batch in self.loaders.train)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        z, log_det = self.model.latent(batch.features)
        loss = patchflow_loss(z, log_det)
        self.optimize(loss)
        return {"loss": loss.detach()}
