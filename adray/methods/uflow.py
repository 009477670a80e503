"""Hyperparameters of U-Flow, and what is known before its network is loaded.

The method itself: `adray.models.uflow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import RESNETS, VITS, check_vit
from adray.components.input_checks import check_kernel_sizes
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option, uniform
from adray.language.sentence import Sentence
from adray.method import Method

STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class UflowConfig:
    """Hyperparameters of U-Flow; defaults are the reference's for a Wide ResNet-50."""

    backbones: tuple[str, ...] = ("wide_resnet50_2",)
    """Frozen feature extractor: one of `RESNETS`, or two of `VITS`, the second for the image at
    half the side."""
    layers: tuple[str, ...] = ("layer1", "layer2", "layer3")
    """What is tapped, finest first: neighbouring stages of the ResNet, or one block of each
    transformer."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    flow_steps: int = option(4, low=1, high=100, search=choice(2, 4, 6, note="the reference's 4"))
    """Coupling steps per scale."""
    kernel_sizes: tuple[int, ...] = (3, 1)
    """Sides of the sub-networks' convolutions, odd, taken in turn by the steps of a scale."""
    hidden_ratio: float = option(
        1.0,
        low=0.01,
        high=16,
        search=choice(0.25, 0.5, 1.0, note="1.0 as the reference, small ones need less memory"),
    )
    """Hidden channels of a sub-network as a multiple of its input channels."""
    clamp: float = option(2.0, low=0.01, high=10)
    """Bound of the log scale of one coupling."""
    lr: float = option(
        1e-3, low=0, high=1, search=log_uniform(1e-4, 3e-3, "around the reference's 1e-3")
    )
    """Learning rate of Adam at the start."""
    lr_end: float = option(0.4, low=0, high=1, search=uniform(0.05, 1.0, "the reference's 0.4"))
    """Part of `lr` that is left at the end; it falls linearly."""
    weight_decay: float = option(
        1e-5, low=0, high=1, search=log_uniform(1e-6, 1e-3, "around the reference's 1e-5")
    )
    """Weight decay of Adam."""

    def __post_init__(self) -> None:
        """Check ranges, and that the backbones are one ResNet or two transformers."""
        check_fields(self)
        check_kernel_sizes(self.kernel_sizes, such_as="[3, 1] or [3]")
        known = {1: RESNETS, 2: VITS}.get(len(self.backbones), ())
        if not known or not set(self.backbones) <= set(known):
            raise InputError(
                Sentence.of(
                    "method uflow backbones",
                    backbones=str(list(self.backbones)),
                    resnets=", ".join(RESNETS),
                    vits=", ".join(VITS),
                )
            )

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return self.backbones if self.weights == "pretrained" else ()


def _check_stages(layers: Sequence[str], size: int) -> None:
    """Refuse stages that do not double from one to the next, and a size whose maps do not."""
    indices = list(map(STAGES.index, layers)) if set(layers) <= set(STAGES) else []
    if not indices or indices != list(range(indices[0], indices[-1] + 1)):
        raise InputError(Sentence.of("method uflow stages", layers=str(list(layers))))

    stride = 4 * 2 ** indices[-1]
    if size % stride:
        raise InputError(Sentence.of("method uflow size", size=size, stride=stride))


def check_inputs(config: UflowConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    size = train_config.input_size
    layers = config.layers
    if len(config.backbones) == 1:
        _check_stages(layers, size)
        return []

    if len(layers) != 2:
        raise InputError(Sentence.of("method uflow blocks", layers=str(list(layers))))
    for shrink, name, layer in zip((1, 2), config.backbones, layers, strict=True):
        check_vit(name, (layer,), size, shrink)
    return []


METHODS = {
    "UflowTrainer": Method(UflowConfig, check_inputs=check_inputs),
}
