"""`python -m adray ensemble STORE`: a team for each category, its file and what it gains."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from adray.changed_data import present_fingerprints
from adray.cli.command_parser import CommandParser
from adray.ensembles.build import TeamRequest, build_team, pools_of
from adray.ensembles.candidates import Wanted, categories_text, find_candidates
from adray.ensembles.selection import METRIC_NAMES
from adray.ensembles.summary import left_out_lines, team_text
from adray.ensembles.team import MOST_MEMBERS
from adray.errors import InputError
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import Sentence, error_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: choose teams, write their files and say what they gain.

    Returns:
        The exit code, 1 where a category has no team.

    Raises:
        InputError: where no category has one.
    """
    request = _request(argv)
    found = find_candidates(request.store, request.wanted, present_fingerprints)
    if request.is_one_file and len(found.by_category) > 1:
        raise InputError(
            Sentence.of("ensemble out", out=str(request.out), number=len(found.by_category))
        )

    say = load_catalogue(language_of(os.environ))
    problems = []
    pools = pools_of(found, request.together)
    for pool in pools:
        try:
            print(team_text(build_team(pool, request), say))
        except InputError as error:
            # The others shall have their team all the same.
            said = error_text(error, say.language)
            problems.append(f"{categories_text(pool.categories)}: {said}")

    notes = [*problems, *left_out_lines(found.left_out)]
    if len(problems) == len(pools):
        raise InputError(
            Sentence.of("ensemble none", store=str(request.store), notes="; ".join(notes))
        )
    for note in notes:
        print(note)
    return int(bool(problems))


def _request(argv: Sequence[str] | None) -> TeamRequest:
    """Read the command's arguments.

    Raises:
        InputError: for a size or a limit that cannot be meant.
    """
    options = _parser().parse_args(argv)
    smallest, largest = parse_size(options.size)
    for name, value in (("--max-ms", options.max_ms), ("--max-mb", options.max_mb)):
        if value is not None and not value > 0:
            raise InputError(Sentence.of("ensemble above zero", name=name, value=f"{value:g}"))

    store = Path(options.store)
    wanted = Wanted(
        models=tuple(options.models),
        categories=tuple(options.categories),
        seed=options.seed,
        max_ms=options.max_ms,
        max_mb=options.max_mb,
        with_checkpoint=options.with_checkpoint,
        everything=options.all,
    )
    return TeamRequest(
        store=store,
        wanted=wanted,
        smallest=smallest,
        largest=largest,
        metric=options.metric,
        together=options.together,
        out=Path(options.out) if options.out else store / "ensembles",
    )


def parse_size(text: str) -> tuple[int, int]:
    """Read the least and the largest number of members from ``4`` or ``3..5``.

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text.strip())
    low = int(match[1]) if match else 0
    high = int(match[2] or match[1]) if match else 0
    if not 2 <= low <= high <= MOST_MEMBERS:
        raise InputError(Sentence.of("ensemble size", text=repr(text), most_members=MOST_MEMBERS))
    return low, high


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray ensemble",
        description="Choose a team of models for each category from the scores of finished "
        "trials, by the labels of the test images, and say in cross-validation what it gains over "
        "the best single model. Trials need held-out normals (train.holdout above 0), on which "
        "scores are calibrated.",
    )
    parser.add_argument("store", help="the output_dir of sweeps")
    parser.add_argument(
        "--size", default="3..5", help="number of members, or a range of it (default: 3..5)"
    )
    parser.add_argument(
        "--metric", choices=METRIC_NAMES, default="image_auroc", help="what a good team is good at"
    )
    parser.add_argument(
        "--max-ms", type=float, help="milliseconds per image that the members may take together"
    )
    parser.add_argument(
        "--max-mb", type=float, help="MB of memory that the members may take together"
    )
    parser.add_argument(
        "--models", nargs="+", default=["*"], metavar="PATTERN", help="only these configurations"
    )
    parser.add_argument(
        "--categories",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="only these, as dataset/category or category",
    )
    parser.add_argument(
        "--seed", type=int, help="only trials of this seed; the one with most candidates by default"
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="one team of configurations for all these categories",
    )
    parser.add_argument(
        "--with-checkpoint", action="store_true", help="only trials that predict can run"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also trials of older settings, where later ones of their cells count",
    )
    parser.add_argument(
        "--out", help="folder of the files, or the one file *.json; STORE/ensembles by default"
    )
    return parser
