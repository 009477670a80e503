"""Train one model or several without Ray: the specification's `train`, `train_models` and helpers.

`python -m adray.train mvtec bottle padim` does one trial. A sweep's worker calls `run_job` too.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.conditions import Condition
from adray.config import VerdictConfig, build, to_plain
from adray.config_file import load_yaml
from adray.data.checks import checked_fingerprint
from adray.errors import InputError
from adray.files import write_json
from adray.job import (
    Job,
    check_job,
    job_identity,
    job_samples,
    trial_record,
    unused_defects,
)
from adray.language.catalogue import spoken
from adray.language.sentence import Sentence, sentence_of
from adray.machine import MIB, environment, host_peak_mb
from adray.registry import ModelRegistry
from adray.settings import absolute_settings, get_globals, print_globals, set_globals
from adray.settle import settle
from adray.thresholds import FALSE_ALARMS, normals_needed, shortage
from adray.trial import run_job
from adray.types import Json

if TYPE_CHECKING:
    from torch import nn

    from adray.data.loader import Loader

__all__ = [
    "clear_dataloader",
    "clear_memory",
    "count_parameters",
    "get_globals",
    "print_globals",
    "print_memory",
    "run_experiment",
    "set_globals",
    "set_seed",
    "train",
    "train_models",
]

logger = logging.getLogger(__name__)


def train(  # noqa: PLR0913  the specification's call, its names and order
    dataset_type: str | Sequence[str],
    category: str | Sequence[str],
    model_type: str,
    num_epochs: int | None = None,
    batch_size: int | None = None,
    img_size: int | None = None,
    normalize: bool | str | None = None,
    *,
    budget: str = "quick",
    train: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    weights: str = "pretrained",
    seed: int | None = None,
    device: str | None = None,
    false_alarms: float | Sequence[float] = FALSE_ALARMS,
    condition: Mapping[str, Any] | None = None,
) -> Json:
    """Train one model on one data set, merged from all that is named, and write its files.

    They go to ``<output_dir>/<dataset>/<category>/<configuration>/``, where the last run wins. They
    are no part of the store, whose commands read the trials of sweeps and name these files as left
    out.

    Args:
        dataset_type: name of a data set under `dataset_dir`, or several.
        category: name of a category, several, or ``"all"``. Several train one model on all of them
            together.
        model_type: name of a configuration, see `ModelRegistry.list_models()`.
        num_epochs: passes over the training images.
        batch_size: images per step.
        img_size: side in pixels that images are resized to. A configuration that crops keeps its
            proportion.
        normalize: ImageNet normalisation, while False gives [0, 1].
        budget: ``quick`` for the specification's epochs, ``paper`` for the published ones.
        train: further `TrainConfig` fields.
        model: hyperparameters of the model.
        weights: ``random`` leaves the backbone untrained.
        seed: the settings' seed where None.
        device: ``cpu``, ``cuda``, ..., or None for a GPU where there is one.
        false_alarms: part of new normal images that may be called anomalous, or several such.
        condition: fields of `adray.conditions.Condition`, such as ``{"k_shot": 4}``; None for the
            plain case.

    Returns:
        What `result.json` holds, with ``folder`` added.

    Raises:
        InputError: for unknown names, values out of range, missing weights, data that cannot be
            used, and a device that is not here.
    """
    # Torch takes seconds to load; training needs it anyway.
    from adray.components.device import choose_device

    found_device = choose_device(device)
    rates = (false_alarms,) if isinstance(false_alarms, float | int) else tuple(false_alarms)
    verdict = VerdictConfig(false_alarms=rates)

    # What is given by its own name wins over the same field in `train`.
    settings = get_globals()
    changes = dict(train or {})
    given = {
        "num_epochs": num_epochs,
        "batch_size": batch_size,
        "img_size": img_size,
        "normalize": normalize,
    }
    for name, value in given.items():
        if value is not None:
            changes[name] = value

    resolved = ModelRegistry.resolve(
        model_type,
        train=_scale_crop(model_type, changes),
        model=model,
        budget=budget,
        weights=weights,
    )
    seed = settings.seed if seed is None else seed
    job = Job(
        resolved,
        _names(dataset_type),
        _names(category),
        seed,
        verdict=verdict,
        condition=build(Condition, condition or {}, "condition"),
    )
    for note in check_job(job, settings):
        logger.warning("%s: %s", model_type, note)
    samples = job_samples(job, settings)
    for remark in unused_defects(job, samples):
        logger.warning(str(remark))
    split_mode = resolved.train_config.split_mode
    fingerprint = checked_fingerprint(job.place, samples, split_mode, settings)

    settled = settle(job, samples)
    for remark in settled.remarks:
        logger.warning(str(remark))
    for rate in verdict.rates:
        if 0 < settled.calibration < normals_needed(rate):
            logger.warning("%s: %s", job.place, shortage(rate, settled.calibration))
    job = settled.applied_to(job)
    identity = job_identity(job, settings, fingerprint)
    result = _run_in_place(job, identity, found_device)
    logger.info(spoken("train own copy", folder=result["folder"]))
    return result


def _scale_crop(model_type: str, changes: Json) -> Json:
    """Keep the crop's proportion when only the image size is changed."""
    default = ModelRegistry.get_train_config(model_type)
    img_size = changes.get("img_size")
    if default.crop_size is None or "crop_size" in changes or not isinstance(img_size, int):
        return changes
    crop_size = img_size * default.crop_size / default.img_size
    return {**changes, "crop_size": round(crop_size / 8) * 8}


def _run_in_place(job: Job, identity: Json, device: str) -> Json:
    """Run a job beside its cell's folder and put its files there once it succeeds.

    Returns:
        What `result.json` holds, with ``folder`` added.
    """
    folder = job.cell(get_globals())
    working = folder.with_name(f".{folder.name}.{os.getpid()}.running")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    try:
        # Settings say where the images lie, by which an audit knows those that were learnt.
        record = trial_record(identity, environment(device))
        record["assignment"] = {"settings": to_plain(absolute_settings(get_globals()))}
        write_json(working / "trial.json", record)
        result = run_job(job, working, device=device)
        _replace_files(working, folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return {**result, "folder": str(folder)}


def _replace_files(working: Path, folder: Path) -> None:
    """Move a run's files over the last run's, and leave folders of the store (with an id)."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()

    # `result.json` comes last: it exists only beside all the others.
    for file in sorted(working.iterdir(), key=lambda path: path.name == "result.json"):
        file.rename(folder / file.name)


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not names:
        raise InputError(Sentence.of("train no category"))
    return names


def train_models(
    dataset_type: str | Sequence[str],
    categories: str | Sequence[str],
    models: Sequence[str],
    *,
    budget: str = "quick",
    weights: str = "pretrained",
    seed: int | None = None,
    device: str | None = None,
) -> dict[tuple[str, str], Json]:
    """Train several models on several categories, one after the other, one model per category.

    A run that fails is logged and does not stop the others. For many runs on many GPUs use a sweep.

    Args:
        dataset_type: name of a data set, or several.
        categories: names of categories, each trained apart, or ``"all"``.
        models: names of configurations.
        budget: see `train`.
        weights: see `train`.
        seed: see `train`.
        device: see `train`.

    Returns:
        ``{(category, model): result}``, where a failed run's result is ``{"error": ...}``.
    """
    # A misspelt name is refused before the first hours of training, not after them.
    for model in models:
        ModelRegistry.get(model)

    outcomes: dict[tuple[str, str], Json] = {}
    for category in _names(categories):
        for model in models:
            try:
                outcomes[category, model] = train(
                    dataset_type,
                    category,
                    model,
                    budget=budget,
                    weights=weights,
                    seed=seed,
                    device=device,
                )
            except Exception as error:
                logger.exception("%s on %s failed", model, category)
                outcomes[category, model] = {"error": f"{type(error).__name__}: {error}"}
            clear_memory()
    return outcomes


def run_experiment(config: str | Path | Mapping[str, Any]) -> Json:
    """Train one model as a mapping or a YAML file says.

    Args:
        config: arguments of `train` by name, and ``settings`` for those of `set_globals`.
    """
    given = load_yaml(config) if isinstance(config, str | Path) else config
    values = dict(given)
    set_globals(**values.pop("settings", {}))
    try:
        return train(**values)
    except TypeError as error:
        raise InputError(Sentence.of("train experiment key", error=sentence_of(error))) from error


def set_seed(seed: int) -> None:
    """Seed Python, numpy and torch, and choose deterministic kernels."""
    from adray.trainer import seed_everything

    seed_everything(seed)


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Count the parameters of a network, or only those that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def clear_dataloader(loader: Loader | None) -> None:
    """Let go of a loader's images, after which it cannot be used."""
    if loader is not None:
        loader.__dict__.clear()
    clear_memory()


def clear_memory() -> None:
    """Collect garbage and give cached GPU memory back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def print_memory() -> None:
    """Print the memory in use: of each GPU, and of this process on the host."""
    import torch

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        used = total - free
        print(f"cuda:{index}  {used / MIB:.0f}/{total / MIB:.0f} MB")
    print(f"host    peak {host_peak_mb()} MB")


if __name__ == "__main__":
    from adray.__main__ import main

    sys.exit(main(["train", *sys.argv[1:]]))
