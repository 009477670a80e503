"""Hyperparameters of PatchFlow, and what is known before its network is loaded.

The method itself: `adray.models.patchflow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adray.components.architectures import CONVOLUTIONAL, count_places
from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_integers, log_uniform, option
from adray.language.sentence import Sentence, nearest_of
from adray.method import Method

_STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class PatchflowConfig:
    """Hyperparameters of PatchFlow."""

    backbone: str = "wide_resnet50_2"
    """Architecture of the frozen feature extractor, one of `CONVOLUTIONAL`."""
    layers: tuple[str, ...] = option(
        ("layer2", "layer3", "layer4"),
        search=choice(
            ("layer2", "layer3", "layer4"),
            ("layer1", "layer2", "layer3"),
            ("layer2", "layer3"),
            note="strides 8, 16 and 32 as published, or finer ones",
        ),
    )
    """Stages whose maps are joined, at the size of the first one's."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of the feature extractor."""
    num_scales: int = option(
        3, low=1, high=5, search=choice(1, 2, 3, note="fewer sizes look at less around a patch")
    )
    """Sizes at which the extractor sees each image, each half of the one before."""
    kernel_size: int = option(3, low=1, high=31)
    """Side of the squares over which maps are averaged, odd."""
    channels: int = option(
        128, low=2, high=4096, search=choice(64, 128, 256, note="more keep more and cost more")
    )
    """Channels of the adapted map, to which all maps together are projected."""
    hidden: int = option(128, low=1, high=4096)
    """Channels between the two convolutions of a coupling's sub-network."""
    flow_steps: int = option(1, low=1, high=100, search=choice(1, 2, 4, note="one as published"))
    """Coupling steps of the flow."""
    clamp: float = option(2.0, low=0.01, high=10)
    """Bound of the log scale of one coupling."""
    lr: float = option(1e-3, low=0, high=1, search=log_uniform(1e-4, 3e-3, "around 1e-3"))
    """Learning rate of Adam, constant."""
    weight_decay: float = option(1e-4, low=0, high=1)
    """Weight decay of Adam."""

    def __post_init__(self) -> None:
        """Check ranges, and that a projection leaves fewer channels than there are."""
        check_fields(self)
        if self.kernel_size % 2 == 0:
            raise InputError(Sentence.of("method kernel_size", kernel_size=self.kernel_size))
        if self.backbone not in CONVOLUTIONAL:
            raise InputError(
                Sentence.of(
                    "method backbone",
                    backbone=repr(self.backbone),
                    nearest=nearest_of(self.backbone, CONVOLUTIONAL),
                )
            )
        for layer in self.layers:
            if layer not in _STAGES:
                raise InputError(
                    Sentence.of(
                        "method layer", layer=repr(layer), nearest=nearest_of(layer, _STAGES)
                    )
                )
        if self.channels > self.joined_channels:
            raise InputError(
                Sentence.of(
                    "method channels",
                    channels=self.channels,
                    layers=", ".join(self.layers),
                    backbone=self.backbone,
                    num_scales=self.num_scales,
                    joined_channels=self.joined_channels,
                )
            )

    @property
    def joined_channels(self) -> int:
        """Count the channels of all maps at all sizes together."""
        _, width = count_places(self.backbone, self.layers, (256, 256))
        return width * self.num_scales

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (self.backbone,) if self.weights == "pretrained" else ()


def check_inputs(config: PatchflowConfig, train_config: TrainConfig) -> list[str]:
    """Refuse sizes that vanish, see `adray.method.Method.check_inputs`."""
    least = 8 * 2 ** (config.num_scales - 1)
    if train_config.input_size < least:
        raise InputError(
            Sentence.of(
                "method patchflow size",
                input_size=train_config.input_size,
                num_scales=config.num_scales,
                least=least,
            )
        )
    return []


METHODS = {
    "PatchflowTrainer": Method(
        PatchflowConfig,
        train_search={
            "num_epochs": log_integers(20, 200, "small data sets are learnt by heart earlier")
        },
        check_inputs=check_inputs,
    ),
}
