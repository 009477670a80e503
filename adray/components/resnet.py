"""ResNets and wide ResNets with torchvision's names of parameters, tapped at several stages.

K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
https://arxiv.org/abs/1512.03385; S. Zagoruyko and N. Komodakis, Wide Residual Networks, BMVC 2016,
https://arxiv.org/abs/1605.07146. As in the published weights, the stride of a bottleneck is that of
its 3x3 convolution.

timm and torchvision have these networks too, but the import of either takes longer than a short
trial, since it loads torch's compiler. The tests hold these against timm's: the same maps, and the
same random weights for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

Convolution = nn.Conv2d | nn.ConvTranspose2d
"""Either way round: a decoder has the second where its encoder halves the side."""
STAGES = ("layer1", "layer2", "layer3", "layer4")
_CLASSES = 1000
"""Of ImageNet, for the classifier that is drawn and thrown away."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        channels_in: of the input.
        planes: channels of both convolutions.
        stride: of the first convolution.
        downsample: brings the input to the shape of the output, None where it has it.
        base_width: 64, since only bottlenecks come wider.
    """

    expansion = 1

    def __init__(
        self,
        channels_in: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        if base_width != 64:
            raise ValueError(f"base_width is {base_width}, a basic block has 64")
        self.conv1: Convolution = nn.Conv2d(channels_in, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, planes, H / stride, W / stride)."""
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = self.bn2(self.conv2(branch))
        branch += x if self.downsample is None else self.downsample(x)
        return F.relu(branch, inplace=True)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, of which the second has four times the channels.

    Args:
        channels_in: of the input.
        planes: a quarter of the channels of the output.
        stride: of the 3x3 convolution.
        downsample: brings the input to the shape of the output, None where it has it.
        base_width: 64, or 128 for a 3x3 convolution of twice as many channels.
    """

    expansion = 4

    def __init__(
        self,
        channels_in: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        base_width: int = 64,
    ) -> None:
        super().__init__()
        width = planes * base_width // 64
        channels = planes * self.expansion
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: Convolution = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, 4 * planes, H / stride, W / stride)."""
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = F.relu(self.bn2(self.conv2(branch)), inplace=True)
        branch = self.bn3(self.conv3(branch))
        branch += x if self.downsample is None else self.downsample(x)
        return F.relu(branch, inplace=True)


@dataclass(frozen=True)
class ResNetPlan:
    """What the stages of a (wide) ResNet are made of."""

    block: type[BasicBlock | Bottleneck]
    """Residual block, which gives `block.expansion` times its nominal channels."""
    base_width: int
    """64, or 128 where the 3x3 convolutions are twice as wide."""
    depths: tuple[int, int, int, int]
    """Blocks in layer1 to layer4."""

    @property
    def channels(self) -> tuple[int, int, int]:
        """Count the channels of the maps of layer1, layer2 and layer3."""
        return 64 * self.block.expansion, 128 * self.block.expansion, 256 * self.block.expansion


RESNET_PLANS = {
    "resnet18": ResNetPlan(BasicBlock, 64, (2, 2, 2, 2)),
    "resnet34": ResNetPlan(BasicBlock, 64, (3, 4, 6, 3)),
    "resnet50": ResNetPlan(Bottleneck, 64, (3, 4, 6, 3)),
    "wide_resnet50_2": ResNetPlan(Bottleneck, 128, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """A ResNet without its classifier, up to the last stage that is tapped.

    Args:
        plan: one of `RESNET_PLANS`.
        layers: stages whose maps are given, some of `STAGES` in their order.
    """

    first_weights = ("conv1", "bn1", "layer1.")
    """Beginnings of the names of the parameters that every choice of layers has."""

    def __init__(self, plan: ResNetPlan, layers: Sequence[str]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self._add_stages(plan)

        # The whole network takes its random numbers, so that what is drawn after it stays the same
        # whichever stages are tapped.
        nn.Linear(512 * plan.block.expansion, _CLASSES)
        self._init_weights()
        for stage in STAGES[STAGES.index(self.layers[-1]) + 1 :]:
            delattr(self, stage)

    def _add_stages(self, plan: ResNetPlan) -> None:
        """Build the stages, of which each but the first halves the side."""
        channels = 64
        for number, stage in enumerate(STAGES):
            planes = 64 * 2**number
            stride = 1 if number == 0 else 2
            depth = plan.depths[number]
            self.add_module(stage, residual_stage(plan, channels, planes, depth, stride))
            channels = planes * plan.block.expansion

    def _init_weights(self) -> None:
        """Draw convolutions as He proposes by fan-out, and start residual branches at zero."""
        if self.conv1.weight.is_meta:
            return  # nothing to draw, and torch would load its compiler to find that out

        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        for part in self.modules():
            if isinstance(part, BasicBlock):
                nn.init.zeros_(part.bn2.weight)
            elif isinstance(part, Bottleneck):
                nn.init.zeros_(part.bn3.weight)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Give the maps of the tapped stages.

        Args:
            image: (B, 3, H, W) normalised.

        Returns:
            One (B, C, h, w) map per layer, in the order of `layers`.
        """
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps = []
        for stage in STAGES[: STAGES.index(self.layers[-1]) + 1]:
            x = self.get_submodule(stage)(x)
            if stage in self.layers:
                maps.append(x)
        return maps


def residual_stage(
    plan: ResNetPlan, channels_in: int, planes: int, depth: int, stride: int = 2
) -> nn.Sequential:
    """Build residual blocks of which the first halves the side, or keeps it.

    Args:
        plan: of the ResNet whose kind of blocks is taken.
        channels_in: channels of the input, any number.
        planes: nominal channels of the output.
        depth: number of blocks.
        stride: of the first block, 2 or 1.
    """
    channels = planes * plan.block.expansion
    shortcut = None
    if stride > 1 or channels_in != channels:
        resampling = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
        shortcut = nn.Sequential(resampling, nn.BatchNorm2d(channels))
    first = plan.block(channels_in, planes, stride, shortcut, plan.base_width)
    return stage_after(first, plan, planes, depth)


def stage_after(
    first: BasicBlock | Bottleneck, plan: ResNetPlan, planes: int, depth: int
) -> nn.Sequential:
    """Put blocks that keep the shape behind the first one of a stage."""
    channels = planes * plan.block.expansion
    blocks = [first]
    for _ in range(1, depth):
        blocks.append(plan.block(channels, planes, base_width=plan.base_width))
    return nn.Sequential(*blocks)
