"""`python -m adray status STORE`: say what a store holds."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adray.changed_data import present_fingerprints
from adray.cli.options import add_all
from adray.results.current import view_store
from adray.results.leaderboard import (
    by_setting,
    format_summary,
    repetition_of,
    table,
    trial_row,
)

if TYPE_CHECKING:
    import pandas as pd


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(argv)
    view = view_store(options.store, present_fingerprints)
    records = view.shown(everything=options.all)
    counts = Counter(record.status for record in records)
    print(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no trials")
    for note in view.notes(everything=options.all):
        print(note)
    if not records:
        return 0

    frame = table(trial_row(record) for record in records)
    print(format_summary(frame))
    is_outdated = frame["status"] == "outdated"
    _print_trials(frame[~is_outdated])
    _print_trials(frame[is_outdated])
    return 0


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m adray status",
        description="What a store holds: done, failed with reasons, means, the best. Each cell "
        "answers by the trials of today's images and of the setting that finished last.",
    )
    parser.add_argument("store", help="the output_dir of a sweep")
    add_all(parser)
    return parser


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
        print(f"{row.status:10} {row.id[:8]} {cell} {repetition_of(row)}  {'  '.join(parts)}")
