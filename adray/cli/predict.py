"""`python -m adray predict MODEL IMAGES --out FOLDER`: score new images."""

from __future__ import annotations

import argparse
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from adray.prediction_files import (
    UNREADABLE,
    RegionRule,
    figure_above,
    judge_together,
    open_folder,
    write_predictions,
    write_regions,
)
from adray.prediction_page import Worst, write_prediction_page
from adray.progress_lines import stage, watched
from adray.promises import given_text, promise_text
from adray.regions import check_area
from adray.thresholds import DEFAULT_THRESHOLD, PROMISE, check_rate, percent
from adray.types import Json

if TYPE_CHECKING:
    from adray.predict import Outcome, Predictor

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: score images and write what was found.

    Returns:
        The exit code, 1 where an image could not be judged.
    """
    options = _options(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_model_places(options)
    model = model_path(options.model, options.store)
    check_model_path(model)
    images = find_images(options.images)

    # Torch takes seconds, and nothing before needs it.
    with stage("loading the model"):
        from adray.predict import load_predictor

        predictor = load_predictor(
            model, options.device, accept_other_weights=options.accept_other_weights
        ).chosen_among(options.tried)
    threshold = _threshold(predictor, options)
    unsure = _unsure(predictor, options, threshold)
    say = load_catalogue(language_of(os.environ))
    promise = _promise_text(predictor, options, say)
    rule = _region_rule(predictor, options)

    out = Path(options.out)
    replaced = open_folder(out)
    remarks = [*images.remarks, *filter(None, [replaced])]
    remarks += [f"accepted: {accepted}" for accepted in predictor.accepted]
    for remark in remarks:
        print(remark)

    clipped: list[float] = []
    counts: list[int] = []
    outcomes = _counted(_outcomes(predictor, images.paths, options), clipped)
    outcomes = watched(outcomes, "scoring", len(images.paths))
    if rule is not None:
        outcomes = write_regions(outcomes, out, rule, counts)
    worst = Worst(None if rule is None else rule.threshold, predictor.map_range)
    outcomes = worst.gather(outcomes)
    rows = write_predictions(outcomes, out, threshold, options.maps, predictor.map_range, unsure)
    if options.fdr is not None:
        rows = judge_together(rows, out, options.fdr)

    promises = [promise, *_region_lines(predictor, rule, counts, options, say)]
    told = [*remarks, *filter(None, promises)]
    page = write_prediction_page(out, rows, worst, told, say)
    code = _summary(rows, threshold, promises, clipped, out, say)
    print(say("predict page", page=page))
    return code


def _summary(
    rows: Sequence[Json],
    threshold: float | None,
    promises: Sequence[str],
    clipped: Sequence[float],
    out: Path,
    say: Catalogue,
) -> int:
    """Say what was found and what is promised of it, and give the exit code."""
    unread = sum(row["verdict"] == UNREADABLE for row in rows)
    found = {"images": len(rows), "verdicts": _found(rows, threshold, say), "unreadable": unread}
    print(say("predict found", **found, place=out / "predictions.csv"))
    for line in filter(None, promises):
        print(line)
    if clipped:
        print(say("predict clipped", number=len(clipped), share=f"{100 * max(clipped):.2g} %"))
    return int(unread > 0)


def _found(rows: Sequence[Json], threshold: float | None, say: Catalogue) -> str:
    """Count the verdicts other than normal, empty where there are none."""
    counts = Counter(row["verdict"] for row in rows)
    if not any(counts[verdict] for verdict in ("anomalous", "unsure", "normal")):
        return ""
    key = "predict anomalous" if threshold is None else "predict anomalous at"
    found = say(key, number=counts["anomalous"], threshold=f"{threshold or 0.0:.6g}")
    if counts["unsure"]:
        found += say("predict unsure", number=counts["unsure"])
    return found


def _promise_text(predictor: Predictor, options: argparse.Namespace, say: Catalogue) -> str:
    """Say what is promised of the verdicts, empty where nothing is."""
    if options.fdr is not None:
        return say("promise batch", rate=percent(options.fdr))
    is_promise = options.threshold in (None, PROMISE)
    if not is_promise or not predictor.calibration:
        return ""
    if options.tile:
        return say("promise tiles")

    promise = predictor.promise(options.false_alarms or predictor.rate)
    return promise_text(promise, say)


def _region_rule(predictor: Predictor, options: argparse.Namespace) -> RegionRule | None:
    """Say which regions of maps are written, None where no threshold of maps is known."""
    if predictor.peaks is None:
        return None
    threshold = predictor.pixel_promise(options.false_alarms).value
    assert threshold is not None, "there are maps of calibration normals"
    return RegionRule(threshold, options.smallest_area)


def _region_lines(
    predictor: Predictor,
    rule: RegionRule | None,
    counts: Sequence[int],
    options: argparse.Namespace,
    say: Catalogue,
) -> Iterator[str]:
    """Say how many regions were found, and what is promised of them.

    Args:
        predictor: that found them.
        rule: which were written, None for none.
        counts: regions of each image that has some.
        options: of the command.
        say: the sentences of a language.
    """
    if rule is None:
        yield say("regions none")
        return
    threshold = f"{rule.threshold:.6g}"
    yield say("regions found", number=sum(counts), images=len(counts), threshold=threshold)
    promise = predictor.pixel_promise(options.false_alarms).promise
    if promise is not None and not options.tile:
        yield given_text(promise, say, "regions given")


def _outcomes(
    predictor: Predictor, paths: Sequence[Path], options: argparse.Namespace
) -> Iterator[Outcome]:
    """Score images whole, or in tiles where asked for."""
    if options.tile:
        return predictor.predict_tiled(paths, options.tile, options.tile_overlap)
    return predictor.predict(paths, options.batch_size)


def _counted(outcomes: Iterable[Outcome], clipped: list[float]) -> Iterator[Outcome]:
    """Pass outcomes on, and note the part of each image's pixels that was clipped, if any."""
    for outcome in outcomes:
        if outcome.outside > 0:
            clipped.append(outcome.outside)
        yield outcome


def _threshold(predictor: Predictor, options: argparse.Namespace) -> float | None:
    """Choose the threshold of the verdicts, None where there can be none."""
    if options.fdr is not None:
        predictor.promise(options.fdr)  # refused without calibration normals
        return None
    if options.false_alarms is not None:
        return _promised(predictor, options.false_alarms)
    if options.threshold in (None, PROMISE) and predictor.calibration:
        return _promised(predictor, predictor.rate)
    if options.threshold is not None:
        return predictor.threshold(options.threshold)
    if DEFAULT_THRESHOLD in predictor.thresholds:
        return predictor.thresholds[DEFAULT_THRESHOLD]

    known = ", ".join(predictor.thresholds)
    logger.warning(
        "no verdicts: the trial held no normal images out; give --threshold a number%s",
        f" or one of {known}" if known else "",
    )
    return None


def _unsure(
    predictor: Predictor, options: argparse.Namespace, threshold: float | None
) -> float | None:
    """Give the threshold from which on images are unsure, None where none shall be.

    Raises:
        InputError: where it is not below that of the verdicts, and without calibration normals.
    """
    if options.unsure is None:
        return None
    unsure = _promised(predictor, options.unsure)
    if threshold is not None and unsure >= threshold:
        raise InputError(
            Sentence.of(
                "predict unsure high",
                rate=f"{options.unsure:g}",
                score=f"{unsure:.6g}",
                threshold=f"{threshold:.6g}",
            )
        )
    return unsure


def _promised(predictor: Predictor, rate: float) -> float:
    """Give the threshold that keeps a rate of false alarms by the figures of the table.

    Raises:
        InputError: without calibration normals.
    """
    score = predictor.promise(rate).score
    assert score is not None, "there are calibration normals"
    return figure_above(score)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command's arguments.

    Raises:
        InputError: for numbers that cannot be meant.
    """
    options = _parser().parse_args(argv)
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(Sentence.of("predict batch_size", batch_size=options.batch_size))
    _check_rates(options)
    check_area("--smallest-area", options.smallest_area)
    if options.tile is not None and options.tile < 1:
        raise InputError(Sentence.of("predict tile", tile=options.tile))
    return options


def _check_rates(options: argparse.Namespace) -> None:
    """Refuse rates that are none, and what says nothing beside a batch that is judged as one.

    Raises:
        InputError: with the option.
    """
    for name in ("false_alarms", "unsure", "fdr"):
        rate = getattr(options, name)
        if rate is not None:
            check_rate(f"--{name.replace('_', '-')}", rate)
    if options.fdr is not None and options.tile is not None:
        raise InputError(Sentence.of("predict fdr tiles"))
    if options.fdr is not None and options.unsure is not None:
        raise InputError(Sentence.of("predict fdr unsure"))


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray predict",
        description="Score new images with a trained trial or an ensemble. A bundle (*.adray) has other options: "
        "`python -m adray predict FILE.adray --help`.",
    )
    parser.add_argument(
        "model",
        help="a trial's folder in a store, its part and configuration (screw/padim), a checkpoint "
        "file (model_*.pth), or an ensemble's file (*.json)",
    )
    parser.add_argument(
        "images", nargs="+", help="image files, folders (with all below them) or glob patterns"
    )
    parser.add_argument(
        "--out",
        required=True,
        help="folder for predictions.csv, predictions.jsonl, regions.csv and maps; those of an earlier run are "
        "replaced",
    )
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        "--threshold",
        help=f"a rule's name or a number; scores at or above it are anomalous (default: {DEFAULT_THRESHOLD}, where the "
        "trial held images out)",
    )
    rule.add_argument(
        "--false-alarms",
        type=float,
        metavar="RATE",
        help="part of new normal images that may be called anomalous, such as 0.01 (default: that of the trial)",
    )
    rule.add_argument(
        "--fdr",
        type=float,
        metavar="RATE",
        help="judge all images as one batch: of those called anomalous at most this part is normal, on average",
    )
    parser.add_argument(
        "--unsure",
        type=float,
        metavar="RATE",
        help="call what is anomalous at this larger rate of false alarms only unsure, such as 0.2",
    )
    parser.add_argument(
        "--maps",
        choices=("none", "values", "all"),
        default="all",
        help="anomaly maps of the image's own size: none, 16-bit PNG of values, or also an overlay on the image "
        "(default: all)",
    )
    parser.add_argument(
        "--smallest-area",
        type=int,
        default=1,
        metavar="PIXELS",
        help="leave smaller regions of the maps out of regions.csv, in pixels of the image (default: 1)",
    )

    add_tried(parser)
    add_accept(parser)
    add_device(parser)
    parser.add_argument("--batch-size", type=int, help="images per step; it does not change scores")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="cut large images into tiles of this side, for models trained on images at that scale",
    )
    parser.add_argument(
        "--tile-overlap", type=float, default=0.25, help="of neighbouring tiles (default: 0.25)"
    )
    add_store(parser)
    add_model_places(parser)
    return parser
