"""CS-Flow: Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection.

M. Rudolph et al., WACV 2022. Paper: https://arxiv.org/abs/2110.02855
Reference: https://github.com/marco-rudolph/cs-flow (no licence; facts only).

A frozen EfficientNet-B5 describes the image at full, half and quarter size. One flow maps the three
feature maps of normal images together to independent standard normal values: in each step one half
of the channels at all scales scales and shifts the other half, through convolutions that also look
at the neighbouring scales. What the flow finds unlikely is anomalous: the score is the mean of
z^2 / 2 over everything, the map the mean over channels of z^2 at the finest scale.

Differs from the paper: torchvision's EfficientNet-B5 in place of a port of the same weights, which
pads unevenly at the first three halvings, so that its features sit 7 of 32 pixels further to the
lower right. Permutations are drawn from the trial's seed and stored, and z is not cut off at a
million, which no input comes near.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import (
    check_names_and_shapes,
    load_backbone,
    read_state_dict,
)
from adray.components.frozen_network import FrozenNetwork, chosen_weight_file
from adray.components.inside import mean_inside
from adray.methods.csflow import METHODS, CsflowConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

SCALES = 3
"""Sizes at which the image is described, each half of the one before."""
CHANNELS = 304
"""C, channels of EfficientNet-B5's features."""
_SLOPE = 0.1


class EfficientNetB5(FrozenNetwork):
    """torchvision's EfficientNet-B5 up to its 36th block, ``features.6.8``, which never changes.

    It stays in eval mode whatever its parent does (in train mode it would drop blocks at random),
    needs no gradient, and is named rather than stored in checkpoints.

    Args:
        weights: ``"pretrained"`` reads the file of `get_backbone_path`, ``"random"`` draws them,
            see `keep_variance`.

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
        """Describe (B, 3, H, W) at full, half and quarter size: (B, C, H / 32, W / 32), ..."""
        # Nearest neighbours, as both reference and anomalib shrink images.
        return tuple(self.features(image[:, :, :: 2**i, :: 2**i]) for i in range(SCALES))


def build_efficientnet() -> nn.Sequential:
    """Build torchvision's EfficientNet-B5 untrained, up to its block ``features.6.8``."""
    # A plan that only reads configurations does not pay for this import.
    from torchvision.models import efficientnet_b5

    return efficientnet_b5(weights=None).features[:7]


def keep_variance(net: nn.Module) -> None:
    """Draw the convolutions of `net` such that something of the image is left after 36 blocks.

    As torchvision draws them, features are around 1e-12 and all scores equal.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


class CrossConvolutions(nn.Module):
    """The sub-network of a coupling: from half of the channels to numbers for the other half.

    Per scale a convolution, a leaky ReLU and a second convolution, plus convolutions from the
    neighbouring scales' hidden maps, enlarged or with a stride of 2 (figure 4).

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
        """Map (B, channels_in, h, w) of each scale, finest first, to (B, channels_out, h, w)."""
        hidden = []
        for enter, scale in zip(self.enter, maps, strict=True):
            hidden.append(F.leaky_relu(enter(scale), _SLOPE, inplace=True))
        out = []
        for leave, within in zip(self.leave, hidden, strict=True):
            out.append(leave(within))

        # Each scale hears of its neighbours' hidden maps (figure 4).
        for i in range(SCALES - 1):
            enlarged = F.interpolate(
                hidden[i + 1], scale_factor=2, mode="bilinear", align_corners=False
            )
            out[i] = out[i] + self.from_coarser[i](enlarged)
            out[i + 1] = out[i + 1] + self.from_finer[i](hidden[i])
        return [gamma * o for gamma, o in zip(self.gamma, out, strict=True)]


class CrossScaleCoupling(InvertibleModule):
    """A fixed permutation of each scale's channels, then each half scales and shifts the other.

    Args:
        channels: C of each scale, at least 2.
        hidden: see `CrossConvolutions`.
        kernel_size: see `CrossConvolutions`.
        clamp: alpha; the log scale lies in (-alpha, alpha).
    """

    permutation: Tensor

    def __init__(self, channels: int, hidden: int, kernel_size: int, clamp: float) -> None:
        super().__init__([(channels,)] * SCALES)
        self.clamp = clamp
        first = channels // 2
        second = channels - first
        self.halves = [first, second]
        self.from_second = CrossConvolutions(second, 2 * first, hidden, kernel_size)
        self.from_first = CrossConvolutions(first, 2 * second, hidden, kernel_size)

        # A buffer: it is random, and a checkpoint without it would be another model.
        orders = torch.empty(SCALES, channels, dtype=torch.int64)
        for order in orders:
            torch.randperm(channels, out=order)
        self.register_buffer("permutation", orders)

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] = (),
        rev: bool = False,
        jac: bool = True,
    ) -> tuple[list[Tensor], Tensor]:
        """Map x towards the latent space, or z back.

        Args:
            x_or_z: (B, C, h, w) of each scale.
            c: nothing, there is no condition.
            rev: go back from z to x.
            jac: without effect, the determinant is always given.

        Returns:
            z or x, of the same shapes, and log|det J| of the way taken per sample, (B,).
        """
        return self._to_maps(x_or_z) if rev else self._to_latent(x_or_z)

    def _to_latent(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        first, second = self._split(_permute(maps, self.permutation))
        first, first_log_det = self._scale_and_shift(first, self.from_second(second))
        second, second_log_det = self._scale_and_shift(second, self.from_first(first))
        return _join(first, second), first_log_det + second_log_det

    def _to_maps(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        first, second = self._split(latents)
        second, second_log_det = self._undo(second, self.from_first(first))
        first, first_log_det = self._undo(first, self.from_second(second))
        maps = _permute(_join(first, second), self.permutation.argsort(dim=1))
        return maps, first_log_det + second_log_det

    def _split(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Give the first and the second half of the channels, each of all scales."""
        firsts = []
        seconds = []
        for scale in maps:
            first, second = scale.split(self.halves, dim=1)
            firsts.append(first)
            seconds.append(second)
        return firsts, seconds

    def _scale_and_shift(
        self, maps: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Scale and shift half of the channels by twice as many numbers, with log|det J|, (B,)."""
        moved = []
        log_dets = []
        for half, number in zip(maps, numbers, strict=True):
            log_scale, shift = number.chunk(2, dim=1)
            log_scale = self._soft_clamp(log_scale)
            moved.append(torch.addcmul(shift, half, log_scale.exp()))
            log_dets.append(log_scale.flatten(1).sum(1))
        return moved, torch.stack(log_dets).sum(0)

    def _undo(
        self, maps: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Undo `_scale_and_shift`."""
        moved = []
        log_dets = []
        for half, number in zip(maps, numbers, strict=True):
            log_scale, shift = number.chunk(2, dim=1)
            log_scale = self._soft_clamp(log_scale)
            moved.append((half - shift) * torch.exp(-log_scale))
            log_dets.append(-log_scale.flatten(1).sum(1))
        return moved, torch.stack(log_dets).sum(0)

    def _soft_clamp(self, log_scale: Tensor) -> Tensor:
        return self.clamp * 0.636 * torch.atan(log_scale / self.clamp)  # 0.636 is 2 / pi


def _permute(maps: Sequence[Tensor], orders: Tensor) -> list[Tensor]:
    """Take the channels of each scale in its order of `orders`, (scales, C)."""
    permuted = []
    for scale, order in zip(maps, orders, strict=True):
        permuted.append(scale.index_select(1, order))
    return permuted


def _join(firsts: Sequence[Tensor], seconds: Sequence[Tensor]) -> list[Tensor]:
    """Put the halves of the channels of each scale back together."""
    joined = []
    for halves in zip(firsts, seconds, strict=True):
        joined.append(torch.cat(halves, dim=1))
    return joined


class CsflowModel(nn.Module):
    """A frozen EfficientNet-B5 at three image sizes, and one flow over all its maps.

    Args:
        config: hyperparameters.
    """

    def __init__(self, config: CsflowConfig) -> None:
        super().__init__()
        self.extractor = EfficientNetB5(config.weights)
        self.steps = nn.ModuleList()
        for kernel_size in config.kernel_sizes:
            step = CrossScaleCoupling(CHANNELS, config.hidden_channels, kernel_size, config.clamp)
            self.steps.append(step)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), see `EfficientNetB5`."""
        return self.extractor(image)

    def latents(self, features: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """Map the `features` of a batch to z of the same shapes, and give log|det J|, (B,)."""
        maps = list(features)
        log_det = features[0].new_zeros(len(features[0]))
        # FrEIA's sequence is for one map. Its graph makes a RuntimeError of every error in it, so
        # that a trial out of memory would not get more.
        for step in self.steps:
            maps, step_log_det = step(maps)
            log_det = log_det + step_log_det
        return maps, log_det

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Say how unlikely the image and each position are.

        Args:
            image: (B, 3, H, W) normalised, sides multiples of 128.
            features: what `features(image)` gives, or None.

        Returns:
            The mean of z^2 / 2 over all scales, (B,), and the mean over channels of z^2 at the
            finest scale, enlarged to (B, 1, H, W). Both are at least 0, and around 1/2 and 1 for
            what is like the training images.
        """
        latents, _ = self.latents(self.features(image) if features is None else features)
        score = 0.5 * _flat(latents).square().mean(1)

        finest = latents[0].float().square().mean(1, keepdim=True)  # (B, 1, h, w)
        size = (image.shape[2], image.shape[3])
        anomaly_map = F.interpolate(finest, size, mode="bilinear", align_corners=False)
        return Prediction(score, anomaly_map)


def csflow_loss(latents: Sequence[Tensor], log_det: Tensor) -> Tensor:
    """Give the negative log-likelihood per number up to a constant, averaged over the batch.

    Args:
        latents: z (B, C, h, w) of each scale.
        log_det: log|det J| of each sample, (B,).
    """
    z = _flat(latents)
    return (0.5 * z.square().sum(1) - log_det).mean() / z.shape[1]


def _flat(latents: Sequence[Tensor]) -> Tensor:
    """Put the numbers of all scales into one row per sample, (B, N) float32."""
    return torch.cat([z.float().flatten(1) for z in latents], dim=1)


class CsflowTrainer(BaseTrainer):
    """Trains the flow on the backbone's cached features."""

    config: CsflowConfig
    model: CsflowModel
    method = METHODS["CsflowTrainer"]
    # With channels last a step, which permutes channels, takes a fifth longer.
    memory_format = torch.contiguous_format

    def score_inside(self, anomaly_map: Tensor, inside: Tensor) -> Tensor:
        return mean_inside(anomaly_map, inside)

    @classmethod
    def check_weight_file(cls, config: CsflowConfig, name: str, path: Path) -> None:
        state = read_state_dict(path)
        with torch.device("meta"):
            wanted = build_efficientnet().state_dict(prefix="features.")
        check_names_and_shapes(state, wanted, path)

    def build_model(self) -> CsflowModel:
        return CsflowModel(self.config)

    def configure_optimizer(self, total_steps: int) -> tuple[torch.optim.Optimizer, None]:
        # Fused: with 275 million weights a fifth off a step of four images of 256 px on a CPU.
        adam = torch.optim.Adam(
            self.model.steps.parameters(),
            self.config.lr,
            eps=1e-4,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        return adam, None

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = csflow_loss(*self.model.latents(batch.features))
        self.optimize(loss, self.config.clip_norm)
        return {"loss": loss.detach()}
