"""Options that several commands have, and numbers that argparse refuses by itself."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from adray.settings import get_globals, use_settings

logger = logging.getLogger(__name__)


def add_set(parser: argparse.ArgumentParser, example: str) -> None:
    """Add ``--set KEY=VALUE ...``.

    Args:
        parser: of the command.
        example: what may be set, for the help.
    """
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=example
    )


def add_only(parser: argparse.ArgumentParser) -> None:
    """Add ``--only PATTERN ...``."""
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="trials by dataset/category/configuration or id",
    )


def add_all(parser: argparse.ArgumentParser) -> None:
    """Add ``--all``, which shows what `adray.results.current.StoreView` leaves out."""
    parser.add_argument(
        "--all",
        action="store_true",
        help="also trials whose images have changed since, and those of older settings, each "
        "setting by itself",
    )


def add_device(parser: argparse.ArgumentParser, choices: str = "cpu, cuda, ...") -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device", default=None, help=f"{choices}; a GPU where there is one by default"
    )


def add_model_places(parser: argparse.ArgumentParser) -> None:
    """Add ``--backbone-dir`` and ``--plugins``: where a trained model's weights and code lie."""
    parser.add_argument(
        "--backbone-dir", default=get_globals().backbone_dir, help="folder of pretrained weights"
    )
    parser.add_argument(
        "--plugins",
        nargs="*",
        action="extend",
        default=[],
        help="modules that register models of your own",
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add ``--store``, where a model is looked up that is given by its name."""
    parser.add_argument(
        "--store",
        default=get_globals().output_dir,
        help="where part/configuration is looked up, the output_dir of sweeps (default: %(default)s)",
    )


def model_path(model: str, store: str) -> str:
    """Give the path of a model that is given by a path, or by its part and configuration.

    Args:
        model: a path, or a name such as ``screw/padim``.
        store: where a name is looked up.

    Raises:
        InputError: for a name that no model of the store has, or several have.
    """
    path = Path(model)
    is_name = not path.suffix and not path.is_absolute() and "/" in model
    if path.exists() or not is_name or not Path(store).is_dir():
        return model

    # Most models are given by a path, and `--help` shall not wait for this.
    from adray.changed_data import present_fingerprints
    from adray.results.current import view_store
    from adray.results.trial_names import named_trial

    records = view_store(store, present_fingerprints).shown(everything=False)
    found = named_trial(records, model)
    logger.info("%s: %s (seed %d)", model, found.folder, found.identity["seed"])
    return str(found.folder)


def add_tried(parser: argparse.ArgumentParser) -> None:
    """Add ``--tried``, see `adray.predictor.Predictor.chosen_among`."""
    parser.add_argument(
        "--tried",
        type=positive,
        metavar="N",
        help="number of trials of which the calibration normals chose this one, as `adray decide` says; the promise "
        "then holds whichever was chosen (default: that of the trial)",
    )


def add_accept(parser: argparse.ArgumentParser) -> None:
    """Add ``--accept-other-weights``."""
    parser.add_argument(
        "--accept-other-weights",
        action="store_true",
        help="go on where weight files, plug-ins, preprocessing, thresholds or versions are not those of the training; "
        "each row says so",
    )


def use_model_places(options: argparse.Namespace) -> None:
    """Make what `add_model_places` asked for the settings of this process."""
    plugins = tuple(options.plugins)
    use_settings(replace(get_globals(), backbone_dir=options.backbone_dir, plugins=plugins))


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


def minutes(text: str) -> float:
    """Read a number of minutes above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes above 0")
    return value


def minutes_or_none(text: str) -> float:
    """Read a number of minutes from 0 on."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes")
    return value


def start_command(options: argparse.Namespace, usual: Mapping[str, object]) -> str:
    """Give the command that does the same again.

    Args:
        options: of the command.
        usual: defaults of those that take a value, by name.
    """
    words = ["python", "-m", "adray", "start", options.folder]
    if options.yes:
        words.append("--yes")
    for name, default in usual.items():
        value = getattr(options, name)
        if value != default:
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if name == "minutes" else value]
    return shlex.join(words)
