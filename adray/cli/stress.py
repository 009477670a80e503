"""`python -m adray stress TRIAL`: what other light, blur, noise, dirt and place do to a trial."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adray.changed_data import settings_of
from adray.cli.command_parser import CommandParser
from adray.cli.model_path import check_model_path
from adray.cli.options import (
    add_accept,
    add_device,
    add_store,
    model_path,
)
from adray.conditions import KINDS, SEVERITIES, Corruption, corruptions_of
from adray.errors import InputError
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import Sentence, nearest_of, sentence_of
from adray.results.robustness import trial_stress
from adray.results.store import TrialRecord, read_trial
from adray.results.stress_text import stress_lines, write_stress_csv
from adray.settings import get_globals, use_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: score a trial under corruptions, and say what they do to it.

    Raises:
        InputError: for a trial that cannot be scored so, and corruptions that are not known.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = _wanted(options)
    say = load_catalogue(language_of(os.environ))
    folder = Path(model_path(options.trial, options.store))
    check_model_path(folder)
    record = _record(folder)
    _use_settings_of(record, options)

    try:
        _score(folder, wanted, options)
        stress = trial_stress(record)
        written = None if stress is None else write_stress_csv(stress)
    except OSError as error:
        raise InputError(
            Sentence.of("stress read only", folder=str(folder), error=sentence_of(error))
        ) from error
    if stress is None or written is None:
        raise InputError(Sentence.of("stress scores", folder=str(folder)))
    for line in stress_lines(stress, say):
        print(line)
    print(say("stress written", path=written.parent))
    return 0


def _wanted(options: argparse.Namespace) -> list[Corruption]:
    """Read what shall happen to the images.

    Raises:
        InputError: for a kind or a severity that is not known.
    """
    kinds = []
    for name in options.corruption or KINDS:
        if name not in KINDS:
            raise InputError(
                Sentence.of("stress corruption", name=repr(name), nearest=nearest_of(name, KINDS))
            )
        kinds.append(name)
    for severity in options.severity or SEVERITIES:
        if severity not in SEVERITIES:
            raise InputError(Sentence.of("stress severity", severity=severity))
    severities = sorted(set(options.severity or SEVERITIES))
    return corruptions_of(list(dict.fromkeys(kinds)), severities)


def _record(folder: Path) -> TrialRecord:
    """Read the trial, before torch takes seconds to load.

    Raises:
        InputError: where there is none, such as in the folder of an export.
    """
    record = read_trial(folder) if folder.is_dir() else None
    if record is None or record.result is None:
        raise InputError(Sentence.of("stress no trial", folder=str(folder)))
    return record


def _use_settings_of(record: TrialRecord, options: argparse.Namespace) -> None:
    """Make the settings of the trial's sweep those of this process, with what was asked for."""
    settings = settings_of(record) or get_globals()
    if options.dataset_dir is not None:
        settings = replace(settings, dataset_dir=str(Path(options.dataset_dir).absolute()))
    if options.backbone_dir is not None:
        settings = replace(settings, backbone_dir=options.backbone_dir)
    if options.plugins is not None:
        settings = replace(settings, plugins=tuple(options.plugins))
    use_settings(settings)


def _score(folder: Path, wanted: Sequence[Corruption], options: argparse.Namespace) -> None:
    """Score what is not scored yet, with a line that says how far it is."""
    # Torch takes seconds, and nothing before needs it.
    from tqdm import tqdm

    from adray.stress import stress_trial

    with tqdm(
        total=len(wanted), unit="condition", file=sys.stderr, disable=None, leave=False
    ) as bar:

        def show(corruption: Corruption, number: int, total: int) -> None:
            bar.set_description(corruption.label)
            bar.update(number - bar.n)

        stress_trial(
            folder,
            wanted,
            options.device,
            settings=get_globals(),
            done=show,
            accept_other_weights=options.accept_other_weights,
        )


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray stress",
        description="Score the test images of a trial again with other light, blur, noise, dirt and place, without "
        "training: the loss of AUROC, false alarms and misses at the threshold of its promise, and the severity at "
        "which that promise breaks. Scores, a table and a contact sheet are left in the trial's folder; run it again "
        "to go on.",
        epilog="exit codes: 0 all are scored, 2 bad input",
    )
    parser.add_argument(
        "trial", help="a trial's folder in a store, or its part and configuration (screw/padim)"
    )
    parser.add_argument(
        "--corruption",
        nargs="+",
        action="extend",
        default=[],
        metavar="KIND",
        help=f"what happens to the images, all by default: {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--severity",
        nargs="+",
        type=int,
        action="extend",
        default=[],
        metavar="N",
        help="how strongly, from 1 to 5; all by default",
    )
    parser.add_argument(
        "--dataset-dir", help="folder of the data sets; by default that of the trial's sweep"
    )
    add_device(parser)
    add_store(parser)
    # Without them the trial's own are used.
    parser.add_argument(
        "--backbone-dir", help="folder of pretrained weights; by default that of the trial's sweep"
    )
    parser.add_argument("--plugins", nargs="*", help="modules that register models of your own")
    add_accept(parser)
    return parser
