"""Options that several commands have, and numbers that argparse refuses by itself."""

from __future__ import annotations

import argparse


def add_set(parser: argparse.ArgumentParser, example: str) -> None:
    """Add ``--set KEY=VALUE ...``.

    Args:
        parser: of the command.
        example: what may be set, for the help.
    """
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help=example,
    )


def count(text: str) -> int:
    """Read a whole number from 0 on."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
