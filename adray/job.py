"""One trial: what it depends on, how it runs, and the files it leaves. Ray is not needed for it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adray import __version__
from adray.components.backbone import (
    find_weights,
    foreign_weights,
    get_backbone_path,
    missing_weights,
)
from adray.config import to_plain
from adray.data.auxiliary import (
    auxiliary_fingerprint,
    auxiliary_samples,
    find_auxiliary,
    missing_auxiliary,
)
from adray.data.readers import list_samples, resolve_dataset
from adray.data.splits import check_training_defects, training_defects
from adray.data.synthetic_defects import SPLIT
from adray.data.synthetic_defects import VERSION as DEFECTS_VERSION
from adray.errors import InputError
from adray.fields import check_choice
from adray.files import canonical_hash, file_sha256, write_json
from adray.metrics import confusion, describe_problems
from adray.registry import ModelRegistry, Resolved
from adray.results.figures import map_range, score_histogram
from adray.results.image_statistics import bootstrap_interval
from adray.results.store import cell_folder, merged_name
from adray.settings import Settings
from adray.thresholds import Threshold, chosen_threshold, compute_thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adray.cache_folder import SharedWork
    from adray.data.base import Sample
    from adray.data.loaders import Loader, Loaders
    from adray.trainer import BaseTrainer, Report, Scores
    from adray.types import Sharing

logger = logging.getLogger(__name__)

EVALUATIONS = ("test", "synthetic")
_FEW_HELD_OUT = 10
CORE_VERSION = 2
"""Raised by hand when a change of the shared code changes scores, so that stored results count as stale."""


@dataclass(frozen=True)
class Job:
    """One trial, with everything decided that its result depends on.

    Attributes:
        resolved: configuration with every hyperparameter.
        datasets: names of the data sets; several are merged.
        categories: names of the categories, merged into one training set; ``("all",)`` is every one.
        seed: of splits and of everything random in the model.
        evaluation: ``test`` scores the test set; ``synthetic`` leaves it alone and scores the held-out normals and
            defective twins of them, which is what a search may choose by.
    """

    resolved: Resolved
    datasets: tuple[str, ...]
    categories: tuple[str, ...]
    seed: int
    evaluation: str = "test"

    @property
    def configuration(self) -> str:
        """Name of the configuration."""
        return self.resolved.spec.name

    @property
    def names(self) -> tuple[str, str, str]:
        """Folder names of data set, category and configuration."""
        return merged_name(self.datasets), merged_name(self.categories), self.configuration

    def cell(self, settings: Settings) -> Path:
        """Folder in which the trials of this configuration on this category lie."""
        found = [resolve_dataset(name, settings) for name in self.datasets]
        custom = any(data.layout == "custom" or data.root.parent.name == "custom" for data in found)
        return cell_folder(settings.output_dir, *self.names, custom=custom)


def job_samples(job: Job, settings: Settings) -> list[Sample]:
    """The images that a job trains and tests on.

    Raises:
        InputError: for data that cannot be read, data without the test images to score, and for a supervised
            configuration those without labelled training defects and their masks.
    """
    config = job.resolved.train_config
    samples = list_samples(
        job.datasets,
        job.categories,
        settings,
        seed=job.seed,
        split_mode=config.split_mode,
        train_defects=config.train_defects,
    )
    if job.evaluation == "test" and not any(sample.split == "test" for sample in samples):
        raise InputError(
            f"{'/'.join(job.names[:2])} has no test images; add normal and defective ones to its test folder"
        )
    if ModelRegistry.trainer_class(job.configuration).supervised:
        check_training_defects(samples)
    return samples


def unused_defects(job: Job, samples: Sequence[Sample]) -> list[str]:
    """Remarks on labelled defects of the training split that a job leaves out, none where it leaves out none."""
    count = len(training_defects(samples))
    if not count or ModelRegistry.trainer_class(job.configuration).supervised:
        return []
    return [
        f"{'/'.join(job.names[:2])}: {count} labelled defects of the training split are not used, since only "
        "supervised configurations learn from them"
    ]


def check_job(job: Job, settings: Settings) -> list[str]:
    """What can be said of a job before its images and weights are looked at.

    Returns:
        Remarks, one sentence each.

    Raises:
        InputError: for values that the model cannot take, missing auxiliary images that it needs, a folder of them
            without any that can be read, and a synthetic evaluation where nothing is held out.
    """
    check_choice("evaluation", job.evaluation, EVALUATIONS)
    if job.evaluation == SPLIT and job.resolved.train_config.holdout <= 0:
        raise InputError(
            f"holdout is {job.resolved.train_config.holdout:g}, but synthetic defects are drawn on held-out normals; "
            f"set overrides: {{{job.configuration}: {{train: {{holdout: 0.1}}}}}} or more"
        )
    trainer, auxiliary = ModelRegistry.trainer_class(job.configuration), job.resolved.auxiliary
    remarks = trainer.check_inputs(job.resolved.config, job.resolved.train_config)
    if auxiliary and trainer.without_auxiliary and find_auxiliary(auxiliary, settings) is None:
        return [
            *remarks,
            f"{missing_auxiliary(auxiliary, settings)}; without them {trainer.without_auxiliary}",
        ]
    if auxiliary:
        auxiliary_samples(auxiliary, settings)
    return remarks


def job_identity(job: Job, settings: Settings, data_fingerprint: str) -> dict[str, Any]:
    """All that decides a trial's result; its hash is the trial's id.

    Raises:
        InputError: where a weight file is missing.
    """
    train_config = to_plain(job.resolved.train_config)
    del train_config["eval_batch_size"]  # scores do not depend on it
    auxiliary = job.resolved.auxiliary
    synthetic = job.evaluation == SPLIT
    versions = {"model": job.resolved.spec.version, "core": CORE_VERSION}
    return {
        "configuration": job.configuration,
        "trainer": job.resolved.spec.trainer,
        "versions": versions | ({"defects": DEFECTS_VERSION} if synthetic else {}),
        "datasets": list(job.datasets),
        "categories": list(job.categories),
        "data": data_fingerprint,
        "model": to_plain(job.resolved.config),
        "train": train_config,
        "weights": {name: _weight_hash(name, settings) for name in job.resolved.weight_files},
        "seed": job.seed,
        **({"auxiliary": auxiliary_fingerprint(auxiliary, settings)} if auxiliary else {}),
        **({"evaluation": job.evaluation} if synthetic else {}),
    }


def _weight_hash(name: str, settings: Settings) -> str:
    path = find_weights(name, settings.backbone_dir)
    if path is None:
        raise InputError(missing_weights(name, settings.backbone_dir))
    return file_sha256(path)


def trial_record(identity: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """What `trial.json` holds: the hash, all that went into it, and what was only recorded."""
    return {"id": canonical_hash(identity), "identity": identity, "environment": recorded}


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, recorded with a trial but no part of its id."""
    import torch

    return {
        "adray": __version__,
        "python": platform.python_version(),
        **_versions(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else platform.machine() + " CPU",
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Of the packages that scores may depend on, those that are installed; read once, since it takes 20 ms."""
    packages = (
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "scikit-learn",
        "ray",
        "open_clip_torch",
        "transformers",
    )
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def run_job(
    job: Job,
    folder: Path,
    *,
    device: str = "cpu",
    progress_path: Path | None = None,
    save_maps: int = 8,
    keep_checkpoint: bool = True,
    report: Report | None = None,
    sharing: Sharing | None = None,
) -> dict[str, Any]:
    """Train and evaluate one job and write all its files into `folder`; `result.json` comes last.

    Args:
        job: what to do; paths come from the settings of this process.
        folder: an existing folder.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        progress_path: where a long training leaves its state and continues from.
        save_maps: pictures per class.
        keep_checkpoint: write the model's `.pth`.
        report: called after each epoch with the step and its values; with synthetic evaluation, of a model that takes
            more than one epoch, these include ``objective``, the image AUROC so far, and ``percent`` of the epochs.
        sharing: what other trials want of the same frozen stage, which is then kept for them; None for a job by itself.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: for missing weights, data that cannot be used, or a synthetic evaluation without held-out images.
        FloatingPointError: for a loss that is not finite.
    """
    from adray.data.loaders import get_dataloaders

    meter = _Meter(device)
    config = job.resolved.train_config
    trainer_class = ModelRegistry.trainer_class(job.configuration)
    for name in job.resolved.weight_files:
        get_backbone_path(name)
    loaders = get_dataloaders(
        list(job.datasets),
        list(job.categories),
        img_size=config.img_size,
        crop_size=config.crop_size,
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        normalize=config.normalize,
        holdout=config.holdout,
        seed=job.seed,
        device=device,
        split_mode=config.split_mode,
        train_defects=config.train_defects,
        supervised=trainer_class.supervised,
        evaluation=job.evaluation,
    )
    meter.lap("data_seconds")
    trainer = trainer_class(job.resolved.config, config, device, job.seed)
    trainer.sharing = sharing
    if report is not None and job.evaluation == SPLIT and not trainer_class.single_pass:
        report = _with_objective(report, trainer, loaders)
    trainer.fit(loaders, report, progress_path=progress_path)
    meter.lap("fit_seconds")
    test = trainer.predict(loaders.test)
    meter.lap("predict_seconds")
    held_out = (
        trainer.predict(loaders.valid, keep_maps=False) if loaders.valid is not None else None
    )
    thresholds = compute_thresholds(test.pred_score, test.label, _pred_score(held_out))
    _write_files(job, folder, trainer, loaders, test, held_out, keep_checkpoint)
    pictures = _draw(job, folder, trainer, loaders, test, thresholds, save_maps)
    result = _result(job, trainer, loaders, test, held_out, thresholds) | {"pictures": pictures}
    meter.lap("report_seconds")
    result |= _with_shared_work(meter.figures(), [*loaders.shared_work, *trainer.shared_work])
    write_json(folder / "result.json", result)
    return result


def _with_shared_work(figures: dict[str, Any], work: Sequence[SharedWork]) -> dict[str, Any]:
    """The figures, with what was shared, and the seconds that are left without it and without waiting for it."""
    waited = sum(item.waited_seconds for item in work)
    made = sum(item.build_seconds or 0.0 for item in work if item.built)
    own = max(0.0, figures["timings"]["total_seconds"] - waited - made)
    parts = [item.alone_seconds for item in work]
    seconds = {
        "own_seconds": round(own, 4),
        "alone_seconds": None
        if None in parts
        else round(own + sum(p for p in parts if p is not None), 4),
        "waited_seconds": round(waited, 4),
    }
    timings = {**figures["timings"], **seconds}
    return {**figures, "timings": timings, "shared_work": [asdict(item) for item in work]}


def _with_objective(report: Report, trainer: BaseTrainer, loaders: Loaders) -> Report:
    """A report that also scores the twins, so that a scheduler can stop what will not win.

    Evaluation draws no random numbers, so a trial that is watched ends with the scores of one that is not.
    """

    def report_objective(step: int, row: dict[str, float]) -> None:
        objective = trainer.validation_epoch(loaders.test)["image_auroc"]
        report(
            step,
            row | {"objective": objective, "percent": 100 * trainer.epoch / trainer.num_epochs},
        )

    return report_objective


def _write_files(
    job: Job,
    folder: Path,
    trainer: BaseTrainer,
    loaders: Loaders,
    test: Scores,
    held_out: Scores | None,
    keep_checkpoint: bool,
) -> None:
    import pandas as pd

    stem = "_".join(job.names)
    if keep_checkpoint:
        trainer.save_model(folder / f"model_{stem}_epochs-{max(trainer.epoch, 1)}.pth")
    trainer.save_results(folder / f"results_{stem}_thresholds.txt", test, _pred_score(held_out))
    rows = (
        _score_rows(loaders.test, test, "test")
        if job.evaluation == "test"
        else _twin_rows(loaders.test, test)
    )
    if loaders.valid is not None and held_out is not None:
        rows += _score_rows(loaders.valid, held_out, "holdout")
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet", index=False)
    pd.DataFrame(trainer.history).to_csv(folder / "history.csv", index=False)


def _draw(
    job: Job,
    folder: Path,
    trainer: BaseTrainer,
    loaders: Loaders,
    test: Scores,
    thresholds: dict[str, Threshold],
    count: int,
) -> list[dict[str, Any]]:
    """The histogram and the most telling images; what is on each picture is given back."""
    stem, threshold = "_".join(job.names), chosen_threshold(thresholds)
    trainer.save_histogram(folder / f"histogram_{stem}_scores.png", test, threshold)
    return trainer.save_maps(folder / f"image_{stem}", test, loaders.test, count, threshold)


def _score_rows(loader: Loader, scores: Scores, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "dataset": sample.dataset,
            "category": sample.category,
            "split": split,
            "path": str(sample.path),
            "label": int(label),
            "defect_type": sample.defect_type,
            "pred_score": float(score),
        }
        for sample, label, score in zip(
            loader.samples, scores.label, scores.pred_score, strict=True
        )
    ]
    if scores.explanation is None:
        return rows
    return [row | {"explanation": text} for row, text in zip(rows, scores.explanation, strict=True)]


def _twin_rows(loader: Loader, scores: Scores) -> list[dict[str, Any]]:
    """Rows of the twins alone, named by their image and number; the images themselves are the held-out ones."""
    rows = zip(loader.samples, _score_rows(loader, scores, SPLIT), strict=True)
    return [
        row | {"path": f"{row['path']}#{sample.relative_path.rpartition('#')[2]}"}
        for sample, row in rows
        if sample.split == SPLIT
    ]


def _pred_score(scores: Scores | None) -> np.ndarray | None:
    return None if scores is None else scores.pred_score


def _result(
    job: Job,
    trainer: BaseTrainer,
    loaders: Loaders,
    test: Scores,
    held_out: Scores | None,
    thresholds: dict[str, Threshold],
) -> dict[str, Any]:
    cells = [(s.dataset, s.category) for s in loaders.test.samples]
    per_category = {
        "/".join(cell): test.subset(np.array([c == cell for c in cells])).metrics()
        for cell in sorted(set(cells))
        if len(set(cells)) > 1
    }
    return {
        "metrics": test.metrics(),
        "per_category": per_category,
        "thresholds": {
            name: {"value": t.value, "oracle": t.oracle, "note": t.note, **_counts(test, t.value)}
            for name, t in thresholds.items()
        },
        "counts": {
            "train": len(loaders.train.samples),
            "holdout": 0 if loaders.valid is None else len(loaders.valid.samples),
            "test_normal": int((test.label == 0).sum()),
            "test_anomalous": int((test.label == 1).sum()),
        },
        "notes": [
            *trainer.notes(),
            *_evaluation_notes(job, test),
            *describe_problems(test.pred_score, test.label),
            *describe_problems(test.anomaly_map, test.mask, "pixel"),
            *filter(
                None,
                (
                    foreign_weights(name, get_backbone_path(name))
                    for name in job.resolved.weight_files
                ),
            ),
        ],
        "image_auroc_interval": _interval(test),
        "histogram": score_histogram(test.pred_score, test.label),
        "map_range": None if test.anomaly_map is None else map_range(test.anomaly_map),
        "weights": getattr(job.resolved.config, "weights", "none"),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "epochs": trainer.epoch,
        "steps": trainer.step,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **({"evaluation": job.evaluation} if job.evaluation != "test" else {}),
    }


def _evaluation_notes(job: Job, test: Scores) -> list[str]:
    normals = int((test.label == 0).sum())
    if job.evaluation == "test":
        return []
    notes = ["figures are of synthetic defects on held-out normals, not of the test set"]
    if normals < _FEW_HELD_OUT:
        notes.append(
            f"only {normals} normals are held out; a larger holdout makes these figures finer"
        )
    return notes


def _interval(test: Scores) -> list[float] | None:
    """Ends of the 95 % interval of image AUROC over test images."""
    interval = bootstrap_interval(test.pred_score, test.label)
    return None if interval is None else [interval.low, interval.high]


def _counts(test: Scores, threshold: float | None) -> dict[str, float | int | None]:
    if threshold is None:
        return {}
    c = confusion(test.pred_score, test.label, threshold)
    rates = {"accuracy": c.accuracy, "precision": c.precision, "recall": c.recall, "f1": c.f1}
    return {"tp": c.tp, "fn": c.fn, "tn": c.tn, "fp": c.fp, **rates}


class _Meter:
    """Seconds and peak memory of one job, also in a process that runs several one after the other."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, {}  # type: ignore[var-annotated]
        self.start = self.last = time.perf_counter()
        self.cpu = time.process_time()
        if not reset_peaks(device):
            logger.debug("the kernel does not let peak memory be reset; it is that of the process")

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`, once the device is done."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now

    def figures(self) -> dict[str, Any]:
        """Timings in seconds and peak memory in MB; packed on a shared device, so no figures of speed to publish."""
        timings = {
            **self.seconds,
            "total_seconds": self.last - self.start,
            "cpu_seconds": time.process_time() - self.cpu,
        }
        return {
            "timings": {name: round(value, 4) for name, value in timings.items()},
            "memory": {"host_peak_mb": host_peak_mb(), "gpu_peak_mb": _gpu_peak_mb(self.device)},
        }


def reset_peaks(device: str) -> bool:
    """Count peak memory anew, on the host and on a GPU; whether the kernel let the host's be reset."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_mb(field: str) -> float | None:
    """``VmRSS`` or, since the last reset, ``VmHWM`` of this process in MB; None off Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), None)


def host_peak_mb() -> float | None:
    """Largest resident memory of this process since the last job began, in MB; None off Linux."""
    peak = resident_mb("VmHWM")
    return None if peak is None else round(peak, 1)


def _gpu_peak_mb(device: str) -> float | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return round(torch.cuda.max_memory_reserved() / 2**20, 1)
