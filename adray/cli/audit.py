"""`python -m adray audit TRIAL IMAGES`: whether its promise holds on fresh normal images."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adray.audit import audit, recalibrate, scores_of, without_known
from adray.cli.audit_text import audit_lines
from adray.cli.model_path import check_model_path
from adray.cli.options import (
    add_accept,
    add_device,
    add_model_places,
    add_store,
    model_path,
    use_model_places,
)
from adray.errors import InputError
from adray.found_images import find_images
from adray.language.catalogue import language_of, load_catalogue
from adray.promises import promise_text
from adray.thresholds import check_rate


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: score fresh normals, and say whether the promise holds.

    Returns:
        The exit code, 1 where the promise is broken, or production has drifted; 0 also where more
        ring than promised on average but no more than a calibration set so small may bring.

    Raises:
        InputError: for a model without calibration normals, and too few images.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.false_alarms is not None:
        check_rate("--false-alarms", options.false_alarms)
    use_model_places(options)
    say = load_catalogue(language_of(os.environ))
    folder = Path(model_path(options.trial, options.store))
    if options.recalibrate and not folder.is_dir():
        raise InputError(f"--recalibrate writes beside a trial, but {folder} is no folder of one")

    check_model_path(folder)
    images = find_images(options.images)
    for remark in images.remarks:
        print(remark)
    paths, known = without_known(images.paths, folder)
    if known is None:
        print(say("audit unknown"))
    elif known:
        print(say("audit known", number=known))

    # Torch takes seconds, and nothing before needs it.
    from adray.predict import load_predictor

    predictor = load_predictor(
        folder, options.device, accept_other_weights=options.accept_other_weights
    )
    for accepted in predictor.accepted:
        print(f"accepted: {accepted}")
    rate = options.false_alarms or predictor.rate
    promise = predictor.promise(rate)
    fresh = scores_of(predictor, paths)
    for reason in fresh.reasons:
        print(reason)

    found = audit(np.array(fresh.scores), np.array(predictor.calibration), promise)
    for line in audit_lines(found, say):
        print(line)
    if options.recalibrate:
        path, new = recalibrate(folder, fresh, rate)
        print(say("audit recalibrated", path=path))
        print(promise_text(new, say))
    return int(found.is_broken or found.has_drifted)


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m adray audit",
        description="Hold fresh normal images, which people took for good, against the promise of a trial: false "
        "alarms, and whether production still looks as it did. Images that the trial learnt from are left out. For the "
        "log of `serve` or `watch`: `python -m adray audit FILE.adray --help`.",
        epilog="exit codes: 0 the promise holds, or more ring than it says but no more than so few calibration normals "
        "may bring; 1 it is broken, or production has drifted; 2 bad input",
    )
    parser.add_argument(
        "trial",
        help="a trial's folder in a store, its part and configuration (screw/padim), an export, or "
        "an ensemble's file",
    )
    parser.add_argument("images", nargs="+", help="fresh normal images: files, folders or patterns")
    parser.add_argument(
        "--false-alarms",
        type=float,
        metavar="RATE",
        help="another rate than that of the trial, such as 0.01",
    )
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="make the fresh normals the calibration of the trial, without training; older records stay",
    )
    add_accept(parser)
    add_device(parser)
    add_store(parser)
    add_model_places(parser)
    return parser
