"""`python -m adray status STORE`: say what a store holds."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adray.changed_data import present_fingerprints
from adray.results.current import mark_outdated, mark_settings
from adray.results.leaderboard import by_setting, format_summary, table, trial_row
from adray.results.store import read_store, without_searches

if TYPE_CHECKING:
    import pandas as pd


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m adray status",
        description="What a store holds: done, failed with reasons, means, the best. Settings of "
        "one cell are told apart, and trials whose images have changed since stand below, in no mean.",
    )
    parser.add_argument("store", help="the output_dir of a sweep")
    options = parser.parse_args(argv)

    found = read_store(options.store)
    ordinary = without_searches(found)
    records = mark_settings(mark_outdated(ordinary, present_fingerprints(ordinary)))
    counts = Counter(record.status for record in records)
    print(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no trials")
    if len(records) < len(found):
        others = len(found) - len(records)
        print(f"and {others} trials of searches, shown in the reports of their sweeps")
    if not records:
        return 0

    frame = table(trial_row(record) for record in records)
    print(format_summary(frame))
    is_outdated = frame["status"] == "outdated"
    _print_trials(frame[~is_outdated])
    _print_trials(frame[is_outdated])
    return 0


def _print_trials(frame: pd.DataFrame) -> None:
    """Print a line for each row of a table."""
    for row in by_setting(frame).itertuples():
        cell = f"{row.dataset}/{row.category}/{row.configuration}"
        parts = []
        if row.status in ("done", "outdated"):
            figure = "n/a" if math.isnan(row.image_auroc) else f"{row.image_auroc:.4f}"
            is_drawn = row.evaluation.startswith("synthetic")
            parts.append(f"{figure} on drawn defects" if is_drawn else figure)
        if row.reason:
            parts.append(row.reason)
        print(f"{row.status:10} {row.id[:8]} {cell} seed {row.seed}  {'  '.join(parts)}")
