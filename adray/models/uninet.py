"""UniNet: A Contrastive Learning-guided Unified Framework with Feature Selection for AD.

S. Wei et al., CVPR 2025.

Paper: https://pangdatangtt.github.io/static/pdfs/UniNet__arXix_.pdf
Reference: https://github.com/pangdatangtt/UniNet (MIT; facts only).

Two teachers start from the same pretrained network. The source teacher stays frozen; the target
teacher follows the product's images, with batch norm statistics of their own and a tiny learning
rate. A bottleneck and a decoder, the student, restore the maps of both, and the comparison is
crossed: what is restored from the target teacher's maps has to resemble the source teacher's, and
the other way round. In training the student's maps are first weighted by where each channel of the
teacher's is strong (domain-related feature selection), and have to resemble their own position more
than all others (similarity contrastive loss). The map is the sum over both teachers and three
depths of one minus the cosine. The score is the mean of the smoothed map's highest values; how many
of these count, the image's own six maps decide (weighted decision mechanism), so that no statistic
of training or test images enters it.

Differs from the paper: defects are never learnt from, so the margin loss has its part for normal
positions only.
Differs from the reference:
- It takes a temperature of 0.1 for five categories, and no feature selection and a higher
  `teacher_lr` for one, by their names; here one configuration serves all. It keeps the epoch that
  is best on test images, and stops when they get no better; here all epochs are trained and the
  last counts.
- Its 7x7 branches are replaced by 3x3 ones before training, and initialised anew: what it trains,
  and what is here, are two 3x3 branches of equal shape, without the biases that the batch norm
  behind them would undo.
- Its theta is never registered as a parameter and stays at 1; here it learns, as in the paper.
- The contrastive loss is a log-softmax without its bounds of 1e-8, and never holds the similarities
  of all pairs of positions together.
- A batch of one, as the last one of an epoch may be, passes the target teacher with the running
  statistics, which it leaves alone. Bottleneck and decoder see both teachers' maps of it, which
  makes two.
- The number of values whose mean is the score is not rounded down: the last one counts by the
  fraction, so that the rounding errors of another batch size cannot add a whole value. It is at
  least 1.
- Smoothing mirrors at the image's edge without repeating it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, load_network
from adray.components.resnet import ResNetPlan
from adray.components.resnet_decoder import ResNetDecoder, init_residual, resnet_plan
from adray.methods.uninet import METHODS, UninetConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_SIMILARITIES = 2**24
"""Similarities that are in memory together, 64 MiB of them."""


def conv_norm(
    channels_in: int, channels: int, kernel_size: int, stride: int = 1
) -> list[nn.Module]:
    """Build a convolution that keeps the side, or halves it with stride 2, and batch norm."""
    # The batch norm would undo a bias.
    conv = nn.Conv2d(
        channels_in, channels, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    return [conv, nn.BatchNorm2d(channels)]


def two_convolutions(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Build two 3x3 convolutions, of which the first has the stride."""
    return nn.Sequential(
        *conv_norm(channels_in, channels, 3, stride),
        nn.ReLU(inplace=True),
        *conv_norm(channels, channels, 3),
    )


class AttentionBottleneck(nn.Module):
    """A residual block of two branches, one per half of the channels, mixed by a 1x1 convolution.

    Args:
        channels_in: channels of the input.
        plan: of the backbone; the output has ``512 * expansion`` channels.
        stride: 2 halves the side.
    """

    def __init__(self, channels_in: int, plan: ResNetPlan, stride: int) -> None:
        super().__init__()
        width = 512 * plan.base_width // 64
        channels = 512 * plan.block.expansion
        self.first = two_convolutions(channels_in // 2, width // 2, stride)
        self.second = two_convolutions(channels_in // 2, width // 2, stride)
        self.mix = nn.Sequential(*conv_norm(width, channels, 1))

        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(*conv_norm(channels_in, channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Go from (B, channels_in, H, W) to (B, 512 * expansion, H / stride, W / stride)."""
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
        channels = 512 * plan.block.expansion

        # Both finer maps come to the grid and the channels of the third.
        self.from_layer1 = nn.Sequential(
            *conv_norm(first, second, 3, 2), nn.ReLU(), *conv_norm(second, third, 3, 2)
        )
        self.from_layer2 = nn.Sequential(*conv_norm(second, third, 3, 2))
        self.stage = nn.Sequential(
            AttentionBottleneck(3 * third, plan, stride=2),
            AttentionBottleneck(channels, plan, stride=1),
            AttentionBottleneck(channels, plan, stride=1),
        )
        init_residual(self)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Embed the maps of layer1, layer2 and layer3, of strides 4, 8 and 16.

        Returns:
            (B, 512 * expansion, H/32, W/32).
        """
        layer1, layer2, layer3 = features
        first = F.relu(self.from_layer1(layer1))
        second = F.relu(self.from_layer2(layer2))
        return self.stage(torch.cat([first, second, layer3], 1))


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
        """Weight the student's maps: the layers of one teacher, then those of the other.

        Args:
            teachers: six maps (B, C, h, w).
            students: six maps (B, C, h, w).

        Returns:
            The weighted six, float32, in the same order.
        """
        bounds = [bounded(theta) for theta in self.theta]
        selected = []
        for teacher, student, theta in zip(teachers, students, bounds * 2, strict=True):
            selected.append(select(teacher, student, theta))
        return tuple(selected)


def bounded(theta: Tensor) -> Tensor:
    """Bring what is learnt, of which 0 gives 1, to (0.5, 1]."""
    # Not `clamp`, whose gradient is 0 at its bound, where theta starts and then would stay.
    return torch.minimum(theta.sigmoid() + 0.5, torch.ones_like(theta))


def select(teacher: Tensor, student: Tensor, theta: Tensor) -> Tensor:
    """Weight the student's map by where, and by how much, the teacher's is strong.

    That is the teacher's softmax over positions times (theta plus the teacher's mean).

    Args:
        teacher: (B, C, h, w).
        student: (B, C, h, w).
        theta: (C, 1, 1), what `bounded` gives.

    Returns:
        (B, C, h, w) float32.
    """
    # The paper subtracts the largest value before its softmax, as torch does itself.
    teacher = teacher.float()
    where = teacher.flatten(2).softmax(2).unflatten(2, teacher.shape[2:])  # (B, C, h, w)
    return student.float() * where * (theta + teacher.mean((2, 3), keepdim=True))


class UninetModel(nn.Module):
    """A frozen and a learning teacher, and the student that restores their maps crosswise.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: UninetConfig) -> None:
        super().__init__()
        self.source = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        self.target = load_network(config.backbone, config.layers, self.source.weight_file)
        self.bottleneck = UninetBottleneck(config.backbone)
        self.decoder = ResNetDecoder(config.backbone)
        self.selection = FeatureSelection(resnet_plan(config.backbone).channels)
        self.blur = GaussianBlur2d(config.sigma)
        self.alpha = config.alpha
        self.beta = config.beta

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the source teacher's maps of (B, 3, H, W), one (B, C, h, w) per layer."""
        return self.source(image)

    def compare(
        self, image: Tensor, source: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Give the maps that have to be alike, crosswise.

        Args:
            image: (B, 3, H, W) normalised.
            source: what `features(image)` gives.

        Returns:
            Six maps (B, C, h, w) of the teachers, first the source's three layers, then the
            target's. And six of the decoder in the same order, first those restored from the
            target's maps, then those from the source's.
        """
        target = tuple(self.target(image))
        # Both teachers' maps go through the student as one batch, (2B, C, h, w) per layer.
        both = tuple(torch.cat(pair) for pair in zip(target, source, strict=True))
        restored = self.decoder(self.bottleneck(both))

        from_target = []
        from_source = []
        for layer in restored:
            first, second = layer.chunk(2)
            from_target.append(first)
            from_source.append(second)
        return (*source, *target), (*from_target, *from_source)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Compare the teachers' maps with those restored from the other teacher's.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 32.
            features: what `features(image)` gives, or None.

        Returns:
            The sum of the six cosine distances, each in [0, 2], as (B, 1, H, W), not smoothed, and
            the mean of its highest values when smoothed, (B,).
        """
        source = self.features(image) if features is None else features
        teachers, students = self.compare(image, source)
        distances = cosine_distances(teachers, students)
        anomaly_map = distance_map(distances, (image.shape[2], image.shape[3]))

        part = decisive_part(distances, self.alpha, self.beta)
        most = max(2 * self.alpha, self.beta)  # no cosine distance is above 2
        smoothed = self.blur(anomaly_map).flatten(1)
        return Prediction(highest_mean(smoothed, part, most), anomaly_map)


def cosine_distances(teachers: tuple[Tensor, ...], students: tuple[Tensor, ...]) -> list[Tensor]:
    """Take one minus the cosine at each position, (B, h, w) float32 per pair of (B, C, h, w)."""
    distances = []
    for teacher, student in zip(teachers, students, strict=True):
        cosine = F.cosine_similarity(teacher.float(), student.float(), dim=1)
        distances.append(1 - cosine)
    return distances


def distance_map(distances: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Enlarge maps (B, h, w) to `size` H and W and sum them, (B, 1, H, W)."""
    enlarged = []
    for distance in distances:
        small = distance.unsqueeze(1)  # (B, 1, h, w)
        enlarged.append(F.interpolate(small, size, mode="bilinear", align_corners=True))
    return torch.stack(enlarged).sum(0)


def decisive_part(distances: list[Tensor], alpha: float, beta: float) -> Tensor:
    """Give the part of an image's pixels that decide on it (weighted decision mechanism).

    The largest distances of all maps go through a softmax. The mean of those whose probability is
    above average, times `alpha`, but at least `beta`, is the part.

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
    """Average the highest values of each row, of which there need not be a whole number.

    Args:
        values: (B, N).
        part: of the N values of a row that count, (B,). At least one counts.
        most: upper bound of `part`, which bounds what is sorted.

    Returns:
        (B,).
    """
    total = values.shape[1]
    count = (part * total).clamp(1, total)
    highest = values.topk(min(total, math.ceil(most * total) + 1), 1).values  # (B, K)

    # 1 for those that count, a fraction for the last of them, 0 behind it.
    rank = torch.arange(highest.shape[1], device=values.device)
    weight = (count.unsqueeze(1) - rank).clamp(0, 1)
    return (highest * weight).sum(1) / count


def uninet_losses(
    teachers: tuple[Tensor, ...], students: tuple[Tensor, ...], config: UninetConfig
) -> dict[str, Tensor]:
    """Sum the losses over layers and teachers.

    Args:
        teachers: six maps (B, C, h, w).
        students: six maps (B, C, h, w), after feature selection.
        config: gives temperature, margin and weights.

    Returns:
        ``cosine``, ``contrastive`` and ``margin``, and ``loss``, their weighted sum.
    """
    each = []
    for teacher, student in zip(teachers, students, strict=True):
        each.append(pair_losses(teacher, student, config.temperature, config.margin))
    cosine, contrastive, margin = torch.stack(each).sum(0)  # of (6, 3)

    loss = config.cosine_weight * cosine + (1 - config.cosine_weight) * contrastive + margin
    return {"loss": loss, "cosine": cosine, "contrastive": contrastive, "margin": margin}


def pair_losses(teacher: Tensor, student: Tensor, temperature: float, margin: float) -> Tensor:
    """Compute the three losses of one pair of maps, each a mean over batch and positions.

    Args:
        teacher: (B, C, h, w).
        student: (B, C, h, w), after feature selection.
        temperature: of the softmax over the teacher's positions.
        margin: what the probability of the own position should reach.

    Returns:
        (3,) float32: one minus the cosine, minus the log of the softmax probability of the own
        position, and what this probability lacks to the margin.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        t = F.normalize(teacher.float().flatten(2), dim=1)  # (B, C, h*w)
        s = F.normalize(student.float().flatten(2), dim=1)  # (B, C, h*w)
        # (B, h*w), also the diagonal of all similarities.
        cosine = (t * s).sum(1)
        log_own = cosine / temperature - log_partition(s, t, temperature)
    return torch.stack([1 - cosine.mean(), -log_own.mean(), F.relu(margin - log_own.exp()).mean()])


def log_partition(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Take the log of the sum over the teacher's positions of exp(cosine / temperature).

    The similarities of 4096 positions (layer1 at 256 pixels) with each other are 64 MiB per image,
    and autograd would keep several such matrices. They are made for some rows at a time instead,
    and once more on the way back.

    Args:
        student: (B, C, N) of unit length along C.
        teacher: (B, C, N) of unit length along C.
        temperature: divides the cosines.

    Returns:
        (B, N), one for each of the student's positions.
    """
    rows = max(1, _SIMILARITIES // (len(student) * teacher.shape[2]))
    parts = []
    for some in student.split(rows, dim=2):
        part = checkpoint(
            _log_partition_of_rows,
            some,
            teacher,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        parts.append(part)
    return torch.cat(parts, 1)


def _log_partition_of_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Do the same for (B, C, n) of the student's positions with all similarities in memory."""
    similarity = (student / temperature).mT @ teacher  # (B, n, N)
    return torch.logsumexp(similarity, 2)


class UninetTrainer(BaseTrainer):
    """Trains bottleneck, decoder and feature selection, and slowly the target teacher."""

    config: UninetConfig
    model: UninetModel
    method = METHODS["UninetTrainer"]

    def build_model(self) -> UninetModel:
        return UninetModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        config = self.config
        model = self.model
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
        optimizer = torch.optim.AdamW(
            groups, config.lr, weight_decay=config.weight_decay, fused=True
        )
        return optimizer, None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        # The statistics of one image are not the product's.
        self.model.target.train(len(batch.image) > 1)

        teachers, students = self.model.compare(batch.image, batch.features)
        losses = uninet_losses(teachers, self.model.selection(teachers, students), self.config)
        self.optimize(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}
