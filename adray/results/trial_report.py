"""What the scores of a trial say, computed once and handed on to all that it leaves.

From one `TrialReport` come `result.json`, the thresholds file, the pictures and `scores.parquet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from adray.metrics import Confusion, confusion, describe_problems
from adray.results.evaluation import (
    Evaluation,
    FixedThresholds,
    Metrics,
    ScoredImages,
    evaluate,
)
from adray.results.figures import map_range, score_histogram
from adray.results.image_statistics import bootstrap_interval
from adray.results.trial_files import ScoreRow
from adray.scores import Scores
from adray.spro import SproCounts
from adray.thresholds import (
    FALSE_ALARMS,
    Promise,
    Threshold,
    chosen_threshold,
    compute_thresholds,
    confusions,
    make_promise,
    pixel_threshold,
    promised_pixels,
)
from adray.types import Json

_FEW_HELD_OUT = 10


@dataclass(frozen=True)
class TrialReport:
    """All that the scores of a trial say."""

    evaluation: Evaluation
    """All figures of all test images."""
    per_category: dict[str, Metrics]
    """Metrics by ``<dataset>/<category>``; empty for a single category."""
    per_defect_type: dict[str, Metrics]
    """Metrics of each defect type against all normal images of its category, by its name, with
    ``<dataset>/<category>/`` before it where there are several."""
    per_group: dict[str, Metrics]
    """Metrics by group, of those that have normal and anomalous images."""
    thresholds: dict[str, Threshold]
    """By name: `adray.thresholds.PROMISE` and those in `adray.thresholds.THRESHOLDS`."""
    promises: tuple[Promise, ...]
    """What held-out normals promise, for each rate of false alarms that was asked for."""
    confusions: dict[str, Confusion]
    """Right and wrong verdicts at each threshold that has a value."""
    pixel_threshold: Threshold
    """Of maps, found on those of held-out normals; figures go by it."""
    pixel_promise: Threshold
    """Of maps, with its promise; regions go by it."""
    pixel_promises: tuple[Promise, ...]
    """What maps of held-out normals promise, for each rate; empty for a model without maps."""
    pixel_promise_confusion: Confusion | None
    """Test images with and without a pixel at `pixel_promise`; None where it has no value."""
    image_auroc_interval: tuple[float, float] | None
    """Ends of the 95 % interval of the image AUROC over test images, None for too few images."""
    histogram: Json
    """Scores of each class in bins, see `adray.results.figures.score_histogram`."""
    map_range: tuple[float, float] | None
    """Colour scale of all anomaly maps, None where the model gives none."""
    test_normal: int
    """Number of normal test images."""
    test_anomalous: int
    """Number of defective test images."""
    notes: tuple[str, ...]
    """What a reader of the metrics must know, a sentence or phrase each."""
    rows: tuple[ScoreRow, ...]
    """Test images, then held-out ones."""

    @property
    def metrics(self) -> Metrics:
        """Give the metrics of all test images, by the names in `adray.metrics.METRICS`."""
        return self.evaluation.metrics

    @property
    def chosen_threshold(self) -> Threshold | None:
        """Give the threshold of verdicts and pictures, None where none has a value."""
        return chosen_threshold(self.thresholds)

    def thresholds_json(self) -> dict[str, Json]:
        """Give each threshold and the counts and rates at it, as `result.json` has them."""
        found: dict[str, Json] = {}
        for name, threshold in self.thresholds.items():
            found[name] = threshold_json(threshold, self.confusions.get(name))
        return found

    def pixel_threshold_json(self) -> Json:
        """Give the threshold of pixels, and the counts and rates at it."""
        return threshold_json(self.pixel_threshold, self.evaluation.pixel_confusion)

    def pixel_promise_json(self) -> Json:
        """Give the threshold of regions, and how many images have one."""
        return threshold_json(self.pixel_promise, self.pixel_promise_confusion)


def make_trial_report(
    test: ScoredImages,
    held_out: ScoredImages | None,
    evaluation: str,
    spro: SproCounts | None = None,
    rates: Sequence[float] = (FALSE_ALARMS,),
    tried: int = 1,
    kind: str = "holdout",
) -> TrialReport:
    """Compute all that the scores of a trial say.

    Args:
        test: images that were scored to judge the model, with their maps.
        held_out: normal training images that were kept apart, with their maps, or None. For
            ``cross`` calibration those that trained, each scored by a model without it.
        evaluation: ``test``, or ``synthetic`` where `test` is the held-out images and the defects
            drawn on them.
        spro: the test images' pixels at full size, None where the data are not judged so.
        rates: of false alarms that are asked for, first that of the verdicts.
        tried: number of trials of which this one was chosen by the held-out normals.
        kind: of calibration, ``holdout`` or ``cross``, which names the rows of `held_out`.

    Raises:
        InputError: for a score or map that is not finite.
    """
    scores = test.scores
    pred_score = scores.pred_score
    label = scores.label
    held_out_score = None if held_out is None else held_out.scores.pred_score
    thresholds = compute_thresholds(pred_score, label, held_out_score, rates[0], tried)
    calibration = np.empty(0) if held_out_score is None else held_out_score
    of_pixels = _pixel_threshold(held_out)
    peaks = _calibration_peaks(test, held_out)
    of_regions = [promised_pixels(peaks, rate, tried) for rate in rates]
    fixed = FixedThresholds(thresholds["percentile_95"].value, of_pixels.value)
    interval = bootstrap_interval(pred_score, label)

    # One category alone has the figures of all images.
    categories = _by_category(test, fixed, spro)
    whole = evaluate(test, fixed, spro, by_type=not categories)
    per_group, group_notes = _metrics_per_group(test, fixed)
    return TrialReport(
        evaluation=whole,
        per_category={name: found.metrics for name, found in categories.items()},
        per_defect_type=whole.per_defect_type or _types_of_categories(categories),
        per_group=per_group,
        thresholds=thresholds,
        promises=tuple(make_promise(calibration, rate, tried) for rate in rates),
        confusions=confusions(thresholds, pred_score, label),
        pixel_threshold=of_pixels,
        pixel_promise=of_regions[0],
        pixel_promises=tuple(found.promise for found in of_regions if found.promise is not None),
        pixel_promise_confusion=_images_with_region(scores, of_regions[0]),
        image_auroc_interval=None if interval is None else (interval.low, interval.high),
        histogram=score_histogram(pred_score, label),
        map_range=map_range(scores),
        test_normal=int((label == 0).sum()),
        test_anomalous=int((label == 1).sum()),
        notes=(*_evaluation_notes(scores, evaluation), *_problems(scores), *group_notes),
        rows=_score_rows(test, held_out, evaluation, kind),
    )


def _pixel_threshold(held_out: ScoredImages | None) -> Threshold:
    """Find the threshold of maps by those of held-out normals."""
    if held_out is None:
        return pixel_threshold(None)
    return pixel_threshold(held_out.scores.anomaly_map, held_out.scores.inside)


def _calibration_peaks(test: ScoredImages, held_out: ScoredImages | None) -> np.ndarray | None:
    """Give the highest value of each held-out normal's map, None for a model without maps."""
    if test.scores.anomaly_map is None:
        return None
    return np.empty(0) if held_out is None else held_out.scores.peaks


def _images_with_region(scores: Scores, threshold: Threshold) -> Confusion | None:
    """Count test images with and without a pixel at a threshold, None where it has no value."""
    peaks = scores.peaks
    if peaks is None or threshold.value is None:
        return None
    return confusion(peaks, scores.label, threshold.value)


def _by_category(
    test: ScoredImages, fixed: FixedThresholds, spro: SproCounts | None
) -> dict[str, Evaluation]:
    """Compute the figures of each of several categories."""
    cells = [(sample.dataset, sample.category) for sample in test.samples]
    if len(set(cells)) < 2:
        return {}

    found = {}
    for cell in sorted(set(cells)):
        inside = np.array([other == cell for other in cells])
        found["/".join(cell)] = evaluate(test.subset(inside), fixed, spro, by_type=True)
    return found


def _types_of_categories(categories: dict[str, Evaluation]) -> dict[str, Metrics]:
    """Put the name of the category before those of its defect types."""
    found = {}
    for category, evaluation in categories.items():
        for name, metrics in evaluation.per_defect_type.items():
            found[f"{category}/{name}"] = metrics
    return found


def _metrics_per_group(
    test: ScoredImages, fixed: FixedThresholds
) -> tuple[dict[str, Metrics], list[str]]:
    """Compute the metrics of each group.

    Returns:
        Those of groups with normal and anomalous images, and a note on the others.
    """
    groups = np.array([sample.group for sample in test.samples], dtype=object)
    names = sorted(set(groups) - {""})
    found = {}
    for name in names:
        inside = groups == name
        if len(set(test.scores.label[inside])) == 2:
            found[name] = evaluate(test.subset(inside), fixed).metrics
    left_out = len(names) - len(found)
    if not left_out:
        return found, []
    return found, [
        f"{left_out} of {len(names)} groups have normal or anomalous test images only, "
        "and no figures of their own"
    ]


def _evaluation_notes(scores: Scores, evaluation: str) -> list[str]:
    if evaluation == "test":
        return []
    notes = ["figures are of synthetic defects on held-out normals, not of the test set"]
    normals = int((scores.label == 0).sum())
    if normals < _FEW_HELD_OUT:
        notes.append(
            f"only {normals} normals are held out; a larger holdout makes these figures finer"
        )
    return notes


def _problems(scores: Scores) -> list[str]:
    notes = describe_problems(scores.pred_score, scores.label)
    notes += describe_problems(scores.anomaly_map, scores.mask, "pixel")
    bare = int((~scores.has_mask).sum())
    if bare and scores.mask is not None and scores.anomaly_map is not None:
        notes.append(
            f"{bare} of {int((scores.label == 1).sum())} defective test images have no mask; "
            "pixel metrics leave them out"
        )
    return notes


def _score_rows(
    test: ScoredImages, held_out: ScoredImages | None, evaluation: str, kind: str
) -> tuple[ScoreRow, ...]:
    rows = _rows_of(test, "test") if evaluation == "test" else _synthetic_rows(test, evaluation)
    if held_out is not None:
        rows += _rows_of(held_out, kind)
    return tuple(rows)


def _synthetic_rows(test: ScoredImages, split: str) -> list[ScoreRow]:
    """Make the rows of the synthetic defects, named by their image and number."""
    rows = []
    # Not of the images that they were drawn on: these are held out, and have rows of their own.
    for sample, row in zip(test.samples, _rows_of(test, split), strict=True):
        if sample.split == split:
            number = sample.relative_path.rpartition("#")[2]
            rows.append(replace(row, path=f"{row.path}#{number}"))
    return rows


def _rows_of(images: ScoredImages, split: str) -> list[ScoreRow]:
    scores = images.scores
    peaks = scores.peaks
    rows = []
    for i, sample in enumerate(images.samples):
        row = ScoreRow(
            dataset=sample.dataset,
            category=sample.category,
            split=split,
            path=str(sample.path),
            label=int(scores.label[i]),
            defect_type=sample.defect_type,
            pred_score=float(scores.pred_score[i]),
            explanation=None if scores.explanation is None else scores.explanation[i],
            group=sample.group,
            part=sample.part,
            picture=images.copies[i] if images.copies else "",
            peak=None if peaks is None else float(peaks[i]),
            columns=sample.columns,
        )
        rows.append(row)
    return rows


def threshold_json(threshold: Threshold, counts: Confusion | None = None) -> Json:
    """Give a threshold, and the counts and rates at it where it has a value."""
    value: Json = {"value": threshold.value, "oracle": threshold.oracle, "note": threshold.note}
    if threshold.promise is not None:
        value |= asdict(threshold.promise)
    return value if counts is None else value | _counts_json(counts)


def _counts_json(counts: Confusion) -> dict[str, float | int | None]:
    return {
        "tp": counts.tp,
        "fn": counts.fn,
        "tn": counts.tn,
        "fp": counts.fp,
        "accuracy": counts.accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
    }
