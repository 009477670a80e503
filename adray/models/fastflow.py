"""FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows.

J. Yu et al., 2021. Paper: https://arxiv.org/abs/2111.07677
Reference: https://github.com/gathierry/FastFlow (unofficial, the authors published no
code; facts only).

A frozen backbone gives feature maps of normal images at several depths; per depth an invertible 2-D
network learns to map them to independent standard normal values. What the flow finds unlikely is
anomalous: the map is the mean over depths of minus the density (up to a constant, at the geometric
mean over channels), the score its maximum.

Differs from the paper: a ResNet's feature maps pass through a layer norm with learnt scale and
shift over (C, h, w), which the paper does not mention and the reference needs; it binds a model to
one input size. The score of an image is the maximum of its map, which the paper leaves open.

Differs from the reference: a last batch that is not full is trained on, there it is dropped. The
last epoch counts, there figures of the best on the test set stand beside those of the last. It has
no settings for ResNet-50. Here they are those of its Wide ResNet-50.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.architectures import VITS
from adray.components.feature_extractor import (
    TimmFeatureExtractor,
    check_backbone_file,
    dryrun_find_featuremap_dims,
)
from adray.components.flow2d import build_flow2d
from adray.components.vit_extractor import VitExtractor, check_vit_file
from adray.methods.fastflow import METHODS, FastflowConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


def build_extractor(config: FastflowConfig) -> TimmFeatureExtractor | VitExtractor:
    """Build the frozen backbone."""
    if config.backbone in VITS:
        return VitExtractor(config.backbone, config.layers, config.weights)
    return TimmFeatureExtractor(config.backbone, config.layers, config.weights)


def channels_and_norms(
    extractor: TimmFeatureExtractor | VitExtractor, input_size: int
) -> Iterator[tuple[int, nn.Module]]:
    """Give the channels of each tapped map, and what the map passes through before its flow."""
    if isinstance(extractor, VitExtractor):
        # The patches went through the transformer's own norm.
        for _ in extractor.layers:
            yield extractor.channels, nn.Identity()
        return

    for channels, size in dryrun_find_featuremap_dims(extractor, input_size).values():
        yield channels, nn.LayerNorm([channels, *size])


class FastflowModel(nn.Module):
    """A frozen backbone with a flow per tapped stage, behind a layer norm if it is a ResNet.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.
    """

    def __init__(self, config: FastflowConfig, input_size: int) -> None:
        super().__init__()
        self.extractor = build_extractor(config)
        self.norms = nn.ModuleList()
        self.flows = nn.ModuleList()
        for channels, norm in channels_and_norms(self.extractor, input_size):
            self.norms.append(norm)
            flow = build_flow2d(
                channels, config.flow_steps, config.kernel_sizes, config.hidden_ratio, config.clamp
            )
            self.flows.append(flow)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def latents(self, features: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
        """Map the `features` of a batch to z (B, C, h, w) and log|det J| (B,), a pair per layer."""
        stages = zip(self.flows, self.norms, features, strict=True)
        return [flow(norm(feature)) for flow, norm, feature in stages]

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Say how unlikely each position is.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The map (B, 1, H, W) in [-1, 0], 0 where the density vanishes, and its maximum per
            image, (B,).
        """
        latents = self.latents(self.features(image) if features is None else features)
        anomaly_map = likelihood_map([z for z, _ in latents], (image.shape[2], image.shape[3]))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def fastflow_loss(latents: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Give the negative log-likelihood up to a constant, mean over the batch, sum over layers.

    Args:
        latents: per layer z (B, C, h, w) and log|det J| (B,).
    """
    losses = []
    for z, log_det in latents:
        energy = 0.5 * z.float().square().flatten(1).sum(1)  # (B,)
        losses.append((energy - log_det).mean())
    return torch.stack(losses).sum()


def likelihood_map(latents: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Give minus the density of each position, enlarged to `size`, mean over layers.

    Args:
        latents: one (B, C, h, w) per layer.
        size: H and W.

    Returns:
        (B, 1, H, W) float32 in [-1, 0].
    """
    maps = []
    for z in latents:
        # The geometric mean of the densities of C independent values, without its constant.
        density = torch.exp(-0.5 * z.float().square().mean(1, keepdim=True))
        maps.append(-F.interpolate(density, size, mode="bilinear", align_corners=False))
    return torch.stack(maps).mean(0)


class FastflowTrainer(BaseTrainer):
    """Trains the flows on the backbone's cached features."""

    config: FastflowConfig
    model: FastflowModel
    method = METHODS["FastflowTrainer"]
    # With channels last a step, which permutes channels, takes a fifth longer.
    memory_format = torch.contiguous_format

    @classmethod
    def check_weight_file(cls, config: FastflowConfig, name: str, path: Path) -> None:
        check = check_vit_file if name in VITS else check_backbone_file
        check(name, config.layers, path)

    def build_model(self) -> FastflowModel:
        return FastflowModel(self.config, self.train_config.input_size)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        learnt = [*self.model.norms.parameters(), *self.model.flows.parameters()]
        return torch.optim.Adam(learnt, self.config.lr, weight_decay=self.config.weight_decay), None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = fastflow_loss(self.model.latents(batch.features))
        self.optimize(loss)
        return {"loss": loss.detach()}
