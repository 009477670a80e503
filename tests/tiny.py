"""Per configuration, what makes it run in a second: data for the contract, not code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from torch import Tensor

IMG_SIZE = 64

TINY: dict[str, dict[str, dict[str, Any]]] = {
    "padim": {"model": {"num_features": 20}},
    "padim-wide-resnet50": {"model": {"num_features": 20}},
    "patchcore": {"train": {"crop_size": 56}, "model": {"coreset_ratio": 0.2}},
    "patchcore-resnet18": {"model": {"coreset_ratio": 0.2}},
    "fastflow-resnet50": {"train": {"num_epochs": 3}, "model": {"flow_steps": 2}},
    "fastflow-wide-resnet50": {"train": {"num_epochs": 3}, "model": {"flow_steps": 2}},
    "fastflow-resnet18": {"train": {"num_epochs": 3}, "model": {"flow_steps": 2}},
    "stfpm": {"train": {"num_epochs": 3}},
    "autoencoder": {"train": {"num_epochs": 15}, "model": {"base_channels": 8, "latent_channels": 8}},
}
"""Overrides by configuration; `img_size` is `IMG_SIZE` for all that do not say otherwise."""


def untrained_resnet(name: str) -> Callable[[], dict[str, Tensor]]:
    """Random tensors under the names of a published ResNet file."""
    return lambda: timm.create_model(name, pretrained=False).state_dict()


WEIGHTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "resnet18": untrained_resnet("resnet18"),
    "resnet50": untrained_resnet("resnet50"),
    "wide_resnet50_2": untrained_resnet("wide_resnet50_2"),
}
"""What the contract writes, untrained, under the real names of weight files."""
