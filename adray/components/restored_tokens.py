"""Tokens of a transformer beside what a decoder restores of them: groups, map, score, schedule.

Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection (J. Guo et al.,
CVPR 2025), https://arxiv.org/abs/2405.14325, from which INP-Former takes them over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.architectures import DINOV2_PATCH
from adray.components.blur import GaussianBlur2d
from adray.components.inside import top_mean_inside
from adray.components.top_mean import TOP_PART, top_mean

_SCORE_SIZE = 256
"""Side in pixels of the map that the score comes from."""


def group_means(layers: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Average either half of an even number of tensors, in float32 (loose constraint)."""
    half = len(layers) // 2
    first = torch.stack(layers[:half]).float().mean(0)
    second = torch.stack(layers[half:]).float().mean(0)
    return first, second


def distance_map(
    targets: tuple[Tensor, ...], restored: tuple[Tensor, ...], size: tuple[int, int]
) -> Tensor:
    """Take one minus the cosine at each position, mean over groups, and enlarge it.

    Args:
        targets: (B, P, D) per group.
        restored: (B, P, D) per group.
        size: H and W of the images, of P patches.

    Returns:
        (B, 1, H, W) float32 in [0, 2].
    """
    distances = []
    for target, given in zip(targets, restored, strict=True):
        distances.append(1 - F.cosine_similarity(target, given, dim=2))  # (B, P)

    grid = (size[0] // DINOV2_PATCH, size[1] // DINOV2_PATCH)
    small = torch.stack(distances, 1).unflatten(2, grid)  # (B, groups, h, w)

    # The mean of the groups is enlarged: bilinear interpolation is linear, so that the order does
    # not matter.
    return F.interpolate(small.mean(1, keepdim=True), size, mode="bilinear", align_corners=True)


def whole_cosine_loss(targets: Sequence[Tensor], restored: Sequence[Tensor]) -> Tensor:
    """Take one minus the cosine of each image's whole flattened features.

    Args:
        targets: (B, P, D) per group.
        restored: (B, P, D) per group.

    Returns:
        Scalar, the mean over batch and groups.
    """
    losses = []
    for target, given in zip(targets, restored, strict=True):
        cosine = F.cosine_similarity(target.flatten(1), given.flatten(1))  # (B, P*D) to (B,)
        losses.append(1 - cosine)
    return torch.stack(losses).mean()


def with_gradient_times(values: Tensor, weight: Tensor) -> Tensor:
    """Give values that need a gradient as they are, but multiply their gradient by a weight."""
    # A hook on the tensor itself would also see what it is used for elsewhere.
    passed = values.view_as(values)
    passed.register_hook(lambda gradient: gradient * weight)
    return passed


class SmoothedScore(nn.Module):
    """Scores images by the largest hundredth of their maps, smoothed at 256 x 256 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = GaussianBlur2d(4.0, truncate=0.5)  # 5 x 5

    def forward(self, anomaly_map: Tensor) -> Tensor:
        """Give the scores (B,) of maps (B, 1, H, W)."""
        return top_mean(self.blur(_shrunk(anomaly_map)))

    def inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        """Give the scores (B,) of what counts of maps (B, 1, H, W).

        Args:
            anomaly_map: of any size.
            inside: (B, 1, H, W) bool, true for the pixels that count.
        """
        counted = F.interpolate(inside.float(), (_SCORE_SIZE, _SCORE_SIZE), mode="area") >= 0.5
        # A region of a few pixels may be lost on the smaller grid.
        counted |= ~counted.any(3, keepdim=True).any(2, keepdim=True)
        return top_mean_inside(self.blur(_shrunk(anomaly_map)), counted, TOP_PART)


def _shrunk(anomaly_map: Tensor) -> Tensor:
    """Bring maps (B, 1, H, W) to the size at which they are scored."""
    size = (_SCORE_SIZE, _SCORE_SIZE)
    return F.interpolate(anomaly_map, size, mode="bilinear", align_corners=False)


def init_weights(module: nn.Module) -> None:
    """Draw the initial weights of a linear layer as the references do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def lr_factor(step: int, total_steps: int, warmup_steps: int, final: float) -> float:
    """Give the learning rate of a step as a multiple of the highest.

    Args:
        step: counted from 0.
        total_steps: of the training.
        warmup_steps: over which it rises linearly, at most half of the training.
        final: what half a cosine leads to.
    """
    warmup = min(warmup_steps, total_steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / (total_steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
