"""`python -m adray status STORE`: say what a store holds."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from adray.changed_data import present_fingerprints
from adray.cli.command_parser import CommandParser
from adray.cli.options import add_all, positive
from adray.decide import decide
from adray.decisions.teams import read_teams
from adray.decisions.text import summary
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.columns import fit
from adray.results.current import StoreView, view_store
from adray.results.leaderboard import (
    by_setting,
    format_summary,
    repetition_of,
    table,
    trial_row,
)
from adray.results.live import (
    LEAST_WIDTH,
    LiveReader,
    live_lines,
    look_from_afar,
    planned_trials,
    running_sweeps,
    summary_line,
)
from adray.results.store import counted_of
from adray.results.summaries import read_summaries, whole_of

if TYPE_CHECKING:
    import pandas as pd

_SECONDS = 10
"""Between two looks of ``--watch``."""
_CLEAR = "\x1b[H\x1b[2J"
"""Empties a terminal."""
_MOST_TRIALS = 2000
"""Reading the scores of more trials takes seconds, for which nobody asked."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(argv)
    if options.watch is None:
        _print_status(options.store, options.all)
        return 0
    try:
        _watch(options.store, options.all, options.watch)
    except KeyboardInterrupt:
        print()
    return 0


def _watch(store: str, everything: bool, seconds: int) -> None:
    """Print the same again and again, on a terminal in its place, until somebody interrupts it.

    Of a sweep that runs it is the table that the sweep itself shows.
    """
    readers: dict[Path, LiveReader] = {}
    while True:
        if sys.stdout.isatty():
            print(_CLEAR, end="")
        print(datetime.now().astimezone().isoformat(" ", "seconds"))
        if not _print_running(Path(store), readers):
            _print_status(store, everything)
        sys.stdout.flush()
        time.sleep(seconds)


def _print_running(store: Path, readers: dict[Path, LiveReader]) -> bool:
    """Print the table of each sweep that runs, and tell whether one does.

    Args:
        store: the output_dir of sweeps.
        readers: of the sweeps that were looked at before, by folder.
    """
    say = load_catalogue(language_of(os.environ))
    size = shutil.get_terminal_size((LEAST_WIDTH, 24))
    is_any = False
    for folder in running_sweeps(store):
        if folder not in readers:
            readers[folder] = LiveReader(planned_trials(folder, store))
        view = look_from_afar(readers[folder], folder)
        if view is None or not view.cells:
            continue
        print(folder.name)
        if sys.stdout.isatty() and size.columns >= LEAST_WIDTH:
            print("\n".join(live_lines(view, size.columns, size.lines - 3, say)))
        else:
            print(fit(summary_line(view, say), LEAST_WIDTH))
        is_any = True
    return is_any


def _print_status(store: str, everything: bool) -> None:
    """Print what a store holds.

    Args:
        store: the output_dir of sweeps.
        everything: also outdated trials and those of older settings.
    """
    say = load_catalogue(language_of(os.environ))
    view = view_store(store, present_fingerprints, read_summaries)
    records = view.shown(everything=everything)
    counts = Counter(record.status for record in records)
    found = [say(f"status {state}", number=number) for state, number in sorted(counts.items())]
    print(", ".join(found) or say("status none"))
    for note in view.notes(everything=everything):
        print(note.text(say))
    if not records:
        return

    frame = table(trial_row(record) for record in records)
    print(format_summary(frame, say))
    is_outdated = frame["status"] == "outdated"
    _print_trials(frame[~is_outdated], say)
    _print_trials(frame[is_outdated], say)
    _print_decisions(store, view, say)


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray status",
        description="What a store holds: done, failed with reasons, means, the best. Each cell "
        "answers by the trials of today's images and of the setting that finished last.",
    )
    parser.add_argument("store", help="the output_dir of a sweep")
    add_all(parser)
    parser.add_argument(
        "--watch",
        type=positive,
        nargs="?",
        const=_SECONDS,
        metavar="SECONDS",
        help="print it again every so many seconds (10) until Ctrl-C, on any machine that sees the store",
    )
    return parser


def _print_decisions(store: str, view: StoreView, say: Catalogue) -> None:
    """Say what to deploy for each part."""
    counted = counted_of(view.records)
    if len(counted) > _MOST_TRIALS:
        print(say("decide many", command=f"python -m adray decide {shlex.quote(store)}"))
        return
    for decision in decide(list(whole_of(counted)), teams=read_teams(store), draws=0):
        print("\n".join(summary(decision, say)))


def _print_trials(frame: pd.DataFrame, say: Catalogue) -> None:
    """Print a line for each row of a table: in each part the best model first, its seeds together.

    A lucky seed of another model thus stands above nobody.
    """
    named = by_setting(frame)
    cell = ["dataset", "category", "configuration"]
    means = named.groupby(cell)["image_auroc"].transform("mean")
    order = ["dataset", "category", "mean", "configuration", "seed", "draw"]
    rising = [True, True, False, True, True, True]
    ordered = named.assign(mean=means).sort_values(order, ascending=rising, na_position="last")
    for row in ordered.itertuples():
        place = f"{row.dataset}/{row.category}/{row.configuration}"
        parts = []
        if row.status in ("done", "outdated"):
            figure = "n/a" if math.isnan(row.image_auroc) else f"{row.image_auroc:.4f}"
            is_drawn = row.evaluation.startswith("synthetic")
            parts.append(say("status drawn", figure=figure) if is_drawn else figure)
        if row.reason:
            parts.append(row.reason)
        print(f"{row.status:10} {row.id[:8]} {place} {repetition_of(row)}  {'  '.join(parts)}")
