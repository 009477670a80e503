"""`python -m adray audit TRIAL IMAGES`: whether its promise holds on fresh normal images."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adray.audit import (
    Audit,
    FreshScores,
    audit,
    check_enough,
    known_images,
    recalibrate,
    scores_of,
    scores_of_log,
)
from adray.cli.audit_text import audit_lines, map_line
from adray.cli.command_parser import CommandParser
from adray.cli.model_path import check_model_path
from adray.cli.options import (
    add_accept,
    add_device,
    add_model_places,
    add_store,
    add_tried,
    model_path,
    use_model_places,
)
from adray.errors import InputError
from adray.found_images import find_images
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.sentence import Sentence
from adray.prediction_files import as_in_tables
from adray.prediction_log import LoggedImage, logs_among, read_logs
from adray.promises import promise_text
from adray.thresholds import check_rate

if TYPE_CHECKING:
    from adray.predictor import Predictor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: score fresh normals, and say whether the promises of scores and maps hold.

    Returns:
        The exit code, 1 where a promise is broken, or production has drifted; 0 also where more
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
    logs = logs_among(options.images)
    if logs and options.recalibrate:
        raise InputError(Sentence.of("recalibrate by log", logs=str(logs[0])))
    folder = Path(model_path(options.trial, options.store))
    if options.recalibrate and not folder.is_dir():
        raise InputError(Sentence.of("recalibrate place", folder=str(folder)))

    check_model_path(folder)
    logged = _logged(logs, folder, say)
    paths = [] if logs else _images(options.images, folder, say, again=options.recalibrate)

    # Torch takes seconds, and nothing before needs it.
    from adray.predict import load_predictor

    predictor = load_predictor(
        folder, options.device, accept_other_weights=options.accept_other_weights
    ).chosen_among(options.tried)
    for accepted in predictor.accepted:
        print(say("accepted", what=accepted))
    rate = options.false_alarms or predictor.rate
    if not predictor.calibration:
        return _calibrate(predictor, folder, paths, rate, say, wanted=options.recalibrate)

    promise = predictor.promise(rate)
    if logs:
        fresh = scores_of_log(logged, predictor.calibration, predictor.tried)
        promise = as_in_tables(promise)
    else:
        fresh = scores_of(predictor, paths)
    for reason in fresh.reasons:
        print(reason)

    calibration = np.array(predictor.calibration)
    found = audit(np.array(fresh.scores), calibration, promise, predictor.is_crossed)
    of_maps = _audit_maps(predictor, fresh, rate, is_logged=bool(logs))
    for line in (*audit_lines(found, say), map_line(of_maps, say)):
        print(line)
    if options.recalibrate:
        _recalibrate(folder, fresh, rate, say)
    are_maps_broken = of_maps is not None and of_maps.is_broken
    return int(found.is_broken or found.has_drifted or are_maps_broken)


def _calibrate(
    predictor: Predictor,
    folder: Path,
    paths: Sequence[Path],
    rate: float,
    say: Catalogue,
    *,
    wanted: bool,
) -> int:
    """Calibrate a model that held no normals out, where that is wanted, and give the exit code.

    Raises:
        InputError: where it is not, since nothing was promised that could be audited, and for too
            few images.
    """
    if not wanted:
        raise InputError(Sentence.of("audit nothing promised", folder=str(folder)))
    fresh = scores_of(predictor, paths)
    for reason in fresh.reasons:
        print(reason)
    check_enough(len(fresh.scores))
    _recalibrate(folder, fresh, rate, say)
    return 0


def _recalibrate(folder: Path, fresh: FreshScores, rate: float, say: Catalogue) -> None:
    """Make fresh normals the calibration of a trial, and say what they promise."""
    path, promise = recalibrate(folder, fresh, rate)
    print(say("audit recalibrated", path=path))
    print(promise_text(promise, say))


def _images(names: Sequence[str], folder: Path, say: Catalogue, *, again: bool) -> list[Path]:
    """Find the images that somebody named, without those that `_fresh` leaves out."""
    images = find_images(names)
    for remark in images.remarks:
        print(remark)
    return _fresh(images.paths, folder, say, again=again)


def _logged(logs: Sequence[Path], folder: Path, say: Catalogue) -> list[LoggedImage]:
    """Read the images of logs, without those that the trial learnt from."""
    if not logs:
        return []
    images = read_logs(logs)
    print(say("audit log", images=len(images)))
    gone = sum(not Path(image.image).is_file() for image in images)
    if gone:
        print(say("audit log gone", number=gone))

    paths = [Path(image.image) for image in images]
    fresh = set(_fresh(paths, folder, say, again=False))
    return [image for image, path in zip(images, paths, strict=True) if path in fresh]


def _fresh(paths: Sequence[Path], model: Path, say: Catalogue, *, again: bool) -> list[Path]:
    """Leave out the images that a model has seen, and say how many these are.

    Args:
        paths: of images.
        model: folder or file of it.
        say: the sentences of a language.
        again: keep those by which an audit calibrated it, to calibrate it anew.
    """
    known = known_images(model)
    if known is None:
        print(say("audit unknown"))
        return list(paths)

    unseen = [path for path in paths if not known.has_learnt(path)]
    fresh = [path for path in unseen if not known.is_calibrated_by(path)]
    calibrating = len(unseen) - len(fresh)
    if again:
        fresh = unseen
    if len(fresh) < len(paths):
        print(say("audit known", number=len(paths) - len(fresh)))
    if again and calibrating:
        print(say("audit calibrating", number=calibrating))
    return fresh


def _audit_maps(
    predictor: Predictor, fresh: FreshScores, rate: float, *, is_logged: bool
) -> Audit | None:
    """Hold the maps of fresh normals against the promise of regions, None where there is none."""
    if predictor.peaks is None or not fresh.own_peaks:
        return None
    promise = predictor.pixel_promise(rate).promise
    assert promise is not None, "there are maps of calibration normals"
    if is_logged:
        promise = as_in_tables(promise)
    return audit(np.array(fresh.own_peaks), predictor.peaks, promise, predictor.is_crossed)


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray audit",
        description="Hold fresh normal images, which people took for good, against the promises of a trial: false "
        "alarms, regions of the maps, and whether production still looks as it did. Images that the trial learnt from "
        "are left out. For the log of `serve` or `watch`: `python -m adray audit FILE.adray --help`.",
        epilog="exit codes: 0 the promises hold, or more ring than they say but no more than so few calibration "
        "normals may bring; 1 one is broken, or production has drifted; 2 bad input",
    )
    parser.add_argument(
        "trial",
        help="a trial's folder in a store, its part and configuration (screw/padim), an export, or "
        "an ensemble's file",
    )
    parser.add_argument(
        "images",
        nargs="+",
        help="fresh normal images: files, folders or patterns; or what predict wrote of them "
        "(predictions.csv, predictions.jsonl)",
    )
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
    add_tried(parser)
    add_accept(parser)
    add_device(parser)
    add_store(parser)
    add_model_places(parser)
    return parser
