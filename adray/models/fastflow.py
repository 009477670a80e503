"""FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows (J. Yu et al., 2021).

Paper: https://arxiv.org/abs/2111.07677
Reference: https://github.com/gathierry/FastFlow (unofficial, the authors published no code; facts only).

A frozen backbone gives feature maps of normal images at several depths; per depth an invertible 2-D network learns to
map them to independent standard normal values. What the flow finds unlikely is anomalous: the map is the mean over
depths of minus the density (up to a constant, at the geometric mean over channels), the score its maximum.

Differs from the paper: a ResNet's feature maps pass through a layer norm with learnt scale and shift over (C, h, w),
which the paper does not mention and the reference needs; it binds a model to one input size. The score of an image is
the maximum of its map, which the paper leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import (
    TimmFeatureExtractor,
    check_backbone_file,
    dryrun_find_featuremap_dims,
)
from adray.components.flow2d import Flow2d
from adray.components.vit_extractor import VITS, VitExtractor, check_vit, check_vit_file
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


@dataclass(frozen=True)
class FastflowConfig:
    """Hyperparameters of FastFlow; defaults are the paper's and the reference's for a Wide ResNet-50."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor: one of `RESNETS` or of `VITS`."""
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    """Stages of a ResNet, or blocks of a transformer (``blocks.7``), that get a flow each (table 6)."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    flow_steps: int = 8
    """Coupling steps per flow."""
    kernel_sizes: tuple[int, ...] = (3, 1)
    """Sides of the sub-networks' convolutions, odd, taken in turn by a flow's steps; the paper alternates 3 and 1."""
    hidden_ratio: float = 1.0
    """Hidden channels of a sub-network as a multiple of its input channels."""
    clamp: float = 2.0
    """Bound of the log scale of one coupling."""
    lr: float = 1e-3
    """Learning rate of Adam, constant."""
    weight_decay: float = 1e-5
    """Weight decay of Adam."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("flow_steps", self.flow_steps, 1, 100)
        check_range("hidden_ratio", self.hidden_ratio, 0.01, 16)
        check_range("clamp", self.clamp, 0.01, 10)
        check_range("lr", self.lr, 0, 1)
        check_range("weight_decay", self.weight_decay, 0, 1)
        if not self.kernel_sizes or any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise InputError(
                f"kernel_sizes {list(self.kernel_sizes)} must be odd numbers, such as [3, 1] or [3]"
            )

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


class FastflowModel(nn.Module):
    """A frozen backbone with a flow per tapped stage, behind a layer norm where the backbone is a ResNet.

    Args:
        backbone: one of `RESNETS` or of `VITS`.
        layers: stages or blocks to tap.
        weights: ``"pretrained"`` or ``"random"``.
        input_size: side of the images in pixels.
        flow_steps: see `Flow2d`, as for the rest.
        kernel_sizes: of the sub-networks, in turn.
        hidden_ratio: see `conv_subnet`.
        clamp: bound of a coupling's log scale.
    """

    def __init__(
        self,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        input_size: int,
        flow_steps: int = 8,
        kernel_sizes: tuple[int, ...] = (3, 1),
        hidden_ratio: float = 1.0,
        clamp: float = 2.0,
    ) -> None:
        super().__init__()
        self.extractor: TimmFeatureExtractor | VitExtractor
        if backbone in VITS:
            self.extractor = vit = VitExtractor(backbone, layers, weights)
            channels = [vit.channels] * len(layers)
            self.norms = nn.ModuleList(
                nn.Identity() for _ in layers
            )  # tokens went through the backbone's own
        else:
            self.extractor = resnet = TimmFeatureExtractor(backbone, layers, weights)
            shapes = dryrun_find_featuremap_dims(resnet, input_size).values()
            channels = [c for c, _ in shapes]
            self.norms = nn.ModuleList(nn.LayerNorm([c, h, w]) for c, (h, w) in shapes)
        self.flows = nn.ModuleList(
            Flow2d(c, flow_steps, kernel_sizes, hidden_ratio, clamp) for c in channels
        )

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def latents(self, features: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
        """Per layer the latent map z (B, C, h, w) and log|det J| (B,), of the `features` of a batch."""
        stages = zip(self.flows, self.norms, features, strict=True)
        return [flow(norm(feature)) for flow, norm, feature in stages]

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """How unlikely each position is.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The map (B, 1, H, W) in [-1, 0], 0 where the density vanishes, and its maximum per image, (B,).
        """
        latents = self.latents(self.features(image) if features is None else features)
        anomaly_map = likelihood_map([z for z, _ in latents], (image.shape[2], image.shape[3]))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def fastflow_loss(latents: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Negative log-likelihood up to a constant, averaged over the batch and summed over layers.

    Args:
        latents: per layer z (B, C, h, w) and log|det J| (B,).
    """
    return torch.stack(
        [(0.5 * z.float().square().flatten(1).sum(1) - log_det).mean() for z, log_det in latents]
    ).sum()


def likelihood_map(latents: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Minus the density of each position, enlarged to `size`, mean over layers.

    Args:
        latents: one (B, C, h, w) per layer.
        size: H and W.

    Returns:
        (B, 1, H, W) float32 in [-1, 0].
    """
    densities = [torch.exp(-0.5 * z.float().square().mean(1, keepdim=True)) for z in latents]
    maps = [
        -F.interpolate(density, size, mode="bilinear", align_corners=False) for density in densities
    ]
    return torch.stack(maps).mean(0)


class FastflowTrainer(BaseTrainer):
    """Trains the flows on the backbone's cached features."""

    config: FastflowConfig
    model: FastflowModel
    config_class = FastflowConfig
    memory_format = (
        torch.contiguous_format
    )  # channels last, a step that permutes channels takes a fifth longer

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
        config = self.config
        return FastflowModel(
            config.backbone,
            config.layers,
            config.weights,
            self.train_config.input_size,
            config.flow_steps,
            config.kernel_sizes,
            config.hidden_ratio,
            config.clamp,
        )

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        learnt = [*self.model.norms.parameters(), *self.model.flows.parameters()]
        return torch.optim.Adam(learnt, self.config.lr, weight_decay=self.config.weight_decay), None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = fastflow_loss(self.model.latents(batch.features))
        self.optimize(loss)
        return {"loss": loss.detach()}
