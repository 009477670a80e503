"""ResNets turned around: from a small deep map back to the maps of layer3, layer2 and layer1.

H. Deng and X. Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022,
https://arxiv.org/abs/2201.10703; https://github.com/hq-deng/RD4AD (MIT; facts only).
"""

from __future__ import annotations

from torch import Tensor, nn

from adray.components.resnet import RESNET_PLANS, BasicBlock, ResNetPlan, stage_after
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of


def resnet_plan(backbone: str) -> ResNetPlan:
    """Give the plan of a backbone.

    Raises:
        InputError: for an unknown name, with the nearest.
    """
    if backbone not in RESNET_PLANS:
        raise InputError(
            Sentence.of(
                "backbone no decoder",
                backbone=repr(backbone),
                nearest=nearest_of(backbone, RESNET_PLANS),
            )
        )
    return RESNET_PLANS[backbone]


class ResNetDecoder(nn.Module):
    """Three residual stages, each of which doubles the side and halves the channels.

    In the first block of a stage a transposed 2x2 convolution of stride 2 stands where the encoder
    has its convolution of stride 2, on the shortcut too.

    Args:
        backbone: the encoder that is mirrored, one of `RESNET_PLANS`.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        plan = resnet_plan(backbone)
        # The published decoder counts depths from its own input: the deepest stage has as many
        # blocks as layer1.
        self.layer1 = upward_stage(plan, 512, 256, plan.depths[0])
        self.layer2 = upward_stage(plan, 256, 128, plan.depths[1])
        self.layer3 = upward_stage(plan, 128, 64, plan.depths[2])
        init_residual(self)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unfold an embedding.

        Args:
            embedding: (B, 512 * expansion, h, w).

        Returns:
            The images of the encoder's layer1, layer2 and layer3: (B, C, 8h, 8w), (B, 2C, 4h, 4w)
            and (B, 4C, 2h, 2w).
        """
        like_layer3 = self.layer1(embedding)
        like_layer2 = self.layer2(like_layer3)
        like_layer1 = self.layer3(like_layer2)
        return like_layer1, like_layer2, like_layer3


def upward_stage(plan: ResNetPlan, planes_in: int, planes: int, depth: int) -> nn.Sequential:
    """Build residual blocks of which the first doubles the side.

    Args:
        plan: of the mirrored encoder.
        planes_in: nominal channels of the input.
        planes: nominal channels of the output.
        depth: number of blocks.
    """
    channels_in = planes_in * plan.block.expansion
    channels = planes * plan.block.expansion
    shortcut = nn.Sequential(_doubling(channels_in, channels), nn.BatchNorm2d(channels))
    first = plan.block(channels_in, planes, downsample=shortcut, base_width=plan.base_width)

    # The convolution that has the stride in an encoder is the one to be turned around.
    if isinstance(first, BasicBlock):
        first.conv1 = _doubling(channels_in, planes)
    else:
        width = first.conv2.in_channels
        first.conv2 = _doubling(width, width)
    return stage_after(first, plan, planes, depth)


def init_residual(module: nn.Module) -> None:
    """Draw convolutions as He proposes by fan-out, and leave transposed ones and batch norms."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _doubling(channels_in: int, channels: int) -> nn.ConvTranspose2d:
    """Build the transposed convolution that doubles the side."""
    return nn.ConvTranspose2d(channels_in, channels, 2, stride=2, bias=False)
