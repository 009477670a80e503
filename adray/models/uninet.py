"""UniNet: A Contrastive Learning-guided Unified Framework with Feature Selection for AD (S. Wei et al., CVPR 2025).

Paper: https://pangdatangtt.github.io/static/pdfs/UniNet__arXix_.pdf
Reference: https://github.com/pangdatangtt/UniNet (MIT; facts only).

Two teachers start from the same pretrained network. The source teacher stays frozen; the target teacher follows the
product's images, with batch norm statistics of their own and a tiny learning rate. A bottleneck and a decoder, the
student, restore the maps of both, and the comparison is crossed: what is restored from the target teacher's maps has to
resemble the source teacher's, and the other way round. In training the student's maps are first weighted by where each
channel of the teacher's is strong (domain-related feature selection), and have to resemble their own position more than
all others (similarity contrastive loss). The map is the sum over both teachers and three depths of one minus the
cosine. The score is the mean of the smoothed map's highest values; how many of these count, the image's own six maps
decide (weighted decision mechanism), so that no statistic of training or test images enters it.

Differs from the paper: defects are never learnt from, so the margin loss has its part for normal positions only.
Differs from the reference:
- It takes a temperature of 0.1 for five categories, and no feature selection and a higher `teacher_lr` for one, by
  their names; here one configuration serves all. It keeps the epoch that is best on test images; here the last counts.
- Its 7x7 branches are replaced by 3x3 ones before training, and initialised anew: what it trains, and what is here, are
  two 3x3 branches of equal shape, without the biases that the batch norm behind them would undo.
- Its theta is never registered as a parameter and stays at 1; here it learns, as in the paper.
- The contrastive loss is a log-softmax without its bounds of 1e-8, and never holds the similarities of all pairs of
  positions together.
- A batch of one, as the last one of an epoch may be, passes the target teacher with the running statistics, which it
  leaves alone. Bottleneck and decoder see both teachers' maps of it, which makes two.
- The number of values whose mean is the score is not rounded down: the last one counts by the fraction, so that the
  rounding errors of another batch size cannot add a whole value. It is at least 1.
- Smoothing mirrors at the image's edge without repeating it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, load_resnet
from adray.components.resnet_decoder import ResNetDecoder, ResNetPlan, init_residual, resnet_plan
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_BLOCKS = 3
_SIMILARITIES = 2**24
"""Similarities that are in memory together, 64 MiB of them."""


@dataclass(frozen=True)
class UninetConfig:
    """Hyperparameters of UniNet; defaults are the paper's and the reference's."""

    backbone: str = "wide_resnet50_2"
    """Architecture of both teachers, and mirrored of the decoder."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights that both teachers start from; bottleneck and decoder always start at random."""
    temperature: float = 2.0
    """Divides the cosines in the contrastive loss; the reference takes 0.1 for some categories."""
    cosine_weight: float = 0.7
    """Weight of the cosine loss; the contrastive loss has the rest to 1."""
    margin: float = 1.0
    """Softmax probability of the own position from which on the margin loss is content."""
    lr: float = 5e-3
    """Learning rate of AdamW for bottleneck, decoder and feature selection, constant."""
    teacher_lr: float = 1e-6
    """Learning rate of AdamW for the target teacher, constant."""
    weight_decay: float = 1e-5
    """Weight decay of all of them."""
    alpha: float = 0.01
    """Part of the map's values that the score averages, per unit of the layers' largest distances."""
    beta: float = 3e-5
    """Smallest part of the map's values that the score averages."""
    sigma: float = 4.0
    """Standard deviation in pixels of the Gaussian that smooths the map before its highest values are taken."""

    def __post_init__(self) -> None:
        """Check ranges."""
        resnet_plan(self.backbone)
        check_range("temperature", self.temperature, 0.01, 100)
        check_range("cosine_weight", self.cosine_weight, 0, 1)
        check_range("margin", self.margin, 0, 1)
        check_range("lr", self.lr, 0, 1)
        check_range("teacher_lr", self.teacher_lr, 0, 1)
        check_range("weight_decay", self.weight_decay, 0, 1)
        check_range("alpha", self.alpha, 0, 1)
        check_range("beta", self.beta, 0, 1)
        check_range("sigma", self.sigma, 0.1, 100)

    @property
    def layers(self) -> tuple[str, ...]:
        """Stages of the teachers that are compared; bottleneck and decoder are made for these."""
        return "layer1", "layer2", "layer3"

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def conv_norm(
    channels_in: int, channels: int, kernel_size: int, stride: int = 1
) -> list[nn.Module]:
    """A convolution without bias that keeps the side (or halves it with stride 2), and batch norm."""
    conv = nn.Conv2d(
        channels_in, channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    return [conv, nn.BatchNorm2d(channels)]


class AttentionBottleneck(nn.Module):
    """A residual block whose halves of channels go through two 3x3 convolutions each and are mixed by a 1x1 one.

    Args:
        channels_in: channels of the input.
        plan: of the backbone; the output has ``512 * expansion`` channels.
        stride: 2 halves the side.
    """

    def __init__(self, channels_in: int, plan: ResNetPlan, stride: int) -> None:
        super().__init__()
        width, channels = 512 * plan.base_width // 64, 512 * plan.block.expansion
        self.first, self.second = (
            self._branch(channels_in // 2, width // 2, stride) for _ in range(2)
        )
        self.mix = nn.Sequential(*conv_norm(width, channels, 1))
        changes = stride != 1 or channels_in != channels
        self.shortcut = (
            nn.Sequential(*conv_norm(channels_in, channels, 1, stride))
            if changes
            else nn.Identity()
        )

    @staticmethod
    def _branch(channels_in: int, channels: int, stride: int) -> nn.Sequential:
        first, second = (
            conv_norm(channels_in, channels, 3, stride),
            conv_norm(channels, channels, 3),
        )
        return nn.Sequential(*first, nn.ReLU(inplace=True), *second)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, channels_in, H, W) to (B, 512 * expansion, H / stride, W / stride)."""
        left, right = x.chunk(2, 1)  # (B, C/2, H, W) each
        mixed = self.mix(torch.cat([self.first(left), self.second(right)], 1))
        return F.relu(mixed + self.shortcut(x))


class UninetBottleneck(nn.Module):
    """Fuses three maps into one embedding.

    Args:
        backbone: that gave the maps, one of `RESNET_PLANS`.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        plan = resnet_plan(backbone)
        first, second, third = plan.channels
        self.from_layer1 = nn.Sequential(
            *conv_norm(first, second, 3, 2), nn.ReLU(), *conv_norm(second, third, 3, 2)
        )
        self.from_layer2 = nn.Sequential(*conv_norm(second, third, 3, 2))
        blocks = (
            AttentionBottleneck(512 * plan.block.expansion, plan, 1) for _ in range(1, _BLOCKS)
        )
        self.stage = nn.Sequential(AttentionBottleneck(3 * third, plan, 2), *blocks)
        init_residual(self)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Embed the maps of layer1, layer2 and layer3 of strides 4, 8 and 16: (B, 512 * expansion, H/32, W/32)."""
        layer1, layer2, layer3 = features
        return self.stage(
            torch.cat(
                [F.relu(self.from_layer1(layer1)), F.relu(self.from_layer2(layer2)), layer3], 1
            )
        )


class FeatureSelection(nn.Module):
    """Weights the student's maps by the teacher's: domain-related feature selection.

    Args:
        channels: of the maps of each layer; both teachers share a layer's theta.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.theta = nn.ParameterList(torch.zeros(c, 1, 1) for c in channels)

    def forward(
        self, teachers: tuple[Tensor, ...], students: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The weighted student's maps, in their order: the layers of one teacher, then those of the other."""
        bounds = [bounded(theta) for theta in self.theta]
        return tuple(map(select, teachers, students, bounds * 2))


def bounded(theta: Tensor) -> Tensor:
    """The learnt values in (0.5, 1]; 0 gives 1."""
    # Not `clamp`, whose gradient is 0 at its bound, where theta starts and then would stay.
    return torch.minimum(theta.sigmoid() + 0.5, torch.ones_like(theta))


def select(teacher: Tensor, student: Tensor, theta: Tensor) -> Tensor:
    """The student's map times the teacher's softmax over positions times (theta plus the teacher's mean).

    Args:
        teacher: (B, C, h, w).
        student: (B, C, h, w).
        theta: (C, 1, 1), what `bounded` gives.

    Returns:
        (B, C, h, w) float32.
    """
    # The paper subtracts the largest value before its softmax, as torch does itself.
    teacher = teacher.float()
    where = (
        teacher.flatten(2).softmax(2).unflatten(2, teacher.shape[2:])
    )  # (B, C, h*w) -> (B, C, h, w)
    return student.float() * where * (theta + teacher.mean((2, 3), keepdim=True))


class UninetModel(nn.Module):
    """A frozen and a learning teacher, and the bottleneck and decoder that restore their maps crosswise.

    Args:
        backbone: of teachers and decoder, one of `RESNET_PLANS`.
        weights: ``"pretrained"`` or ``"random"``, of both teachers.
        alpha: see `decisive_part`.
        beta: see `decisive_part`.
        sigma: of the Gaussian that smooths the map for the score, in pixels.
    """

    def __init__(
        self,
        backbone: str,
        weights: str,
        alpha: float = 0.01,
        beta: float = 3e-5,
        sigma: float = 4.0,
    ) -> None:
        super().__init__()
        self.source = TimmFeatureExtractor(backbone, ("layer1", "layer2", "layer3"), weights)
        self.target = load_resnet(backbone, self.source.layers, self.source.weight_file)
        self.bottleneck = UninetBottleneck(backbone)
        self.decoder = ResNetDecoder(backbone)
        self.selection = FeatureSelection(resnet_plan(backbone).channels)
        self.blur = GaussianBlur2d(sigma)
        self.alpha, self.beta = alpha, beta

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The source teacher's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.source(image)

    def compare(
        self, image: Tensor, source: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What has to be alike, crosswise.

        Args:
            image: (B, 3, H, W) normalised.
            source: what `features(image)` gives.

        Returns:
            Six maps (B, C, h, w) of the teachers, first the source's three layers, then the target's; and six of the
            decoder in the same order, first those restored from the target's maps, then those from the source's.
        """
        target = tuple(self.target(image))
        both = tuple(
            torch.cat(pair) for pair in zip(target, source, strict=True)
        )  # (2B, C, h, w) each
        halves = [layer.chunk(2) for layer in self.decoder(self.bottleneck(both))]
        from_target, from_source = zip(*halves, strict=True)
        return (*source, *target), (*from_target, *from_source)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Compare the teachers' maps with those restored from the other teacher's.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 32.
            features: what `features(image)` gives, or None.

        Returns:
            The sum of the six cosine distances, each in [0, 2], as (B, 1, H, W), not smoothed; and the mean of its
            highest values when smoothed, (B,).
        """
        distances = cosine_distances(
            *self.compare(image, self.features(image) if features is None else features)
        )
        anomaly_map = distance_map(distances, (image.shape[2], image.shape[3]))
        part = decisive_part(distances, self.alpha, self.beta)
        most = max(2 * self.alpha, self.beta)  # no cosine distance is above 2
        return Prediction(highest_mean(self.blur(anomaly_map).flatten(1), part, most), anomaly_map)


def cosine_distances(teachers: tuple[Tensor, ...], students: tuple[Tensor, ...]) -> list[Tensor]:
    """One minus the cosine at each position, (B, h, w) float32 for each pair of maps (B, C, h, w)."""
    return [
        1 - F.cosine_similarity(t.float(), s.float(), dim=1)
        for t, s in zip(teachers, students, strict=True)
    ]


def distance_map(distances: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The sum of maps (B, h, w), enlarged to `size` H and W: (B, 1, H, W)."""
    enlarged = [
        F.interpolate(d.unsqueeze(1), size, mode="bilinear", align_corners=True) for d in distances
    ]
    return torch.stack(enlarged).sum(0)


def decisive_part(distances: list[Tensor], alpha: float, beta: float) -> Tensor:
    """The part of an image's pixels that decide on it, from the largest distances of its maps alone.

    The largest distances of all maps go through a softmax; the mean of those whose probability is above average, times
    `alpha`, but at least `beta`, is the part.

    Args:
        distances: maps (B, h, w) of any sizes.
        alpha: factor.
        beta: lower bound.

    Returns:
        (B,) in [beta, max(2 alpha, beta)].
    """
    peaks = torch.stack([d.flatten(1).amax(1) for d in distances], 1)  # (B, 6)
    probability = peaks.softmax(1)
    # Where all are equal, a mean that was rounded up must not leave none.
    average = torch.minimum(probability.mean(1), probability.amax(1)).unsqueeze(1)  # (B, 1)
    high = (probability >= average).float()
    return (alpha * (peaks * high).sum(1) / high.sum(1)).clamp_min(beta)


def highest_mean(values: Tensor, part: Tensor, most: float) -> Tensor:
    """The mean of the highest values of each row, of which there need not be a whole number.

    Args:
        values: (B, N).
        part: of the N values of a row that count, (B,); at least one counts.
        most: upper bound of `part`, which bounds what is sorted.

    Returns:
        (B,).
    """
    total = values.shape[1]
    count = (part * total).clamp(1, total)
    highest = values.topk(min(total, math.ceil(most * total) + 1), 1).values  # (B, K)
    weight = (count.unsqueeze(1) - torch.arange(highest.shape[1], device=values.device)).clamp(0, 1)
    return (highest * weight).sum(1) / count


def log_partition(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """For each of the student's positions the log of the sum over the teacher's positions of exp(cosine / temperature).

    The similarities of 4096 positions (layer1 at 256 pixels) with each other are 64 MiB per image, and autograd would
    keep several such matrices. They are made for some rows at a time instead, and once more on the way back.

    Args:
        student: (B, C, N) of unit length along C.
        teacher: (B, C, N) of unit length along C.
        temperature: divides the cosines.

    Returns:
        (B, N).
    """
    rows = max(1, _SIMILARITIES // (len(student) * teacher.shape[2]))
    parts = [
        checkpoint(
            _log_partition_of_rows,
            some,
            teacher,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for some in student.split(rows, dim=2)
    ]
    return torch.cat(parts, 1)


def _log_partition_of_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return torch.logsumexp(
        (student / temperature).mT @ teacher, 2
    )  # (B, n, C) x (B, C, N) -> (B, n, N) -> (B, n)


def pair_losses(teacher: Tensor, student: Tensor, temperature: float, margin: float) -> Tensor:
    """The three losses of one pair of maps, each a mean over batch and positions.

    Args:
        teacher: (B, C, h, w).
        student: (B, C, h, w), after feature selection.
        temperature: of the softmax over the teacher's positions.
        margin: what the probability of the own position should reach.

    Returns:
        (3,) float32: one minus the cosine; minus the log of the softmax probability of the own position; what this
        probability lacks to the margin.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        t, s = (F.normalize(m.float().flatten(2), dim=1) for m in (teacher, student))  # (B, C, h*w)
        cosine = (t * s).sum(1)  # (B, h*w), also the diagonal of all similarities
        log_own = cosine / temperature - log_partition(s, t, temperature)
    return torch.stack([1 - cosine.mean(), -log_own.mean(), F.relu(margin - log_own.exp()).mean()])


def uninet_losses(
    teachers: tuple[Tensor, ...], students: tuple[Tensor, ...], config: UninetConfig
) -> dict[str, Tensor]:
    """The losses summed over layers and teachers.

    Args:
        teachers: six maps (B, C, h, w).
        students: six maps (B, C, h, w), after feature selection.
        config: gives temperature, margin and weights.

    Returns:
        ``cosine``, ``contrastive`` and ``margin``, and ``loss``, their weighted sum.
    """
    pairs = zip(teachers, students, strict=True)
    each = torch.stack(
        [pair_losses(t, s, config.temperature, config.margin) for t, s in pairs]
    )  # (6, 3)
    cosine, contrastive, margin = each.sum(0)
    loss = config.cosine_weight * cosine + (1 - config.cosine_weight) * contrastive + margin
    return {"loss": loss, "cosine": cosine, "contrastive": contrastive, "margin": margin}


class UninetTrainer(BaseTrainer):
    """Trains bottleneck, decoder and feature selection, and slowly the target teacher."""

    config: UninetConfig
    model: UninetModel
    config_class = UninetConfig

    def build_model(self) -> UninetModel:
        config = self.config
        return UninetModel(config.backbone, config.weights, config.alpha, config.beta, config.sigma)

    @classmethod
    def check_inputs(cls, config: UninetConfig, train_config: TrainConfig) -> list[str]:
        size = train_config.input_size
        if size % 32:
            below = size // 32 * 32
            near = f"{below} or {below + 32}" if below else "32"
            raise InputError(
                f"input size {size} does not suit uninet: img_size (or crop_size) must be a multiple of 32; use {near}"
            )
        return []

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        model, config = self.model, self.config
        learnt = [
            *model.bottleneck.parameters(),
            *model.decoder.parameters(),
            *model.selection.parameters(),
        ]
        groups: list[dict[str, Any]] = [
            {"params": learnt},
            {"params": list(model.target.parameters()), "lr": config.teacher_lr},
        ]
        # Fused: half the time of the update, a few per cent of a small batch's step.
        return torch.optim.AdamW(
            groups, config.lr, weight_decay=config.weight_decay, fused=True
        ), None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        # The statistics of one image are not the product's.
        self.model.target.train(len(batch.image) > 1)
        teachers, students = self.model.compare(batch.image, batch.features)
        losses = uninet_losses(teachers, self.model.selection(teachers, students), self.config)
        self.optimize(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}
