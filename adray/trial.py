"""How a trial runs, and the files that it leaves; without Ray."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from adray.components.backbone import (
    foreign_weights,
    get_backbone_path,
)
from adray.config import VerdictConfig
from adray.data.base import SYNTHETIC
from adray.data.defect_channels import check_defect_masks, open_defects
from adray.data.folds import Folds, calibration_folds
from adray.files import write_json
from adray.job import CheckpointKind, Job
from adray.language.catalogue import LANGUAGES, load_catalogue
from adray.language.sentence import Sentence
from adray.machine import Meter
from adray.needs import needs_of
from adray.registry import ModelRegistry
from adray.results.curve_points import write_curves
from adray.results.evaluation import ScoredImages, kind_of
from adray.results.figures import draw_histogram, draw_pictures
from adray.results.text import write_results
from adray.results.trial_files import IMAGES_FILE, write_scores
from adray.results.trial_report import TrialReport, make_trial_report
from adray.settle import check_folds
from adray.spro import SproCounts, count_spro
from adray.thresholds import CONFIDENCE, promise_per_group
from adray.types import Json

if TYPE_CHECKING:
    from adray.cache_folder import SharedWork
    from adray.config import TrainConfig
    from adray.data.base import Sample
    from adray.data.loader import Loader
    from adray.data.loaders import Loaders
    from adray.data.tiled_loader import TiledLoader
    from adray.scores import Scores
    from adray.trainer import BaseTrainer, Report
    from adray.types import Sharing

logger = logging.getLogger(__name__)


def run_job(
    job: Job,
    folder: Path,
    *,
    device: str = "cpu",
    progress_path: Path | None = None,
    save_maps: int = 8,
    checkpoint: CheckpointKind = "named",
    report: Report | None = None,
    sharing: Sharing | None = None,
) -> Json:
    """Train and evaluate one job and write all its files into `folder`, `result.json` last.

    Args:
        job: what to do. Paths come from the settings of this process.
        folder: an existing folder.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        progress_path: where a long training leaves its state and continues from.
        save_maps: pictures per class.
        checkpoint: what the model's `.pth` holds of frozen backbones.
        report: called after each epoch with the step and its values. With synthetic evaluation, of
            a model that takes more than one epoch, these include ``objective``, the image AUROC so
            far, and ``percent`` of the epochs.
        sharing: what other trials want of the same frozen stage, which is then kept for them, or
            None for a job by itself.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: for missing weights, data that cannot be used, a synthetic evaluation without
            held-out images, or a score or map that is not finite.
        FloatingPointError: for a loss that is not finite, and a model that is not.
    """
    meter = Meter(device)
    logger.info("stage loading")
    loaders = open_loaders(job, device)
    # What would end the evaluation shall not cost a training.
    check_defect_masks(loaders.test.samples)
    meter.lap("data_seconds")

    trainer = make_trainer(job, device)
    trainer.sharing = sharing
    if report is not None and job.evaluation == SYNTHETIC and not trainer.single_pass:
        report = _with_objective(report, trainer, loaders)
    crossed = None
    if job.is_cross:
        # Before the training, which takes the features over.
        logger.info("stage calibrating")
        crossed = _score_by_folds(job, trainer, loaders)
        meter.lap("calibration_seconds")
    logger.info("stage fitting")
    trainer.fit(loaders, report, progress_path=progress_path)
    meter.lap("fit_seconds")
    trained = Trained(trainer, loaders, crossed)
    return finish_job(job, folder, trained, meter, save_maps=save_maps, checkpoint=checkpoint)


@dataclass(frozen=True)
class Trained:
    """A trained model that is to be evaluated, and its images."""

    trainer: BaseTrainer
    """It holds the model."""
    loaders: Loaders
    """Of the held-out and test images."""
    crossed: _Crossed | None = None
    """How training normals were scored by models without them, where they calibrate."""
    update: Json | None = None
    """What `result.json` says of an update of an earlier model; ``train`` is the number of images
    that the model has learnt from. JSON, None for a training."""


def finish_job(
    job: Job,
    folder: Path,
    trained: Trained,
    meter: Meter,
    *,
    save_maps: int,
    checkpoint: CheckpointKind,
) -> Json:
    """Evaluate a trained model and write all files of its trial, `result.json` last.

    Args:
        job: what was done.
        folder: an existing folder.
        trained: the model.
        meter: of time and memory.
        save_maps: pictures per class.
        checkpoint: see `run_job`.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: for a score or map that is not finite.
    """
    trainer = trained.trainer
    loaders = trained.loaders
    crossed = trained.crossed
    logger.info("stage scoring")
    test_scores = _finite_scores(trainer, loaders.test)
    meter.lap("predict_seconds")

    logger.info("stage drawing")
    # All that is said of the scores is computed here once, and then only written.
    test = ScoredImages(loaders.test.samples, test_scores, loaders.test.find_copies())
    held_out = None if crossed is None else crossed.images
    if loaders.valid is not None:
        held_out = ScoredImages(loaders.valid.samples, _finite_scores(trainer, loaders.valid))
    if held_out is not None:
        _calibrate(trainer, held_out.scores, job.verdict)
    trial_report = _report_of(job, test, held_out)

    stem = "_".join(job.names)
    model_file = _save_model(trainer, folder / f"model_{stem}", checkpoint)
    _write_tables(folder, stem, trainer, trial_report)
    pictures = _draw(folder, stem, test, loaders, trial_report, save_maps)
    verdict = _verdict(job, trial_report, held_out, crossed)
    result = _result(job, trainer, loaders, trial_report, verdict)
    result["needs"] = needs_of(
        model_file,
        trainer.train_config,
        trainer.pixels,
        result["thresholds"],
        trainer.calibration,
        trainer.calibration_peaks,
        trainer.roi,
    )
    if trained.update is not None:
        result["update"] = trained.update
        result["counts"]["train"] = trained.update["train"]
    meter.lap("report_seconds")

    # Behind all else: whoever finds this file finds a whole trial.
    work = [*loaders.shared_work, *trainer.shared_work]
    timings = meter.timings()
    result["pictures"] = pictures
    result["timings"] = timings | _own_seconds(timings["total_seconds"], work)
    result["memory"] = meter.memory()
    result["shared_work"] = [asdict(item) for item in work]
    if not job.condition.is_plain:
        result["condition"] = {"label": job.condition.label, **job.condition.stored()}
        result["condition"] |= _write_images(folder, loaders)
    write_json(folder / "result.json", result)
    return result


def open_loaders(job: Job, device: str) -> Loaders:
    """Check that the weights are there, and open the images of a job.

    Raises:
        InputError: for missing weights, and for data that cannot be used.
    """
    from adray.data.loaders import get_dataloaders

    for name in job.resolved.weight_files:
        get_backbone_path(name)

    config = job.resolved.train_config
    return get_dataloaders(
        list(job.datasets),
        list(job.categories),
        img_size=config.img_size,
        crop_size=config.crop_size,
        fit=config.fit,
        aspect=config.aspect,
        tiling=config.tiling,
        tile_top=config.tile_top,
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        normalize=config.normalize,
        holdout=config.kept_apart,
        seed=job.seed,
        device=device,
        split_mode=config.split_mode,
        train_defects=config.train_defects,
        supervised=ModelRegistry.method(job.configuration).supervised,
        evaluation=job.evaluation,
        condition=job.condition,
    )


def _finite_scores(trainer: BaseTrainer, loader: Loader | TiledLoader) -> Scores:
    """Score all images of a loader.

    Raises:
        InputError: for a score or map that is not finite.
    """
    scores = trainer.predict(loader)
    scores.check()
    return scores


@dataclass(frozen=True)
class _Crossed:
    """Training normals, each scored by a model that was fitted without it."""

    images: ScoredImages
    """The images and their scores."""
    folds: Folds
    """Which were left out together."""

    def notes(self) -> list[Sentence]:
        """Say what a reader of the promise must know, a sentence each."""
        key = "verdict note groups" if self.folds.by_group else "verdict note folds"
        notes = [Sentence.of(key, number=self.folds.count)]
        if self.folds.is_one_group:
            notes.append(Sentence.of("verdict note one group"))

        # A model of few images finds nearly all others unusual.
        images = len(self.folds.number)
        if 2 * self.folds.largest > images:
            rest = images - self.folds.largest
            notes.append(Sentence.of("verdict note uneven", most=self.folds.largest, rest=rest))
        return notes


def _score_by_folds(job: Job, trainer: BaseTrainer, loaders: Loaders) -> _Crossed:
    """Score the training normals, each by a model that was fitted without its fold.

    Raises:
        InputError: for too few images beside a fold, and a score that is not finite.
    """
    from adray.cross import cross_scores

    assert loaders.valid is None, "data that bring validation images are calibrated by these"
    samples = loaders.train.samples
    folds = calibration_folds(samples, loaders.train.small_copies(), job.seed)
    check_folds(job.resolved, len(samples), folds.largest)
    return _Crossed(ScoredImages(samples, cross_scores(trainer, loaders, folds.number)), folds)


def _calibrate(trainer: BaseTrainer, scores: Scores, verdict: VerdictConfig) -> None:
    """Give a trainer what its verdicts go by, which its checkpoint holds.

    Args:
        trainer: that is trained.
        scores: of its calibration normals.
        verdict: what is wanted.
    """
    trainer.false_alarms = verdict.rates[0]
    trainer.tried = verdict.tried
    trainer.calibration = tuple(sorted(scores.pred_score.tolist()))
    peaks = scores.peaks
    trainer.calibration_peaks = () if peaks is None else tuple(sorted(peaks.tolist()))


def _report_of(job: Job, test: ScoredImages, held_out: ScoredImages | None) -> TrialReport:
    """Compute all that the scores of a job say."""
    return make_trial_report(
        test,
        held_out,
        job.evaluation,
        _count_spro(test, job.resolved.train_config),
        job.verdict.rates,
        tried=job.verdict.tried,
        kind=job.resolved.train_config.calibration,
    )


def _count_spro(test: ScoredImages, config: TrainConfig) -> SproCounts | None:
    """Count the pixels of the test images at their full size.

    None where the data ask for no sPRO, and where the images are not squeezed whole.
    """
    scores = test.scores
    if scores.anomaly_map is None or scores.mask is None:
        return None
    if config.fit != "squeeze" or config.tile is not None or scores.inside is not None:
        return None
    images = open_defects(test.samples)
    if images is None:
        return None
    kinds = list(map(kind_of, test.samples))
    return count_spro(scores.anomaly_map, scores.mask, kinds, images, config.img_size)


def make_trainer(job: Job, device: str) -> BaseTrainer:
    """Make the fresh trainer of a job."""
    trainer_class = ModelRegistry.trainer_class(job.configuration)
    return trainer_class(job.resolved.config, job.resolved.train_config, device, job.seed)


def _with_objective(report: Report, trainer: BaseTrainer, loaders: Loaders) -> Report:
    """Make a report that also scores the synthetic defects, for a scheduler that stops the losers.

    Evaluation draws no random numbers, so a trial that is watched ends with the scores of one that
    is not.
    """

    def report_objective(step: int, row: dict[str, float]) -> None:
        objective = trainer.validation_epoch(loaders.test)["image_auroc"]
        percent = 100 * trainer.epoch / trainer.num_epochs
        report(step, row | {"objective": objective, "percent": percent})

    return report_objective


# ---- what a trial leaves ----


def _save_model(trainer: BaseTrainer, prefix: Path, kind: CheckpointKind) -> Path | None:
    """Write a trained model, and give its file. None where none is wanted."""
    if kind == "none":
        return None
    file = prefix.with_name(f"{prefix.name}_epochs-{max(trainer.epoch, 1)}.pth")
    # A plug-in's own way to save may know of no other kind.
    if kind == "named":
        trainer.save_model(file)
    else:
        trainer.save_model(file, whole=True)
    return file


def _write_tables(folder: Path, stem: str, trainer: BaseTrainer, report: TrialReport) -> None:
    import pandas as pd

    thresholds_file = folder / f"results_{stem}_thresholds.txt"
    write_results(
        thresholds_file,
        report.metrics,
        report.thresholds,
        report.confusions,
        report.per_defect_type,
    )
    write_scores(folder, report.rows)
    write_curves(folder, report.evaluation.curves)
    pd.DataFrame(trainer.history).to_csv(folder / "history.csv", index=False)


def _write_images(folder: Path, loaders: Loaders) -> Json:
    """Write the names of the images that a condition took, from the folder of the data sets on.

    Returns:
        Counts of the defects that train, and that are held out, as if they were normal.
    """
    held_out = [] if loaders.valid is None else loaders.valid.samples
    names = {"test": _names_of(loaders.test.samples)}
    counts = {}
    for split, samples in (("train", loaders.train.samples), ("holdout", held_out)):
        defects = [sample for sample in samples if sample in loaders.made]
        names[split] = _names_of(samples)
        names[f"{split}_defects"] = _names_of(defects)
        counts[f"{split}_defects"] = len(defects)
    write_json(folder / IMAGES_FILE, names)
    return counts


def _names_of(samples: Sequence[Sample]) -> list[str]:
    """Name images by their data set and their path in it, each once, whatever its tiles."""
    names = {}
    for sample in samples:
        names[sample.path, sample.key] = f"{sample.dataset}/{sample.key}"
    return list(names.values())


def _draw(
    folder: Path, stem: str, test: ScoredImages, loaders: Loaders, report: TrialReport, count: int
) -> list[Json]:
    """Draw the histogram and the most telling images.

    Returns:
        What is on each picture of an image, see `adray.results.figures.draw_pictures`.
    """
    scores = test.scores
    threshold = report.chosen_threshold
    histogram_file = folder / f"histogram_{stem}_scores.png"
    draw_histogram(histogram_file, scores.pred_score, scores.label, threshold)
    prefix = folder / f"image_{stem}"
    region = report.pixel_promise.value
    return draw_pictures(prefix, scores, loaders.test, count, report.map_range, threshold, region)


def _result(
    job: Job, trainer: BaseTrainer, loaders: Loaders, report: TrialReport, verdict: Json
) -> Json:
    """Give what `result.json` says of model and scores, before pictures, timings and memory."""
    # In the order in which a person looks through the file.
    interval = report.image_auroc_interval
    result = {
        "metrics": report.metrics,
        "undefined": report.evaluation.undefined,
        "per_category": report.per_category,
        "per_defect_type": report.per_defect_type,
        "per_group": report.per_group,
        "overlap_areas": report.evaluation.overlap_areas,
        "thresholds": report.thresholds_json(),
        "verdict": verdict,
        "pixel_threshold": report.pixel_threshold_json(),
        "pixel_promise": report.pixel_promise_json(),
        "counts": {
            "train": len(_names_of(loaders.train.samples)),
            "holdout": 0 if loaders.valid is None else len(loaders.valid.samples),
            "test_normal": report.test_normal,
            "test_anomalous": report.test_anomalous,
        },
        "notes": [*trainer.notes(), *report.notes, *loaders.notes, *_weight_notes(job)],
        "image_auroc_interval": None if interval is None else list(interval),
        "histogram": report.histogram,
        "map_range": report.map_range,
        "weights": getattr(job.resolved.config, "weights", "none"),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "epochs": trainer.epoch,
        "steps": trainer.step,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }

    if job.evaluation != "test":
        result["evaluation"] = job.evaluation
    return result


def _verdict(
    job: Job, report: TrialReport, held_out: ScoredImages | None, crossed: _Crossed | None
) -> Json:
    """Say what is promised of verdicts, for each rate that was asked for. JSON.

    Args:
        job: says the rates.
        report: has the promises.
        held_out: the calibration normals, None for none.
        crossed: how they were scored where they trained too, else None.
    """
    notes = _verdict_notes(job, crossed)
    verdict = {
        "calibration": job.resolved.train_config.calibration,
        "approximate": crossed is not None or job.resolved.train_config.patience is not None,
        "confidence": CONFIDENCE,
        "promises": list(map(asdict, report.promises)),
        "pixel_promises": list(map(asdict, report.pixel_promises)),
        "notes": list(map(str, notes)),
        "sentences": {
            language: [note.text(load_catalogue(language)) for note in notes]
            for language in LANGUAGES
        },
    }
    if crossed is not None:
        verdict["folds"] = crossed.folds.count
    if held_out is not None:
        verdict |= _promises_per_group(held_out, job.verdict)
    return verdict


def _verdict_notes(job: Job, crossed: _Crossed | None) -> list[Sentence]:
    """Say what a reader of a job's promise must know, a sentence each."""
    notes = []
    if job.resolved.train_config.patience is not None:
        notes.append(Sentence.of("verdict note patience"))
    if job.evaluation == SYNTHETIC:
        notes.append(Sentence.of("verdict note drawn"))
    if job.condition.is_dirty and job.condition.hold_out == "contaminated":
        # With cross calibration these are the training images.
        notes.append(Sentence.of("verdict note contaminated"))
    return notes if crossed is None else [*notes, *crossed.notes()]


def _promises_per_group(held_out: ScoredImages, verdict: VerdictConfig) -> Json:
    """Say what is promised of new groups, for each rate. JSON, empty where groups are too few."""
    groups = []
    for sample in held_out.samples:
        groups.append(f"{sample.dataset}/{sample.category}/{sample.group}" if sample.group else "")
    found = []
    for rate in verdict.rates:
        promise = promise_per_group(held_out.scores.pred_score, groups, rate, verdict.tried)
        if promise is not None:
            found.append(asdict(promise))
    return {"group_promises": found} if found else {}


def _weight_notes(job: Job) -> list[str]:
    """Find the weight files that are not the published ones, a sentence on each."""
    notes = []
    for name in job.resolved.weight_files:
        note = foreign_weights(name, get_backbone_path(name))
        if note:
            notes.append(note)
    return notes


def _own_seconds(total_seconds: float, work: Sequence[SharedWork]) -> dict[str, float | None]:
    """Tell a trial's own time from that of work which several trials share.

    Args:
        total_seconds: that the trial took.
        work: that it used and others may use too.

    Returns:
        ``own_seconds``, without shared work and without waiting for it. ``alone_seconds``, had
        nothing been shared, or None where that is not known of some work. ``waited_seconds``, until
        other trials had made what it used.
    """
    waited = 0.0
    made = 0.0
    shares = 0.0
    all_known = True
    for item in work:
        waited += item.waited_seconds
        if item.built:
            made += item.build_seconds or 0.0
        if item.alone_seconds is None:
            all_known = False
        else:
            shares += item.alone_seconds

    own = max(0.0, total_seconds - waited - made)
    return {
        "own_seconds": round(own, 4),
        "alone_seconds": round(own + shares, 4) if all_known else None,
        "waited_seconds": round(waited, 4),
    }
