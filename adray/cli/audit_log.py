"""`python -m adray audit FILE.adray LOG ...`: whether a bundle's promise held on the line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adray.audit import audit
from adray.audit_log import LoggedScores, find_logs, read_log, read_names, read_promise
from adray.cli.audit_text import audit_lines
from adray.cli.command_parser import CommandParser
from adray.language.catalogue import Catalogue, language_of, load_catalogue


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: hold the scores of a log against the promise of the bundle that gave them.

    Returns:
        The exit code, 1 where the promise is broken, or production has drifted.
    """
    options = _parser().parse_args(argv)
    say = load_catalogue(language_of(os.environ))
    defects = read_names(options.defects)
    logs = find_logs(options.logs)
    made = read_promise(Path(options.bundle))

    logged = read_log(logs, made.sha256, defects)
    for line in _left_out(logged, say):
        print(line)
    found = audit(np.array(logged.scores), np.array(made.calibration), made.promise)
    for line in audit_lines(found, say):
        print(line)
    return int(found.is_broken or found.has_drifted)


def _left_out(logged: LoggedScores, say: Catalogue) -> list[str]:
    """Say what is not judged by."""
    lines = []
    if logged.others:
        lines.append(say("audit log others", number=logged.others))
    if logged.unreadable:
        lines.append(say("audit log unreadable", number=logged.unreadable))
    if logged.defects:
        lines.append(say("audit log defects", number=logged.defects))
    return lines


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray audit",
        description="Hold the log of `serve` or `watch` against the promise of the bundle that judged. All images of "
        "the log count as good, but for those that --defects names.",
        epilog="exit codes: as of `python -m adray audit TRIAL`",
    )
    parser.add_argument("bundle", help="a file that `adray bundle` made (*.adray)")
    parser.add_argument(
        "logs", nargs="+", help="files of `serve --log`, results.jsonl of `watch`, or their folders"
    )
    parser.add_argument(
        "--defects",
        metavar="FILE",
        help="a text file of images that people found to be defective, a name a line",
    )
    return parser
