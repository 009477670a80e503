"""What is saved of a trainer and how it is read back.

Files hold tensors and plain values only, so that none can run code.

A *checkpoint* is a trained model. Frozen backbones are named in it with their file's hash rather
than stored, but for those with random weights. A *progress file* is a training that is not done: it
also has the states of everything random, so that a training which continues ends where one that was
never interrupted does.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adray.components.frozen_network import FrozenNetwork
from adray.config import build, to_plain
from adray.errors import InputError
from adray.files import atomic_path
from adray.types import BY_TYPE, PixelRule

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1


class Trained(Protocol):
    """What is asked of a trainer; `adray.trainer.BaseTrainer` is one."""

    checkpoint_version: ClassVar[int]
    config: Any
    train_config: Any
    seed: int
    pixels: PixelRule
    calibration: tuple[float, ...]
    model: nn.Module
    optimizer: torch.optim.Optimizer | None


class InTraining(Protocol):
    """What is asked of a trainer in the middle of its training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    scheduler: Any
    scaler: Any
    stopper: Any
    epoch: int
    step: int
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, as its file has it."""

    trainer: str
    """Name of the trainer's class."""
    version: int
    """The class's `checkpoint_version` as it was then; 1 in files older than this number."""
    config: Any
    """Hyperparameters of the model, as plain values."""
    train_config: Any
    """Fields of `TrainConfig`, as plain values."""
    seed: int
    """Of the training."""
    pixels: PixelRule
    """How the numbers in image files become 8 bits."""
    calibration: tuple[float, ...]
    """Scores of the calibration normals, by which verdicts are made; empty where there are none."""
    backbones: Mapping[str, Mapping[str, Any]]
    """What each frozen network of the model was, see `FrozenNetwork.identity`, by its place in the
    model."""
    model: Mapping[str, Tensor]
    """The model's state, without the backbones that a file has."""


# A trained model


def save_checkpoint(path: str | Path, trainer: Trained) -> None:
    """Write a trainer's weights and hyperparameters.

    Args:
        path: a `.safetensors` file, or a `.pth` file, which also takes the optimiser's state.
        trainer: whose model it is.
    """
    frozen = _frozen_networks(trainer.model)
    about = {
        "format": CHECKPOINT_FORMAT,
        "trainer": type(trainer).__name__,
        "version": trainer.checkpoint_version,
        "config": to_plain(trainer.config),
        "train_config": to_plain(trainer.train_config),
        "seed": trainer.seed,
        "pixels": to_plain(trainer.pixels),
        "calibration": list(trainer.calibration),
        "backbones": {name: network.identity for name, network in frozen.items()},
    }

    # A backbone that was read from a file is read from it again.
    skipped = _prefixes_in_files(frozen)
    state = {}
    for name, values in trainer.model.state_dict().items():
        if not name.startswith(skipped):
            state[name] = values

    with atomic_path(path) as temporary:
        if temporary.suffix == ".safetensors":
            tensors = {name: values.contiguous() for name, values in state.items()}
            save_file(tensors, temporary, {"adray": json.dumps(about)})
        else:
            optimizer = _state_of(trainer.optimizer)
            torch.save({**about, "model": state, "optimizer": optimizer}, temporary)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote, without executing anything in the file.

    Raises:
        InputError: for a file that is missing, damaged, holds more than tensors and plain values,
            or another format.
    """
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path} does not exist; check the path")
    try:
        stored = _read_safetensors(path) if Path(path).suffix == ".safetensors" else _read_pth(path)
    except Exception as error:
        # Each of the readers raises its own kinds.
        raise InputError(
            f"checkpoint {path} is damaged or holds more than tensors and plain values"
        ) from error

    if not isinstance(stored, dict) or stored.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"checkpoint {path} is not one that this version of adray wrote")
    return Checkpoint(
        stored["trainer"],
        stored.get("version", 1),
        stored["config"],
        stored["train_config"],
        stored["seed"],
        _pixel_rule(stored.get("pixels"), path),
        tuple(stored.get("calibration", ())),
        stored["backbones"],
        stored["model"],
    )


def _pixel_rule(plain: Any, path: str | Path) -> PixelRule:
    """Make the rule of a checkpoint's plain values.

    Files from before there were rules have none: their images were scaled by type.
    """
    return BY_TYPE if plain is None else build(PixelRule, plain, f"{Path(path).name}: pixels")


def _read_pth(path: str | Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: str | Path) -> Any:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["adray"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    return {**about, "model": tensors}


def load_checkpoint(path: str | Path, trainer: Trained) -> None:
    """Read what `save_checkpoint` wrote into the model of a trainer, which may be fresh.

    Raises:
        InputError: for a file that `read_checkpoint` refuses, and for one of another trainer,
            configuration or version of the network.
    """
    stored = read_checkpoint(path)
    name = type(trainer).__name__
    if stored.trainer == name and stored.version != trainer.checkpoint_version:
        raise InputError(
            f"checkpoint {path} is of version {stored.version} of {name}, whose network is now of "
            f"version {trainer.checkpoint_version} and would score otherwise with these weights; "
            "train it again"
        )

    config = to_plain(trainer.config)
    if stored.trainer != name or stored.config != config:
        raise InputError(
            f"checkpoint {path} is of {stored.trainer} with {stored.config}, "
            f"not of {name} with {config}; build the trainer with these values"
        )

    trainer.pixels = stored.pixels
    trainer.calibration = stored.calibration
    frozen = _frozen_networks(trainer.model)
    _warn_of_other_backbones(stored, frozen)
    try:
        outcome = trainer.model.load_state_dict(stored.model, strict=False)
    except RuntimeError as error:
        # Torch lists all tensors whose shapes differ below a heading, and the first one is enough.
        first = str(error).splitlines()[1].strip()
        raise InputError(f"checkpoint {path} does not fit: {first}") from error

    # The weights of a backbone with a file are there already.
    kept = _prefixes_in_files(frozen)
    missing = [key for key in outcome.missing_keys if not key.startswith(kept)]
    if missing or outcome.unexpected_keys:
        raise InputError(
            f"checkpoint {path} does not fit: missing {missing[:3]}, "
            f"unexpected {outcome.unexpected_keys[:3]}"
        )


def _warn_of_other_backbones(stored: Checkpoint, frozen: Mapping[str, FrozenNetwork]) -> None:
    """Say where a backbone is not the one that the model was trained with."""
    for name, network in frozen.items():
        trained_with = stored.backbones.get(name)
        if trained_with != network.identity:
            logger.warning(
                "backbone %s differs: trained with %s, now %s", name, trained_with, network.identity
            )


def _frozen_networks(model: nn.Module) -> dict[str, FrozenNetwork]:
    """Find the pretrained networks in a model that it does not train, by their place in it."""
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, FrozenNetwork)}


def _prefixes_in_files(frozen: Mapping[str, FrozenNetwork]) -> tuple[str, ...]:
    """Give the beginnings of the names of all tensors that stand in the backbones' own files."""
    return tuple(f"{name}." for name, network in frozen.items() if network.weight_file is not None)


# A training that is not done


def save_progress(path: Path, trainer: InTraining) -> None:
    """Write the whole state of a training, from which `load_progress` continues."""
    progress = {
        "model": trainer.model.state_dict(),
        "optimizer": _state_of(trainer.optimizer),
        "scheduler": _state_of(trainer.scheduler),
        "scaler": trainer.scaler.state_dict(),
        "stopper": trainer.stopper.state_dict(),
        "epoch": trainer.epoch,
        "step": trainer.step,
        "history": trainer.history,
        "random": _random_state(),
    }
    with atomic_path(path) as temporary:
        torch.save(progress, temporary)
    logger.info("progress saved at epoch %d", trainer.epoch)


def load_progress(path: Path, trainer: InTraining) -> None:
    """Continue a training where `save_progress` left it, or start anew if the file is damaged."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        logger.warning("progress checkpoint %s is damaged; starting from the first epoch", path)
        return

    trainer.model.load_state_dict(stored["model"])
    if trainer.optimizer is not None:
        trainer.optimizer.load_state_dict(stored["optimizer"])
    if trainer.scheduler is not None:
        trainer.scheduler.load_state_dict(stored["scheduler"])
    trainer.scaler.load_state_dict(stored["scaler"])
    trainer.stopper.load_state_dict(stored["stopper"])

    trainer.epoch = stored["epoch"]
    trainer.step = stored["step"]
    trainer.history = stored["history"]
    _set_random_state(stored["random"])
    logger.info("continuing after epoch %d from %s", trainer.epoch, path)


def _state_of(part: Any) -> Any:
    """Give the state of a part that a training may lack."""
    return None if part is None else part.state_dict()


def _random_state() -> dict[str, Any]:
    """Give the states of all random generators, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            np.asarray(keys).tolist(),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(internal), gauss_next],
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    """Put all random generators into what `_random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(tuple(state["numpy"]))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
