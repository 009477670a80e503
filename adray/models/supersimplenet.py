"""SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Surface Defect Detection.

B. Rolih et al., ICPR 2024.

Paper: https://arxiv.org/abs/2408.03143
Reference: https://github.com/blaz-r/SuperSimpleNet (MIT; facts only).

A frozen backbone gives two maps, which are enlarged, joined, pooled over 3 x 3 neighbours and
adapted by a learnt linear layer. Gaussian noise on random patches of these features stands for
defects. Two heads learn to find it: the first says where, the second, which sees the features and
the first one's map, whether. Where there are labelled defects, the same network also learns from
these: their masks join the target, noise is put beside them, and what the second head learns then
reaches the first as well.

Both outputs are logits. The reference's sigmoid would not change their order, but it makes large
ones exactly 1 in float32, and equal scores cannot be ranked.

Differs from the reference:

- Patches come from `adray.components.perlin`, which also turns the noise and draws it at the size
  of the features, not at the next power of two.
- In supervised training an epoch takes each normal image once and repeats defects until there are
  as many. The reference's epoch has each defect four times, and as many normal images.
- Images of supervised training are 256 px, too. The reference's are 640 x 232, 320 x 192 or 144 px by
  data set.
- A defect is shown in one of four ways, drawn anew each time: as it is, upside down, mirrored, and
  turned by 180 degrees. The reference shows each way once in an epoch.
- `flip_normals` shows normal images in the same four ways. The reference, where it changes them,
  also turns them by up to 90 degrees.
- The border of the smoothed map is mirrored.
- The journal version (2025), whose second head sees features before the adaptor, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.focal_loss import focal_loss
from adray.components.perlin import perlin_mask
from adray.methods.supersimplenet import METHODS, SupersimplenetConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_FOCAL_GAMMA = 4.0
_CLASSIFIER_CHANNELS = 128
_SLOPE = 0.2
"""Of the leaky ReLU below 0."""


class RectifyAndProject(torch.autograd.Function):
    """Leaky ReLU and the convolution to one channel.

    Apart, their backward passes hold one more large tensor.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        """Give logits (B, 1, h, w) of hidden maps (B, C, h, w) and weights (1, C, 1, 1)."""
        ctx.save_for_backward(hidden, weight)
        return F.conv2d(F.leaky_relu(hidden, _SLOPE), weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Give the loss's gradients by both, from that by the logits."""
        hidden, weight = ctx.saved_tensors
        (gradient,) = gradients  # (B, 1, h, w)
        by_weight = F.leaky_relu(hidden, _SLOPE).mul_(gradient).sum((0, 2, 3), keepdim=True)
        # 1 above 0 and the slope below, in one large tensor.
        slope = torch.gt(hidden, 0, out=torch.empty_like(hidden)).mul_(1 - _SLOPE).add_(_SLOPE)
        return slope.mul_(weight).mul_(gradient), by_weight


class SegmentationHead(nn.Module):
    """Says of each position whether it is anomalous.

    Args:
        channels: of the features.
        hidden_channels: between the two convolutions.
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, hidden_channels, 1)
        self.norm = nn.BatchNorm2d(hidden_channels)
        self.projection = nn.Conv2d(hidden_channels, 1, 1, bias=False)

    def forward(self, convolved: Tensor) -> Tensor:
        """Give logits, (B, 1, h, w).

        Args:
            convolved: what the first convolution made of the features, (B, hidden_channels, h, w).
        """
        hidden = self.norm(convolved)
        if self.training:
            return RectifyAndProject.apply(hidden, self.projection.weight)
        return self.projection(F.leaky_relu(hidden, _SLOPE))


class ClassificationHead(nn.Module):
    """Says of features and their segmentation whether the image is anomalous.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels + 1, _CLASSIFIER_CHANNELS, 5, padding=2)
        self.norm = nn.BatchNorm2d(_CLASSIFIER_CHANNELS)
        self.linear = nn.Linear(2 * _CLASSIFIER_CHANNELS + 2, 1)

    def forward(self, convolved: Tensor, segmentation: Tensor) -> Tensor:
        """Give logits, (B,).

        A convolution of features and map, joined, is the sum of one of each.

        Args:
            convolved: what the convolution made of the features, (B, 128, h, w).
            segmentation: the other head's map, (B, 1, h, w).
        """
        joined = convolved + F.conv2d(segmentation, self.convolution.weight[:, -1:], padding=2)
        hidden = F.relu(self.norm(joined), inplace=True)
        pooled = [
            hidden.amax((2, 3)),
            hidden.mean((2, 3)),
            segmentation.amax((2, 3)),
            segmentation.mean((2, 3)),
        ]
        return self.linear(torch.cat(pooled, 1))[:, 0]


@dataclass(frozen=True)
class EnlargedMap:
    """A small map, and the matrices that enlarge it line by line: rows @ pixels @ columns^T."""

    pixels: Tensor
    """(B, h, w, C)."""
    rows: Tensor
    """(H, h), which makes H lines of its h."""
    columns: Tensor
    """(W, w), likewise across."""


class SupersimplenetModel(nn.Module):
    """A frozen backbone, an adaptor of its features, and two heads.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: SupersimplenetConfig) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(config.backbone, config.layers, config.weights)
        shapes = dryrun_find_featuremap_dims(self.extractor, 64).values()
        channels = sum(depth for depth, _ in shapes)

        self.adaptor = nn.Conv2d(channels, channels, 1)
        self.segmentation_head = SegmentationHead(channels, config.hidden_channels)
        self.classification_head = ClassificationHead(channels)
        for part in (self.adaptor, self.segmentation_head, self.classification_head):
            part.apply(init_weights)
        self.blur = GaussianBlur2d(config.sigma, truncate=3.0)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer.

        Together they hold an eighth of the numbers that they grow to.
        """
        return self.extractor(image)

    @property
    def kernels(self) -> tuple[Tensor, Tensor]:
        """Give the weights of the convolutions with which the heads begin, (O, C, k, k) each.

        That of the segmentation, the last channel of the second head's, is left out.
        """
        segment = self.segmentation_head.convolution.weight
        classify = self.classification_head.convolution.weight[:, :-1]
        return segment, classify

    def convolve(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Enlarge, pool and adapt the backbone's maps, and apply the heads' first convolutions.

        All of this is linear, so that enlarging can come last, and what it would make, the largest
        tensor of all, is not needed: a 16th of the adaptor's multiplications and a quarter of the
        convolutions', the same up to rounding.

        Args:
            features: (B, C, h, w) each, the largest first.

        Returns:
            (B, hidden_channels, 2h, 2w) and (B, 128, 2h, 2w), twice the side of the first map.
        """
        maps = self._adapt(features)
        segment, classify = self.kernels
        segmented = convolve_enlarged(maps, segment, self.segmentation_head.convolution.bias)
        classified = convolve_enlarged(maps, classify, self.classification_head.convolution.bias)
        return segmented, classified

    def _adapt(self, features: tuple[Tensor, ...]) -> list[EnlargedMap]:
        """Adapt each of the backbone's maps at its own size.

        Enlarged and added up, they are the adapted features.
        """
        height, width = head_size(features)
        depths = [feature.shape[1] for feature in features]
        weights = self.adaptor.weight.flatten(1).split(depths, dim=1)  # each layer's columns

        maps = []
        for feature, weight in zip(features, weights, strict=True):
            pixels = F.linear(rearrange(feature, "b c h w -> b h w c"), weight)
            rows = enlarge_and_pool(feature.shape[2], height, pixels)
            columns = enlarge_and_pool(feature.shape[3], width, pixels)
            maps.append(EnlargedMap(pixels, rows, columns))

        # The bias is a map of one pixel, which fills the whole.
        assert self.adaptor.bias is not None
        bias = self.adaptor.bias.view(1, 1, 1, -1)
        maps.append(EnlargedMap(bias, bias.new_ones(height, 1), bias.new_ones(width, 1)))
        return maps

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Tell whether and where a batch is anomalous.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The classification head's logit, (B,), and the enlarged and smoothed logits of the
            segmentation head, (B, 1, H, W). Above 0 means rather anomalous than not.
        """
        maps = self.features(image) if features is None else features
        segmented, classified = self.convolve(maps)
        segmentation = self.segmentation_head(segmented)
        pred_score = self.classification_head(classified, segmentation).float()
        anomaly_map = self.blur.enlarge(segmentation, (image.shape[2], image.shape[3]))
        return Prediction(pred_score, anomaly_map)


def head_size(features: Sequence[Tensor]) -> tuple[int, int]:
    """Give height and width at which the heads see the backbone's maps: twice the first one's."""
    return 2 * features[0].shape[2], 2 * features[0].shape[3]


def convolve_enlarged(maps: list[EnlargedMap], kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve the sum of enlarged maps, by enlarging what the kernel makes of each small one.

    Args:
        maps: to be enlarged to the same H and W.
        kernel: (O, C, k, k), k odd. Beyond the border it sees zeros.
        bias: (O,).

    Returns:
        (B, O, H, W).
    """
    size = kernel.shape[2]
    # One matrix per weight of the kernel's window, i across and j down, below each other.
    by_pixel = rearrange(kernel, "o c j i -> (i j o) c")
    enlarged = []
    for small in maps:
        weighted = F.linear(small.pixels, by_pixel)  # (B, h, w, k * k * O)

        # Across and then down: enlarge, move to where the weight stands in the window, and add up.
        weighted = rearrange(weighted, "b h w (i jo) -> b h (w i) jo", i=size)
        weighted = shifts(small.columns, size) @ weighted  # (B, h, W, k * O)
        weighted = rearrange(weighted, "b h w (j o) -> b (h j) w o", j=size)
        width = weighted.shape[2]
        weighted = shifts(small.rows, size) @ weighted.flatten(2)  # (B, H, W * O)
        enlarged.append(weighted.unflatten(2, (width, -1)))

    convolved = rearrange(sum(enlarged[1:], enlarged[0]), "b h w o -> b o h w")
    assert bias is not None, "both convolutions have one"
    return convolved.add_(bias.view(-1, 1, 1))  # in place, as this is large


def shifts(lines: Tensor, count: int) -> Tensor:
    """Move a matrix (n, m) up and down by at most count // 2 rows, zeros beyond.

    Returns:
        (n, m * count), all shifts of a column beside each other.
    """
    padded = F.pad(lines, (0, 0, count // 2, count // 2))
    moved = torch.stack([padded[i : i + len(lines)] for i in range(count)], -1)  # (n, m, count)
    return moved.flatten(1)


def enlarge_and_pool(side: int, target: int, like: Tensor) -> Tensor:
    """Enlarge a line of pixels bilinearly and average over 3 neighbours, zeros beyond the ends.

    Args:
        side: pixels of the line.
        target: pixels that it grows to.
        like: gives device and type.

    Returns:
        (target, side), to be multiplied with a line.
    """
    # Thirds, unlike quarters, are rounded: in double precision, rounded once.
    eye = torch.eye(side, dtype=torch.float64, device=like.device)
    pixels = eye.unsqueeze(1)  # (side, 1, side)
    # The first and last pixels stay on the ends, as in the reference.
    enlarged = F.interpolate(pixels, target, mode="linear", align_corners=True)
    return F.avg_pool1d(enlarged, 3, stride=1, padding=1).squeeze(1).T.to(like.dtype)


def init_weights(module: nn.Module) -> None:
    """Draw the initial weights of a convolution or linear layer as the reference does."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_normal_(module.weight)


# Synthetic defects


@dataclass(frozen=True)
class SyntheticDefects:
    """Noise for a doubled batch of features, and the truth that it makes."""

    noise: Tensor
    """(n, C, h, h), 0 outside the patches, for n random images."""
    chosen: Tensor
    """(n,), which of the 2B images these are."""
    mask: Tensor
    """(2B, 1, h, h), 1 on real and synthetic defects, else 0."""
    label: Tensor
    """(2B,), 1 for images with real or synthetic defects, else 0."""


@dataclass(frozen=True)
class HeadInputs:
    """What both heads see of a doubled batch in training, and the truth."""

    segmented: Tensor
    """(2B, hidden_channels, h, h), for the segmentation head."""
    classified: Tensor
    """(2B, 128, h, h), for the classification head."""
    mask: Tensor
    """(2B, 1, h, h), 1 on defects, else 0."""
    label: Tensor
    """(2B,), 1 for anomalous images, else 0."""


def draw_defects(
    mask: Tensor, label: Tensor, channels: int, config: SupersimplenetConfig
) -> SyntheticDefects:
    """Draw noise for random patches of a doubled batch of features, but never on a real defect.

    Args:
        mask: (B, 1, h, h), 1 on real defects, else 0.
        label: (B,), 1 for images with real defects, else 0.
        channels: C of the features.
        config: size, number and strength of the patches.
    """
    mask = mask.repeat(2, 1, 1, 1)
    label = label.repeat(2)
    device = mask.device

    # Chosen on the host, which must know how many there are.
    chosen = (torch.rand(len(mask)) < config.anomaly_probability).nonzero()[:, 0].to(device)
    count = len(chosen)
    size = mask.shape[-1]
    patches = perlin_mask(count, size, config.perlin_threshold, device=device)
    patches = patches * (1 - mask[chosen])

    # The channels are drawn, and so lie in memory, last, as the features' do.
    noise = torch.randn(count, size, size, channels, dtype=mask.dtype, device=device)
    noise = rearrange(noise, "n h w c -> n c h w").mul_(config.noise_std * patches)
    mask = mask.index_add(0, chosen, patches)
    label = torch.maximum(label, mask.amax((1, 2, 3)))
    return SyntheticDefects(noise, chosen, mask, label)


def double_and_disturb(convolved: Tensor, noise: Tensor, chosen: Tensor, kernel: Tensor) -> Tensor:
    """Give what a convolution makes of a doubled batch with noise on some of its images.

    It is linear: what it made of the batch, and what it makes of the noise, are added.

    Args:
        convolved: (B, O, h, h).
        noise: (n, C, h, h).
        chosen: (n,), the disturbed ones of the 2B.
        kernel: (O, C, k, k), k odd.

    Returns:
        (2B, O, h, h).
    """
    disturbance = F.conv2d(noise, kernel, padding=kernel.shape[2] // 2)
    # Unlike index_add_, this keeps no copy of the disturbance for the backward pass.
    return torch.cat([convolved, convolved]).index_put_((chosen,), disturbance, accumulate=True)


def add_defects(
    model: SupersimplenetModel,
    features: tuple[Tensor, ...],
    mask: Tensor,
    label: Tensor,
    config: SupersimplenetConfig,
) -> HeadInputs:
    """Double a batch, with synthetic defects, and apply the heads' first convolutions.

    Args:
        model: gives the convolutions.
        features: the backbone's maps, (B, C, h, w) each.
        mask: (B, 1, 2h, 2w), 1 on real defects, else 0.
        label: (B,), 1 for images with real defects, else 0.
        config: size, number and strength of the patches.
    """
    drawn = draw_defects(mask, label, model.adaptor.out_channels, config)
    segment, classify = model.kernels
    segmented, classified = model.convolve(features)
    segmented = double_and_disturb(segmented, drawn.noise, drawn.chosen, segment)
    classified = double_and_disturb(classified, drawn.noise, drawn.chosen, classify)
    return HeadInputs(segmented, classified, drawn.mask, drawn.label)


def shrink_masks(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring masks to the size of the features: 1 where the bilinear average is at least one half.

    Args:
        mask: (B, 1, H, W) with 1 on defects.
        size: h and w of the features.

    Returns:
        (B, 1, h, w) float32 of 0 and 1. A defect may be too small to remain.
    """
    return (F.interpolate(mask.float(), size, mode="bilinear", align_corners=False) >= 0.5).float()


def flip_some(batch: Batch, probability: float, flip_normals: bool) -> Batch:
    """Mirror images with their masks along each axis with this probability.

    Args:
        batch: with masks.
        probability: of each axis of each image.
        flip_normals: mirror normal images too, not defective ones alone.
    """
    assert batch.mask is not None, "loaders of supervised training hold masks"
    image = batch.image
    mask = batch.mask
    allowed = (batch.label > 0).view(-1, 1, 1, 1) | flip_normals
    for axis in (2, 3):
        chosen = (torch.rand(len(image), 1, 1, 1) < probability).to(image.device) & allowed
        image = torch.where(chosen, image.flip(axis), image)
        mask = torch.where(chosen, mask.flip(axis), mask)
    return replace(batch, image=image, mask=mask)


# The loss


def truncated_l1(logits: Tensor, mask: Tensor, margin: float) -> Tensor:
    """Measure how far logits lie on the wrong side of the margin.

    The means over normal and over anomalous positions are added up.

    Args:
        logits: (B, 1, h, w).
        mask: (B, 1, h, w), 1 on defects, else 0. A mean over no position is 0.
        margin: distance from 0 that is enough.
    """
    logits = logits.float()
    normal = 1 - mask
    false_alarm = (F.relu(margin + logits) * normal).sum() / normal.sum().clamp_min(1)
    miss = (F.relu(margin - logits) * mask).sum() / mask.sum().clamp_min(1)
    return false_alarm + miss


def binary_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Average the focal loss of single logits (B, 1, h, w).

    Two classes with the logits 0 and `logits` have the same probabilities.
    """
    return focal_loss(torch.cat([torch.zeros_like(logits), logits], 1), target, _FOCAL_GAMMA)


def supersimplenet_losses(
    segmentation: Tensor, score: Tensor, mask: Tensor, label: Tensor, margin: float
) -> dict[str, Tensor]:
    """Give the loss and its three terms, each a mean.

    Args:
        segmentation: (B, 1, h, w) logits.
        score: (B,) logits.
        mask: (B, 1, h, w), 1 on defects, else 0.
        label: (B,), 1 for anomalous images, else 0.
        margin: see `truncated_l1`.

    Returns:
        ``loss``, the sum of ``l1``, ``focal_map`` and ``focal_score``.
    """
    terms = {
        "l1": truncated_l1(segmentation, mask, margin),
        "focal_map": binary_focal_loss(segmentation, mask),
        # Maps of one pixel.
        "focal_score": binary_focal_loss(score.view(-1, 1, 1, 1), label.view(-1, 1, 1, 1)),
    }
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


# The training, without and with labelled defects


def build_optimizer(
    model: SupersimplenetModel, config: SupersimplenetConfig, total_steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """Build AdamW with its two groups and the schedule of both kinds of training."""
    heads = [*model.segmentation_head.parameters(), *model.classification_head.parameters()]
    adaptor_group = {
        "params": list(model.adaptor.parameters()),
        "lr": config.adaptor_lr,
        "weight_decay": config.adaptor_weight_decay,
    }
    head_group = {
        "params": heads,
        "lr": config.head_lr,
        "weight_decay": config.head_weight_decay,
    }

    adam = torch.optim.AdamW([adaptor_group, head_group])
    milestones = [int(0.8 * total_steps), int(0.9 * total_steps)]
    return adam, torch.optim.lr_scheduler.MultiStepLR(adam, milestones, gamma=0.4)


class SupersimplenetTrainer(BaseTrainer):
    """Trains on synthetic defects alone, on the backbone's cached features."""

    config: SupersimplenetConfig
    model: SupersimplenetModel
    method = METHODS["SupersimplenetTrainer"]
    checkpoint_version = 2  # before, maps were enlarged without aligned corners

    def build_model(self) -> SupersimplenetModel:
        return SupersimplenetModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        return build_optimizer(self.model, self.config, total_steps)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        model = self.model
        first = batch.features[0]
        height, width = head_size(batch.features)
        no_defects = first.new_zeros(len(first), 1, height, width, dtype=torch.float32)
        normal = no_defects[:, 0, 0, 0]  # (B,), labels
        seen = add_defects(model, batch.features, no_defects, normal, self.config)

        # The second head must not teach the first.
        segmentation = model.segmentation_head(seen.segmented)
        score = model.classification_head(seen.classified, segmentation.detach())
        losses = supersimplenet_losses(
            segmentation, score, seen.mask, seen.label, self.config.margin
        )
        self.optimize(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}


class SupersimplenetSupervisedTrainer(BaseTrainer):
    """Trains on labelled defects, also mirrored, and on synthetic ones beside them."""

    config: SupersimplenetConfig
    model: SupersimplenetModel
    method = METHODS["SupersimplenetSupervisedTrainer"]
    checkpoint_version = 2  # before, maps were enlarged without aligned corners

    def build_model(self) -> SupersimplenetModel:
        return SupersimplenetModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        return build_optimizer(self.model, self.config, total_steps)

    def augment(self, batch: Batch) -> Batch:
        return flip_some(batch, self.config.flip_probability, self.config.flip_normals)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        assert batch.mask is not None, "loaders of supervised training hold masks"
        model = self.model
        real = shrink_masks(batch.mask, head_size(batch.features))
        seen = add_defects(model, batch.features, real, batch.label.float(), self.config)

        # Here what the second head learns reaches the first as well.
        segmentation = model.segmentation_head(seen.segmented)
        score = model.classification_head(seen.classified, segmentation)
        losses = supersimplenet_losses(
            segmentation, score, seen.mask, seen.label, self.config.margin
        )
        self.optimize(losses["loss"], self.config.clip_norm)
        return {name: value.detach() for name, value in losses.items()}
