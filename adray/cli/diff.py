"""`python -m adray diff STORE_A STORE_B`: which cells changed by more than noise."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from adray.cli.command_parser import CommandParser
from adray.language.catalogue import language_of, load_catalogue
from adray.metrics import METRICS
from adray.results.diff import compare_stores
from adray.results.diff_text import as_json, as_text
from adray.results.leaderboard import csv_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: print what changed between two stores.

    Returns:
        The exit code, 1 where something changed.
    """
    options = _parser().parse_args(argv)
    difference = compare_stores(
        options.store_a, options.store_b, options.metric, everything=options.all
    )
    if options.format == "csv":
        print(csv_text(difference.cells), end="")
    elif options.format == "json":
        print(as_json(difference))
    else:
        say = load_catalogue(language_of(os.environ))
        print(as_text(difference, say, everything=options.all))
    return int(difference.has_changed)


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray diff",
        description="Which cells changed from STORE_A to STORE_B by more than other seeds and "
        "other test images would explain: for upgrades of drivers and libraries. Run the same "
        "sweep into both, best with several seeds.",
        epilog="Exit code 0: nothing changed; 1: a cell changed, or a trial failed in one store "
        "only; 2: bad input.",
    )
    parser.add_argument("store_a", metavar="STORE_A", help="output_dir of the sweep before")
    parser.add_argument("store_b", metavar="STORE_B", help="output_dir of the sweep after")
    parser.add_argument(
        "--metric",
        choices=list(METRICS),
        default="image_auroc",
        help="others than image_auroc are judged by their spread over seeds alone "
        "(default: image_auroc)",
    )
    parser.add_argument(
        "--format", choices=("text", "csv", "json"), default="text", help="csv: the cells only"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also trials of older settings and, in text, the cells that did not change",
    )
    return parser
