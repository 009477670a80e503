"""`python -m adray synthetic OUT`: write a small generated data set in the MVTec layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from adray.cli.command_parser import CommandParser
from adray.data.synthetic import Recipe, write_synthetic
from adray.data.synthetic_images import CATEGORIES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    asked = vars(_parser().parse_args(argv))
    root = write_synthetic(asked.pop("out"), **asked)
    print(f"{root}: {', '.join(CATEGORIES)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray synthetic",
        description="Draw a small data set in MVTec AD's layout: two textures, one object, "
        "defects with exact masks.",
    )
    add = parser.add_argument
    add("out", metavar="OUT", help="folder to write, such as datasets/synthetic")
    add(
        "--train",
        type=int,
        default=Recipe.train,
        help="normal training images per category (default: %(default)s)",
    )
    add(
        "--good",
        type=int,
        default=Recipe.good,
        help="normal test images per category (default: %(default)s)",
    )
    add(
        "--defects",
        type=int,
        default=Recipe.defects,
        help="defective test images per category (default: %(default)s)",
    )
    add(
        "--size",
        type=int,
        default=Recipe.size,
        help="side of the images in pixels (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=Recipe.seed,
        help="another seed draws other images (default: %(default)s)",
    )
    return parser
