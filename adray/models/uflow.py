"""U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with Unsupervised Threshold.

M. Tailanian et al., Journal of Mathematical Imaging and Vision 66, 2024.
Paper: https://arxiv.org/abs/2211.12353
Reference: https://github.com/mtailanian/uflow (AGPL-3.0; facts only).

A frozen backbone gives feature maps of normal images at several scales: a ResNet's stages, or the
maps of two transformers, "mcait", of which the second sees the image at half the side. One flow
maps them together to independent standard normal values: the coarsest map goes through coupling
steps, half of its channels are done, the other half is enlarged by moving channels to positions and
joins the next finer map, up to the finest, which is done entirely. What the flow finds unlikely is
anomalous: the map is one minus the mean over scales of the density (up to a constant, at the
geometric mean over channels), the score its maximum. Without any labels two tests tell defects by
how improbable they are by chance alone: `UflowModel.anomaly_mask` looks at how many values around a
position are large, `UflowModel.region_mask` at regions of any shape in which all positions are.

Differs from the paper: one learning rate, batch size and number of epochs for all categories. The
authors set 3.2e-5 to 6e-3, 11 to 30 and 200 to 500 by category, with the transformers, and publish
no settings for a ResNet. The rate falls with each step, where the reference's schedule meant for
steps is called once an epoch and hardly moves it. The last epoch counts. The reference keeps the one
that is best on the test set, and stops after twenty that are no better.
`anomaly_mask` is the test of blocks, with the reference's window and quantile. A window full of
large values has the probability of just that, where the reference has zero, whose logarithm spoils
its surroundings. `region_mask` is the test of a tree of level sets, with which the reference
evaluates its masks. A level below the mean has the probability 1, where the reference's bound,
which does not hold there, falls again and makes a whole map of small values an anomaly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from FrEIA.modules import InvertibleModule
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom, chi2
from torch import Tensor, nn
from torch.nn import functional as F

from adray.components.feature_extractor import (
    TimmFeatureExtractor,
    check_backbone_file,
    dryrun_find_featuremap_dims,
)
from adray.components.flow2d import build_flow2d
from adray.components.vit_extractor import VitExtractor, check_vit_file
from adray.methods.uflow import METHODS, UflowConfig
from adray.trainer import BaseTrainer
from adray.types import Batch, Prediction

_SHAPES = (0.316915, 4.062570)
"""Alpha and beta of the number of shapes that n connected positions can have, about
alpha * beta^n / n (polyominoes; I. Jensen and A. J. Guttmann 2000)."""


class ResnetPyramid(nn.Module):
    """Stages of a frozen ResNet, each behind a layer norm over (C, h, w), which is learnt.

    Args:
        config: hyperparameters with one backbone.
        input_size: side of the images in pixels.
    """

    def __init__(self, config: UflowConfig, input_size: int) -> None:
        super().__init__()
        (backbone,) = config.backbones
        self.extractor = TimmFeatureExtractor(backbone, config.layers, config.weights)
        self.channels: list[int] = []
        self.norms = nn.ModuleList()
        for channels, size in dryrun_find_featuremap_dims(self.extractor, input_size).values():
            self.channels.append(channels)
            self.norms.append(nn.LayerNorm([channels, *size]))

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give one (B, C, h, w) map per stage, before the norms."""
        return self.extractor(image)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Give the maps behind the norms."""
        return [norm(feature) for norm, feature in zip(self.norms, features, strict=True)]


class VitPyramid(nn.Module):
    """Two frozen transformers, one for the image and one for the image at half the side.

    Nothing is learnt.

    Args:
        config: hyperparameters with two backbones, and the block to tap of each.
    """

    def __init__(self, config: UflowConfig) -> None:
        super().__init__()
        fine, coarse = config.backbones
        fine_block, coarse_block = config.layers
        self.fine = VitExtractor(fine, (fine_block,), config.weights)
        self.coarse = VitExtractor(coarse, (coarse_block,), config.weights)
        self.channels = [self.fine.channels, self.coarse.channels]

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the maps of (B, 3, H, W): (B, C, H / 16, W / 16) and (B, C', H / 32, W / 32)."""
        # Aligned corners, as published.
        half_size = (image.shape[2] // 2, image.shape[3] // 2)
        half = F.interpolate(image, half_size, mode="bicubic", align_corners=True)
        return (*self.fine(image), *self.coarse(half))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Give the maps as they are, since they went through the transformers' own norms."""
        return list(features)


class UShapedFlow(InvertibleModule):
    """Flows from the coarsest to the finest map (figure 2).

    Each hands half of its channels to the next. It is no `GraphINN` of FrEIA, which makes a
    RuntimeError of every error in it, so that a trial out of memory would not get more.

    Args:
        channels: of the maps, finest first, each map having twice the sides of the next.
        config: hyperparameters.
    """

    def __init__(self, channels: Sequence[int], config: UflowConfig) -> None:
        super().__init__([(count,) for count in channels])
        self.channels = list(channels)
        self.stages = nn.ModuleList()  # coarsest first, as they run
        self.widths: list[list[int]] = []
        """Per stage the channels that go up, a multiple of four, and those that are done."""

        rising = 0
        for i in reversed(range(len(channels))):
            # Enlarged, what rises has a quarter of its channels. The finest map is done entirely.
            total = channels[i] + rising // 4
            rising = total // 8 * 4 if i else 0
            self.widths.append([rising, total - rising])
            stage = build_flow2d(
                total, config.flow_steps, config.kernel_sizes, config.hidden_ratio, config.clamp
            )
            self.stages.append(stage)

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] = (),
        rev: bool = False,
        jac: bool = True,
    ) -> tuple[list[Tensor], Tensor]:
        """Map x to the latent space, or z back.

        Args:
            x_or_z: one map (B, C, h, w) per scale, finest first.
            c: nothing, there is no condition.
            rev: go back from z to x.
            jac: without effect, the determinant is always given.

        Returns:
            z or x, one map per scale, finest first, and log|det J| of the way taken, (B,).
        """
        return self._to_maps(x_or_z) if rev else self._to_latents(x_or_z)

    def _to_latents(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        latents = []
        log_det = maps[0].new_zeros(len(maps[0]))
        rising = None
        for stage, widths, joined in zip(self.stages, self.widths, reversed(maps), strict=True):
            if rising is not None:
                # (B, 4c, h, w) -> (B, c, 2h, 2w), a permutation
                joined = torch.cat((joined, F.pixel_shuffle(rising, 2)), dim=1)

            z, stage_log_det = stage(joined)
            rising, done = z.split(widths, dim=1)
            latents.append(done)
            log_det = log_det + stage_log_det
        return latents[::-1], log_det

    def _to_maps(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        maps = []
        log_det = latents[0].new_zeros(len(latents[0]))
        risen = None
        finest_first = zip(reversed(self.stages), self.channels, latents, strict=True)
        for stage, channels, z in finest_first:
            if risen is not None:
                # (B, c, 2h, 2w) -> (B, 4c, h, w)
                z = torch.cat((F.pixel_unshuffle(risen, 2), z), dim=1)

            joined, stage_log_det = stage(z, rev=True)
            feature, risen = joined.tensor_split([channels], dim=1)
            maps.append(feature)
            log_det = log_det + stage_log_det
        return maps, log_det


class UflowModel(nn.Module):
    """A frozen backbone and one flow over its maps.

    Args:
        config: hyperparameters.
        input_size: side of the images in pixels.
    """

    def __init__(self, config: UflowConfig, input_size: int) -> None:
        super().__init__()
        self.pyramid: ResnetPyramid | VitPyramid
        if len(config.backbones) == 2:
            self.pyramid = VitPyramid(config)
        else:
            self.pyramid = ResnetPyramid(config, input_size)
        self.flow = UShapedFlow(self.pyramid.channels, config)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """Give the backbone's maps of (B, 3, H, W), one (B, C, h, w) per scale, finest first."""
        return self.pyramid.features(image)

    def latents(self, features: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """Map the `features` of a batch to one z per scale, finest first, and log|det J|, (B,)."""
        return self.flow(self.pyramid(features))

    def forward(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Prediction:
        """Say how unlikely each position is.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            The map (B, 1, H, W) in [0, 1], 1 where the density vanishes, and its maximum, (B,).
        """
        latents, _ = self.latents(self.features(image) if features is None else features)
        anomaly_map = unlikelihood_map(latents, (image.shape[2], image.shape[3]))
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)

    def anomaly_mask(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Tensor:
        """Find where chance alone lets expect fewer than one false alarm per image (section 3.3).

        No labels are needed.

        Args:
            image: (B, 3, H, W) normalised.
            features: what `features(image)` gives, or None.

        Returns:
            (B, 1, H, W) bool, true for anomalous.
        """
        latents, _ = self.latents(self.features(image) if features is None else features)
        return log_nfa(latents, (image.shape[2], image.shape[3])) < 0

    def region_mask(self, image: Tensor, features: tuple[Tensor, ...] | None = None) -> Tensor:
        """Find the regions of which chance alone lets expect fewer than one per image.

        Arguments and result are those of `anomaly_mask`. A map of 112 x 112 takes about a second on
        the host.
        """
        latents, _ = self.latents(self.features(image) if features is None else features)
        return log_nfa_of_regions(latents, (image.shape[2], image.shape[3])) < 0


def uflow_loss(latents: Sequence[Tensor], log_det: Tensor) -> Tensor:
    """Give the negative log-likelihood up to a constant, sum over scales, mean over the batch.

    Args:
        latents: z (B, C, h, w) of each scale.
        log_det: log|det J| of each sample, (B,).
    """
    squares = torch.stack([z.float().square().flatten(1).sum(1) for z in latents])  # (scales, B)
    return (0.5 * squares.sum(0) - log_det).mean()


def unlikelihood_map(latents: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Give one minus the density of each position, enlarged to `size`, mean over scales.

    Args:
        latents: one (B, C, h, w) per scale.
        size: H and W.

    Returns:
        (B, 1, H, W) float32 in [0, 1].
    """
    densities = []
    for z in latents:
        density = torch.exp(-0.5 * z.float().square().mean(1, keepdim=True))
        densities.append(F.interpolate(density, size, mode="bilinear", align_corners=False))
    return 1 - torch.stack(densities).mean(0)


def log_nfa(
    latents: Sequence[Tensor], size: tuple[int, int], window: int = 5, quantile: float = 0.9
) -> Tensor:
    """Give log10 of the number of false alarms, the a contrario test of section 3.3.

    Args:
        latents: one (B, C, h, w) per scale, finest first.
        size: H and W.
        window: side of the neighbourhood at the finest scale. Each next one halves it.
        quantile: values whose square is above this quantile of its distribution count as large.

    Returns:
        (B, 1, H, W) float32. Below 0 is anomalous.
    """
    tails = []
    tests = 0
    for i, z in enumerate(latents):
        side = 2 * max(int(window / 2**i) // 2, 1) + 1  # 5, 3, 3, ...
        tail = log_tail(z, side, quantile)
        tails.append(F.interpolate(tail, size, mode="bicubic", align_corners=True))
        tests += z.shape[2] * z.shape[3]

    # The number of tests, one per position, times the product of the scales' probabilities.
    return torch.stack(tails).sum(0) + math.log10(tests)


def log_tail(z: Tensor, side: int, quantile: float) -> Tensor:
    """Give log10 of the probability that a window of normal values has more large ones.

    The channels depend on each other, so what counts is their mean number of large values. Of a
    window that is full it is the probability of just that.

    Args:
        z: (B, C, h, w).
        side: of the window, odd.
        quantile: see `log_nfa`.

    Returns:
        (B, 1, h, w) float32, at most 0.
    """
    large = (z.float().square() >= chi2.ppf(quantile, 1)).sum(1, keepdim=True).float()
    padded = F.pad(large, [side // 2] * 4, mode="reflect")
    counts = F.avg_pool2d(padded, side, stride=1, divisor_override=1) / z.shape[1]

    # A window has few possible counts, so scipy need not see the positions.
    cells = side**2
    possible = np.arange(cells + 1).clip(max=cells - 1)  # more than all has no logarithm
    table = binom.logsf(possible, cells, 1 - quantile) / math.log(10)
    return torch.from_numpy(table).to(z.device, torch.float32)[counts.floor().long()]


def log_nfa_of_regions(latents: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Give log10 of the number of false alarms of connected regions of any shape.

    Args:
        latents: one (B, C, h, w) per scale.
        size: H and W.

    Returns:
        (B, 1, H, W) float32. Below 0 is anomalous.
    """
    maps = []
    for z in latents:
        levels = z.float().square().mean(1).cpu().numpy()  # (B, h, w)
        logs = np.stack([log_probability_of_regions(one, z.shape[1]) for one in levels])
        small = torch.from_numpy(logs).to(z.device, torch.float32).unsqueeze(1)  # (B, 1, h, w)
        maps.append(F.interpolate(small, size, mode="bilinear", align_corners=False))
    tests = log_number_of_regions([z.shape[2] * z.shape[3] for z in latents])
    return torch.stack(maps).amin(0) + tests


def log_probability_of_regions(level: NDArray, channels: int) -> NDArray[np.float64]:
    """Give log10 of the probability of the most telling regions of one map.

    Regions are the connected parts of the map above any of its levels, 4-connected. Of those that
    contain each other the least probable one is kept, and of several side by side that which
    contains them all, where it is no more probable than any (procedures 1 and 2 of the paper).

    Args:
        level: (h, w), mean over channels of the squares of z.
        channels: number C of these.

    Returns:
        (h, w), 0 outside of the regions that are kept.
    """
    flat = level.astype(np.float64).ravel()
    order, parent = component_tree(level)
    size = np.ones(flat.size)
    for p in order[:-1]:  # without the last one, which is the whole map
        size[parent[p]] += size[p]

    # Chernoff's bound of a chi-squared value with C degrees of freedom, which is 1 below the mean.
    above = np.maximum(flat, 1)
    tail = -0.5 * channels * (above - 1 - np.log(above)) / math.log(10)
    log_probability = size * tail
    kept = _keep(flat, order, parent, log_probability)

    logs = np.zeros(flat.size)
    for p in reversed(order):  # from the whole map inwards
        logs[p] = log_probability[p] if p in kept else logs[parent[p]]
    return logs.reshape(level.shape)


def component_tree(level: NDArray) -> tuple[list[int], list[int]]:
    """Find the 4-connected parts of a map above all of its levels, and how they contain each other.

    E. Carlinet and T. Geraud, A Comparative Review of Component Tree Computation Algorithms, IEEE
    TIP 23(9), 2014, algorithm 1.

    Args:
        level: (h, w).

    Returns:
        The positions in the order of falling level, and for each position its parent. A part is
        named by the last of its lowest positions. The parent of such a position is the name of the
        next larger part, that of any other position the name of its own part. The last position is
        the whole map and its own parent.
    """
    flat = level.ravel()
    order = np.argsort(-flat, kind="stable").tolist()
    parent = [-1] * flat.size
    root = [-1] * flat.size  # -1 above the level that was reached
    for p in order:
        parent[p] = root[p] = p
        for neighbor in _neighbors(p, level.shape):
            if root[neighbor] >= 0:
                part = _find(root, neighbor)
                parent[part] = root[part] = p

    # Positions of the same level are one part.
    for p in reversed(order):
        above = parent[p]
        if flat[parent[above]] == flat[above]:
            parent[p] = parent[above]
    return order, parent


def _neighbors(position: int, shape: tuple[int, ...]) -> list[int]:
    """List the positions above, below, to the left and to the right."""
    height, width = shape
    row, column = divmod(position, width)
    found = []
    if row > 0:
        found.append(position - width)
    if row < height - 1:
        found.append(position + width)
    if column > 0:
        found.append(position - 1)
    if column < width - 1:
        found.append(position + 1)
    return found


def _find(root: list[int], position: int) -> int:
    """Find the name of the part that a position is in so far, and shorten the way there."""
    while root[position] != position:
        root[position] = root[root[position]]
        position = root[position]
    return position


def _keep(flat: NDArray, order: list[int], parent: list[int], log_probability: NDArray) -> set[int]:
    """Choose among parts that contain each other, see `log_probability_of_regions`."""
    children: dict[int, list[int]] = {}
    chosen: dict[int, int | None] = {}  # the one that stands for a part, None where several do
    kept: set[int] = set()
    for p in order:
        if flat[p] == flat[parent[p]] and p != order[-1]:
            continue  # no part's name
        below = [chosen[child] for child in children.get(p, [])]
        chosen[p] = _stands_for(p, below, log_probability)
        if chosen[p] is None:
            kept.update(part for part in below if part is not None)
        children.setdefault(parent[p], []).append(p)

    whole = chosen[order[-1]]
    if whole is not None:
        kept.add(whole)
    return kept


def _stands_for(part: int, below: list[int | None], log_probability: NDArray) -> int | None:
    """Choose a part or the one that stands for all inside of it, None where several stay."""
    if None in below:
        return None
    least = min(below, key=lambda inner: log_probability[inner], default=part)
    if len(below) == 1:
        return part if log_probability[part] < log_probability[least] else least
    return part if log_probability[part] <= log_probability[least] else None


def log_number_of_regions(positions: Sequence[int]) -> float:
    """Give log10 of how many connected regions there are in maps of so many positions."""
    alpha, beta = _SHAPES
    logs = []
    for count in positions:
        size = np.arange(1, count + 1)
        shapes = math.log(alpha) + size * math.log(beta) - np.log(size)
        logs.append(math.log(count) + logsumexp(shapes))  # each shape at each position
    return float(logsumexp(logs)) / math.log(10)


class UflowTrainer(BaseTrainer):
    """Trains the flow, and a ResNet's layer norms, on the backbone's cached features."""

    config: UflowConfig
    model: UflowModel
    method = METHODS["UflowTrainer"]

    @classmethod
    def check_weight_file(cls, config: UflowConfig, name: str, path: Path) -> None:
        if len(config.backbones) == 1:
            check_backbone_file(name, config.layers, path)
            return

        # The two transformers may have the same name, and so the same file, but other blocks.
        for backbone, layer in zip(config.backbones, config.layers, strict=True):
            if backbone == name:
                check_vit_file(name, (layer,), path)

    def build_model(self) -> UflowModel:
        return UflowModel(self.config, self.train_config.input_size)

    def configure_optimizer(
        self, total_steps: int
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        adam = torch.optim.Adam(learnt, self.config.lr, weight_decay=self.config.weight_decay)
        return adam, torch.optim.lr_scheduler.LinearLR(adam, 1.0, self.config.lr_end, total_steps)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.features is not None, "the trainer gives the frozen stage's features"
        loss = uflow_loss(*self.model.latents(batch.features))
        self.optimize(loss)
        return {"loss": loss.detach()}
