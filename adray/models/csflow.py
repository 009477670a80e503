"""CS-Flow: Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection (M. Rudolph et al., WACV 2022).

Paper: https://arxiv.org/abs/2110.02855
Reference: https://github.com/marco-rudolph/cs-flow (no licence; facts only).

A frozen EfficientNet-B5 describes the image at full, half and quarter size. One flow maps the three feature maps of
normal images together to independent standard normal values: in each step one half of the channels at all scales
scales and shifts the other half, through convolutions that also look at the neighbouring scales. What the flow finds
unlikely is anomalous: the score is the mean of z^2 / 2 over everything, the map the mean over channels of z^2 at the
finest scale.

Differs from the paper: torchvision's EfficientNet-B5 in place of a port of the same weights, permutations are drawn
from the trial's seed and stored, and z is not cut off at a million, which no input comes near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import (
    check_names_and_shapes,
    load_backbone,
    read_state_dict,
)
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_range
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

SCALES = 3
"""Sizes at which the image is described, each half of the one before."""
CHANNELS = 304
"""C, channels of EfficientNet-B5's features."""
_SIDE = 128  # a stride of 32 at a quarter of the size
_SLOPE = 0.1


@dataclass(frozen=True)
class CsflowConfig:
    """Hyperparameters of CS-Flow; defaults are the paper's and the reference's."""

    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the EfficientNet-B5."""
    kernel_sizes: tuple[int, ...] = (3, 3, 3, 5)
    """Sides of the convolutions of each coupling step, odd; their number is that of the steps."""
    hidden_channels: int = 1024
    """Hidden channels of the sub-networks."""
    clamp: float = 3.0
    """Alpha, which bounds the log scale of a coupling."""
    lr: float = 2e-4
    """Learning rate of Adam, constant."""
    weight_decay: float = 1e-5
    """Weight decay of Adam."""
    clip_norm: float = 1.0
    """Largest norm of the gradients."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_range("hidden_channels", self.hidden_channels, 1, 8192)
        check_range("clamp", self.clamp, 0.01, 10)
        check_range("lr", self.lr, 0, 1)
        check_range("weight_decay", self.weight_decay, 0, 1)
        check_range("clip_norm", self.clip_norm, 1e-6)
        if not self.kernel_sizes or any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise InputError(
                f"kernel_sizes {list(self.kernel_sizes)} must be odd numbers, such as [3, 3, 3, 5]"
            )

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return ("efficientnet_b5",) if self.weights == "pretrained" else ()


class EfficientNetB5(FrozenNetwork):
    """torchvision's EfficientNet-B5 up to its 36th block, ``features.6.8``, which never changes.

    It stays in eval mode whatever its parent does (in train mode it would drop blocks at random), needs no gradient,
    and is named rather than stored in checkpoints.

    Args:
        weights: ``"pretrained"`` reads the file of `get_backbone_path`, ``"random"`` draws them, see `keep_variance`.

    Raises:
        InputError: for an unknown word, and for a missing, broken or foreign weight file.
    """

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.backbone = "efficientnet_b5"
        self.features = build_efficientnet()  # the name in torchvision's file
        self.weight_file = chosen_weight_file(self.backbone, weights)
        if self.weight_file:
            load_backbone(self, self.weight_file)
        else:
            keep_variance(self.features)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Describe (B, 3, H, W) at full, half and quarter size: (B, C, H / 32, W / 32) and so on."""
        # Nearest neighbours, as both reference and anomalib shrink images.
        return tuple(self.features(image[:, :, :: 2**i, :: 2**i]) for i in range(SCALES))


def build_efficientnet() -> nn.Sequential:
    """The untrained stages of torchvision's EfficientNet-B5 whose last block is ``features.6.8``."""
    from torchvision.models import (
        efficientnet_b5,
    )  # a plan that only reads configurations does not pay it

    return efficientnet_b5(weights=None).features[:7]


def keep_variance(net: nn.Module) -> None:
    """Draw the convolutions of an untrained `net` such that something of the image is left after 36 blocks.

    As torchvision draws them, features are around 1e-12 and all scores equal.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


class CrossConvolutions(nn.Module):
    """The sub-network of a coupling: from one half of the channels at all scales to numbers for the other half.

    Per scale a convolution, a leaky ReLU and a second convolution, plus convolutions from the neighbouring scales'
    hidden maps, enlarged or with a stride of 2 (figure 4).

    Args:
        channels_in: of each scale.
        channels_out: of each scale.
        hidden: channels between.
        kernel_size: side of all convolutions, odd.
    """

    def __init__(self, channels_in: int, channels_out: int, hidden: int, kernel_size: int) -> None:
        super().__init__()

        def convolutions(count: int, channels: int, out: int, stride: int = 1) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(channels, out, kernel_size, stride, kernel_size // 2)
                for _ in range(count)
            )

        self.enter = convolutions(SCALES, channels_in, hidden)
        self.leave = convolutions(SCALES, hidden, channels_out)
        self.from_coarser = convolutions(SCALES - 1, hidden, channels_out)
        self.from_finer = convolutions(SCALES - 1, hidden, channels_out, stride=2)
        # Zero makes a fresh coupling step a permutation.
        self.gamma = nn.Parameter(torch.zeros(SCALES))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, channels_in, h, w) of each scale, finest first, to (B, channels_out, h, w) of each."""
        hidden = [
            F.leaky_relu(enter(m), _SLOPE, inplace=True)
            for enter, m in zip(self.enter, maps, strict=True)
        ]
        out = [leave(h) for leave, h in zip(self.leave, hidden, strict=True)]
        for i in range(SCALES - 1):
            enlarged = F.interpolate(
                hidden[i + 1], scale_factor=2, mode="bilinear", align_corners=False
            )
            out[i] = out[i] + self.from_coarser[i](enlarged)
            out[i + 1] = out[i + 1] + self.from_finer[i](hidden[i])
        return [gamma * o for gamma, o in zip(self.gamma, out, strict=True)]


class CrossScaleCoupling(nn.Module):
    """A fixed permutation of the channels of each scale, then each half scales and shifts the other.

    Args:
        channels: C of each scale, at least 2.
        hidden: see `CrossConvolutions`.
        kernel_size: see `CrossConvolutions`.
        clamp: alpha; the log scale lies in (-alpha, alpha).
    """

    permutation: Tensor

    def __init__(self, channels: int, hidden: int, kernel_size: int, clamp: float) -> None:
        super().__init__()
        self.clamp = clamp
        self.halves = [channels // 2, channels - channels // 2]
        first, second = self.halves
        self.from_second = CrossConvolutions(second, 2 * first, hidden, kernel_size)
        self.from_first = CrossConvolutions(first, 2 * second, hidden, kernel_size)
        # A buffer: it is random, and a checkpoint without it would be another model.
        self.register_buffer(
            "permutation", torch.stack([torch.randperm(channels) for _ in range(SCALES)])
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Map (B, C, h, w) of each scale towards the latent space.

        Returns:
            Their images, of the same shapes, and log|det J| per sample, (B,).
        """
        permuted = [
            m.index_select(1, order) for m, order in zip(maps, self.permutation, strict=True)
        ]
        first, second = self._split(permuted)
        first, first_log_det = self._scale_and_shift(first, self.from_second(second))
        second, second_log_det = self._scale_and_shift(second, self.from_first(first))
        joined = [torch.cat(halves, dim=1) for halves in zip(first, second, strict=True)]
        return joined, first_log_det + second_log_det

    def inverse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps whose image under `forward` is `maps`."""
        first, second = self._split(maps)
        second = self._undo(second, self.from_first(first))
        first = self._undo(first, self.from_second(second))
        joined = [torch.cat(halves, dim=1) for halves in zip(first, second, strict=True)]
        return [
            m.index_select(1, order.argsort())
            for m, order in zip(joined, self.permutation, strict=True)
        ]

    def _split(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The first and the second half of the channels, each of all scales."""
        halves = [m.split(self.halves, dim=1) for m in maps]
        return [first for first, _ in halves], [second for _, second in halves]

    def _scale_and_shift(
        self, maps: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        pairs = [n.chunk(2, dim=1) for n in numbers]
        log_scales = [self._soft_clamp(s) for s, _ in pairs]
        moved = [
            torch.addcmul(t, m, s.exp())
            for m, s, (_, t) in zip(maps, log_scales, pairs, strict=True)
        ]
        return moved, torch.stack([s.flatten(1).sum(1) for s in log_scales]).sum(0)

    def _undo(self, maps: Sequence[Tensor], numbers: Sequence[Tensor]) -> list[Tensor]:
        pairs = (n.chunk(2, dim=1) for n in numbers)
        return [
            (m - t) * torch.exp(-self._soft_clamp(s)) for m, (s, t) in zip(maps, pairs, strict=True)
        ]

    def _soft_clamp(self, log_scale: Tensor) -> Tensor:
        return self.clamp * 0.636 * torch.atan(log_scale / self.clamp)  # 0.636 is 2 / pi


class CsflowModel(nn.Module):
    """A frozen EfficientNet-B5 at three image sizes, and one flow over all its maps.

    Args:
        weights: ``"pretrained"`` or ``"random"``.
        kernel_sizes: of each coupling step.
        hidden_channels: see `CrossConvolutions`.
        clamp: see `CrossScaleCoupling`.
    """

    def __init__(
        self,
        weights: str,
        kernel_sizes: tuple[int, ...] = (3, 3, 3, 5),
        hidden_channels: int = 1024,
        clamp: float = 3.0,
    ) -> None:
        super().__init__()
        self.extractor = EfficientNetB5(weights)
        self.steps = nn.ModuleList(
            CrossScaleCoupling(CHANNELS, hidden_channels, k, clamp) for k in kernel_sizes
        )

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps of (B, 3, H, W), see `EfficientNetB5`."""
        return self.extractor(image)

    def latents(self, features: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """The latent maps z, shaped like the `features` of a batch, and log|det dz/dfeatures| per sample, (B,)."""
        maps, log_det = list(features), features[0].new_zeros(len(features[0]))
        for step in self.steps:
            maps, step_log_det = step(maps)
            log_det = log_det + step_log_det
        return maps, log_det

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """How unlikely the image and each position are.

        Args:
            image: (B, 3, H, W) normalised, sides multiples of 128.
            features: what `features(image)` gives, or None.

        Returns:
            The mean of z^2 / 2 over all scales, (B,), and the mean over channels of z^2 at the finest scale, enlarged
            to (B, 1, H, W); both at least 0, and around 1/2 and 1 for what is like the training images.
        """
        latents, _ = self.latents(self.features(image) if features is None else features)
        squares = [z.float().square() for z in latents]
        anomaly_map = F.interpolate(
            squares[0].mean(1, keepdim=True), image.shape[2:], mode="bilinear", align_corners=False
        )
        return Prediction(
            0.5 * torch.cat([s.flatten(1) for s in squares], dim=1).mean(1), anomaly_map
        )


def csflow_loss(latents: Sequence[Tensor], log_det: Tensor) -> Tensor:
    """Negative log-likelihood per number up to a constant, averaged over the batch.

    Args:
        latents: z (B, C, h, w) of each scale.
        log_det: log|det J| of each sample, (B,).
    """
    z = torch.cat(
        [latent.float().flatten(1) for latent in latents], dim=1
    )  # (B, number of elements)
    return (0.5 * z.square().sum(1) - log_det).mean() / z.shape[1]


class CsflowTrainer(BaseTrainer):
    """Trains the flow on the backbone's cached features."""

    config: CsflowConfig
    model: CsflowModel
    config_class = CsflowConfig
    memory_format = (
        torch.contiguous_format
    )  # channels last, a step that permutes channels takes a fifth longer

    @classmethod
    def check_inputs(cls, config: CsflowConfig, train_config: TrainConfig) -> list[str]:
        size = train_config.input_size
        if size % _SIDE:
            raise InputError(
                f"input size {size} does not suit CS-Flow, whose three scales must halve exactly: img_size (or "
                f"crop_size) must be a multiple of {_SIDE}; use 768 as published"
            )
        return []

    @classmethod
    def check_weight_file(cls, config: CsflowConfig, name: str, path: Path) -> None:
        state = read_state_dict(path)
        with torch.device("meta"):
            wanted = build_efficientnet().state_dict(prefix="features.")
        check_names_and_shapes(state, wanted, path)

    def build_model(self) -> CsflowModel:
        config = self.config
        return CsflowModel(
            config.weights, config.kernel_sizes, config.hidden_channels, config.clamp
        )

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        config = self.config
        # Fused: with 275 million weights a fifth off a step of four images of 256 px on a CPU.
        adam = torch.optim.Adam(
            self.model.steps.parameters(),
            config.lr,
            eps=1e-4,
            weight_decay=config.weight_decay,
            fused=True,
        )
        return adam, None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = csflow_loss(*self.model.latents(batch.features))
        self.optimize(loss, self.config.clip_norm)
        return {"loss": loss.detach()}
