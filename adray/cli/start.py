"""`python -m adray start FOLDER`: from a folder of images to a decision, and how to go on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from adray.cli.command_parser import CommandParser
from adray.cli.options import minutes_or_none, start_command
from adray.errors import InputError
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import Sentence
from adray.settings import get_globals

_INTERRUPTED = 130
_MINUTES = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 where something finished, 2 where nothing could start.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    usual = {name: parser.get_default(name) for name in ("minutes", "backbone_dir", "store")}
    command = start_command(options, usual)
    say = load_catalogue(language_of(os.environ))
    try:
        # `--help` shall not wait for this.
        from adray.cli.start_steps import FirstHour

        return FirstHour(options, say, command).run()
    except KeyboardInterrupt:
        print(f"\n{say('start interrupted', command=command)}", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        raise InputError(
            Sentence.of(
                "start no access",
                filename=error.filename or options.folder,
                error=str(error.strerror or error),
            )
        ) from error


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray start",
        description="From a folder of images to a decision: look at it, ask at most three questions, write "
        "the sweep's file, run what fits into the time, decide, and open the page.",
        epilog="exit codes: 0 a model finished, 1 none did, 2 nothing could start, 130 interrupted",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="good images in a folder called good, ok, normal or 양품, defective ones beside it",
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing and take every default")
    parser.add_argument(
        "--minutes",
        type=minutes_or_none,
        default=_MINUTES,
        help="that it may take in all, 0 to write the sweep's file alone (default: 30)",
    )
    parser.add_argument(
        "--backbone-dir", default=get_globals().backbone_dir, help="folder of pretrained weights"
    )
    parser.add_argument(
        "--store",
        default=get_globals().output_dir,
        help="folder of the results (default: %(default)s)",
    )
    return parser
