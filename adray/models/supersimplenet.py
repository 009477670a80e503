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

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.blur import GaussianBlur2d
from adray.components.feature_extractor import TimmFeatureExtractor, dryrun_find_featuremap_dims
from adray.components.focal_loss import focal_loss
from adray.components.perlin import perlin_mask
from adray.config import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_FOCAL_GAMMA = 4.0
_CLASSIFIER_CHANNELS = 128


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


class ClassificationHead(nn.Module):
    """Says of features and their segmentation whether the image is anomalous.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels + 1, _CLASSIFIER_CHANNELS, 5, padding=2),
            nn.BatchNorm2d(_CLASSIFIER_CHANNELS),
            nn.ReLU(inplace=True),
        )
        self.linear = nn.Linear(2 * _CLASSIFIER_CHANNELS + 2, 1)

    def convolve(self, features: Tensor) -> Tensor:
        """What features (B, C, h, w) add to the first convolution, (B, 128, h, w).

        A convolution of both inputs, joined, is the sum of one of each; the features are too large for a joined copy.
        Before the segmentation head, so that its tensors are free again when the backward pass comes to this gradient.
        """
        convolution = self.block[0]
        assert isinstance(convolution, nn.Conv2d)
        return F.conv2d(features, convolution.weight[:, :-1], convolution.bias, padding=2)

    def forward(self, convolved: Tensor, segmentation: Tensor) -> Tensor:
        """Logits, (B,), for what `convolve` gives and the segmentation head's logits (B, 1, h, w)."""
        convolution, *others = self.block
        assert isinstance(convolution, nn.Conv2d)
        joined = convolved + F.conv2d(segmentation, convolution.weight[:, -1:], padding=2)
        for layer in others:
            joined = layer(joined)
        pooled = [pool(maps, (2, 3)) for maps in (joined, segmentation) for pool in (torch.amax, torch.mean)]
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
        self, backbone: str, layers: tuple[str, ...], weights: str, hidden_channels: int = 1024, sigma: float = 4.0
    ) -> None:
        super().__init__()
        self.extractor = TimmFeatureExtractor(backbone, layers, weights)
        channels = sum(depth for depth, _ in dryrun_find_featuremap_dims(self.extractor, 64).values())
        self.adaptor = nn.Conv2d(channels, channels, 1)
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(channels, hidden_channels, 1),
            nn.BatchNorm2d(hidden_channels),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(hidden_channels, 1, 1, bias=False),
        )
        self.classification_head = ClassificationHead(channels)
        for part in (self.adaptor, self.segmentation_head, self.classification_head):
            part.apply(init_weights)
        self.blur = GaussianBlur2d(sigma, truncate=3.0)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, 3, H, W), one (B, C, h, w) per layer, an eighth of what they grow to."""
        return self.extractor(image)

    def adapt(self, features: tuple[Tensor, ...]) -> Tensor:
        """Enlarge, pool and adapt the backbone's maps: (B, C, 2h, 2w), twice the side of the first map.

        Enlarging and pooling are linear and alike for all channels: so each map is adapted at its own size, which takes
        a 16th of the multiplications and is the same up to rounding.
        """
        height, width = 2 * features[0].shape[2], 2 * features[0].shape[3]
        weights = self.adaptor.weight.flatten(1).split([feature.shape[1] for feature in features], dim=1)
        parts = []
        for feature, weight in zip(features, weights, strict=True):
            part = F.linear(feature.permute(0, 2, 3, 1), weight)  # (B, C, h, w) -> (B, h, w, C)
            rows = enlarge_and_pool(part.shape[1], height, part) @ part.flatten(2)  # (B, 2h, w * C)
            columns = enlarge_and_pool(part.shape[2], width, part)
            parts.append(columns @ rows.unflatten(2, part.shape[2:]))  # (B, 2h, 2w, C)
        return (sum(parts[1:], parts[0]) + self.adaptor.bias).permute(0, 3, 1, 2)  # (B, 2h, 2w, C) -> (B, C, 2h, 2w)

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Whether and where a batch is anomalous.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The classification head's logit, (B,), and the enlarged and smoothed logits of the segmentation head,
            (B, 1, H, W); above 0 means rather anomalous than not.
        """
        adapted = self.adapt(self.features(image) if features is None else features)
        convolved = self.classification_head.convolve(adapted)
        segmentation = self.segmentation_head(adapted)
        pred_score = self.classification_head(convolved, segmentation).float()
        return Prediction(pred_score, self.blur.enlarge(segmentation, (image.shape[2], image.shape[3])))


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


def add_anomalies(
    adapted: Tensor, mask: Tensor, label: Tensor, config: SupersimplenetConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Double a batch and disturb random patches of its features, but never a real defect.

    Args:
        adapted: (B, C, h, h), features of the images.
        mask: (B, 1, h, h), 1 on real defects, else 0.
        label: (B,), 1 for images with real defects, else 0.
        config: size, number and strength of the patches.

    Returns:
        Features (2B, C, h, h), masks (2B, 1, h, h) and labels (2B,) that count real and synthetic defects, as floats.
    """
    mask, label = mask.repeat(2, 1, 1, 1), label.repeat(2)
    count, size, device = len(mask), adapted.shape[-1], adapted.device
    chosen = torch.rand(count, 1, 1, 1, device=device) < config.anomaly_probability
    patches = perlin_mask(count, size, config.perlin_threshold, device=device) * chosen * (1 - mask)
    anomalous = torch.maximum(label, patches.amax((1, 2, 3)))
    disturbed = torch.cat([adapted, adapted])
    # In place: these are the largest tensors.
    disturbed.addcmul_(torch.randn_like(disturbed), patches, value=config.noise_std)
    return disturbed, mask + patches, anomalous


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
        "focal_score": binary_focal_loss(score.view(-1, 1, 1, 1), label.view(-1, 1, 1, 1)),  # (B,) -> (B, 1, 1, 1)
    }
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def flip_some(batch: Batch, probability: float) -> Batch:
    """Mirror each image with its mask along each axis with this probability."""
    assert batch.mask is not None, "loaders of supervised training hold masks"
    image, mask = batch.image, batch.mask
    for axis in (2, 3):
        chosen = (torch.rand(len(image), 1, 1, 1) < probability).to(image.device)
        image, mask = torch.where(chosen, image.flip(axis), image), torch.where(chosen, mask.flip(axis), mask)
    return replace(batch, image=image, mask=mask)


def build_supersimplenet(config: SupersimplenetConfig) -> SupersimplenetModel:
    """The untrained network of a configuration."""
    return SupersimplenetModel(config.backbone, config.layers, config.weights, config.hidden_channels, config.sigma)


def build_optimizer(
    model: SupersimplenetModel, config: SupersimplenetConfig, total_steps: int
) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW with its two groups and the schedule of both kinds of training."""
    heads = [*model.segmentation_head.parameters(), *model.classification_head.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": model.adaptor.parameters(), "lr": config.adaptor_lr, "weight_decay": config.adaptor_weight_decay},
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
        adapted = self.model.adapt(batch.features)
        normal = torch.zeros_like(adapted[:, :1], dtype=torch.float32)
        disturbed, mask, label = add_anomalies(adapted, normal, normal[:, 0, 0, 0], self.config)
        del adapted  # a third of what the step holds
        convolved = self.model.classification_head.convolve(disturbed)
        segmentation = self.model.segmentation_head(disturbed)
        score = self.model.classification_head(convolved, segmentation.detach())  # this head must not teach the other
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
        adapted = self.model.adapt(batch.features)
        real = shrink_masks(batch.mask, (adapted.shape[2], adapted.shape[3]))
        disturbed, mask, label = add_anomalies(adapted, real, batch.label.float(), self.config)
        del adapted
        convolved = self.model.classification_head.convolve(disturbed)
        segmentation = self.model.segmentation_head(disturbed)
        score = self.model.classification_head(convolved, segmentation)
        losses = supersimplenet_losses(segmentation, score, mask, label, self.config.margin)
        self.optimize(losses["loss"], self.config.clip_norm)
        return {name: value.detach() for name, value in losses.items()}
