"""CFLOW-AD: Real-Time Unsupervised Anomaly Detection with Localization via Conditional Normalizing Flows.

D. Gudovskiy, S. Ishizaka, K. Kozuka, WACV 2022. Paper: https://arxiv.org/abs/2107.12571
Reference: https://github.com/gudovskiy/cflow-ad (BSD-3-Clause, facts only).

A frozen backbone gives feature maps of normal images at three depths. What it says of one position is a fiber: a vector
of C numbers, together with a code of where the position lies. Per depth a flow, conditioned on the code, learns the
density of the fibers. A position is anomalous where the density, relative to the largest one seen in training, is low
when summed over the depths; the score of an image is the maximum of its map.

Differs from the paper: densities are taken relative to the largest one of the training fibers, gathered per depth over
the last epoch and stored with the model; the reference takes the largest of the test set, with which a score depends on
the images beside it. Groups have 1024 fibers where the reference has 256, a batch is split into as many groups of equal
size as a full one needs, and no fiber is left out. One optimiser step takes the next group of every depth that has one
left: the depths share no weights, so this is what a step per depth would do. The rate's warm-up and cosine run over all
steps, where the reference counts rounds of eight epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.all_in_one_block import AllInOneBlock
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.errors import InputError
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_BASE = 1e4
_LN_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_FIRST_RATE = 0.1
_LAST_RATE = 1e-3


@dataclass(frozen=True)
class CflowConfig:
    """Hyperparameters of CFLOW-AD; defaults are the reference's for a Wide ResNet-50, but for the larger groups."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor."""
    layers: tuple[str, ...] = ("layer2", "layer3", "layer4")
    """Stages that get a flow each."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    flow_steps: int = 8
    """Coupling steps per flow."""
    condition_channels: int = 128
    """Length of the position code, a multiple of 4."""
    clamp: float = 1.9
    """Bound of the log scale of one coupling."""
    fiber_batch_size: int = 1024
    """Fibers per optimiser step and stage, at most."""
    lr: float = 2e-4
    """Largest learning rate of Adam."""
    warmup: float = 0.08
    """Part of the steps over which the rate rises from a tenth."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("flow_steps", self.flow_steps, 1, 100)
        check_range("condition_channels", self.condition_channels, 4, 4096)
        check_range("clamp", self.clamp, 0.01, 10)
        check_range("fiber_batch_size", self.fiber_batch_size, 16)
        check_range("lr", self.lr, 0, 1)
        check_range("warmup", self.warmup, 0, 1)
        if self.condition_channels % 4:
            raise InputError(
                f"condition_channels {self.condition_channels} must be a multiple of 4: sine and cosine of two axes; "
                "use 128 as published"
            )

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def position_code(height: int, width: int, length: int) -> Tensor:
    """Sines and cosines of each position at falling frequencies.

    Args:
        height: h.
        width: w.
        length: numbers per position, a multiple of 4; the first half tells the column, the second the row.

    Returns:
        (h * w, length), row by row.
    """
    half = length // 2
    frequencies = _BASE ** (-torch.arange(0, half, 2) / half)

    def waves(count: int) -> Tensor:
        angles = torch.outer(torch.arange(float(count)), frequencies)
        return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(
            1
        )  # (count, half), sine and cosine in turn

    columns = waves(width)[None].expand(height, width, half)
    rows = waves(height)[:, None].expand(height, width, half)
    return torch.cat((columns, rows), dim=2).flatten(0, 1)


def linear_subnet(channels_in: int, channels_out: int) -> nn.Module:
    """Two linear layers with a ReLU between, as `AllInOneBlock` wants them."""
    return nn.Sequential(
        nn.Linear(channels_in, 2 * channels_in),
        nn.ReLU(inplace=True),
        nn.Linear(2 * channels_in, channels_out),
    )


class FiberFlow(nn.Module):
    """The density of one stage's fibers, given where they lie.

    Args:
        channels: C of the stage's feature map.
        size: its h and w.
        steps: number of coupling steps.
        condition_channels: length of the position code.
        clamp: see `AllInOneBlock`.
    """

    code: Tensor
    largest: Tensor

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        steps: int,
        condition_channels: int,
        clamp: float,
    ) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            AllInOneBlock(channels, linear_subnet, clamp, condition_channels) for _ in range(steps)
        )
        self.register_buffer("code", position_code(*size, condition_channels), persistent=False)
        # The largest value of `forward` in training, to which scores refer.
        self.register_buffer("largest", torch.zeros(()))

    def latent(self, fiber: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """The latent z of (F, C) fibers at `position` (F,), in rows, and log|det dz/dfiber|, (F,)."""
        condition = self.code[position]
        z, log_det = fiber, fiber.new_zeros(len(fiber))
        for step in self.steps:
            z, step_log_det = step(z, condition)
            log_det = log_det + step_log_det
        return z, log_det

    def forward(self, fiber: Tensor, position: Tensor) -> Tensor:
        """Log-likelihood per dimension of (F, C) fibers at `position` (F,): (F,) float32."""
        z, log_det = self.latent(fiber, position)
        return (log_det - 0.5 * z.float().square().sum(1)) / z.shape[1] - _LN_SQRT_2PI


class CflowModel(nn.Module):
    """A frozen backbone with a flow over the fibers of each tapped stage.

    Args:
        backbone: one of `RESNETS`.
        layers: stages to tap.
        weights: ``"pretrained"`` or ``"random"``.
        input_size: side of the images in pixels.
        flow_steps: see `FiberFlow`, as for the rest.
        condition_channels: length of the position code.
        clamp: bound of a coupling's log scale.
    """

    def __init__(
        self,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        input_size: int,
        flow_steps: int = 8,
        condition_channels: int = 128,
        clamp: float = 1.9,
    ) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(backbone, layers, weights)
        shapes = dryrun_find_featuremap_dims(self.extractor, input_size).values()
        self.flows = nn.ModuleList(
            FiberFlow(channels, size, flow_steps, condition_channels, clamp)
            for channels, size in shapes
        )

    @property
    def fiber_flows(self) -> list[FiberFlow]:
        """The flows in the order of the layers."""
        return cast("list[FiberFlow]", list(self.flows))

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.extractor(image)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """How unlikely each position is.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The map (B, 1, H, W) in [0, number of layers], 0 where all layers are as likely as training's likeliest
            fiber, and its maximum per image, (B,).
        """
        features = self.features(image) if features is None else features
        densities = [
            relative_density(flow, f) for flow, f in zip(self.fiber_flows, features, strict=True)
        ]
        anomaly_map = unlikelihood_map(densities, (image.shape[2], image.shape[3]))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def to_fibers(feature: Tensor) -> Tensor:
    """One row per position of (B, C, h, w), image by image: (B * h * w, C)."""
    return feature.flatten(2).transpose(1, 2).flatten(0, 1)


def relative_density(flow: FiberFlow, feature: Tensor) -> Tensor:
    """Density per dimension of each position relative to the largest in training.

    Args:
        flow: the `FiberFlow` of the stage.
        feature: (B, C, h, w).

    Returns:
        (B, 1, h, w) in [0, 1]; what is likelier than all of training counts as the likeliest of it, so that it cannot
        outweigh another stage's doubts.
    """
    batch, _, height, width = feature.shape
    position = torch.arange(height * width, device=feature.device).repeat(batch)
    log_density = flow(to_fibers(feature), position) - flow.largest
    return log_density.clamp(max=0).exp().view(batch, 1, height, width)


def unlikelihood_map(densities: list[Tensor], size: tuple[int, int]) -> Tensor:
    """What the sum of the layers' densities, each (B, 1, h, w), enlarged to `size`, lacks to the highest possible."""
    enlarged = [
        F.interpolate(density, size, mode="bilinear", align_corners=True) for density in densities
    ]
    return len(densities) - torch.stack(enlarged).sum(0)


def cflow_loss(log_likelihood: Tensor) -> Tensor:
    """Minus the log-sigmoid of (F,) log-likelihoods per dimension, averaged over fibers."""
    return -F.logsigmoid(log_likelihood).mean()


def rate_factor(part: float, warmup: float) -> float:
    """The learning rate relative to its largest after `part` of training, both in [0, 1].

    Half a cosine from 1 to a thousandth, times a line from a tenth to 1 over the first `warmup`.
    """
    cosine = _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
    return cosine if part >= warmup else cosine * (_FIRST_RATE + (1 - _FIRST_RATE) * part / warmup)


class CflowTrainer(BaseTrainer):
    """Trains the flows on the backbone's cached features, group by group of shuffled fibers."""

    config: CflowConfig
    model: CflowModel
    config_class = CflowConfig

    def build_model(self) -> CflowModel:
        config = self.config
        return CflowModel(
            config.backbone,
            config.layers,
            config.weights,
            self.train_config.input_size,
            config.flow_steps,
            config.condition_channels,
            config.clamp,
        )

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        config, count = self.config, total_steps * max(self.group_counts())
        adam = torch.optim.Adam(self.model.flows.parameters(), config.lr, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: rate_factor(step / count, config.warmup)
        )
        return adam, schedule

    def group_counts(self) -> list[int]:
        """Groups per layer into which a batch is split; a last, smaller batch has as many, of fewer fibers."""
        batch, group = self.train_config.batch_size, self.config.fiber_batch_size
        return [math.ceil(batch * len(flow.code) / group) for flow in self.model.fiber_flows]

    def on_train_start(self) -> None:
        """Forget the largest likelihoods, which belong to the weights of the epoch before."""
        for flow in self.model.fiber_flows:
            flow.largest.fill_(-math.inf)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        fibers = [to_fibers(feature) for feature in batch.features]
        losses: list[list[Tensor]] = [[] for _ in fibers]
        for groups in self.shuffled_groups([len(f) for f in fibers]):
            step = {
                i: self.group_loss(i, fibers[i], group)
                for i, group in enumerate(groups)
                if group is not None
            }
            self.optimize(torch.stack([*step.values()]).sum())
            for i, loss in step.items():
                losses[i].append(loss.detach())
        return {"loss": torch.stack([torch.stack(of_layer).mean() for of_layer in losses]).sum()}

    def shuffled_groups(self, sizes: list[int]) -> Iterator[tuple[Tensor | None, ...]]:
        """Per optimiser step the rows of each layer's next group, None for layers that are through.

        Args:
            sizes: number of fibers of each layer.
        """
        groups = [
            torch.randperm(size, device=self.device).tensor_split(min(count, size))
            for size, count in zip(sizes, self.group_counts(), strict=True)
        ]
        return zip_longest(*groups)

    def group_loss(self, layer: int, fibers: Tensor, group: Tensor) -> Tensor:
        """The loss of the rows `group` of `fibers`, (B * h * w, C); keeps the largest likelihood, too."""
        flow = self.model.fiber_flows[layer]
        log_likelihood = flow(fibers[group], group % len(flow.code))
        flow.largest.copy_(torch.maximum(flow.largest, log_likelihood.detach().max()))
        return cflow_loss(log_likelihood)
