"""Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection.

J. Guo et al., CVPR 2025.

Paper: https://arxiv.org/abs/2405.14325
Reference: https://github.com/guojiajeremy/Dinomaly (Apache-2.0; facts only).

A frozen DINOv2 gives the tokens of an image after eight of its blocks, before its last layer norm.
Their mean goes through a bottleneck with much dropout, from which a decoder of eight transformer
blocks learns to give them back on normal images. Everything keeps it from copying what it never saw:
the dropout is noise, its attention is linear and so cannot focus, it has to match only the means of
two groups of layers, and positions that it restores well hardly teach it any more. The map is one
minus the cosine between the encoder's and the decoder's features, mean over the groups; the score is
the mean of the smoothed map's largest hundredth. One model serves many products: give it merged
categories (`all`).

The encoder runs once per image. What is kept of it are the means of both groups, 2 x tokens x width
float32 numbers; the bottleneck's input is the mean of these two. In MB per image:

    input    small   base   large
    224 px     0.8    1.6     2.1
    392 px     2.4    4.8     6.5
    448 px     3.2    6.3     8.4

A category of MVTec AD (60 to 391 images) takes 0.05 to 3.3 GB, which the setting `feature_gb` (8)
leaves in memory. All 15 at once (3629 images) fit at 224 px only; base-392 takes 18 GB and
large-448 31 GB, which go to a file in `cache_dir`, so that a disk that reads less than some hundred
MB/s holds a GPU up.

`recenter` adds what Dinomaly2 (https://arxiv.org/abs/2510.17611) calls context recentring: what an
image as a whole is, its class token, is taken away from its patches. Patches of different products
then lie closer together. Dinomaly2's authors published no code, and what else is new in it is not
here.

The registry's 5000 steps are the authors' for one category; for merged ones they take 10000, for
those of Real-IAD 50000 (`max_steps`).

Differs from the paper: nothing in the method. Differs from the reference:

- 1e-6 is added to the denominator of linear attention, as its authors advise against NaN.
- The warm-up takes at most half of a short training, and its first step is 1/100 of lr rather than
  none.
- A last batch that is not full is trained on. The reference drops it.
- The position embedding is resampled with antialiasing whatever the encoder. So does the
  reference's code for encoders with registers, which the paper takes. For those without it leaves
  antialiasing out, see `adray.components.dinov2_extractor`.
- The map stays at the size of the input and unsmoothed. Only the score comes from the smoothed one
  of 256 x 256, as there.
- That smoothing mirrors the border, where the reference's convolution sees zeros, which make a
  corner a third as anomalous as it is. A defect at the rim counts here as much as one inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.dinov2_extractor import (
    DINOV2S,
    Dinov2Extractor,
    check_dinov2_file,
)
from adray.components.restored_tokens import (
    SmoothedScore,
    distance_map,
    group_means,
    init_weights,
    lr_factor,
    whole_cosine_loss,
    with_gradient_times,
)
from adray.components.stable_adamw import StableAdamW
from adray.methods.dinomaly import METHODS, DinomalyConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_MLP_RATIO = 4
"""Hidden width of bottleneck and MLPs over that of a token."""
_NORM_EPS = 1e-8
"""Added to the variance in layer norm."""
_ATTENTION_EPS = 1e-6
"""Added to the denominator of linear attention."""


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend without softmax, linearly in the number of tokens (unfocused linear attention).

    Args:
        query: (B, H, T, d) of H heads.
        key: (B, H, T, d).
        value: (B, H, T, d).

    Returns:
        (B, H, T, d) float32: weighted means of `value`, the weights being positive.
    """
    # float32 for sums over all tokens, and a quotient of them.
    with torch.autocast(query.device.type, enabled=False):
        query = F.elu(query.float()) + 1
        key = F.elu(key.float()) + 1
        weighted = query @ (key.transpose(-2, -1) @ value.float())  # (B, H, T, d)
        total = query @ key.sum(-2).unsqueeze(-1)  # (B, H, T, 1)
        return weighted / (total + _ATTENTION_EPS)


class LinearAttention(nn.Module):
    """Linear attention of several heads between two linear layers.

    Args:
        width: D.
        heads: that share it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens with each other, (B, T, D) to (B, T, D)."""
        heads = rearrange(
            self.qkv(tokens), "b t (three h d) -> three b h t d", three=3, h=self.heads
        )
        query, key, value = heads
        mixed = linear_attention(query, key, value)
        return self.proj(rearrange(mixed, "b h t d -> b t (h d)"))


class DecoderBlock(nn.Module):
    """A transformer block with linear attention.

    Args:
        width: D.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = LinearAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(width, _MLP_RATIO * width),
            nn.GELU(),
            nn.Linear(_MLP_RATIO * width, width),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Add attention and MLP to tokens, (B, T, D) to (B, T, D)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Decoder(nn.Module):
    """The noisy bottleneck and the transformer blocks behind it: all that is learnt.

    Args:
        width: D of a token.
        heads: of the attention.
        depth: number of blocks, even.
        dropout: of the bottleneck.
    """

    def __init__(self, width: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, _MLP_RATIO * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(_MLP_RATIO * width, width),
            nn.Dropout(dropout),
        )
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.apply(init_weights)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Restore the means of both groups of layers from the mean of all, each (B, T, D)."""
        tokens = self.bottleneck(tokens)
        restored = []
        for block in self.blocks:
            tokens = block(tokens)
            restored.append(tokens)

        # The last block stands for the encoder's first.
        restored.reverse()
        return group_means(tuple(restored))


class DinomalyModel(nn.Module):
    """A frozen DINOv2, and the decoder that restores its features.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: DinomalyConfig) -> None:
        super().__init__()
        self.encoder = Dinov2Extractor(config.backbone, config.layers, config.weights)
        size = DINOV2S[config.backbone]
        self.recenter = config.recenter
        self.decoder = Decoder(size.width, size.heads, len(config.layers), config.dropout)
        self.score = SmoothedScore()

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the means of both groups of the encoder's layers, (B, T, D) float32 each.

        Recentred ones are of the patches alone.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
        """
        layers = self.encoder(image)
        if self.recenter:
            layers = recentered(layers, self.encoder.num_prefix)
        return group_means(layers)

    def targets_and_restored(
        self, features: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Give the patches of both groups as the encoder has and as the decoder restores them.

        Args:
            features: what `features(image)` gives.

        Returns:
            Targets and restored, (B, P, D) float32 per group.
        """
        first, second = features
        # The groups are of equal size, so that this is the mean of all layers.
        restored = self.decoder((first + second) / 2)

        # Class token and registers do not count, where they are there.
        prefix = 0 if self.recenter else self.encoder.num_prefix
        targets = (first[:, prefix:], second[:, prefix:])
        return targets, tuple(group[:, prefix:] for group in restored)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Compare what the decoder restores with what the encoder gives.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            The map (B, 1, H, W) in [0, 2], and the score (B,) as `SmoothedScore` makes it of
            the map.
        """
        features = self.features(image) if features is None else features
        targets, restored = self.targets_and_restored(features)
        anomaly_map = distance_map(targets, restored, (image.shape[2], image.shape[3]))
        return Prediction(self.score(anomaly_map), anomaly_map)


def recentered(layers: tuple[Tensor, ...], prefix: int) -> tuple[Tensor, ...]:
    """Subtract each layer's class token from its patches (context recentring, Dinomaly2).

    Args:
        layers: (B, T, D) each.
        prefix: tokens before the patches, of which the class token is the first.

    Returns:
        The patches alone, (B, P, D) each.
    """
    moved = []
    for tokens in layers:
        moved.append(tokens[:, prefix:] - tokens[:, :1])
    return tuple(moved)


def dinomaly_loss(
    targets: tuple[Tensor, ...], restored: tuple[Tensor, ...], easy_part: float, factor: float
) -> Tensor:
    """Take one minus the cosine of each image's whole flattened features (loose loss).

    Args:
        targets: (B, P, D) per group.
        restored: (B, P, D) per group.
        easy_part: see `loosened`, as for `factor`.
        factor: changes the gradient only.

    Returns:
        Scalar, the mean over batch and groups.
    """
    loose = []
    for target, given in zip(targets, restored, strict=True):
        loose.append(loosened(target, given, easy_part, factor))
    return whole_cosine_loss(targets, loose)


def loosened(target: Tensor, restored: Tensor, easy_part: float, factor: float) -> Tensor:
    """Leave `restored` as it is, but reduce its gradient where it is close to its target.

    Args:
        target: (B, P, D).
        restored: (B, P, D).
        easy_part: part of all positions of the batch, those with the smallest distances.
        factor: what their gradient is multiplied by (loose loss).
    """
    if not restored.requires_grad:
        return restored
    distance = 1 - F.cosine_similarity(target, restored.detach(), dim=2)  # (B, P)
    hard = max(1, int((1 - easy_part) * distance.numel()))
    threshold = distance.flatten().kthvalue(distance.numel() - hard + 1).values
    weight = torch.where(distance < threshold, factor, 1.0).unsqueeze(2)  # (B, P, 1)
    return with_gradient_times(restored, weight)


class DinomalyTrainer(BaseTrainer):
    """Trains bottleneck and decoder on the encoder's cached features."""

    config: DinomalyConfig
    model: DinomalyModel
    method = METHODS["DinomalyTrainer"]
    checkpoint_version = 2  # before there were no biases in bottleneck and MLPs

    @classmethod
    def check_weight_file(cls, config: DinomalyConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> DinomalyModel:
        return DinomalyModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        config = self.config
        learnt = self.model.decoder.parameters()
        optimizer = StableAdamW(learnt, config.lr, weight_decay=config.weight_decay, amsgrad=True)
        final = config.final_lr / config.lr if config.lr else 0.0

        def factor(step: int) -> float:
            return lr_factor(step, total_steps, config.warmup_steps, final)

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        config = self.config
        easy_part = config.easy_part * min(1.0, self.step / config.easy_steps)
        targets, restored = self.model.targets_and_restored(batch.features)
        loss = dinomaly_loss(targets, restored, easy_part, config.easy_factor)
        self.optimize(loss, config.clip_norm)
        return {"loss": loss.detach()}

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return self.model.score.inside(anomaly_map, inside)

    def notes(self) -> list[str]:
        encoder = self.model.encoder
        if encoder.weight_file is None:
            return []

        registers = "without registers; the paper's has four"
        if encoder.registers:
            registers = f"{encoder.registers} registers"
        origin = f"{encoder.backbone} in {encoder.layout}'s layout"
        return [f"encoder {encoder.weight_file.name}: {origin}, {registers}"]
