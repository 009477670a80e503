"""Hyperparameters of WinCLIP, and what is known before its network is loaded.

The method itself: `adray.models.winclip`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adray.config import TrainConfig
from adray.errors import InputError
from adray.fields import check_fields, choice, log_uniform, option
from adray.language.sentence import Sentence
from adray.method import Method

BACKBONE = "clip_vit_b_16_plus_240"
"""Name of the weights in `BACKBONE_WEIGHT_FILES`."""
INPUT_SIZE = 240
"""Side of the images in pixels, to which CLIP's position embedding is bound."""
GRID = 15
"""Side of the images in patches."""


@dataclass(frozen=True)
class WinclipConfig:
    """Hyperparameters of WinCLIP."""

    k_shot: int = option(0, low=0, high=64, search=choice(0, 1, 2, 4, 8))
    """Normal training images per category that images are compared with; 0 uses none, the paper has
    0, 1, 2 and 4."""
    scales: tuple[int, ...] = option(
        (2, 3),
        low=1,
        high=GRID,
        unit="patches",
        search=choice((2, 3), (2,), (3,), (2, 3, 5), note="small ones see small defects"),
    )
    """Sides of the windows in patches of 16 px (section 4.2)."""
    temperature: float = option(
        0.07, low=1e-3, high=100, search=log_uniform(0.01, 0.2, "around the paper's 0.07")
    )
    """What similarities are divided by before the softmax (equation 1)."""
    class_names: Mapping[str, str] = field(default_factory=dict)
    """Category folder to the words for its product, where `CLASS_NAMES` has none or others."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """Weights of CLIP."""

    def __post_init__(self) -> None:
        """Check ranges, the order of the scales, and that names are not empty."""
        check_fields(self)
        ascending = list(self.scales) == sorted(set(self.scales))
        if not self.scales or not ascending:
            raise InputError(Sentence.of("method scales", scales=str(list(self.scales))))
        for category, words in self.class_names.items():
            if not words.strip():
                raise InputError(Sentence.of("method class_names", category=category))

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Give the names in `BACKBONE_WEIGHT_FILES` that must be there."""
        return (BACKBONE,) if self.weights == "pretrained" else ()


def check_open_clip() -> None:
    """Refuse to start without open_clip, which is not even imported for that.

    Raises:
        InputError: where it is missing, or older than 3: there the transformer took tokens in
            another order.
    """
    try:
        version = importlib.metadata.version("open_clip_torch")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(Sentence.of("method clip packages")) from None

    major = int(version.split(".")[0])
    if major < 3:
        raise InputError(Sentence.of("method clip version", version=version))


def check_inputs(config: WinclipConfig, train_config: TrainConfig) -> list[str]:
    """Refuse what the network cannot take, see `adray.method.Method.check_inputs`."""
    check_open_clip()
    size = train_config.input_size
    if size != INPUT_SIZE:
        raise InputError(Sentence.of("method clip size", size=size, input_size=INPUT_SIZE))

    normalize = train_config.normalize
    if normalize != "clip":
        raise InputError(Sentence.of("method clip normalize", normalize=repr(normalize)))
    return []


METHODS = {
    "WinclipTrainer": Method(WinclipConfig, single_pass=True, check_inputs=check_inputs),
}
