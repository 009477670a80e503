"""GeneralAD: Anomaly Detection Across Domains by Attending to Distorted Features (L. Sträter et al.).

ECCV 2024, https://arxiv.org/abs/2407.12427
Reference: https://github.com/LucStrater/GeneralAD (MIT, facts only).

The last block of a frozen DINOv2, with its last layer norm, describes each patch. A discriminator of
one transformer block, which sees all patches of an image together and where each lies, learns to
tell normal patches from those with noise on them: all patches of an image, and a random part of
them, whose others have to stay normal. The map is the smoothed logits, the score the mean of the
worst patches.

Memory: 4 * P * D bytes are kept of each training image, 5.6 MB for ViT-L at 518 px.

Differs from the paper: where parts can be in wrong places (`shuffle`), patches are drawn evenly, as
the reference's `randshuffle` does. The paper draws those that the transformer attends to most.

Differs from the reference:

- The last epoch is taken. There it is the one with the best AUROC on the test set, of images for the
  published table of images and of pixels for that of pixels.
- The learning rate falls with each step, there with each epoch.
- A last batch that is not full is trained on. The reference drops it.
- An image all of whose patches got noise leaves no normal ones. Their mean is then 0, there it is not
  a number where it happens in a whole batch.
- Tokens are rounded to float16, as they lie in the files that trials share.
- The map's smoothing mirrors the border without the edge pixel, scipy's filter there repeats it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.architectures import DINOV2_PATCH
from adray.components.blur import GaussianBlur2d
from adray.components.dinov2_extractor import (
    Dinov2Extractor,
    check_dinov2_file,
    normed_patches,
)
from adray.components.inside import top_mean_inside
from adray.methods.generalad import METHODS, GeneraladConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_TRUNCATE = 18 / 16
"""Half width of the map's Gaussian in standard deviations (reference)."""


class AttentionBlock(nn.Module):
    """A transformer block that normalises once, after the attention.

    Args:
        width: D of a patch.
        heads: that share it.
        hidden: width inside of the MLP.
        dropout: of attention, MLP and both sums.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
        )
        self.dropout = nn.Dropout(dropout)
        # As torch's own attention starts.
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """Mix patches with each other, (B, P, D) to (B, P, D)."""
        patches = self.norm(patches + self.dropout(self._attend(patches)))
        return patches + self.dropout(self.mlp(patches))

    def _attend(self, patches: Tensor) -> Tensor:
        """Let (B, P, D) patches look at each other, (B, P, D)."""
        query, key, value = rearrange(
            self.qkv(patches), "b p (three h d) -> three b h p d", three=3, h=self.heads
        )
        dropped = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped)
        return self.proj(rearrange(mixed, "b h p d -> b p (h d)"))


class Discriminator(nn.Module):
    """Says of each patch of an image whether it is anomalous.

    Args:
        width: D of a patch.
        count: P, patches of an image.
        config: heads, hidden width and dropout.
    """

    def __init__(self, width: int, count: int, config: GeneraladConfig) -> None:
        super().__init__()
        self.block = AttentionBlock(width, config.heads, config.hidden, config.dropout)
        self.projection = nn.Linear(width, 1, bias=False)
        self.position = nn.Parameter(torch.randn(count, width))

    def forward(self, patches: Tensor) -> Tensor:
        """Give logits (B, P) of patches (B, P, D), above 0 for rather anomalous than not."""
        return self.projection(self.block(patches + self.position)).squeeze(2)


class GeneraladModel(nn.Module):
    """A frozen transformer and a discriminator of its patches.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.
    """

    def __init__(self, config: GeneraladConfig, input_size: int) -> None:
        super().__init__()
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        self.norm = self.extractor.last_norm()
        side = input_size // DINOV2_PATCH
        self.grid = (side, side)
        width = len(self.norm.weight)
        self.discriminator = Discriminator(width, side * side, config)
        self.top_patches = min(config.top_patches, side * side)
        self.blur = GaussianBlur2d(config.sigma, truncate=_TRUNCATE)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe the patches of (B, 3, H, W), (B, P, D)."""
        return self.condense(self.extractor(image))

    @torch.no_grad()
    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalise the patches of the layer's (B, T, D) tokens, (B, P, D) float32."""
        return (normed_patches(maps[0], self.norm, self.extractor.num_prefix),)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Tell whether and where a batch is anomalous.

        Args:
            image: (B, 3, H, W) normalised, of the side that it was built for.
            features: what `features(image)` gives, or None.

        Returns:
            The smoothed logits (B, 1, H, W), above 0 for rather anomalous than not, and the mean of
            those of the worst patches (B,).
        """
        (patches,) = self.features(image) if features is None else features
        logits = self.discriminator(patches).float()  # (B, P)
        worst = logits.topk(self.top_patches, dim=1).values
        small = logits.unflatten(1, (1, *self.grid))
        anomaly_map = self.blur.enlarge(small, (image.shape[2], image.shape[3]))
        return Prediction(worst.mean(1), anomaly_map)


# Anomalous patches


def drawn_parts(count: int, patches: int, device: torch.device) -> Tensor:
    """Draw a random part of an image's patches, of a random size from one to all.

    Returns:
        (count, patches) bool.
    """
    sizes = torch.randint(1, patches + 1, (count, 1), device=device)
    # The rank of each patch in a random order.
    order = torch.rand(count, patches, device=device).argsort(1).argsort(1)
    return order < sizes


def shuffled(patches: Tensor, chosen: Tensor) -> Tensor:
    """Exchange the chosen patches of each image with each other.

    Args:
        patches: (B, P, D).
        chosen: (B, P) bool.
    """
    mixed = patches.clone()
    for image, own in zip(mixed, chosen, strict=True):
        places = own.nonzero().squeeze(1)
        moved = places[torch.randperm(len(places), device=places.device)]
        image[places] = image[moved]
    return mixed


def two_sided_loss(logits: Tensor, anomalous: Tensor) -> Tensor:
    """Add up the mean cross-entropies of anomalous and of normal patches.

    Args:
        logits: (B, P).
        anomalous: (B, P) bool. A mean over no patch is 0.

    Returns:
        Scalar.
    """
    truth = anomalous.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = (entropy * truth).sum() / truth.sum().clamp_min(1)
    right = (entropy * (1 - truth)).sum() / (1 - truth).sum().clamp_min(1)
    return wrong + right


def lr_factor(step: int, total_steps: int, final: float) -> float:
    """Give the learning rate of a step as a multiple of the first, along half a cosine."""
    done = min(1.0, step / total_steps)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


class GeneraladTrainer(BaseTrainer):
    """Trains the discriminator on the transformer's cached patches."""

    config: GeneraladConfig
    model: GeneraladModel
    method = METHODS["GeneraladTrainer"]

    @classmethod
    def check_weight_file(cls, config: GeneraladConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> GeneraladModel:
        return GeneraladModel(self.config, self.train_config.input_size)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        config = self.config
        learnt = self.model.discriminator.parameters()
        adam = torch.optim.AdamW(learnt, config.lr, weight_decay=config.weight_decay)
        final = config.final_lr / config.lr if config.lr else 0.0

        def factor(step: int) -> float:
            return lr_factor(step, total_steps, final)

        return adam, torch.optim.lr_scheduler.LambdaLR(adam, factor)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        (patches,) = batch.features
        noise = self.config.noise_std * torch.randn_like(patches)
        part = drawn_parts(len(patches), patches.shape[1], patches.device)

        judge = self.model.discriminator
        everywhere = torch.ones_like(part)
        losses = {
            "normal": two_sided_loss(judge(patches), ~everywhere),
            "noise": two_sided_loss(judge(patches + noise), everywhere),
            "part": two_sided_loss(judge(patches + noise * part.unsqueeze(2)), part),
        }
        if self.config.shuffle:
            moved = drawn_parts(len(patches), patches.shape[1], patches.device)
            losses["shuffle"] = two_sided_loss(judge(shuffled(patches, moved)), moved)

        loss = torch.stack(list(losses.values())).sum()
        self.optimize(loss)
        return {"loss": loss.detach()} | {name: one.detach() for name, one in losses.items()}

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        patches = self.model.grid[0] * self.model.grid[1]
        return top_mean_inside(anomaly_map, inside, self.model.top_patches / patches)

    def notes(self) -> list[str]:
        return self.model.extractor.notes()
