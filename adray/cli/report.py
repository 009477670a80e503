"""`python -m adray report STORE`: what a store holds, as a page to read or a table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adray.changed_data import present_fingerprints
from adray.cli.command_parser import CommandParser
from adray.cli.options import add_all
from adray.decide import decide, decide_safest
from adray.decisions.teams import read_teams
from adray.decisions.text import page_summaries
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import Sentence
from adray.results.current import view_store
from adray.results.leaderboard import csv_text, table, trial_row
from adray.results.markdown import format_markdown
from adray.results.report import report_data, write_report
from adray.results.store import counted_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(argv)
    store = Path(options.store)
    view = view_store(store, present_fingerprints)
    if not view.records:
        notes = tuple(view.notes(everything=True))
        raise InputError(Sentence.of("store empty but" if notes else "store empty", notes=notes))
    records = view.shown(everything=options.all)
    say = load_catalogue(language_of(os.environ))
    for note in view.notes(everything=options.all):
        print(note.text(say), file=sys.stderr)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)

    if options.format == "html":
        out = Path(options.out or store / "report.html")
        decisions = decide(counted_of(view.records), teams=read_teams(store), draws=0)
        data = report_data(
            store.resolve().name,
            records,
            base=out.parent,
            decisions=page_summaries(decisions),
            safest=page_summaries(decide_safest(counted_of(view.records))),
        )
        write_report(out, data)
        print(out)
        return 0

    frame = table(trial_row(record) for record in records)
    text = csv_text(frame) if options.format == "csv" else format_markdown(frame, records)
    if not options.out:
        print(text, end="")
        return 0
    # The mark at the start tells a spreadsheet that Hangul is UTF-8.
    encoding = "utf-8-sig" if options.format == "csv" else "utf-8"
    with atomic_path(options.out) as temporary:
        temporary.write_text(text, encoding=encoding)
    return 0


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray report",
        description="What a store holds, to decide by. Each cell answers by the trials of today's images and of the "
        "setting that finished last. A sweep writes the same page of its own trials.",
    )
    parser.add_argument("store", help="the output_dir of sweeps")
    parser.add_argument(
        "--format", choices=("html", "csv", "markdown"), default="html", help="default: %(default)s"
    )
    parser.add_argument(
        "--out", help="the file; STORE/report.html by default, standard output for csv and markdown"
    )
    add_all(parser)
    return parser
