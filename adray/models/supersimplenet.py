"""SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Surface Defect Detection (B. Rolih et al., 2024).

ICPR 2024, https://arxiv.org/abs/2408.03143
Reference: https://github.com/blaz-r/SuperSimpleNet (MIT; facts only).

A frozen backbone gives two maps, which are enlarged, joined, pooled over 3 x 3 neighbours and adapted by a learnt
linear layer. Gaussian noise on random patches of these features stands for defects. Two heads learn to find it: the
first says where, the second, which sees the features and the first one's map, whether. Where there are labelled
defects, the same network also learns from these: their masks join the target, noise is put beside them, and what the
second head learns then reaches the first as well.

Both outputs are logits. The reference's sigmoid would not change their order, but it makes large ones exactly 1 in
float32, and equal scores cannot be ranked.

Differs from the reference: patches come from `adray.components.perlin`, which also turns the noise and draws it at the
size of the features, not at the next power of two; noise that stays below the threshold leaves its image normal. In
supervised training an epoch takes each normal image once and repeats defects until there are as many. The journal
version (2025), whose second head sees features before the adaptor, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.focal_loss import focal_loss
from adray.components.perlin import perlin_mask
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_FOCAL_GAMMA = 4.0
_CLASSIFIER_CHANNELS = 128
_SLOPE = 0.2


@dataclass(frozen=True)
class SupersimplenetConfig:
    """Hyperparameters of SuperSimpleNet; defaults are the paper's and the reference's."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen network; the noise's size is meant for torchvision's first (V1) weights."""
    layers: tuple[str, ...] = ("layer2", "layer3")
    """Stages whose maps are joined, the largest first."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the backbone."""
    hidden_channels: int = 1024
    """Channels between the two layers of the segmentation head."""
    perlin_threshold: float = 0.2
    """Of the Perlin noise that forms the patches, in [-1, 1], by data set: 0.2 for MVTec AD, 0.6 for VisA and for
    supervised training; higher gives fewer and smaller patches."""
    anomaly_probability: float = 0.5
    """Part of the training features that get patches at all."""
    noise_std: float = 0.015
    """Standard deviation of the noise on adapted features."""
    margin: float = 0.5
    """Logit on either side of 0 from which on the truncated L1 loss is content."""
    adaptor_lr: float = 1e-4
    """Learning rate of AdamW for the adaptor, times 0.4 at 80 % and at 90 % of the steps."""
    adaptor_weight_decay: float = 1e-2
    """Weight decay of the adaptor (reference)."""
    head_lr: float = 2e-4
    """Learning rate of AdamW for both heads, with the same schedule."""
    head_weight_decay: float = 1e-5
    """Weight decay of both heads."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together, in supervised training only."""
    flip_probability: float = 0.5
    """Part of the images that are mirrored along each axis, in supervised training only."""
    sigma: float = 4.0
    """Standard deviation in pixels of the Gaussian that smooths the map."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("hidden_channels", self.hidden_channels, 1, 65536)
        check_range("perlin_threshold", self.perlin_threshold, -1, 1)
        for name in ("anomaly_probability", "flip_probability", "adaptor_lr", "head_lr"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("noise_std", "margin", "adaptor_weight_decay", "head_weight_decay"):
            check_range(name, getattr(self, name), 0, 100)
        check_range("clip_norm", self.clip_norm, 1e-6, 1e6)
        check_range("sigma", self.sigma, 0.1, 100)

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


class RectifyAndProject(torch.autograd.Function):
    """Leaky ReLU and the convolution to one channel; apart, their backward passes hold one more large tensor."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of hidden maps (B, C, h, w) and weights (1, C, 1, 1)."""
        ctx.save_for_backward(hidden, weight)
        return F.conv2d(F.leaky_relu(hidden, _SLOPE), weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The loss's gradients by both, from that by the logits."""
        (hidden, weight), (gradient,) = ctx.saved_tensors, gradients
        by_weight = F.leaky_relu(hidden, _SLOPE).mul_(gradient).sum((0, 2, 3), keepdim=True)
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
        """Logits, (B, 1, h, w), for what the first convolution made of the features, (B, hidden_channels, h, w)."""
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
        """Logits, (B,), for what the convolution made of the features, (B, 128, h, w), and the map (B, 1, h, w).

        A convolution of features and map, joined, is the sum of one of each.
        """
        joined = convolved + F.conv2d(segmentation, self.convolution.weight[:, -1:], padding=2)
        hidden = F.relu(self.norm(joined), inplace=True)
        pooled = [
            pool(maps, (2, 3))
            for maps in (hidden, segmentation)
            for pool in (torch.amax, torch.mean)
        ]
        return self.linear(torch.cat(pooled, 1))[:, 0]


class SupersimplenetModel(nn.Module):
    """A frozen backbone, an adaptor of its features, and two heads.

    Args:
        backbone: architecture of the frozen network, one of `RESNETS`.
        layers: stages whose maps are joined, the largest first.
        weights: ``"pretrained"`` or ``"random"``, of the backbone.
        hidden_channels: between the two layers of the segmentation head.
        sigma: of the Gaussian that smooths the anomaly map, in pixels.
    """

    def __init__(
        self,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        hidden_channels: int = 1024,
        sigma: float = 4.0,
    ) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(backbone, layers, weights)
        channels = sum(
            depth for depth, _ in dryrun_find_featuremap_dims(self.extractor, 64).values()
        )
        self.adaptor = nn.Conv2d(channels, channels, 1)
        self.segmentation_head = SegmentationHead(channels, hidden_channels)
        self.classification_head = ClassificationHead(channels)
        for part in (self.adaptor, self.segmentation_head, self.classification_head):
            part.apply(init_weights)
        self.blur = GaussianBlur2d(sigma, truncate=3.0)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer, an eighth of what they grow to."""
        return self.extractor(image)

    @property
    def kernels(self) -> tuple[Tensor, Tensor]:
        """Weights of the convolutions with which the heads begin, (O, C, k, k), without that of the segmentation."""
        return (
            self.segmentation_head.convolution.weight,
            self.classification_head.convolution.weight[:, :-1],
        )

    def convolve(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What the heads' first convolutions make of the backbone's maps, enlarged, pooled and adapted.

        All of this is linear, so that enlarging can come last, and what it would make, the largest tensor of all, is
        not needed: a 16th of the adaptor's multiplications and a quarter of the convolutions', the same up to rounding.

        Args:
            features: (B, C, h, w) each, the largest first.

        Returns:
            (B, hidden_channels, 2h, 2w) and (B, 128, 2h, 2w), twice the side of the first map.
        """
        size = head_size(features)
        weights = self.adaptor.weight.flatten(1).split(
            [feature.shape[1] for feature in features], dim=1
        )
        maps = [
            F.linear(feature.permute(0, 2, 3, 1), weight)
            for feature, weight in zip(features, weights, strict=True)
        ]
        lines = [
            [enlarge_and_pool(*sides, m) for sides in zip(m.shape[1:3], size, strict=True)]
            for m in maps
        ]
        assert self.adaptor.bias is not None
        maps.append(
            self.adaptor.bias.view(1, 1, 1, -1)
        )  # a map of one pixel, which fills the whole
        lines.append([maps[-1].new_ones(side, 1) for side in size])
        segmented, classified = (convolve_enlarged(maps, lines, kernel) for kernel in self.kernels)
        for convolved, head in (
            (segmented, self.segmentation_head),
            (classified, self.classification_head),
        ):
            assert head.convolution.bias is not None
            convolved.add_(head.convolution.bias.view(-1, 1, 1))
        return segmented, classified

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Whether and where a batch is anomalous.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The classification head's logit, (B,), and the enlarged and smoothed logits of the segmentation head,
            (B, 1, H, W); above 0 means rather anomalous than not.
        """
        segmented, classified = self.convolve(
            self.features(image) if features is None else features
        )
        segmentation = self.segmentation_head(segmented)
        pred_score = self.classification_head(classified, segmentation).float()
        return Prediction(
            pred_score, self.blur.enlarge(segmentation, (image.shape[2], image.shape[3]))
        )


def head_size(features: Sequence[Tensor]) -> tuple[int, int]:
    """Height and width at which the heads see the backbone's maps: twice the first one's."""
    return 2 * features[0].shape[2], 2 * features[0].shape[3]


def convolve_enlarged(maps: list[Tensor], lines: list[list[Tensor]], kernel: Tensor) -> Tensor:
    """Convolve the sum of enlarged maps, by enlarging what the kernel's weights make of each small one.

    Args:
        maps: (B, h, w, C) each.
        lines: for each map (H, h), which makes H lines of its h, and (W, w), likewise across.
        kernel: (O, C, k, k), k odd; beyond the border it sees zeros.

    Returns:
        (B, O, H, W).
    """
    size = kernel.shape[2]
    by_pixel = kernel.permute(3, 2, 0, 1).flatten(
        0, 2
    )  # (O, C, k, k) -> (k * k * O, C), the columns' k first
    enlarged = []
    for small, (rows, columns) in zip(maps, lines, strict=True):
        weighted = (
            F.linear(small, by_pixel).unflatten(3, (size, -1)).flatten(2, 3)
        )  # (B, h, w * k, k * O)
        weighted = shifts(columns, size) @ weighted  # (B, h, W, k * O)
        weighted = (
            weighted.unflatten(3, (size, -1)).transpose(2, 3).flatten(1, 2)
        )  # (B, h * k, W, O)
        enlarged.append(
            (shifts(rows, size) @ weighted.flatten(2)).unflatten(2, weighted.shape[2:])
        )  # (B, H, W, O)
    return sum(enlarged[1:], enlarged[0]).permute(0, 3, 1, 2)  # (B, H, W, O) -> (B, O, H, W)


def shifts(lines: Tensor, count: int) -> Tensor:
    """A matrix (n, m) moved up and down by at most count // 2 rows, zeros beyond: (n, m * count), shift by shift."""
    padded = F.pad(lines, (0, 0, count // 2, count // 2))
    return torch.stack([padded[i : i + len(lines)] for i in range(count)], -1).flatten(
        1
    )  # (n, m, count)


def enlarge_and_pool(side: int, target: int, like: Tensor) -> Tensor:
    """What a line of pixels becomes that is enlarged bilinearly and averaged over 3 neighbours, zeros beyond the ends.

    Args:
        side: pixels of the line.
        target: pixels that it grows to.
        like: gives device and type.

    Returns:
        (target, side), to be multiplied with a line.
    """
    pixels = torch.eye(side, device=like.device).unsqueeze(1)  # (side, 1, side)
    enlarged = F.interpolate(pixels, target, mode="linear", align_corners=False)
    return F.avg_pool1d(enlarged, 3, stride=1, padding=1).squeeze(1).T.to(like.dtype)


def init_weights(module: nn.Module) -> None:
    """Draw the initial weights of a convolution or linear layer as the reference does."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_normal_(module.weight)


def draw_anomalies(
    mask: Tensor, label: Tensor, channels: int, config: SupersimplenetConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise for random patches of a doubled batch of features, but never on a real defect.

    Args:
        mask: (B, 1, h, h), 1 on real defects, else 0.
        label: (B,), 1 for images with real defects, else 0.
        channels: C of the features.
        config: size, number and strength of the patches.

    Returns:
        Noise (n, C, h, h), 0 outside the patches, for n random images; which of the 2B these are, (n,); masks
        (2B, 1, h, h) and labels (2B,) that count real and synthetic defects, as floats.
    """
    mask, label = mask.repeat(2, 1, 1, 1), label.repeat(2)
    # drawn on the host, which must know how many there are
    chosen = (torch.rand(len(mask)) < config.anomaly_probability).nonzero()[:, 0].to(mask.device)
    count, size = len(chosen), mask.shape[-1]
    patches = perlin_mask(count, size, config.perlin_threshold, device=mask.device) * (
        1 - mask[chosen]
    )
    noise = torch.randn(count, size, size, channels, dtype=mask.dtype, device=mask.device).permute(
        0, 3, 1, 2
    )
    mask = mask.index_add(0, chosen, patches)
    return (
        noise.mul_(config.noise_std * patches),
        chosen,
        mask,
        torch.maximum(label, mask.amax((1, 2, 3))),
    )


def double_and_disturb(convolved: Tensor, noise: Tensor, chosen: Tensor, kernel: Tensor) -> Tensor:
    """What a convolution makes of a doubled batch with noise on some of its images, from what it made of the batch.

    Args:
        convolved: (B, O, h, h).
        noise: (n, C, h, h).
        chosen: (n,), the disturbed ones of the 2B.
        kernel: (O, C, k, k), k odd.

    Returns:
        (2B, O, h, h).
    """
    disturbance = F.conv2d(noise, kernel, padding=kernel.shape[2] // 2)
    # unlike index_add_, this keeps no copy of the disturbance for the backward pass
    return torch.cat([convolved, convolved]).index_put_((chosen,), disturbance, accumulate=True)


def add_anomalies(
    model: SupersimplenetModel,
    features: tuple[Tensor, ...],
    mask: Tensor,
    label: Tensor,
    config: SupersimplenetConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What both heads see of a doubled batch with synthetic anomalies, and the truth.

    Args:
        model: gives the first convolutions.
        features: the backbone's maps, (B, C, h, w) each.
        mask: (B, 1, 2h, 2w), 1 on real defects, else 0.
        label: (B,), 1 for images with real defects, else 0.
        config: size, number and strength of the patches.

    Returns:
        What `SupersimplenetModel.convolve` gives, and masks and labels, for 2B images each.
    """
    noise, chosen, mask, label = draw_anomalies(mask, label, model.adaptor.out_channels, config)
    segmented, classified = (
        double_and_disturb(clean, noise, chosen, kernel)
        for clean, kernel in zip(model.convolve(features), model.kernels, strict=True)
    )
    return segmented, classified, mask, label


def shrink_masks(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks at the size of the features: 1 where the bilinear average is at least one half.

    Args:
        mask: (B, 1, H, W) with 1 on defects.
        size: h and w of the features.

    Returns:
        (B, 1, h, w) float32 of 0 and 1; a defect may be too small to remain.
    """
    return (F.interpolate(mask.float(), size, mode="bilinear", align_corners=False) >= 0.5).float()


def truncated_l1(logits: Tensor, mask: Tensor, margin: float = 0.5) -> Tensor:
    """How far logits lie on the wrong side of the margin: means over normal and over anomalous positions, added up.

    Args:
        logits: (B, 1, h, w).
        mask: (B, 1, h, w), 1 on defects, else 0; without any, or with nothing else, that mean is 0.
        margin: distance from 0 that is enough.
    """
    logits, normal = logits.float(), 1 - mask
    false_alarm = (F.relu(margin + logits) * normal).sum() / normal.sum().clamp_min(1)
    miss = (F.relu(margin - logits) * mask).sum() / mask.sum().clamp_min(1)
    return false_alarm + miss


def binary_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of single logits (B, 1, h, w), which two classes with the logits 0 and `logits` equal."""
    return focal_loss(torch.cat([torch.zeros_like(logits), logits], 1), target, _FOCAL_GAMMA)


def supersimplenet_losses(
    segmentation: Tensor, score: Tensor, mask: Tensor, label: Tensor, margin: float = 0.5
) -> dict[str, Tensor]:
    """The loss and its three terms, each a mean.

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
        "focal_score": binary_focal_loss(
            score.view(-1, 1, 1, 1), label.view(-1, 1, 1, 1)
        ),  # (B,) -> (B, 1, 1, 1)
    }
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def flip_some(batch: Batch, probability: float) -> Batch:
    """Mirror each image with its mask along each axis with this probability."""
    assert batch.mask is not None, "loaders of supervised training hold masks"
    image, mask = batch.image, batch.mask
    for axis in (2, 3):
        chosen = (torch.rand(len(image), 1, 1, 1) < probability).to(image.device)
        image, mask = (
            torch.where(chosen, image.flip(axis), image),
            torch.where(chosen, mask.flip(axis), mask),
        )
    return replace(batch, image=image, mask=mask)


def build_supersimplenet(config: SupersimplenetConfig) -> SupersimplenetModel:
    """The untrained network of a configuration."""
    return SupersimplenetModel(
        config.backbone, config.layers, config.weights, config.hidden_channels, config.sigma
    )


def build_optimizer(
    model: SupersimplenetModel, config: SupersimplenetConfig, total_steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW with its two groups and the schedule of both kinds of training."""
    heads = [*model.segmentation_head.parameters(), *model.classification_head.parameters()]
    groups: list[dict[str, Any]] = [
        {
            "params": model.adaptor.parameters(),
            "lr": config.adaptor_lr,
            "weight_decay": config.adaptor_weight_decay,
        },
        {"params": heads, "lr": config.head_lr, "weight_decay": config.head_weight_decay},
    ]
    adam = torch.optim.AdamW(groups)
    milestones = [int(0.8 * total_steps), int(0.9 * total_steps)]
    return adam, torch.optim.lr_scheduler.MultiStepLR(adam, milestones, gamma=0.4)


class SupersimplenetTrainer(BaseTrainer):
    """Trains on synthetic anomalies alone, on the backbone's cached features."""

    config: SupersimplenetConfig
    model: SupersimplenetModel
    config_class = SupersimplenetConfig

    def build_model(self) -> SupersimplenetModel:
        return build_supersimplenet(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        return build_optimizer(self.model, self.config, total_steps)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        normal = batch.features[0].new_zeros(
            len(batch.features[0]), 1, *head_size(batch.features), dtype=torch.float32
        )
        segmented, classified, mask, label = add_anomalies(
            self.model, batch.features, normal, normal[:, 0, 0, 0], self.config
        )
        segmentation = self.model.segmentation_head(segmented)
        score = self.model.classification_head(
            classified, segmentation.detach()
        )  # this head must not teach the other
        losses = supersimplenet_losses(segmentation, score, mask, label, self.config.margin)
        self.optimize(losses["loss"])
        return {name: value.detach() for name, value in losses.items()}


class SupersimplenetSupervisedTrainer(BaseTrainer):
    """Trains on labelled defects and on synthetic anomalies beside them, on mirrored images."""

    config: SupersimplenetConfig
    model: SupersimplenetModel
    config_class = SupersimplenetConfig
    supervised = True

    def build_model(self) -> SupersimplenetModel:
        return build_supersimplenet(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, Any]:
        return build_optimizer(self.model, self.config, total_steps)

    def augment(self, batch: Batch) -> Batch:
        return flip_some(batch, self.config.flip_probability)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        assert batch.mask is not None, "loaders of supervised training hold masks"
        real = shrink_masks(batch.mask, head_size(batch.features))
        segmented, classified, mask, label = add_anomalies(
            self.model, batch.features, real, batch.label.float(), self.config
        )
        segmentation = self.model.segmentation_head(segmented)
        score = self.model.classification_head(classified, segmentation)
        losses = supersimplenet_losses(segmentation, score, mask, label, self.config.margin)
        self.optimize(losses["loss"], self.config.clip_norm)
        return {name: value.detach() for name, value in losses.items()}
