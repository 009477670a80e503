"""`python -m adray status STORE`: say what a store holds."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adray.changed_data import present_fingerprints
from adray.cli.options import add_all
from adray.decide import decide
from adray.decisions.teams import read_teams
from adray.decisions.text import summary
from adray.language.catalogue import language_of, load_catalogue
from adray.results.current import StoreView, view_store
from adray.results.leaderboard import (
    by_setting,
    format_summary,
    repetition_of,
    table,
    trial_row,
)
from adray.results.store import counted_of

if TYPE_CHECKING:
    import pandas as pd

_MOST_TRIALS = 2000
"""Reading the scores of more trials takes seconds, for which nobody asked."""


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
    _print_decisions(options.store, view)
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


def _print_decisions(store: str, view: StoreView) -> None:
    """Say what to deploy for each part, in the reader's language."""
    say = load_catalogue(language_of(os.environ))
    counted = counted_of(view.records)
    if len(counted) > _MOST_TRIALS:
        print(say("decide many", command=f"python -m adray decide {shlex.quote(store)}"))
        return
    for decision in decide(counted, teams=read_teams(store), draws=0):
        print("\n".join(summary(decision, say)))


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
