"""What the scores of a trial say, computed once and handed on to all that it leaves.

From one `TrialReport` come `result.json`, the thresholds file, the pictures and `scores.parquet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adray.metrics import Confusion, describe_problems
from adray.results.figures import map_range, score_histogram
from adray.results.image_statistics import bootstrap_interval
from adray.results.trial_files import ScoreRow
from adray.scores import Scores
from adray.thresholds import Threshold, chosen_threshold, compute_thresholds, confusions
from adray.types import Json

if TYPE_CHECKING:
    from adray.data.base import Sample

_FEW_HELD_OUT = 10

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class ScoredImages:
    """Images and what the model said of them."""

    samples: Sequence[Sample]
    """N images."""
    scores: Scores
    """Of the same images, in their order."""


@dataclass(frozen=True)
class TrialReport:
    """All that the scores of a trial say."""

    metrics: Metrics
    """Of all test images, by the names in `adray.metrics.METRICS`."""
    per_category: dict[str, Metrics]
    """The same by ``<dataset>/<category>``; empty for a single category."""
    thresholds: dict[str, Threshold]
    """By the names in `adray.thresholds.THRESHOLDS`."""
    confusions: dict[str, Confusion]
    """Right and wrong verdicts at each threshold that has a value."""
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
    def chosen_threshold(self) -> Threshold | None:
        """Give the threshold of verdicts and pictures, None where none has a value."""
        return chosen_threshold(self.thresholds)

    def thresholds_json(self) -> dict[str, Json]:
        """Give each threshold and the counts and rates at it, as `result.json` has them."""
        found: dict[str, Json] = {}
        for name, threshold in self.thresholds.items():
            value = {"value": threshold.value, "oracle": threshold.oracle, "note": threshold.note}
            counts = self.confusions.get(name)
            found[name] = value if counts is None else value | _counts_json(counts)
        return found


def make_trial_report(
    test: ScoredImages, held_out: ScoredImages | None, evaluation: str
) -> TrialReport:
    """Compute all that the scores of a trial say.

    Args:
        test: images that were scored to judge the model, with their maps.
        held_out: normal training images that were kept apart, or None.
        evaluation: ``test``, or ``synthetic`` where `test` is the held-out images and the defects
            drawn on them.

    Raises:
        InputError: for a score or map that is not finite.
    """
    scores = test.scores
    pred_score = scores.pred_score
    label = scores.label
    held_out_score = None if held_out is None else held_out.scores.pred_score
    thresholds = compute_thresholds(pred_score, label, held_out_score)
    interval = bootstrap_interval(pred_score, label)

    return TrialReport(
        metrics=scores.metrics(),
        per_category=_metrics_per_category(test),
        thresholds=thresholds,
        confusions=confusions(thresholds, pred_score, label),
        image_auroc_interval=None if interval is None else (interval.low, interval.high),
        histogram=score_histogram(pred_score, label),
        map_range=None if scores.anomaly_map is None else map_range(scores.anomaly_map),
        test_normal=int((label == 0).sum()),
        test_anomalous=int((label == 1).sum()),
        notes=(*_evaluation_notes(scores, evaluation), *_problems(scores)),
        rows=_score_rows(test, held_out, evaluation),
    )


def _metrics_per_category(test: ScoredImages) -> dict[str, Metrics]:
    """Compute the metrics of each of several categories."""
    # One alone has the metrics of all images.
    cells = [(sample.dataset, sample.category) for sample in test.samples]
    if len(set(cells)) < 2:
        return {}

    found = {}
    for cell in sorted(set(cells)):
        inside = np.array([other == cell for other in cells])
        found["/".join(cell)] = test.scores.subset(inside).metrics()
    return found


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
    of_images = describe_problems(scores.pred_score, scores.label)
    return of_images + describe_problems(scores.anomaly_map, scores.mask, "pixel")


def _score_rows(
    test: ScoredImages, held_out: ScoredImages | None, evaluation: str
) -> tuple[ScoreRow, ...]:
    rows = _rows_of(test, "test") if evaluation == "test" else _synthetic_rows(test, evaluation)
    if held_out is not None:
        rows += _rows_of(held_out, "holdout")
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
            columns=sample.columns,
        )
        rows.append(row)
    return rows


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
