"""Speed and memory of finished trials as `python -m adray measure` found them, in `measure.json`.

Timings in `result.json` were taken while trials shared a device; no figure of speed is to be read
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from adray.files import read_json, write_json
from adray.results.store import TrialRecord
from adray.types import Json

MEASURE_FILE = "measure.json"

FIELDS: dict[str, str] = {
    "kind": "cpu or cuda",
    "device": "name of the processor or GPU",
    "threads": "CPU threads of the process",
    "host": "name of the machine",
    "measured": "when, ISO 8601, UTC",
    "versions": "of adray, Python, torch and so on",
    "input_size": "side of the images that the model sees, in pixels, the shorter one of a rectangle",
    "precision": "of the trial, float32 unless it was asked otherwise",
    "latency_ms": "median time of one prepared image at batch 1, on the device, milliseconds",
    "latency_p5_ms": "5th percentile of the same",
    "latency_p95_ms": "95th percentile of the same",
    "latency_repeats": "number of timed calls behind them",
    "file_ms": "median time from an image file to its score and map in host memory, milliseconds; None without images",
    "file_p5_ms": "5th percentile of the same",
    "file_p95_ms": "95th percentile of the same",
    "batch_size": "the trial's evaluation batch size",
    "images_per_second": "throughput of prepared images at batch_size, of the median time",
    "images_per_second_p5": "5th percentile of the same",
    "images_per_second_p95": "95th percentile of the same",
    "best_batch_size": "of the sizes that were tried, the one with the highest throughput",
    "best_images_per_second": "throughput at best_batch_size, of the median time",
    "host_base_mb": "resident memory of the process before there was a model: Python and libraries",
    "host_peak_mb": "largest resident memory of the process while it predicts at batch 1; None where unknown",
    "host_peak_batch_mb": "the same at batch_size",
    "gpu_peak_mb": "largest memory of tensors on the GPU at batch 1, weights included; None on a CPU",
    "gpu_peak_batch_mb": "the same at batch_size",
    "gpu_reserved_mb": "largest memory that torch held on the GPU at batch_size; None on a CPU",
    "parameters": "numbers in the network, frozen backbones included, memory banks and the like not",
    "model_mb": "bytes of the network in memory, memory banks included, in MB",
    "checkpoint_mb": "size of the checkpoint file, which holds frozen backbones only where it is whole",
    "weight_files_mb": "size of the weight files, or of a folder of them, that the checkpoint needs besides",
    "load_average": "of the machine before the measurement, one minute; None off Unix",
    "other_cores": "CPU cores that other processes kept busy meanwhile, on average; None where unknown",
    "gpu_other_mb": "GPU memory held by others before the model was there, with this process's CUDA context",
    "warnings": "what casts doubt on the figures, one sentence each; empty where nothing was found",
}
"""Every field of a measurement and what it means; MB are 2**20 bytes."""

_KEY = ("kind", "device", "threads")


@dataclass(frozen=True)
class Cost:
    """What running one trial's model costs, None where unknown."""

    ms: float | None
    """Milliseconds per image."""
    mb: float | None
    """Memory in MB of 2**20 bytes."""
    source: str = ""
    """The device that `python -m adray measure` used; empty where it did not."""
    doubts: int = 0
    """Number of reasons to doubt the measurement."""


def read_measurements(trial: TrialRecord | str | Path) -> list[Json]:
    """Read the measurements of a trial, one per device and number of threads, the newest last.

    Args:
        trial: a record of the store, or a trial's folder.

    Returns:
        Mappings with the keys of `FIELDS`. A torn file, or an entry without its key fields, counts
        as absent.
    """
    stored = read_json(_file(trial))
    entries = stored.get("measurements") if isinstance(stored, dict) else None
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and set(_KEY) <= entry.keys()]


def add_measurement(trial: TrialRecord | str | Path, measurement: Mapping[str, Any]) -> None:
    """Store a measurement in place of the one of the same device and number of threads."""
    key = itemgetter(*_KEY)
    kept = [old for old in read_measurements(trial) if key(old) != key(measurement)]
    write_json(_file(trial), {"format": 1, "measurements": [*kept, dict(measurement)]})


def trial_cost(trial: TrialRecord | str | Path, kind: str | None = None) -> Cost:
    """Read time and memory of a trial's model from its newest measurement.

    Timings of its result do not count, since it may have shared the device.

    Args:
        trial: a record of the store, or a trial's folder.
        kind: ``cpu`` or ``cuda``; any where None.
    """
    measured = [entry for entry in read_measurements(trial) if kind in (None, entry["kind"])]
    if not measured:
        return Cost(None, None)

    newest = measured[-1]
    if newest["kind"] == "cuda":
        mb = newest.get("gpu_peak_mb")
    else:
        # Without what the process holds before there is a model.
        peak = newest.get("host_peak_mb")
        base = newest.get("host_base_mb")
        mb = None if peak is None or base is None else max(peak - base, 0.0)
    doubts = len(newest.get("warnings") or ())
    return Cost(newest.get("latency_ms"), mb, str(newest["device"]), doubts)


def _file(trial: TrialRecord | str | Path) -> Path:
    """Say where the measurements of a trial are."""
    folder = trial.folder if isinstance(trial, TrialRecord) else Path(trial)
    return folder / MEASURE_FILE
