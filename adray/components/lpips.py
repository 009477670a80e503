"""LPIPS, a perceptual distance of two images; optional, since it needs two weight files.

R. Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018,
https://arxiv.org/abs/1801.03924. Reference: https://github.com/richzhang/PerceptualSimilarity (BSD-2-Clause), version
0.1 with AlexNet, whose constants and weight files these are. The features of both images are compared after each of
the five ReLUs of AlexNet; a learnt weight per channel says how much people see of a difference.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from adray.components.backbone import find_weights, get_backbone_dir
from adray.components.feature_extractor import read_state_dict
from adray.errors import InputError

logger = logging.getLogger(__name__)

LPIPS_SMALLEST = 32
"""Side in pixels below which nothing is left of an image after AlexNet's poolings."""
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_TAPS = {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}
"""Layers of torchvision's AlexNet that are ReLUs, and their channels."""


class Lpips(nn.Module):
    """The distance, on AlexNet; untrained until a weight file is loaded.

    Attributes:
        features: the convolutions of torchvision's AlexNet.
        heads: one weight per channel for each of the five taps, kernels of shape (1, C, 1, 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = alexnet().features[:12]  # without the pooling after the last tap
        self.heads = nn.ModuleList(
            nn.Conv2d(channels, 1, 1, bias=False) for channels in _TAPS.values()
        )

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """Distance of each pair (equation 1 of the paper), 0 for equal images.

        Args:
            image: (B, 3, H, W) in [0, 1], H and W at least `LPIPS_SMALLEST`.
            other: (B, 3, H, W) in [0, 1].

        Returns:
            (B,), higher is less alike.
        """
        pairs = zip(self._taps(image), self._taps(other), self.heads, strict=True)
        return torch.stack([head((a - b).square()).mean((1, 2, 3)) for a, b, head in pairs]).sum(0)

    def _taps(self, image: Tensor) -> list[Tensor]:
        """Unit vectors along the channels, after each ReLU."""
        shift, scale = (image.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        x, taps = (2 * image - 1 - shift) / scale, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPS:
                taps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return taps


def load_lpips(alexnet_path: Path, heads_path: Path) -> Lpips:
    """The trained distance, in eval mode and without gradient; no random number is drawn.

    Args:
        alexnet_path: torchvision's AlexNet.
        heads_path: the reference's ``alex.pth``.

    Raises:
        InputError: for a damaged file, and for another network's.
    """
    with torch.device("meta"):
        net = Lpips()
    features, heads = read_state_dict(alexnet_path), read_state_dict(heads_path)
    kept = {name: value for name, value in features.items() if name.startswith("features.")}
    renamed = {f"heads.{i}.weight": heads.get(f"lin{i}.model.1.weight") for i in range(len(_TAPS))}
    try:
        net.load_state_dict({**kept, **renamed}, assign=True)
    except (RuntimeError, AttributeError) as error:  # AttributeError: a head is missing
        raise InputError(
            f"weight files {alexnet_path} and {heads_path} are not those of LPIPS with AlexNet; "
            "copy the published files again"
        ) from error
    return net.float().eval().requires_grad_(False)


def find_lpips() -> Lpips | None:
    """`load_lpips` of the files in the folder of weights; None where one is missing, or bad, which is said."""
    alexnet_path, heads_path = (
        find_weights(name, get_backbone_dir()) for name in ("lpips_alexnet", "lpips_alex")
    )
    if alexnet_path is None or heads_path is None:
        return None
    try:
        return load_lpips(alexnet_path, heads_path)
    except InputError as error:  # a figure that nobody has to have stops no training
        logger.warning("LPIPS is left out: %s", error)
        return None
