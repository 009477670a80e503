"""The thresholds file, in the names and the format of the specification's section 9."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adray.files import atomic_path
from adray.metrics import Confusion
from adray.thresholds import CONFIDENCE, THRESHOLDS, Promise, Threshold, percent

_MATRIX_TITLES = {
    "f1_percentile": "F1",
    "roc_youden": "ROC",
    "percentile_95": "Percentile 95%",
}
"""The three matrices that the specification's file has, by the name of their threshold."""


def write_results(
    path: str | Path,
    metrics: Mapping[str, float | None],
    thresholds: Mapping[str, Threshold],
    confusions: Mapping[str, Confusion],
    per_defect_type: Mapping[str, Mapping[str, float | None]] | None = None,
) -> None:
    """Write `format_results` to a file, with figures of several defect types behind it."""
    text = format_results(metrics, thresholds, confusions)
    if per_defect_type and len(per_defect_type) > 1:
        text += format_types(per_defect_type)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def format_results(
    metrics: Mapping[str, float | None],
    thresholds: Mapping[str, Threshold],
    confusions: Mapping[str, Confusion],
) -> str:
    """List image-level figures, thresholds and the confusion matrix at them.

    Args:
        metrics: with ``image_auroc`` and ``image_aupr``. None reads n/a.
        thresholds: all of `compute_thresholds`.
        confusions: counts at those thresholds that have a value, see `adray.thresholds.confusions`.
    """
    lines = ["=== Image-level Results ==="]
    lines.append(f"AUROC: {_percent(metrics['image_auroc'])}")
    lines.append(f"AUPR: {_percent(metrics['image_aupr'])}")

    lines += ["", "=== Thresholds ==="]
    for name, threshold in thresholds.items():
        lines.append(_threshold_line(threshold, confusions.get(name)))
    lines += [
        "",
        "Thresholds marked * used the labels of the test set: "
        "they say what is possible, not what to deploy.",
    ]

    for name, title in _MATRIX_TITLES.items():
        lines += ["", f"=== Confusion Matrix ({title} Threshold) ==="]
        lines += _confusion_lines(confusions.get(name))
    return "\n".join(lines) + "\n"


def format_types(per_defect_type: Mapping[str, Mapping[str, float | None]]) -> str:
    """List figures of each defect type against all normal images.

    Args:
        per_defect_type: metrics by type, see `adray.results.evaluation.Evaluation`.
    """
    lines = ["", "=== By Defect Type ==="]
    for name, metrics in per_defect_type.items():
        figures = f"AUROC: {_number(metrics['image_auroc'])}"
        figures += f", pixel AUROC: {_number(metrics['pixel_auroc'])}"
        figures += f", AUPRO: {_number(metrics['pixel_aupro'])}"
        lines.append(f"{name}: {figures}")
    return "\n".join(lines) + "\n"


def _threshold_line(threshold: Threshold, counts: Confusion | None) -> str:
    if threshold.promise is not None:
        return _promise_line(threshold, threshold.promise)
    title = THRESHOLDS[threshold.name].title
    if counts is None:
        return f"{title}: n/a ({threshold.note})"

    line = f"{title}: {threshold.value:.6g}"
    if threshold.name.startswith("f1"):
        line += f" | F1: {_number(counts.f1)}"
    if threshold.name == "roc_youden":
        rates = f"Sensitivity: {_number(counts.recall)}, Specificity: {_number(counts.specificity)}"
        line += f" | {rates}"
    return line + (" *" if threshold.oracle else "")


def _promise_line(threshold: Threshold, promise: Promise) -> str:
    """Say what is promised of the threshold of verdicts."""
    if promise.promised is None or promise.bound is None:
        return f"Promise: n/a ({threshold.note})"
    return (
        f"Promise: {threshold.value:.6g} | at most {percent(promise.promised)} of new normals, "
        f"{percent(promise.bound)} with {percent(CONFIDENCE)} confidence "
        f"({promise.normals} calibration normals, {percent(promise.rate)} asked{_tried(promise)})"
    )


def _tried(promise: Promise) -> str:
    """Say of how many trials one was chosen, empty for one."""
    return f", chosen among {promise.tried}" if promise.tried > 1 else ""


def _confusion_lines(counts: Confusion | None) -> list[str]:
    if counts is None:
        return ["n/a"]
    return [
        f"TP={counts.tp}, FN={counts.fn}, TN={counts.tn}, FP={counts.fp}",
        f"Accuracy: {_number(counts.accuracy)}, Precision: {_number(counts.precision)}, "
        f"Recall: {_number(counts.recall)}",
    ]


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f} ({100 * value:.1f}%)"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
