"""Trials that never ran, for tables and reports of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adray.files import write_json
from adray.language.sentence import Sentence
from adray.results.figures import score_histogram
from adray.results.leaderboard import METRIC_COLUMNS
from adray.results.store import TrialRecord
from adray.thresholds import compute_thresholds


def fake_record(
    root: Path,
    configuration: str,
    category: str,
    seed: int = 42,
    auroc: float | None = 0.9,
    **result: Any,
) -> TrialRecord:
    """A finished trial with 20 normal and 20 anomalous test images, or a failed one where `auroc` is None."""
    folder = (
        root
        / "mvtec"
        / category
        / configuration
        / f"{abs(hash((configuration, category, seed))) % 16**8:08x}"
    )
    identity = {
        "configuration": configuration,
        "datasets": ["mvtec"],
        "categories": [category],
        "seed": seed,
        "model": {},
        "train": {"holdout": 0.1},
    }
    trial = {
        "id": folder.name * 8,
        "identity": identity,
        "environment": {"device": "test CPU", "torch": "2"},
    }
    if auroc is None:
        return TrialRecord(
            folder, trial, None, {"reason": f"{configuration} failed on purpose", "attempts": 2}
        )
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], 20)
    score = rng.normal(size=40) + 2 * label
    thresholds = compute_thresholds(score, label, rng.normal(size=20))
    values = {
        name: {"value": t.value, "oracle": t.oracle, "tp": 19, "fn": 1, "fp": 2, "tn": 18}
        for name, t in thresholds.items()
    }
    stored = {
        "metrics": dict.fromkeys(METRIC_COLUMNS, auroc),
        "thresholds": values,
        "histogram": score_histogram(score, label),
        "counts": {"train": 200, "holdout": 20, "test_normal": 20, "test_anomalous": 20},
        "timings": {"total_seconds": 12.5, "fit_seconds": 10.0, "predict_seconds": 0.2},
        "memory": {},
        "weights": "pretrained",
        "epochs": 1,
        "notes": [],
        "pictures": [],
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return TrialRecord(folder, trial, stored | result, None)


def write_record(record: TrialRecord) -> None:
    """Put a trial's files where the store looks for them."""
    record.folder.mkdir(parents=True, exist_ok=True)
    write_json(record.folder / "trial.json", record.trial)
    for name, value in (("result.json", record.result), ("failure.json", record.failure)):
        if value is not None:
            write_json(record.folder / name, value)


def fake_search(configuration: str = "patchcore", leaky: bool = False) -> dict[str, Any]:
    """What a search of two hyperparameters found in five tries, one of which failed."""
    ratios = (0.1, 0.01, 0.02, 0.2, 0.05)
    trials = [
        {
            "id": f"{k:08x}",
            "values": {
                "model.coreset_ratio": ratio,
                "model.layers": ["layer2", "layer3"][: 1 + k % 2],
            },
            "score": None if k == 4 else 0.8 + 0.02 * k,
            "status": "failed" if k == 4 else "done",
            "reason": "out of memory <script>" if k == 4 else "",
        }
        for k, ratio in enumerate(ratios)
    ]
    return {
        "configuration": configuration,
        "objective": "test" if leaky else "synthetic",
        "leaky": leaky,
        "metric": "image_auroc",
        "num_trials": 5,
        "best": trials[3]["values"],
        "defaults": trials[0]["values"],
        "best_score": 0.86,
        "default_score": 0.8,
        "gain": 0.04,
        "low": -0.01,
        "high": 0.09,
        "note": Sentence.of("search note stopped"),
        "trials": trials,
    }
