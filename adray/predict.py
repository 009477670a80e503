"""From a trained trial, or a team of them, to what scores new images.

    predictor = load_predictor("outputs/mvtec/bottle/padim/3fa9c1d2")
    for outcome in predictor.predict(["a.png", array]):
        print(outcome.name, outcome.pred_score, outcome.anomaly_map.max())

What a model needs is compared with what it was trained with before it says a thing. The file of an
ensemble (`python -m adray ensemble`) is one more thing to load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from adray.checkpoints import Checkpoint, read_checkpoint
from adray.components.device import choose_device
from adray.components.dynamic_buffer import DynamicBufferMixin
from adray.config import CROSS, TrainConfig, build
from adray.ensembles.team import member_folder, read_ensemble
from adray.errors import InputError
from adray.files import read_json
from adray.language.sentence import Sentence, sentence_of
from adray.needs import check_differences, needs_of, other_hashes, other_versions
from adray.predictor import Outcome, Predictor, TrialModel
from adray.registry import ModelRegistry
from adray.results.trial_files import (
    CALIBRATION_SPLITS,
    FRESH_NORMALS,
    checkpoint_of,
    newest_recalibration,
    read_scores,
)
from adray.source_code import class_name
from adray.thresholds import DEFAULT_THRESHOLD, PROMISE, promised_threshold
from adray.types import Batch, Json

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer

__all__ = ["DEFAULT_THRESHOLD", "Outcome", "Predictor", "TrialModel", "load_predictor"]


def load_predictor(
    path: str | Path, device: str | None = None, *, accept_other_weights: bool = False
) -> Predictor:
    """Load a trained model.

    Args:
        path: a trial's folder in a store, the folder of an export, a checkpoint file, or the file
            of an ensemble.
        device: ``cpu``, ``cuda``, ...; a GPU where there is one when None.
        accept_other_weights: go on where weight files, the code of a plug-in, preprocessing,
            thresholds, calibration or versions are not those of the training; each outcome then
            says so.

    Raises:
        InputError: for a folder without a checkpoint, a damaged file, one of another configuration,
            an unknown trainer, missing weights, a device that is not here, an ensemble one of whose
            trials is not what it was, and where something is not as it was trained, unless that is accepted.
    """
    device = choose_device(device)
    path = Path(path)
    if path.suffix == ".json" and not path.is_dir():
        return _load_ensemble(path, device, accept_other_weights)
    return _load_trial(checkpoint_of(path), device, accept_other_weights)


def _load_ensemble(path: Path, device: str, accept_other_weights: bool) -> Predictor:
    """Load the members of a team. All of them are found before one is loaded."""
    ensemble = read_ensemble(path)
    folders = [member_folder(path, member) for member in ensemble.members]

    models: list[TrialModel] = []
    accepted: dict[str, None] = {}
    for folder in folders:
        single = load_predictor(folder, device, accept_other_weights=accept_other_weights)
        models += single.models
        accepted |= dict.fromkeys(single.accepted)
    if any(model.geometry.tiling is not None for model in models):
        raise InputError(Sentence.of("predict team tiles", path=str(path)))
    geometries = [model.geometry for model in models]
    if len({(one.fit, one.aspect, one.roi) for one in geometries}) > 1:
        raise InputError(Sentence.of("predict team fits", path=str(path)))
    map_range = _pair(ensemble.map_range)
    return Predictor(
        tuple(models),
        ensemble.thresholds,
        map_range,
        team=ensemble.members,
        calibration=ensemble.calibration,
        calibration_peaks=ensemble.calibration_peaks,
        rate=ensemble.rate,
        tried=ensemble.tried,
        accepted=tuple(accepted),
    )


def _load_trial(checkpoint: Path, device: str, accept_other_weights: bool) -> Predictor:
    """Load one model, and look whether all that it needs is as it was trained."""
    folder = checkpoint.parent
    about = _read_beside(folder / "result.json") or _read_beside(folder / "export.json")
    thresholds = _thresholds_of(about, folder)
    stored = read_checkpoint(checkpoint)
    identity = _read_beside(folder / "trial.json").get("identity", {})
    _check_configuration(stored, identity, checkpoint)

    trainer = _build_trainer(stored, checkpoint, device)
    differences = trainer.load_model(checkpoint, accept_other_weights=True)
    _check_it_runs(trainer, checkpoint)
    calibration = calibration_scores(folder, about) or trainer.calibration
    peaks = calibration_peaks(folder, about) or trainer.calibration_peaks
    if "needs" in about:
        present = needs_of(
            checkpoint,
            trainer.train_config,
            trainer.pixels,
            about.get("thresholds", {}),
            calibration,
            peaks,
            trainer.roi,
        )
        differences += other_hashes(about["needs"], present)
    source = identity or about.get("source", {})
    differences += other_versions(source.get("configuration"), source.get("versions") or {})

    if not accept_other_weights:
        check_differences(str(checkpoint), differences)
    promise = about.get("thresholds", {}).get(PROMISE, {})
    is_fresh = about.get("calibration", {}).get("kind") == FRESH_NORMALS
    predictor = Predictor(
        (TrialModel(trainer),),
        thresholds,
        _pair(about.get("map_range")),
        calibration=calibration,
        calibration_peaks=peaks,
        rate=promise.get("rate", trainer.false_alarms),
        tried=promise.get("tried", trainer.tried),
        is_crossed=trainer.train_config.calibration == CROSS and not is_fresh,
        accepted=(*about.get("accepted", ()), *differences),
    )
    return _with_promise(predictor, newest_recalibration(folder))


def _read_beside(path: Path) -> Json:
    """Read what a trial says of itself beside its checkpoint, empty where it says nothing.

    Raises:
        InputError: for a torn file, without whose hashes nobody could tell whether all is as it
            was trained.
    """
    values = read_json(path)
    if isinstance(values, dict):
        return values
    if values is None and not path.exists():
        return {}
    raise InputError(Sentence.of("predict torn", path=str(path)))


def _with_promise(predictor: Predictor, newer: Json | None) -> Predictor:
    """Give a predictor the promise that its trial lacks, or that an audit made anew.

    Args:
        predictor: of one model.
        newer: the record of an audit, None where there is none.
    """
    if newer is not None:
        predictor = replace(
            predictor,
            calibration=tuple(newer["calibration"]["scores"]),
            calibration_peaks=tuple(newer["calibration"].get("peaks", ())),
            rate=newer["promise"]["rate"],
            tried=1,  # fresh normals chose nothing
            is_crossed=False,
        )
    elif PROMISE in predictor.thresholds or not predictor.calibration:
        return predictor  # trials of version 0.1 have no promise
    value = cast(float, promised_threshold(predictor.promise(predictor.rate)).value)
    return replace(predictor, thresholds=predictor.thresholds | {PROMISE: value})


def _thresholds_of(about: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Read the thresholds that have a value.

    Raises:
        InputError: for a value that is no finite number.
    """
    thresholds = {}
    for name, row in about.get("thresholds", {}).items():
        value = row["value"]
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(
                Sentence.of(
                    "predict threshold damaged", folder=str(folder), name=name, value=repr(value)
                )
            )
        thresholds[name] = float(value)
    return thresholds


def calibration_scores(folder: Path, about: Json) -> tuple[float, ...]:
    """Read the scores of the held-out normals of a trial, or of an export.

    Args:
        folder: of the checkpoint.
        about: what `result.json` or `export.json` holds there.

    Returns:
        Rising; nothing where there are none.

    Raises:
        InputError: for a score that is no finite number.
    """
    return _calibration_values(folder, about, "scores", "pred_score", "score")


def calibration_peaks(folder: Path, about: Json) -> tuple[float, ...]:
    """Read the highest values of the maps of the same normals.

    Args:
        folder: of the checkpoint.
        about: what `result.json` or `export.json` holds there.

    Returns:
        Rising; nothing for a model without maps, and for a trial of before they were noted.

    Raises:
        InputError: for a value that is no finite number.
    """
    return _calibration_values(folder, about, "peaks", "peak", "highest value of the map")


def _calibration_values(
    folder: Path, about: Json, key: str, column: str, what: str
) -> tuple[float, ...]:
    """Read values of the calibration normals, rising: of an export by `key`, else by `column`.

    Raises:
        InputError: for one that is no finite number, called `what`.
    """
    exported = about.get("calibration")
    scores = read_scores(folder) if exported is None else None
    values = []
    if exported is not None:
        values = exported.get(key, [])
    elif scores is not None and column in scores:
        values = scores[scores["split"].isin(CALIBRATION_SPLITS)][column].tolist()

    strange = [value for value in values if not math.isfinite(value)]
    if strange:
        raise InputError(
            Sentence.of(
                "predict calibration damaged", folder=str(folder), what=what, strange=strange[0]
            )
        )
    return tuple(sorted(values))


def _check_configuration(stored: Checkpoint, identity: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint of another trial than the one that it lies beside.

    Args:
        stored: of the file.
        identity: what decided the trial's result; empty where nothing is known of it.
        checkpoint: names the file in errors.

    Raises:
        InputError: with the first hyperparameter that differs.
    """
    sections = {"model": stored.config, "train": stored.train_config}
    for section, values in sections.items():
        wanted = identity.get(section, {})
        for name in values:
            if name in wanted and wanted[name] != values[name]:
                raise InputError(
                    Sentence.of(
                        "checkpoint other trial",
                        checkpoint=str(checkpoint),
                        section=section,
                        name=name,
                        values=repr(values[name]),
                        wanted=repr(wanted[name]),
                    )
                )


def _build_trainer(stored: Checkpoint, checkpoint: Path, device: str) -> BaseTrainer:
    """Build the trainer that wrote a checkpoint, before its tensors are filled in."""
    trainer_class = ModelRegistry.trainer_class(_configuration_of(stored.trainer, checkpoint))
    where = f"{checkpoint.name}: config"
    config: Any = build(trainer_class.config_class, stored.untrained_config, where)
    train_config = build(TrainConfig, stored.train_config, f"{checkpoint.name}: train_config")
    return trainer_class(config, train_config, device, stored.seed)


def _check_it_runs(trainer: BaseTrainer, checkpoint: Path) -> None:
    """Try a model whose tensors may come in any shape, such as a memory bank.

    Raises:
        InputError: where it fails, since they are another model's.
    """
    if not any(isinstance(module, DynamicBufferMixin) for module in trainer.model.modules()):
        return
    image = torch.zeros(1, 3, *trainer.train_config.input_shape, device=trainer.device)
    index = torch.zeros(1, dtype=torch.int64, device=trainer.device)
    try:
        tile = torch.full_like(index, trainer.first_tile)
        trainer.predict_batch(Batch(image, index, None, index, tile=tile))
    except Exception as error:
        raise InputError(
            Sentence.of("checkpoint shapes", checkpoint=str(checkpoint), error=sentence_of(error))
        ) from error


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    """Make a pair of two values. None stays None."""
    return None if values is None else (values[0], values[1])


def _configuration_of(trainer: str, checkpoint: Path) -> str:
    """Find a configuration of the trainer class that wrote a checkpoint.

    Raises:
        InputError: where no class has that name, and where several have the name in a file of
            version 0.1, which does not say of which module it is.
    """
    short = trainer.rpartition(".")[2]
    found: dict[str, str] = {}
    for name in ModelRegistry.list_models():
        dotted = ModelRegistry.get(name).trainer
        is_plugin = not dotted.startswith("adray.")
        if dotted.rpartition(".")[2] == short or is_plugin:
            found.setdefault(class_name(ModelRegistry.trainer_class(name)), name)

    if trainer in found:
        return found[trainer]
    same = [dotted for dotted in found if dotted.rpartition(".")[2] == short]
    if trainer == short and len(same) == 1:
        return found[same[0]]
    if trainer == short and same:
        raise InputError(
            Sentence.of(
                "checkpoint several modules",
                checkpoint=str(checkpoint),
                trainer=trainer,
                same=", ".join(same),
            )
        )
    raise InputError(
        Sentence.of("checkpoint no trainer", checkpoint=str(checkpoint), trainer=trainer)
    )
