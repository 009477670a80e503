"""`python -m adray.train DATASET CATEGORY MODEL`: train one model on one data set, without Ray."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from adray.cli.command_parser import CommandParser
from adray.cli.options import add_device, add_set
from adray.config_file import describe_changes, parse_changes
from adray.errors import InputError
from adray.language.catalogue import spoken
from adray.language.sentence import Sentence
from adray.settings import get_globals, set_globals
from adray.thresholds import FALSE_ALARMS
from adray.train import train

_FOLDERS = ("dataset_dir", "backbone_dir", "output_dir", "cache_dir")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = {name: getattr(options, name) for name in _FOLDERS}
    set_globals(**{name: folder for name, folder in given.items() if folder})

    changes = parse_changes(options.set)
    unknown = sorted(set(changes) - {"train", "model"})
    if unknown:
        raise InputError(Sentence.of("train set", unknown=unknown[0]))
    for change in describe_changes(options.set):
        print(change)

    result = train(
        options.dataset.split(","),
        options.category.split(","),
        options.model,
        budget=options.budget,
        train=changes.get("train"),
        model=changes.get("model"),
        weights=options.weights,
        seed=options.seed,
        device=options.device,
        false_alarms=options.false_alarms,
    )
    for name, value in result["metrics"].items():
        shown = "n/a" if value is None else f"{value:.4f}"
        print(f"{name:16} {shown}")
    print(spoken("train files", folder=result["folder"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray.train",
        description="Train one model on one data set, without Ray, and write its files to the output folder.",
        epilog="example: python -m adray.train mvtec bottle stfpm --set train.num_epochs=50 model.lr=0.4",
    )
    parser.add_argument("dataset", help="name of a data set under --dataset-dir, or several: a,b")
    parser.add_argument("category", help="a category, several merged into one model (a,b), or all")
    parser.add_argument("model", help="a configuration; `python -m adray models` lists them")
    add_set(parser, "train.<field>=... or model.<field>=...")

    parser.add_argument(
        "--budget",
        choices=("quick", "paper"),
        default="quick",
        help="epochs of the specification or as published",
    )
    parser.add_argument(
        "--weights",
        choices=("pretrained", "random"),
        default="pretrained",
        help="random: an untrained backbone, which needs no file and finds few defects",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help=f"of training and split (default: {get_globals().seed})",
    )
    parser.add_argument(
        "--false-alarms",
        type=float,
        default=FALSE_ALARMS,
        metavar="RATE",
        help="part of new normal images that may be called anomalous (default: %(default)s)",
    )
    add_device(parser, "cpu, cuda, cuda:1")

    for name in _FOLDERS:
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, default=None, help=f"default: {getattr(get_globals(), name)}")
    return parser
