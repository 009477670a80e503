"""Anomaly Detection via Reverse Distillation from One-Class Embedding.

Paper: H. Deng and X. Li, CVPR 2022, https://arxiv.org/abs/2201.10703
Reference: https://github.com/hq-deng/RD4AD (MIT; facts only).

A frozen teacher gives maps at three depths; a bottleneck fuses and squeezes them into a small
embedding, from which a decoder, the teacher's mirror image, learns to give the three maps back on
normal images. What the embedding has no room for is lost, defects first: the map is the sum over
depths of one minus the cosine between the teacher's and the decoder's features, smoothed, and the
score its maximum.

Differs from the paper: the loss takes the cosine of each whole map, flattened, as the reference
does, and not that of each position (equation 2). Differs from the reference: its bottleneck carries
a fourth convolution that nothing uses, and its smoothing repeats the image's edge where this one
mirrors at it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor
from adray.components.resnet import residual_stage
from adray.components.resnet_decoder import ResNetDecoder, init_residual, resnet_plan
from adray.methods.reverse_distillation import METHODS, ReverseDistillationConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction


def halve(channels: int) -> list[nn.Module]:
    """Halve the side and double the channels: 3x3 convolution of stride 2, batch norm, ReLU."""
    conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(2 * channels), nn.ReLU(inplace=True)]


class OneClassBottleneck(nn.Module):
    """Fuses three maps into one embedding: multi-scale fusion and one-class embedding of the paper.

    Args:
        backbone: that gave the maps, one of `RESNET_PLANS`.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        plan = resnet_plan(backbone)
        first, second, third = plan.channels
        depth = 2 if backbone == "resnet18" else 3
        self.from_layer1 = nn.Sequential(*halve(first), *halve(second))
        self.from_layer2 = nn.Sequential(*halve(second))
        self.stage = residual_stage(plan, 3 * third, 512, depth)
        init_residual(self)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Embed the maps of layer1, layer2 and layer3, of strides 4, 8 and 16.

        Returns:
            (B, 512 * expansion, H/32, W/32).
        """
        layer1, layer2, layer3 = features
        joined = torch.cat([self.from_layer1(layer1), self.from_layer2(layer2), layer3], dim=1)
        return self.stage(joined)


class ReverseDistillationModel(nn.Module):
    """A frozen teacher, and the bottleneck and decoder that give its features back.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: ReverseDistillationConfig) -> None:
        super().__init__()
        self.teacher = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        self.bottleneck = OneClassBottleneck(config.backbone)
        self.decoder = ResNetDecoder(config.backbone)
        self.blur = GaussianBlur2d(config.sigma)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the teacher's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.teacher(image)

    def restore(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Send the teacher's maps through the embedding and back, to their order and shapes."""
        return self.decoder(self.bottleneck(features))

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Compare the teacher's maps with the restored ones.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 32.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed sum of the layers' cosine distances, each in [0, 2], as (B, 1, H, W), and
            its maximum per image, (B,).
        """
        teacher = self.features(image) if features is None else features
        restored = self.restore(teacher)
        anomaly_map = self.blur(cosine_map(teacher, restored, (image.shape[2], image.shape[3])))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


def global_cosine_loss(teacher: tuple[Tensor, ...], restored: tuple[Tensor, ...]) -> Tensor:
    """Average one minus the cosine of whole maps over the batch, and sum it over layers."""
    pairs = zip(teacher, restored, strict=True)
    per_layer = [1 - whole_cosine(given, rebuilt).mean() for given, rebuilt in pairs]
    return torch.stack(per_layer).sum()


def whole_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Give the cosine between two maps (B, C, h, w) seen as long vectors, (B,) float32."""
    a = a.float()
    b = b.float()
    # Sums over the axes as they lie: flattening a channels_last map would first copy it.
    axes = (1, 2, 3)
    squares = a.square().sum(axes) * b.square().sum(axes)
    # The bound keeps gradients of dead maps finite.
    return (a * b).sum(axes) * squares.clamp_min(1e-16).rsqrt()


def cosine_map(
    teacher: tuple[Tensor, ...], restored: tuple[Tensor, ...], size: tuple[int, int]
) -> Tensor:
    """Sum one minus the cosine at each position over layers (equation 1).

    Args:
        teacher: one (B, C, h, w) per layer.
        restored: one (B, C, h, w) per layer.
        size: H and W, to which each layer's distance is enlarged.

    Returns:
        (B, 1, H, W) float32 in [0, 2] times the number of layers.
    """
    total = torch.zeros((), device=teacher[0].device)
    for given, rebuilt in zip(teacher, restored, strict=True):
        cosine = F.cosine_similarity(given.float(), rebuilt.float(), dim=1).unsqueeze(1)
        total = total + F.interpolate(1 - cosine, size, mode="bilinear", align_corners=True)
    return total


class ReverseDistillationTrainer(BaseTrainer):
    """Trains bottleneck and decoder on the teacher's cached features."""

    config: ReverseDistillationConfig
    model: ReverseDistillationModel
    method = METHODS["ReverseDistillationTrainer"]

    def build_model(self) -> ReverseDistillationModel:
        return ReverseDistillationModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        config = self.config
        learnt = [*self.model.decoder.parameters(), *self.model.bottleneck.parameters()]
        betas = (config.beta1, config.beta2)
        # Fused: half the time of the update, a few per cent of a small batch's step.
        return torch.optim.Adam(learnt, config.lr, betas=betas, fused=True), None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = global_cosine_loss(batch.features, self.model.restore(batch.features))
        self.optimize(loss)
        return {"loss": loss.detach()}
