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
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import (
    TimmFeatureExtractor,
    check_backbone_file,
    dryrun_find_featuremap_dims,
)
from adray.components.flow2d import build_flow2d, check_kernel_sizes
from adray.components.vit_extractor import VITS, VitExtractor, check_vit, check_vit_file
from adray.config import TrainConfig
from adray.fields import check_fields, choice, log_integers, log_uniform, option
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


@dataclass(frozen=True)
class FastflowConfig:
    """Hyperparameters of FastFlow.

    Defaults are the paper's and the reference's for a Wide ResNet-50.
    """

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor: one of `RESNETS` or of `VITS`."""
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    """Stages of a ResNet, or blocks of a transformer (``blocks.7``), that get a flow each
    (table 6)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    flow_steps: int = option(
        8,
        low=1,
        high=100,
        search=choice(4, 8, 12, 20, note="the paper's 8 for ResNets, 20 for transformers"),
    )
    """Coupling steps per flow."""
    kernel_sizes: tuple[int, ...] = option(
        (3, 1), search=choice((3, 1), (3,), note="[3] sees more around each position")
    )
    """Sides of the sub-networks' convolutions, odd, taken in turn by a flow's steps; the paper
    alternates 3 and 1."""
    hidden_ratio: float = option(
        1.0,
        low=0.01,
        high=16,
        search=choice(
            0.16,
            0.5,
            1.0,
            note="the paper's 0.16 for transformers, 1.0 for ResNets; small ones need less memory",
        ),
    )
    """Hidden channels of a sub-network as a multiple of its input channels."""
    clamp: float = option(2.0, low=0.01, high=10)
    """Bound of the log scale of one coupling."""
    lr: float = option(
        1e-3, low=0, high=1, search=log_uniform(1e-4, 3e-3, "around the paper's 1e-3")
    )
    """Learning rate of Adam, constant."""
    weight_decay: float = option(
        1e-5, low=0, high=1, search=log_uniform(1e-6, 1e-3, "around the paper's 1e-5")
    )
    """Weight decay of Adam."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_fields(self)
        check_kernel_sizes(self.kernel_sizes, such_as="[3, 1] or [3]")

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


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
    config_class = FastflowConfig
    train_search: ClassVar = {
        "num_epochs": log_integers(
            100, 500, "the paper's 500; small data sets are learnt by heart earlier"
        )
    }
    # With channels last a step, which permutes channels, takes a fifth longer.
    memory_format = torch.contiguous_format

    @classmethod
    def check_inputs(cls, config: FastflowConfig, train_config: TrainConfig) -> list[str]:
        if config.backbone in VITS:
            check_vit(config.backbone, config.layers, train_config.input_size)
        return []

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
