"""Anomaly Detection via Reverse Distillation from One-Class Embedding (H. Deng and X. Li, CVPR 2022).

Paper: https://arxiv.org/abs/2201.10703
Reference: https://github.com/hq-deng/RD4AD (MIT; facts only).

A frozen teacher gives maps at three depths; a bottleneck fuses and squeezes them into a small embedding, from which a
decoder, the teacher's mirror image, learns to give the three maps back on normal images. What the embedding has no room
for is lost, defects first: the map is the sum over depths of one minus the cosine between the teacher's and the
decoder's features, smoothed, and the score its maximum.

Differs from the paper: the loss takes the cosine of each whole map, flattened, as the reference does, and not that of
each position (equation 2). Differs from the reference: its bottleneck carries a fourth convolution that nothing uses,
and its smoothing repeats the image's edge where this one mirrors at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor
from adray.components.resnet_decoder import (
    ResNetDecoder,
    downward_stage,
    init_residual,
    resnet_plan,
)
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


@dataclass(frozen=True)
class ReverseDistillationConfig:
    """Hyperparameters of reverse distillation; defaults are the paper's and the reference's."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the teacher, and mirrored of the decoder."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the teacher; bottleneck and decoder always start at random."""
    lr: float = 5e-3
    """Learning rate of Adam, constant; single peaks of the loss are normal with it."""
    beta1: float = 0.5
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    sigma: float = 4.0
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        resnet_plan(self.backbone)
        check_range("lr", self.lr, 0, 1)
        check_range("beta1", self.beta1, 0, 0.9999)
        check_range("beta2", self.beta2, 0, 0.999999)
        check_range("sigma", self.sigma, 0.1, 100)

    @property
    def layers(self) -> tuple[str, ...]:
        """Stages of the teacher that are compared; bottleneck and decoder are made for these."""
        return "layer1", "layer2", "layer3"

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def halve(channels: int) -> list[nn.Module]:
    """Half the side and twice the channels: 3x3 convolution of stride 2, batch norm, ReLU."""
    conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(2 * channels), nn.ReLU(inplace=True)]


class OneClassBottleneck(nn.Module):
    """Fuses three maps into one embedding (the paper's multi-scale fusion and one-class embedding).

    Args:
        backbone: that gave the maps, one of `RESNET_PLANS`.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        plan = resnet_plan(backbone)
        first, second, third = plan.channels
        self.from_layer1 = nn.Sequential(*halve(first), *halve(second))
        self.from_layer2 = nn.Sequential(*halve(second))
        self.stage = downward_stage(plan, 3 * third, 512, 2 if backbone == "resnet18" else 3)
        init_residual(self)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Embed the maps of layer1, layer2 and layer3 of strides 4, 8 and 16: (B, 512 * expansion, H/32, W/32)."""
        layer1, layer2, layer3 = features
        return self.stage(
            torch.cat([self.from_layer1(layer1), self.from_layer2(layer2), layer3], 1)
        )


class ReverseDistillationModel(nn.Module):
    """A frozen teacher, and the bottleneck and decoder that give its features back.

    Args:
        backbone: of teacher and decoder, one of `RESNET_PLANS`.
        weights: ``"pretrained"`` or ``"random"``, of the teacher.
        sigma: of the Gaussian that smooths the anomaly map, in pixels.
    """

    def __init__(self, backbone: str, weights: str, sigma: float = 4.0) -> None:
        super().__init__()
        self.teacher = TimmFeatureExtractor(backbone, ("layer1", "layer2", "layer3"), weights)
        self.bottleneck = OneClassBottleneck(backbone)
        self.decoder = ResNetDecoder(backbone)
        self.blur = GaussianBlur2d(sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The teacher's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.teacher(image)

    def restore(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The teacher's maps as they come back through the embedding, in their order and shapes."""
        return self.decoder(self.bottleneck(features))

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Compare the teacher's maps with the restored ones.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 32.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed sum of the layers' cosine distances, each in [0, 2], as (B, 1, H, W), and its maximum per
            image, (B,).
        """
        teacher = self.features(image) if features is None else features
        anomaly_map = self.blur(
            cosine_map(teacher, self.restore(teacher), (image.shape[2], image.shape[3]))
        )
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def global_cosine_loss(teacher: tuple[Tensor, ...], restored: tuple[Tensor, ...]) -> Tensor:
    """One minus the cosine of whole flattened maps, averaged over the batch and summed over layers."""
    return torch.stack(
        [1 - whole_cosine(t, r).mean() for t, r in zip(teacher, restored, strict=True)]
    ).sum()


def whole_cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of the angle between two maps (B, C, h, w) seen as long vectors, (B,) float32."""
    # Sums over the axes as they lie: flattening a channels_last map would first copy it.
    a, b, axes = a.float(), b.float(), (1, 2, 3)
    squares = a.square().sum(axes) * b.square().sum(axes)
    return (a * b).sum(axes) * squares.clamp_min(
        1e-16
    ).rsqrt()  # the bound keeps gradients of dead maps finite


def cosine_map(
    teacher: tuple[Tensor, ...], restored: tuple[Tensor, ...], size: tuple[int, int]
) -> Tensor:
    """Sum over layers of one minus the cosine at each position, enlarged to `size` H and W: (B, 1, H, W) float32."""
    total = torch.zeros((), device=teacher[0].device)
    for t, r in zip(teacher, restored, strict=True):
        distance = 1 - F.cosine_similarity(t.float(), r.float(), dim=1).unsqueeze(
            1
        )  # (B, 1, h, w), equation 1
        total = total + F.interpolate(distance, size, mode="bilinear", align_corners=True)
    return total


class ReverseDistillationTrainer(BaseTrainer):
    """Trains bottleneck and decoder on the teacher's cached features."""

    config: ReverseDistillationConfig
    model: ReverseDistillationModel
    config_class = ReverseDistillationConfig

    def build_model(self) -> ReverseDistillationModel:
        return ReverseDistillationModel(
            self.config.backbone, self.config.weights, self.config.sigma
        )

    @classmethod
    def check_inputs(
        cls, config: ReverseDistillationConfig, train_config: TrainConfig
    ) -> list[str]:
        size = train_config.input_size
        if size % 32:
            below = size // 32 * 32
            near = f"{below} or {below + 32}" if below else "32"
            raise InputError(
                f"input size {size} does not suit reverse distillation: img_size (or crop_size) must be a multiple of "
                f"32; use {near}"
            )
        return []

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        learnt = [*self.model.decoder.parameters(), *self.model.bottleneck.parameters()]
        betas = (self.config.beta1, self.config.beta2)
        # Fused: half the time of the update, a few per cent of a small batch's step.
        return torch.optim.Adam(learnt, self.config.lr, betas=betas, fused=True), None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = global_cosine_loss(batch.features, self.model.restore(batch.features))
        self.optimize(loss)
        return {"loss": loss.detach()}
