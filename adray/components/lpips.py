"""LPIPS, a perceptual distance of two images; optional, since it needs two weight files.

R. Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018,
https://arxiv.org/abs/1801.03924. Reference: https://github.com/richzhang/PerceptualSimilarity
(BSD-2-Clause), version 0.1 with AlexNet, whose constants and weight files these are. The features
of both images are compared after each of the five ReLUs of AlexNet; a learnt weight per channel
says how much people see of a difference.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from adray.components.backbone import find_weights, get_backbone_dir
from adray.components.feature_extractor import read_state_dict
from adray.errors import InputError
from adray.language.sentence import Sentence

logger = logging.getLogger(__name__)

LPIPS_SMALLEST = 32
"""Side in pixels below which nothing is left of an image after AlexNet's poolings."""
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_TAPS = {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}
"""Layers of torchvision's AlexNet that are ReLUs, and their channels."""


class Lpips(nn.Module):
    """The distance, on AlexNet; untrained until a weight file is loaded."""

    features: nn.Sequential
    """The convolutions of torchvision's AlexNet."""
    heads: nn.ModuleList
    """One weight per channel for each of the five taps, kernels of shape (1, C, 1, 1)."""

    def __init__(self) -> None:
        # This import takes seconds, which a plan does not pay.
        from torchvision.models import alexnet

        super().__init__()
        self.features = alexnet().features[:12]  # without the pooling after the last tap
        self.heads = nn.ModuleList()
        for channels in _TAPS.values():
            self.heads.append(nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """Measure the distance of each pair (equation 1 of the paper), 0 for equal images.

        Args:
            image: (B, 3, H, W) in [0, 1], H and W at least `LPIPS_SMALLEST`.
            other: (B, 3, H, W) in [0, 1].

        Returns:
            (B,), higher is less alike.
        """
        per_tap = []
        for a, b, head in zip(self._taps(image), self._taps(other), self.heads, strict=True):
            per_tap.append(head((a - b).square()).mean((1, 2, 3)))
        return torch.stack(per_tap).sum(0)

    def _taps(self, image: Tensor) -> list[Tensor]:
        """Give the features after each ReLU, scaled to unit length along the channels."""
        shift = image.new_tensor(_SHIFT).view(1, 3, 1, 1)
        scale = image.new_tensor(_SCALE).view(1, 3, 1, 1)
        x = (2 * image - 1 - shift) / scale

        taps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPS:
                # Where all channels are 0, the small number keeps the quotient finite (reference).
                taps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return taps


def load_lpips(alexnet_path: Path, heads_path: Path) -> Lpips:
    """Read the trained distance, in eval mode and without gradient. No random number is drawn.

    Args:
        alexnet_path: torchvision's AlexNet.
        heads_path: the reference's ``alex.pth``.

    Raises:
        InputError: for a damaged file, and for another network's.
    """
    with torch.device("meta"):
        net = Lpips()
    features = read_state_dict(alexnet_path)
    heads = read_state_dict(heads_path)

    # AlexNet's classifier is left out.
    state = {name: value for name, value in features.items() if name.startswith("features.")}
    try:
        for i in range(len(_TAPS)):
            state[f"heads.{i}.weight"] = heads[f"lin{i}.model.1.weight"]
        net.load_state_dict(state, assign=True)
    except (RuntimeError, KeyError) as error:
        raise InputError(
            Sentence.of(
                "weights no lpips", alexnet_path=str(alexnet_path), heads_path=str(heads_path)
            )
        ) from error
    return net.float().eval().requires_grad_(False)


def find_lpips() -> Lpips | None:
    """Read the files in the folder of weights, or give None where one is missing.

    A bad file gives None too, with a warning.
    """
    folder = get_backbone_dir()
    alexnet_path = find_weights("lpips_alexnet", folder)
    heads_path = find_weights("lpips_alex", folder)
    if alexnet_path is None or heads_path is None:
        return None

    try:
        return load_lpips(alexnet_path, heads_path)
    except InputError as error:  # a figure that nobody has to have stops no training
        logger.warning("LPIPS is left out: %s", error)
        return None
