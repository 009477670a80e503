"""INP-Former: intrinsic normal prototypes of a single image (W. Luo et al., CVPR 2025).

Exploring Intrinsic Normal Prototypes within a Single Image for Universal Anomaly Detection.
Paper: https://arxiv.org/abs/2503.02424
Reference: https://github.com/luow23/INP-Former (MIT, facts only).

A frozen DINOv2 gives the patches of an image after eight of its blocks, before its last layer norm.
A few learnt queries attend to the mean of them and draw some prototypes from the image itself: what
is normal in it. A decoder restores the patches from these prototypes alone, since its attention goes
to nothing else and has no way around. Defects, of which no prototype tells, come back wrong. The map
is one minus the cosine between the encoder's and the decoder's patches, mean over two groups of
layers. The score is the mean of the smoothed map's largest hundredth. One model serves many
products: give it merged categories (`all`).

The encoder runs once per image. What is kept of it are the means of both groups, 2 x P x D float32
numbers: 4.8 MB per image with ViT-B at 392 px. Its tokens are rounded to float16, as they lie in the
files that trials share.

Differs from the paper: nothing in the method. Differs from the reference:

- Tokens are rounded to float16.
- The warm-up takes at most half of a short training, and its first step is 1/100 of lr rather than
  none.
- A last batch that is not full is trained on. The reference drops it.
- A mean distance of 0 divides by 1e-12 rather than by 0.
- The map stays at the size of the input and unsmoothed. Only the score comes from the smoothed one
  of 256 x 256, as there, where the border is mirrored. The reference's convolution sees zeros there.
- The few-shot views are drawn anew for each step, with as many of each image as fill the batch. The
  reference makes all 22 of each image once and shuffles them. Its published few-shot figures are of
  one model for all categories, which takes 16 400 steps for four images of each in MVTec AD. The
  1100 steps here are for four images of one category.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.architectures import DINOV2S
from adray.components.dinov2_extractor import Dinov2Extractor, check_dinov2_file
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
from adray.methods.inpformer import METHODS, InpformerConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_MLP_RATIO = 4
"""Hidden width of bottleneck and MLPs over that of a patch."""
_NORM_EPS = 1e-8
"""Added to the variance in layer norm."""
_ADAM_EPS = 1e-10
"""Added to the root of the second moment in StableAdamW."""
_DISTANCE_EPS = 1e-12
"""Least mean distance that positions are compared with."""
_SIXTEENTHS = (-4, -3, -2, -1, 1, 2, 3, 4)
"""Angles of turned views, in sixteenths of half a turn."""
_SHIFTS = (0.2, 0.1)
"""Of shifted views, in halves of the image's side, along both axes."""
_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey view."""


def _mlp(width: int) -> nn.Sequential:
    """Make two linear layers with a GELU between them."""
    hidden = _MLP_RATIO * width
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class PrototypeExtractor(nn.Module):
    """Draws the prototypes of an image from its patches (INP extractor).

    Args:
        width: D.
        heads: of the attention.
        count: M, prototypes per image.
    """

    def __init__(self, width: int, heads: int, count: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(count, width))
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = _mlp(width)

    def forward(self, patches: Tensor) -> Tensor:
        """Give prototypes (B, M, D) of patches (B, P, D)."""
        queries = self.queries.expand(len(patches), -1, -1)  # (B, M, D)
        prototypes = queries + self._attend(self.norm1(queries), self.norm1(patches))
        return prototypes + self.mlp(self.norm2(prototypes))

    def _attend(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Let queries (B, M, D) look at patches (B, P, D), with softmax, (B, M, D)."""
        query = rearrange(self.query(queries), "b m (h d) -> b h m d", h=self.heads)
        key, value = _keys_and_values(self.key_value(patches), self.heads)
        scale = query.shape[-1] ** -0.5
        weight = (query @ key.transpose(-2, -1) * scale).softmax(-1)  # (B, H, M, P)
        return self.proj(rearrange(weight @ value, "b h m d -> b m (h d)"))


def _keys_and_values(joined: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Take apart what one linear layer gives, (B, T, 2 D), into two (B, H, T, d)."""
    key, value = rearrange(joined, "b t (two h d) -> two b h t d", two=2, h=heads)
    return key, value


class PrototypeAttention(nn.Module):
    """Attention of patches to prototypes that leaves out what no prototype resembles.

    Args:
        width: D.
        heads: that share it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, patches: Tensor, prototypes: Tensor) -> Tensor:
        """Mix prototypes (B, M, D) for each of the patches (B, P, D), (B, P, D)."""
        query = rearrange(self.query(patches), "b p (h d) -> b h p d", h=self.heads)
        key, value = _keys_and_values(self.key_value(prototypes), self.heads)
        cosine = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)

        # ReLU rather than softmax: a patch like no prototype gets nothing.
        weight = F.relu(cosine * self.scale)  # (B, H, P, M)
        return self.proj(rearrange(weight @ value, "b h p d -> b p (h d)"))


class DecoderBlock(nn.Module):
    """A transformer block that sees patches through prototypes alone (INP-guided decoder).

    Args:
        width: D.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = PrototypeAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = _mlp(width)

    def forward(self, patches: Tensor, prototypes: Tensor) -> Tensor:
        """Restore patches (B, P, D) from prototypes (B, M, D)."""
        # No sum around the attention: it would carry defects past the prototypes.
        patches = self.attn(self.norm1(patches), self.norm1(prototypes))
        return patches + self.mlp(self.norm2(patches))


class Restorer(nn.Module):
    """Extractor of prototypes, bottleneck and decoder: all that is learnt.

    Args:
        width: D of a patch.
        heads: of all attention.
        depth: number of decoder blocks, even.
        prototypes: per image.
    """

    def __init__(self, width: int, heads: int, depth: int, prototypes: int) -> None:
        super().__init__()
        self.extractor = PrototypeExtractor(width, heads, prototypes)
        self.bottleneck = _mlp(width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(depth))
        self.apply(init_weights)

    def forward(self, patches: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Restore an image's patches.

        Args:
            patches: (B, P, D), mean of all layers.

        Returns:
            The means of both groups of layers, (B, P, D) each, and the prototypes (B, M, D).
        """
        prototypes = self.extractor(patches)
        patches = self.bottleneck(patches)
        restored = []
        for block in self.blocks:
            patches = block(patches, prototypes)
            restored.append(patches)

        # The last block stands for the encoder's first.
        restored.reverse()
        return group_means(tuple(restored)), prototypes


class InpformerModel(nn.Module):
    """A frozen DINOv2, and what restores its patches from prototypes.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: InpformerConfig) -> None:
        super().__init__()
        self.extractor = Dinov2Extractor(
            config.backbone, config.layers, config.weights, torch.float16
        )
        size = DINOV2S[config.backbone]
        self.restorer = Restorer(size.width, size.heads, len(config.layers), config.prototypes)
        self.score = SmoothedScore()

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the means of both groups of the encoder's layers, (B, P, D) float32 each.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
        """
        return self.condense(self.extractor(image))

    def condense(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Average the patches of the layers' (B, T, D) tokens, by group, (B, P, D) float32 each.

        Class token and registers are left out.
        """
        prefix = self.extractor.num_prefix
        return group_means(tuple(tokens[:, prefix:] for tokens in maps))

    def restore(self, features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Restore both groups.

        Args:
            features: what `features(image)` gives.

        Returns:
            Both groups restored, (B, P, D) each, the prototypes (B, M, D), and the patches (B, P, D)
            that they were drawn from.
        """
        first, second = features
        # The groups are of equal size, so that this is the mean of all layers.
        patches = (first + second) / 2
        restored, prototypes = self.restorer(patches)
        return restored, prototypes, patches

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Compare what the decoder restores with what the encoder gives.

        Args:
            image: (B, 3, H, W) normalised, H and W multiples of 14.
            features: what `features(image)` gives, or None.

        Returns:
            The map (B, 1, H, W) in [0, 2], and the score (B,) as `SmoothedScore` makes it of it.
        """
        features = self.features(image) if features is None else features
        restored, _, _ = self.restore(features)
        anomaly_map = distance_map(features, restored, (image.shape[2], image.shape[3]))
        return Prediction(self.score(anomaly_map), anomaly_map)


def coherence_loss(patches: Tensor, prototypes: Tensor) -> Tensor:
    """Average one minus the cosine of each patch to its nearest prototype (INP coherence loss).

    Args:
        patches: (B, P, D).
        prototypes: (B, M, D).

    Returns:
        Scalar in [0, 2].
    """
    cosine = F.normalize(patches, dim=2) @ F.normalize(prototypes, dim=2).transpose(1, 2)
    return (1 - cosine).amin(2).mean()  # over (B, P)


def soft_mining_loss(
    targets: tuple[Tensor, ...], restored: tuple[Tensor, ...], exponent: float
) -> Tensor:
    """Take one minus the cosine of each image's whole flattened features (soft mining loss).

    Args:
        targets: (B, P, D) per group.
        restored: (B, P, D) per group.
        exponent: see `focused`. It changes the gradient only.

    Returns:
        Scalar, the mean over batch and groups.
    """
    focused_on = []
    for target, given in zip(targets, restored, strict=True):
        focused_on.append(focused(target, given, exponent))
    return whole_cosine_loss(targets, focused_on)


def focused(target: Tensor, restored: Tensor, exponent: float) -> Tensor:
    """Leave `restored` as it is, but turn its gradient to where it is far from its target.

    Args:
        target: (B, P, D).
        restored: (B, P, D).
        exponent: of a position's distance over the mean of the batch (gamma).
    """
    if not restored.requires_grad:
        return restored

    distance = 1 - F.cosine_similarity(target, restored.detach(), dim=2)  # (B, P)
    distance = distance.clamp_min(0)  # rounding can make it less
    weight = (distance / distance.mean().clamp_min(_DISTANCE_EPS)) ** exponent
    return with_gradient_times(restored, weight.unsqueeze(2))


# Views of a few images


def view_matrices() -> Tensor:
    """List how an image's views but the grey one map their places to those of the image.

    Returns:
        (21, 2, 3) in halves of the side, from the centre: itself, turned, shifted, mirrored, and
        turned by quarters.
    """
    views = [torch.eye(2, 3)]
    for part in _SIXTEENTHS:
        views.append(_turn(torch.pi / 16 * part))

    for shift in _SHIFTS:
        for right in (shift, -shift):
            for down in (shift, -shift):
                views.append(torch.tensor([[1.0, 0.0, right], [0.0, 1.0, down]]))

    views.append(torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))  # mirrored
    for quarter in (1, 2, 3):
        views.append(_turn(torch.pi / 2 * quarter))
    return torch.stack(views)


def _turn(radians: float) -> Tensor:
    """Give the matrix (2, 3) of a turn."""
    angle = torch.tensor(radians, dtype=torch.float64)
    across = torch.stack([angle.cos(), -angle.sin(), torch.zeros_like(angle)])
    down = torch.stack([angle.sin(), angle.cos(), torch.zeros_like(angle)])
    return torch.stack([across, down]).float()


VIEW_COUNT = 22
"""The views of `view_matrices`, and the grey one."""


def viewed(image: Tensor, view: Tensor) -> Tensor:
    """Show square images from chosen views, what lies outside of them mirrored.

    Args:
        image: (B, 3, S, S).
        view: (B,) whole numbers below `VIEW_COUNT`, the last for grey.

    Returns:
        (B, 3, S, S).
    """
    is_grey = view == VIEW_COUNT - 1
    # A grey view has the places of the image itself, which come first.
    matrices = view_matrices()[view.masked_fill(is_grey, 0).cpu()].to(image)  # (B, 2, 3)
    grid = F.affine_grid(matrices, list(image.shape), align_corners=False)
    shown = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)

    luminance = image.new_tensor(_LUMINANCE).view(1, 3, 1, 1)
    grey = (shown * luminance).sum(1, keepdim=True)
    return torch.where(is_grey.to(image.device).view(-1, 1, 1, 1), grey, shown)


class InpformerTrainer(BaseTrainer):
    """Trains what restores the encoder's patches, on features that are kept."""

    config: InpformerConfig
    model: InpformerModel
    method = METHODS["InpformerTrainer"]

    @classmethod
    def check_weight_file(cls, config: InpformerConfig, name: str, path: Path) -> None:
        check_dinov2_file(name, config.layers, path)

    def build_model(self) -> InpformerModel:
        return InpformerModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        config = self.config
        optimizer = StableAdamW(
            self.model.restorer.parameters(),
            config.lr,
            eps=_ADAM_EPS,
            weight_decay=config.weight_decay,
            amsgrad=True,
        )
        final = config.final_lr / config.lr if config.lr else 0.0

        def factor(step: int) -> float:
            return lr_factor(step, total_steps, config.warmup_steps, final)

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    @property
    def augments(self) -> bool:
        return self.config.few_shot_views

    def augment(self, batch: Batch) -> Batch:
        if not self.augments:
            return batch

        # As many different views of each image as fill a batch.
        images = len(batch.image)
        each = max(1, min(VIEW_COUNT, self.train_config.batch_size // images))
        view = torch.rand(images, VIEW_COUNT).argsort(1)[:, :each].flatten()  # (B * each,)
        order = torch.arange(images).repeat_interleave(each).to(batch.image.device)
        image = viewed(batch.image[order], view)

        # Their features come with them: those that are kept or shared are of the images themselves.
        features = self.model.features(image)
        return Batch(image, batch.label[order], None, batch.index[order], features)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        config = self.config
        restored, prototypes, patches = self.model.restore(batch.features)
        mining = soft_mining_loss(batch.features, restored, config.mining_exponent)
        coherence = coherence_loss(patches, prototypes)

        loss = mining + config.coherence_weight * coherence
        self.optimize(loss, config.clip_norm)
        history = {"loss": loss, "mining": mining, "coherence": coherence}
        return {name: value.detach() for name, value in history.items()}

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return self.model.score.inside(anomaly_map, inside)

    def notes(self) -> list[str]:
        encoder = self.model.extractor
        if encoder.weight_file is None:
            return []
        return [f"encoder {encoder.weight_file.name} with {encoder.registers} registers"]
