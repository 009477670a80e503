"""Trials of parts with scores of their own, as `adray.decide` compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from fake_store import fake_record, write_record
from sklearn.metrics import roc_auc_score

from adray.conditions import Corruption
from adray.results.corrupted_scores import CorruptedRow, write_corrupted
from adray.results.measurements import add_measurement
from adray.results.store import TrialRecord
from adray.results.trial_files import SCORES_FILE, ScoreRow, write_scores
from adray.thresholds import compute_thresholds

TYPES = ("hole", "scratch")


def part_trial(
    root: Path,
    configuration: str,
    distance: float | None = None,
    seed: int = 0,
    *,
    category: str = "cup",
    images: int = 40,
    held_out: int = 99,
    normal: Sequence[float] | None = None,
    defects: Sequence[float] | None = None,
    is_drawn: bool = False,
    checkpoint: bool = True,
    rate: float = 0.05,
    **identity: object,
) -> TrialRecord:
    """A finished trial whose defects lie `distance` standard deviations above its normals, on disk.

    Every trial of a category has the same images; two that differ in their name alone score them
    with some noise of their own.
    """
    shared = np.random.default_rng(1)
    own = np.random.default_rng(sum(configuration.encode()) + seed)
    hardness = shared.normal(size=2 * images)
    noise = 0.3 * own.normal(size=2 * images)
    scores = hardness + noise
    scores[images:] += distance or 0.0
    test = [(score, 0) for score in (scores[:images] if normal is None else normal)]
    test += [(score, 1) for score in (scores[images:] if defects is None else defects)]
    calibration = np.sort(own.normal(size=held_out))

    values = np.array([score for score, _ in test])
    label = np.array([anomalous for _, anomalous in test])
    thresholds = {}
    for name, one in compute_thresholds(values, label, calibration, rate).items():
        promise = {} if one.promise is None else vars(one.promise)
        thresholds[name] = {"value": one.value, "oracle": one.oracle, **promise}
    auroc = roc_auc_score(label, values) if len(set(label.tolist())) == 2 else None

    record = fake_record(root, configuration, category, seed, 0.5)
    counts = {
        "train": 200,
        "holdout": held_out,
        "test_normal": int((label == 0).sum()),
        "test_anomalous": int((label == 1).sum()),
    }
    metrics = {**record.result["metrics"], "image_auroc": auroc}
    result = {**record.result, "metrics": metrics, "thresholds": thresholds, "counts": counts}
    result["image_auroc_interval"] = None if auroc is None else [auroc - 0.1, min(1.0, auroc + 0.1)]
    evaluation = {"evaluation": "synthetic"} if is_drawn else {}
    known = {**record.identity, **evaluation, **identity}
    record = replace(record, trial={**record.trial, "identity": known}, result=result)
    write_record(record)
    write_scores(record.folder, _rows(category, test, calibration, is_drawn))
    if checkpoint:
        (record.folder / "model_cup.pth").write_bytes(b"weights")
    return record


def _rows(category, test, calibration, is_drawn):
    rows = []
    for number, (score, label) in enumerate(test):
        kind = TYPES[number % 2] if label else "good"
        if is_drawn and not label:
            continue  # the held-out normals themselves are the normals of drawn defects
        split = "synthetic" if is_drawn else "test"
        path = f"/data/{category}/test/{label}_{number}.png"
        rows.append(ScoreRow("mvtec", category, split, path, label, kind, float(score)))
    for number, score in enumerate(calibration):
        path = f"/data/{category}/train/{number}.png"
        rows.append(ScoreRow("mvtec", category, "holdout", path, 0, "good", float(score)))
    return rows


def corrupted(
    record: TrialRecord,
    corruption: Corruption,
    scores: Sequence[float],
    gone: Sequence[int] = (),
) -> None:
    """Put scores under a corruption beside a trial, in the order of its test images."""
    plain = pd.read_parquet(record.folder / SCORES_FILE)
    test = plain[plain["split"] == "test"]
    rows = []
    for number, row in enumerate(test.itertuples()):
        told = (row.dataset, row.category, row.path, row.label, row.defect_type)
        rows.append(CorruptedRow(*told, float(scores[number]), number in gone))
    write_corrupted(record, corruption, rows)


def measured(record: TrialRecord, ms: float, mb: float = 100.0, kind: str = "cpu") -> None:
    """Put a measurement beside a trial."""
    figures = {"host_peak_mb": 50 + mb, "host_base_mb": 50, "gpu_peak_mb": mb, "latency_ms": ms}
    add_measurement(record, {"kind": kind, "device": f"test {kind}", "threads": 1, **figures})
