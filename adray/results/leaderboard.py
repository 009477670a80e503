"""Tables derived from finished trials: one row per trial, and one line per configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.files import atomic_path
from adray.metrics import METRICS
from adray.results.store import TrialRecord

if TYPE_CHECKING:
    import pandas as pd

METRIC_COLUMNS = tuple(METRICS)

COLUMNS: dict[str, str] = {
    "dataset": "data set, or several joined by +",
    "category": "category, or several joined by +",
    "configuration": "named row of the registry",
    "seed": "seed of splits and of everything random in the model",
    "status": "done, failed, or skipped",
    "reason": "why it failed or was skipped",
    **{name: metric.meaning for name, metric in METRICS.items()},
    "threshold_percentile_95": "95th percentile of the held-out normals' scores",
    "weights": "pretrained or random backbone, none where there is none",
    "epochs": "passes over the training images",
    "holdout": "part of the training normals that was held out",
    "evaluation": "what was scored, test or synthetic; test (LEAKY search) where a search chose by it",
    "fit_seconds": "training; the device may have been shared",
    "predict_seconds": "scoring the test images; the device may have been shared",
    "total_seconds": "the whole trial",
    "own_seconds": "the whole trial without work that others share, and without waiting for it",
    "alone_seconds": "what it would have taken had nothing been shared",
    "shared_seconds": "its part of decoding, features and coresets: their time by the trials here that used them",
    "host_peak_mb": "largest resident memory of the process",
    "gpu_peak_mb": "largest memory reserved on the GPU",
    "retry_level": "how far it went up after running out of memory, 0 for not at all",
    "device": "where it ran",
    "finished": "time of its end, UTC",
    "id": "hash of all that decides the result",
    "folder": "where its files are",
}
"""Every column of `leaderboard.csv` and `results.parquet`, in their order, with its meaning."""


def trial_row(record: TrialRecord) -> dict[str, Any]:
    """A trial as one flat row; what it does not have is None. `table` makes ``shared_seconds`` of ``shared_work``."""
    identity, result = record.trial["identity"], record.result or {}
    metrics, timings = result.get("metrics", {}), result.get("timings", {})
    threshold = result.get("thresholds", {}).get("percentile_95", {})
    return {
        "dataset": "+".join(identity["datasets"]),
        "category": "+".join(identity["categories"]),
        "configuration": identity["configuration"],
        "seed": identity["seed"],
        "status": record.status,
        "reason": (record.failure or {}).get("reason", "") if record.status == "failed" else "",
        **{name: metrics.get(name) for name in METRIC_COLUMNS},
        "threshold_percentile_95": threshold.get("value"),
        "weights": result.get("weights"),
        "epochs": result.get("epochs"),
        "holdout": identity["train"].get("holdout"),
        "evaluation": _evaluation(record),
        "fit_seconds": timings.get("fit_seconds"),
        "predict_seconds": timings.get("predict_seconds"),
        "total_seconds": timings.get("total_seconds"),
        "own_seconds": timings.get("own_seconds"),
        "alone_seconds": timings.get("alone_seconds"),
        "shared_work": result.get("shared_work"),
        "host_peak_mb": result.get("memory", {}).get("host_peak_mb"),
        "gpu_peak_mb": result.get("memory", {}).get("gpu_peak_mb"),
        "retry_level": record.retry_level,
        "device": record.trial.get("environment", {}).get("device"),
        "finished": result.get("finished") or (record.failure or {}).get("finished"),
        "id": record.trial["id"],
        "folder": str(record.folder),
    }


def _evaluation(record: TrialRecord) -> str:
    return f"{record.evaluation} (LEAKY search)" if record.leaky else record.evaluation


def skipped_row(cell: Sequence[str], seed: int, reason: str) -> dict[str, Any]:
    """The row of a cell that could not run."""
    dataset, category, configuration = cell
    names = {"dataset": dataset, "category": category, "configuration": configuration}
    return {**names, "seed": seed, "status": "skipped", "reason": reason}


def table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """All rows, by data set and category, the best image AUROC first, failed and skipped ones last."""
    import pandas as pd

    frame = pd.DataFrame(_with_shares(list(rows)), columns=list(COLUMNS))
    order = ["dataset", "category", "image_auroc", "configuration", "seed"]
    ascending = [True, True, False, True, True]
    frame["image_auroc"] = pd.to_numeric(frame["image_auroc"])
    return frame.sort_values(order, ascending=ascending, na_position="last", ignore_index=True)


def _with_shares(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ``shared_seconds``: what each used costs it as much as each of the others that used it."""
    works = [row.get("shared_work") for row in rows]
    users = Counter(key for work in works for key in {item["key"] for item in work or ()})
    seconds = [None if work is None else _share(work, users) for work in works]
    return [{**row, "shared_seconds": share} for row, share in zip(rows, seconds, strict=True)]


def _share(work: Sequence[Mapping[str, Any]], users: Mapping[str, int]) -> float | None:
    if any(item["build_seconds"] is None for item in work):
        return None
    return round(sum(item["build_seconds"] / users[item["key"]] for item in work), 4)


def write_tables(folder: Path, frame: pd.DataFrame) -> None:
    """Write `leaderboard.csv` and `results.parquet`."""
    with atomic_path(folder / "leaderboard.csv") as temporary:
        frame.to_csv(temporary, index=False)
    with atomic_path(folder / "results.parquet") as temporary:
        numeric = frame.astype(dict.fromkeys(METRIC_COLUMNS, "float64"))
        text = ("reason", "weights", "evaluation", "device", "finished", "id", "folder")
        numeric.astype(dict.fromkeys(text, "string")).to_parquet(temporary, index=False)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration: means over the categories that all of them finished, and how many each finished.

    A mean over different categories would mislead, so configurations that finished nothing are left out of the choice
    of common categories and have no mean.
    """
    import pandas as pd

    frame = frame.assign(cell=frame["dataset"] + "/" + frame["category"])
    cells, done = frame["cell"].nunique(), frame[frame["status"] == "done"]
    finished = done.groupby("configuration")["cell"].agg(set)
    common = set.intersection(*finished) if len(finished) else set()
    rows = []
    for name, group in frame.groupby("configuration", sort=False):
        mine = done[(done["configuration"] == name)]
        shared = mine[mine["cell"].isin(common)]
        means = {m: pd.to_numeric(shared.groupby("cell")[m].mean()).mean() for m in METRIC_COLUMNS}
        rows.append(
            {
                "configuration": name,
                "weights": "/".join(sorted({str(w) for w in mine["weights"]})),
                **means,
                "done": f"{mine['cell'].nunique()}/{cells}",
                "failed": int((group["status"] == "failed").sum()),
                "skipped": int((group["status"] == "skipped").sum()),
                "fit_seconds": mine["fit_seconds"].mean(),
            }
        )
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).sort_values(
        "image_auroc", ascending=False, na_position="last", ignore_index=True
    )


def format_summary(frame: pd.DataFrame) -> str:
    """The summary for a terminal, with what it must not hide: untrained backbones and uneven coverage."""
    best = summary(frame)
    if best.empty:
        return "no trial has finished"
    columns = {
        "image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_aupro": "AUPRO", "done": "done",
        "failed": "failed", "skipped": "skipped", "fit_seconds": "fit s",
    }  # fmt: skip
    names = best["configuration"] + best["weights"].map(
        lambda w: " (UNTRAINED)" if "random" in w else ""
    )
    shown = best[list(columns)].rename(columns=columns)
    shown.insert(0, "configuration", names)
    formats = {
        "image AUROC": "{:.4f}", "pixel AUROC": "{:.4f}", "AUPRO": "{:.4f}", "fit s": "{:.1f}",
    }  # fmt: skip
    for name, pattern in formats.items():
        shown[name] = [pattern.format(v) if v == v else "n/a" for v in shown[name].astype(float)]
    text = shown.to_string(index=False)
    if best["done"].nunique() > 1:
        text += "\nmeans are over the categories that every configuration finished"
    if any("random" in weights for weights in best["weights"]):
        text += "\nUNTRAINED BACKBONES (weights: random): these figures show that the program runs, not what it finds"
    return text
