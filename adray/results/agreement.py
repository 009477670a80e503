"""How far two runs of one trial agree.

On the same machine with the same number of threads scores are equal bit for bit. Other numbers of
threads and other batches add in another order, which moves the last digits of a score, and in a
training by gradient more than these.
"""

from __future__ import annotations

import numpy as np

from adray.results.store import TrialRecord
from adray.results.trial_files import read_scores
from adray.types import Json

TOLERANCE = 1e-5
"""Largest difference of two scores, as a part of the largest score, that is rounding in float32."""


def agreement(stored: TrialRecord, again: TrialRecord) -> str:
    """Say in one sentence how far the scores of two runs agree, and where their machines differ."""
    first = read_scores(stored.folder)
    second = read_scores(again.folder)
    if first is None or second is None:
        return "scores: not compared, since scores.parquet is missing or damaged"
    if list(first["path"]) != list(second["path"]):
        return "scores: not compared, since the two runs scored other images"

    before = first["pred_score"].to_numpy(np.float64)
    after = second["pred_score"].to_numpy(np.float64)
    if np.array_equal(before, after):
        return f"scores: all {len(before)} are equal bit for bit"

    largest = max(float(np.abs(before).max()), float(np.finfo(np.float32).tiny))
    relative = float(np.abs(before - after).max()) / largest
    held = f"equal within {TOLERANCE:g} of the largest score, not bit for bit"
    if relative > TOLERANCE:
        held = f"not equal within {TOLERANCE:g} of the largest score"
    return f"scores: {held} (they differ by up to {relative:.2g}){_apart(stored, again)}"


def recorded_threads(record: TrialRecord) -> int:
    """Give the number of CPU threads that a trial ran with, 1 where it is not recorded."""
    return int(_environment(record).get("threads", 1))


def _apart(stored: TrialRecord, again: TrialRecord) -> str:
    """List in which parts of the machine two runs differ, empty where in none."""
    now = _environment(again)
    changes = []
    for name, before in _environment(stored).items():
        if name != "visible_gpus" and now.get(name) != before:
            changes.append(f"{name} {before}, now {now.get(name)}")
    return f"; the stored run had {'; '.join(changes)}" if changes else ""


def _environment(record: TrialRecord) -> Json:
    """Give versions and machine of a run, empty where none are recorded."""
    return record.trial.get("environment", {})
