"""The thresholds file, in the names and the format of the specification's section 9."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adray.files import atomic_path
from adray.metrics import confusion, image_metrics
from adray.thresholds import Threshold, compute_thresholds


def write_results(
    path: str | Path, pred_score: np.ndarray, label: np.ndarray, holdout_score: np.ndarray | None
) -> None:
    """Write `format_results` to a file."""
    with atomic_path(path) as temporary:
        temporary.write_text(format_results(pred_score, label, holdout_score), encoding="utf-8")


def format_results(
    pred_score: np.ndarray, label: np.ndarray, holdout_score: np.ndarray | None = None
) -> str:
    """Image-level figures, thresholds and the confusion matrix at each of them.

    Args:
        pred_score: (N,) of the test images.
        label: (N,) 0 normal, 1 anomalous.
        holdout_score: scores of held-out training normals, or None; without them percentile-95 reads n/a.
    """
    metrics = image_metrics(pred_score, label)
    thresholds = compute_thresholds(pred_score, label, holdout_score)
    lines = ["=== Image-level Results ==="]
    lines += [
        f"{name}: {_percent(metrics[key])}"
        for name, key in (("AUROC", "image_auroc"), ("AUPR", "image_aupr"))
    ]
    lines += [
        "",
        "=== Thresholds ===",
        *(_threshold_line(t, pred_score, label) for t in thresholds.values()),
    ]
    lines += [
        "",
        "Thresholds marked * used the labels of the test set: they say what is possible, not what to deploy.",
    ]
    for title, key in (
        ("F1", "f1_percentile"),
        ("ROC", "roc_youden"),
        ("Percentile 95%", "percentile_95"),
    ):
        lines += [
            "",
            f"=== Confusion Matrix ({title} Threshold) ===",
            *_confusion_lines(thresholds[key], pred_score, label),
        ]
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f} ({100 * value:.1f}%)"


def _threshold_line(threshold: Threshold, pred_score: np.ndarray, label: np.ndarray) -> str:
    titles = {
        "f1_percentile": "F1 (Percentile)",
        "f1_uniform": "F1 (Uniform)",
        "roc_youden": "ROC (Youden J)",
        "percentile_95": "Percentile (95%)",
    }
    title = titles[threshold.name]
    if threshold.value is None:
        return f"{title}: n/a ({threshold.note})"
    line = f"{title}: {threshold.value:.6g}"
    counts = confusion(pred_score, label, threshold.value)
    if threshold.name.startswith("f1"):
        line += f" | F1: {_number(counts.f1)}"
    if threshold.name == "roc_youden":
        line += (
            f" | Sensitivity: {_number(counts.recall)}, Specificity: {_number(counts.specificity)}"
        )
    return line + (" *" if threshold.oracle else "")


def _confusion_lines(threshold: Threshold, pred_score: np.ndarray, label: np.ndarray) -> list[str]:
    if threshold.value is None:
        return ["n/a"]
    counts = confusion(pred_score, label, threshold.value)
    rates = (
        ("Accuracy", counts.accuracy),
        ("Precision", counts.precision),
        ("Recall", counts.recall),
    )
    return [
        f"TP={counts.tp}, FN={counts.fn}, TN={counts.tn}, FP={counts.fp}",
        ", ".join(f"{name}: {_number(rate)}" for name, rate in rates),
    ]


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
