"""When trials ran, and on which GPU of which machine: the lanes of the report's picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from adray.results.store import TrialRecord
from adray.types import Json

_PAUSE = timedelta(hours=1)
"""After a longer time in which nothing ran, another run begins."""


@dataclass(frozen=True)
class Run:
    """A trial's time on a device."""

    lane: str
    """Machine and GPU, or machine and ``CPU``."""
    start: datetime
    """Its start."""
    end: datetime
    """Its end."""


def fleet_of(records: Iterable[TrialRecord]) -> list[Json]:
    """Give the lanes of the last run without a longer pause, by machine and GPU. JSON.

    Returns:
        Of each lane its ``name`` and its ``runs``, which are start and duration in seconds from the
        first start of all.
    """
    runs: list[Run] = []
    for record in records:
        runs += _runs(record)
    runs = _after_the_last_pause(sorted(runs, key=lambda run: run.start))

    lanes: dict[str, list[list[float]]] = defaultdict(list)
    for run in runs:
        start = (run.start - runs[0].start).total_seconds()
        seconds = (run.end - run.start).total_seconds()
        lanes[run.lane].append([round(start, 1), round(seconds, 1)])
    return [{"name": name, "runs": lanes[name]} for name in sorted(lanes)]


def _runs(record: TrialRecord) -> list[Run]:
    """Give the time of a finished trial on each of its GPUs, or on the CPU. None of another."""
    if record.result is None or not record.finished:
        return []
    seconds = record.result.get("timings", {}).get("total_seconds")
    if not seconds:
        return []

    environment = record.trial.get("environment", {})
    visible = environment.get("visible_gpus", "")
    is_gpu = record.result.get("memory", {}).get("gpu_peak_mb") is not None
    names = [f"GPU {gpu}" for gpu in visible.split(",")] if visible or is_gpu else ["CPU"]

    end = datetime.fromisoformat(record.finished)
    start = end - timedelta(seconds=seconds)
    host = environment.get("host", "")
    return [Run(f"{host} {name}".strip(), start, end) for name in names]


def _after_the_last_pause(runs: Sequence[Run]) -> list[Run]:
    """Keep the runs, in the order of their starts, after the last pause."""
    kept: list[Run] = []
    latest = None
    for run in runs:
        if latest is not None and run.start > latest + _PAUSE:
            kept = []
        kept.append(run)
        latest = run.end if latest is None else max(latest, run.end)
    return kept
