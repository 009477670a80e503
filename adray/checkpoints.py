"""What is saved of a trainer and how it is read back.

Files hold tensors and plain values only, so that none can run code.

A *checkpoint* is a trained model. Frozen backbones are named in it with their file's hash rather
than stored, but for those with random weights; a *whole* one has their tensors too. A *progress
file* is a training that is not done: it also has the states of everything random, so that a
training which continues ends where one that was never interrupted does.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adray.components.frozen_network import FrozenNetwork
from adray.config import TILE_DEFAULTS, TrainConfig, build, stored_values, to_plain
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.sentence import Sentence, sentence_of
from adray.source_code import class_name, source_hash
from adray.thresholds import FALSE_ALARMS
from adray.types import BY_TYPE, PixelRule, Roi

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1
_SCORING_FIELDS = (
    "img_size",
    "crop_size",
    "fit",
    "aspect",
    *TILE_DEFAULTS,
    "normalize",
    "precision",
)
"""Fields of `TrainConfig` on which the scores of a trained model depend."""


class Trained(Protocol):
    """What is asked of a trainer; `adray.trainer.BaseTrainer` is one."""

    checkpoint_version: ClassVar[int]
    config: Any
    train_config: Any
    seed: int
    pixels: PixelRule
    roi: Roi | None
    calibration: tuple[float, ...]
    calibration_peaks: tuple[float, ...]
    statistics: dict[str, Tensor]
    false_alarms: float
    tried: int
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
    """Dotted name of the trainer's class; its last part alone in files of version 0.1."""
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
    calibration_peaks: tuple[float, ...]
    """Highest value of each one's map, by which regions are found; empty without maps."""
    backbones: Mapping[str, Mapping[str, Any]]
    """What each frozen network of the model was, see `FrozenNetwork.identity`, by its place in the
    model."""
    model: Mapping[str, Tensor]
    """The model's state, without the backbones that a file has unless it is whole."""
    source: str = ""
    """See `source_hash`, of the trainer's module; empty for models of this package."""
    whole: bool = False
    """Whether the tensors of the backbones are among the model's."""
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    """What an update needs of the training images beyond the model; empty in most files."""
    roi: Roi | None = None
    """The part of images that counts; None for all of it."""
    false_alarms: float = FALSE_ALARMS
    """Part of new normals that verdicts may report, as it was asked for."""
    tried: int = 1
    """Number of trials of which the calibration normals chose this one."""

    @property
    def untrained_config(self) -> Any:
        """Give the hyperparameters with which the model is built before its tensors are filled in.

        A whole checkpoint needs no file of weights.
        """
        return {**self.config, "weights": "random"} if self.whole else self.config


# A trained model


def can_be_whole(config: object) -> bool:
    """Tell whether a model of these hyperparameters can be built without its files of weights."""
    return any(field.name == "weights" for field in dataclasses.fields(config))  # type: ignore[arg-type]


def save_checkpoint(path: str | Path, trainer: Trained, whole: bool = False) -> None:
    """Write a trainer's weights and hyperparameters.

    Args:
        path: a `.safetensors` file, or a `.pth` file, which also takes the optimiser's state.
        trainer: whose model it is.
        whole: write the tensors of frozen backbones too, where the model can be built without
            their files.
    """
    whole = whole and can_be_whole(trainer.config)
    frozen = _frozen_networks(trainer.model)
    about = {
        "format": CHECKPOINT_FORMAT,
        "trainer": class_name(type(trainer)),
        "source": source_hash(type(trainer).__module__),
        "version": trainer.checkpoint_version,
        "config": stored_values(trainer.config),
        "train_config": to_plain(trainer.train_config),
        "seed": trainer.seed,
        "pixels": to_plain(trainer.pixels),
        "roi": to_plain(trainer.roi),
        "calibration": list(trainer.calibration),
        "calibration_peaks": list(trainer.calibration_peaks),
        "false_alarms": trainer.false_alarms,
        "tried": trainer.tried,
        "backbones": {name: network.identity for name, network in frozen.items()},
        "whole": whole,
    }

    # A backbone that was read from a file is read from it again.
    skipped = () if whole else _prefixes_in_files(frozen)
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
            kept = {"model": state, "optimizer": optimizer}
            if trainer.statistics:
                kept["statistics"] = trainer.statistics
            torch.save({**about, **kept}, temporary)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote, without executing anything in the file.

    Raises:
        InputError: for a file that is missing, damaged, holds more than tensors and plain values,
            or another format.
    """
    if not Path(path).is_file():
        raise InputError(Sentence.of("checkpoint missing", path=str(path)))
    try:
        stored = _read_safetensors(path) if Path(path).suffix == ".safetensors" else _read_pth(path)
    except Exception as error:
        # Each of the readers raises its own kinds.
        raise InputError(Sentence.of("checkpoint damaged", path=str(path))) from error

    if not isinstance(stored, dict) or stored.get("format") != CHECKPOINT_FORMAT:
        raise InputError(Sentence.of("checkpoint other version", path=str(path)))
    try:
        return _checkpoint_from(stored, path)
    except KeyError as error:
        raise InputError(
            Sentence.of("checkpoint lacks", path=str(path), error=sentence_of(error))
        ) from error


def _checkpoint_from(stored: Mapping[str, Any], path: str | Path) -> Checkpoint:
    """Make a checkpoint of what its file holds.

    Raises:
        KeyError: for what is missing.
    """
    return Checkpoint(
        trainer=stored["trainer"],
        version=stored.get("version", 1),
        config=stored["config"],
        train_config=stored["train_config"],
        seed=stored["seed"],
        pixels=_pixel_rule(stored.get("pixels"), path),
        calibration=tuple(stored.get("calibration", ())),
        calibration_peaks=tuple(stored.get("calibration_peaks", ())),
        false_alarms=stored.get("false_alarms", FALSE_ALARMS),
        tried=stored.get("tried", 1),
        backbones=stored["backbones"],
        model=stored["model"],
        source=stored.get("source", ""),
        whole=stored.get("whole", False),
        statistics=stored.get("statistics", {}),
        roi=_roi(stored.get("roi"), path),
    )


def _pixel_rule(plain: Any, path: str | Path) -> PixelRule:
    """Make the rule of a checkpoint's plain values.

    Files from before there were rules have none: their images were scaled by type.
    """
    return BY_TYPE if plain is None else build(PixelRule, plain, f"{Path(path).name}: pixels")


def _roi(plain: Any, path: str | Path) -> Roi | None:
    """Make the region of a checkpoint's plain values. Files from before there were any have none."""
    return None if plain is None else build(Roi, plain, f"{Path(path).name}: roi")


def _read_pth(path: str | Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: str | Path) -> Any:
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["adray"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    return {**about, "model": tensors}


def load_checkpoint(
    path: str | Path, trainer: Trained, accept_other_weights: bool = False
) -> list[str]:
    """Read what `save_checkpoint` wrote into the model of a trainer, which may be fresh.

    Args:
        path: the file.
        trainer: whose model is filled.
        accept_other_weights: go on where a backbone or the code of a plug-in is not the one that
            the model was trained with.

    Returns:
        What is accepted so, one part of a sentence each.

    Raises:
        InputError: for a file that `read_checkpoint` refuses, for one of another trainer,
            configuration or version of the network, for values that are not numbers, and for other
            backbones unless they are accepted.
    """
    stored = read_checkpoint(path)
    _check_kind(stored, trainer, path)
    _check_values(stored, path)
    differences = _differences(stored, trainer)
    if differences and not accept_other_weights:
        raise InputError(
            Sentence.of(
                "checkpoint surroundings", path=str(path), differences="; ".join(differences)
            )
        )

    trainer.pixels = stored.pixels
    trainer.roi = stored.roi
    trainer.calibration = stored.calibration
    trainer.calibration_peaks = stored.calibration_peaks
    trainer.statistics = dict(stored.statistics)
    trainer.false_alarms = stored.false_alarms
    trainer.tried = stored.tried
    _fill(trainer.model, stored, path)
    return differences


def _check_kind(stored: Checkpoint, trainer: Trained, path: str | Path) -> None:
    """Refuse a checkpoint of another trainer, configuration or version of the network.

    Raises:
        InputError: with what is stored and what the trainer has.
    """
    name = type(trainer).__name__
    # Files of version 0.1 name the class without its module.
    is_same_class = stored.trainer in (class_name(type(trainer)), name)
    if is_same_class and stored.version != trainer.checkpoint_version:
        raise InputError(
            Sentence.of(
                "checkpoint network version",
                path=str(path),
                version=stored.version,
                name=name,
                present=trainer.checkpoint_version,
            )
        )

    config = stored_values(trainer.config)
    allowed = (stored.config, stored.untrained_config)
    if not is_same_class or config not in allowed:
        raise InputError(
            Sentence.of(
                "checkpoint other trainer",
                path=str(path),
                trainer=stored.trainer,
                config=str(stored.config),
                own_trainer=class_name(type(trainer)),
                own_config=str(config),
            )
        )

    present = to_plain(trainer.train_config)
    default = to_plain(TrainConfig())
    for name in _SCORING_FIELDS:
        # Files from before a field was there were trained with its default.
        before = stored.train_config.get(name, default[name])
        if before != present[name]:
            raise InputError(
                Sentence.of(
                    "checkpoint value",
                    path=str(path),
                    name=name,
                    before=str(before),
                    present=str(present[name]),
                )
            )


def _check_values(stored: Checkpoint, path: str | Path) -> None:
    """Refuse tensors with NaN, which make every score NaN.

    Raises:
        InputError: with the first such tensor.
    """
    for name, values in stored.model.items():
        count = int(torch.isnan(values).sum()) if values.is_floating_point() else 0
        if count:
            raise InputError(Sentence.of("checkpoint nan", path=str(path), count=count, name=name))


def _differences(stored: Checkpoint, trainer: Trained) -> list[str]:
    """Say which backbones, and which code of a plug-in, are not those of the training."""
    found = []
    module = type(trainer).__module__
    present = source_hash(module)
    if stored.source and stored.source != present:
        found.append(f"code of {module} differs: trained with {stored.source}, here {present}")
    if stored.whole:
        return found

    for name, network in _frozen_networks(trainer.model).items():
        before = stored.backbones.get(name, {}).get("sha256")
        now = network.identity["sha256"]
        if before != now:
            place = network.weight_file or network.backbone
            found.append(
                f"weights of {name} differ: trained with sha256 {before}, here {now} ({place})"
            )
    return found


def _fill(model: nn.Module, stored: Checkpoint, path: str | Path) -> None:
    """Read the tensors of a checkpoint into a model.

    Raises:
        InputError: where names or shapes are another network's.
    """
    frozen = _frozen_networks(model)
    try:
        outcome = model.load_state_dict(stored.model, strict=False)
    except RuntimeError as error:
        # Torch lists all tensors whose shapes differ below a heading, and the first one is enough.
        first = str(error).splitlines()[1].strip()
        raise InputError(Sentence.of("checkpoint misfit", path=str(path), first=first)) from error

    # The weights of a backbone with a file are there already.
    kept = () if stored.whole else _prefixes_in_files(frozen)
    missing = [key for key in outcome.missing_keys if not key.startswith(kept)]
    if missing or outcome.unexpected_keys:
        raise InputError(
            Sentence.of(
                "checkpoint tensors",
                path=str(path),
                missing=str(missing[:3]),
                unexpected=outcome.unexpected_keys[:3],
            )
        )
    if stored.whole:
        # Their files have nothing to say any more.
        for network in frozen.values():
            network.weight_file = None


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
