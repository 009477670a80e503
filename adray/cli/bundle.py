"""`python -m adray bundle MODEL --out FILE.adray`: a trained trial or a team as one file for the line."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from adray.cli.bundle_file import precision_text
from adray.cli.command_parser import CommandParser
from adray.cli.model_path import check_model_path
from adray.cli.options import (
    add_accept,
    add_model_places,
    add_store,
    add_tried,
    model_path,
    use_model_places,
)
from adray.export_formats import PRECISIONS, TOLERANCE
from adray.files import file_sha256
from adray.language.catalogue import language_of, load_catalogue
from adray.progress_lines import stage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: write a bundle and say what is in it."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_model_places(options)
    model = model_path(options.model, options.store)
    check_model_path(model)

    # Torch takes seconds, and nothing before needs it.
    from adray.bundle import write_bundle
    from adray.bundle_check import Wanted

    wanted = Wanted(options.false_alarms, options.threshold, options.precision, options.tried)
    with stage("writing the bundle and judging all images by it"):
        about = write_bundle(model, options.out, wanted, options.accept_other_weights)
    out = Path(options.out)
    check = about["check"]
    say = load_catalogue(language_of(os.environ))
    print(f"{out}  {out.stat().st_size / 2**20:.1f} MB  sha256 {file_sha256(out)}")
    print(say("bundle check", images=check["images"], error=f"{check['largest_error']:.1e}"))
    print(say("bundle threshold", value=f"{about['threshold']['value']:.9g}"))
    print(precision_text(about["precision"]))
    sentence = about["threshold"]["sentences"].get(say.language)
    for line in filter(None, [sentence, *about["accepted"]]):
        print(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray bundle",
        description="Write a trained trial, or a team, into one file that `adray predict` runs without torch: the "
        "graph from raw pixels to a verdict, its threshold and promise, and images by which another machine checks "
        "itself. It is written only where each calibration and test image gets the trial's verdict, and a score that "
        "is off by "
        f"{TOLERANCE:g} of the largest at most.",
    )
    parser.add_argument(
        "model",
        help="a trial's folder in a store, its part and configuration (screw/padim), or an ensemble's file",
    )
    add_store(parser)
    parser.add_argument("--out", required=True, help="the file, which ends in .adray")
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        "--false-alarms",
        type=float,
        metavar="RATE",
        help="part of new normal images that may be called anomalous, such as 0.01 (default: that of the trial)",
    )
    rule.add_argument(
        "--threshold",
        help="a rule's name or a number in place of a promise; scores at or above it are anomalous",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="what the network counts in; float16 and int8 are kept only where no verdict is another and AUROC moves "
        "less than 0.001 (default: %(default)s)",
    )
    add_tried(parser)
    add_accept(parser)
    add_model_places(parser)
    return parser
