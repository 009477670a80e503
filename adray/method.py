"""What is known of a method before its network is loaded. Importing this loads no torch.

A plan of a sweep needs no more of it, and torch takes longer to load than most plans to make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adray.config import TrainConfig
from adray.fields import Domain


def take_all(config: Any, train_config: TrainConfig) -> list[str]:
    """Take whatever is asked for, which is the rule for `Method.check_inputs`."""
    return []


def keep_little(config: Any, train_config: TrainConfig, images: int) -> int:
    """Keep next to nothing of the training images, which is the rule for `Method.fit_bytes`."""
    return 0


@dataclass(frozen=True)
class Method:
    """What a trainer class says of its method, see `adray.trainer.BaseTrainer` for the meanings."""

    config_class: type
    """Dataclass of the model's hyperparameters."""
    single_pass: bool = False
    """Whether it sees the training images once."""
    supervised: bool = False
    """Whether it learns from labelled defects."""
    min_normals: int = 1
    """Normal training images that it needs."""
    shares_features: bool = False
    """Whether trials share its frozen maps."""
    crosses: bool = False
    """Whether all training normals can calibrate it, each scored by a fit without its fold."""
    updates: Literal["", "exact", "coreset"] = ""
    """How images are added to a trained model: ``exact`` as a new fit on all, which also takes images
    away; a word histogram keeps its words. ``coreset`` for a memory bank of the old one and the new
    patches. Empty where not at all."""
    by_tile: bool = False
    """Whether it can have a model for each place of a tile, see `TrainConfig.tile_model`."""
    any_aspect: bool = False
    """Whether it takes images that are no squares, see `TrainConfig.aspect`."""
    train_search: Mapping[str, Domain] = field(default_factory=dict)
    """What a search tries of `TrainConfig`."""
    without_auxiliary: str = ""
    """What is done where auxiliary images are missing."""
    check_inputs: Callable[[Any, TrainConfig], list[str]] = take_all
    """Looks for what cannot work together, and gives remarks for the plan."""
    fit_bytes: Callable[[Any, TrainConfig, int], int] = keep_little
    """Counts the host memory in bytes that what is kept of so many training images, or tiles of them,
    takes at most while fitting, besides the program, the network and a batch of images."""
