"""The model of `serve` and `watch`: a bundle, which needs no torch, or a trial or an ensemble."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from adray.cli.bundle_file import bundle_errors
from adray.cli.line_options import add_backend
from adray.cli.model_path import check_model_path
from adray.cli.options import (
    add_accept,
    add_device,
    add_model_places,
    add_store,
    model_path,
    use_model_places,
)

if TYPE_CHECKING:
    from adray.runtime.judge import Held

MODEL_HELP = (
    "a file that `adray bundle` made (*.adray), a trial's folder, its part and configuration (screw/padim), or an "
    "ensemble's file"
)
_ENDING = ".adray"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the model is loaded."""
    add_backend(parser)
    parser.add_argument(
        "--false-alarms",
        type=float,
        metavar="RATE",
        help="of a trial: another rate than its own, such as 0.01; that of a bundle is fixed",
    )
    add_accept(parser)
    add_device(parser)
    add_store(parser)
    add_model_places(parser)


def is_bundle(model: str) -> bool:
    """Tell whether a model is named that needs no torch."""
    return model.endswith(_ENDING)


def held_model(options: argparse.Namespace, threads: int) -> Held:
    """Load the model.

    Args:
        options: with `model`, and those of `add_model_options`.
        threads: of the CPU for each image of a bundle; 0 for all.

    Raises:
        InputError: for one that cannot be used.
    """
    return _held_bundle(options, threads) if is_bundle(options.model) else _held_trial(options)


def _held_bundle(options: argparse.Namespace, threads: int) -> Held:
    """Load a bundle, which is taken anew when its file changes.

    Raises:
        InputError: for a file that cannot be used.
    """
    from adray.runtime.judge import HeldBundle

    with bundle_errors():
        return HeldBundle(options.model, threads, options.backend)


def _held_trial(options: argparse.Namespace) -> Held:
    """Load a trial.

    Raises:
        InputError: for one that cannot be used.
    """
    from adray.runtime.judge import FixedModel

    use_model_places(options)
    path = Path(model_path(options.model, options.store))
    check_model_path(path)

    # Torch takes seconds, and nothing before needs it.
    from adray.predict import load_predictor
    from adray.served_trial import ServedTrial, named_trial_model

    predictor = load_predictor(
        path, options.device, accept_other_weights=options.accept_other_weights
    )
    judge = ServedTrial(predictor, options.false_alarms)
    return FixedModel(named_trial_model(path, judge))
