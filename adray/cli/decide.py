"""`python -m adray decide STORE`: which model to deploy for each part, and how sure that is."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path

from adray.changed_data import present_fingerprints
from adray.cli.command_parser import CommandParser
from adray.decide import decide
from adray.decisions.decision import Decision, Option, Wishes
from adray.decisions.teams import read_teams
from adray.decisions.text import decision_json, decision_markdown, decision_text
from adray.errors import InputError
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.sentence import Sentence, nearest_of
from adray.results.current import StoreView, view_store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: decide for each part, and say why.

    Returns:
        The exit code, 1 where a part has nothing to deploy that keeps to the limits.

    Raises:
        InputError: for limits that cannot be meant, a store without trials, and a category that no
            part has.
    """
    options = _parser().parse_args(argv)
    wishes = _wishes(options)
    say = load_catalogue(language_of(os.environ))
    store = Path(options.store)

    decisions = _decisions(store, wishes, options, say)
    if (options.measure or wishes.is_on_cost) and _measure(store, decisions, wishes):
        decisions = _decisions(store, wishes, options, say)
    print(_formatted(decisions, options.format, say))
    return int(not all(map(attrgetter("is_answer"), decisions)))


def _wishes(options: argparse.Namespace) -> Wishes:
    """Read what is asked of the models.

    Raises:
        InputError: for numbers that cannot be meant.
    """
    return Wishes(
        false_alarms=options.false_alarms,
        latency_ms=options.latency_ms,
        memory_mb=options.memory_mb,
        kind=options.device,
        miss_cost=options.miss_cost,
        alarm_cost=options.alarm_cost,
        defect_rate=options.defect_rate,
        robust=options.robust,
    )


def _decisions(
    store: Path, wishes: Wishes, options: argparse.Namespace, say: Catalogue
) -> list[Decision]:
    """Decide for the parts of a store that are asked for.

    Raises:
        InputError: where there is none.
    """
    view = view_store(store, present_fingerprints)
    for note in view.notes(everything=options.all):
        print(note.text(say), file=sys.stderr)
    decisions = decide(view.shown(everything=options.all), wishes, read_teams(store))
    if not decisions:
        raise InputError(_nothing_in(store, view))

    pattern = options.category
    chosen = [decision for decision in decisions if _is_asked(decision, pattern)]
    if not chosen:
        known = map(attrgetter("part"), decisions)
        values = {"pattern": repr(pattern), "store": str(store)}
        near = nearest_of(pattern, known)
        raise InputError(Sentence.of("decide no part", **values, nearest=near))
    return chosen


def _nothing_in(store: Path, view: StoreView) -> Sentence:
    """Say why a store has no part to decide for."""
    key = "decide store empty"
    if any(map(attrgetter("outdated"), view.records)):
        key = "decide store outdated"
    elif view.records:
        key = "decide store conditions"
    return Sentence.of(key, store=str(store))


def _is_asked(decision: Decision, pattern: str) -> bool:
    """Tell whether a pattern names a part: by data set and category, or by one of them."""
    whole = f"{decision.dataset}/{decision.category}"
    names = (whole, decision.category, decision.part)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _measure(store: Path, decisions: Sequence[Decision], wishes: Wishes) -> bool:
    """Measure the candidates in question that nobody has measured.

    Returns:
        Whether there were any.
    """
    from adray.cli.measure import main as measure

    places = []
    for decision in decisions:
        for option in decision.options:
            if _is_unmeasured(option, decision, wishes):
                places.append(option.place.name)
    if not places:
        return False
    device = [] if wishes.kind is None else ["--device", wishes.kind]
    with contextlib.redirect_stdout(sys.stderr):
        measure([str(store), "--only", *places, *device])
    return True


def _is_unmeasured(option: Option, decision: Decision, wishes: Wishes) -> bool:
    """Tell whether a decision waits for the cost of an option."""
    if option.cost.source or not option.has_checkpoint:
        return False
    return wishes.is_on_cost or option.is_tied or option is decision.chosen


def _formatted(decisions: Sequence[Decision], form: str, say: Catalogue) -> str:
    """Put decisions into the form that is asked for."""
    if form == "json":
        values = list(map(partial(decision_json, say=say), decisions))
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    write = decision_text if form == "text" else decision_markdown
    return "\n\n".join(map(partial(write, say=say), decisions))


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray decide",
        description="Which trial or team of a store to deploy for each part: what it finds and lets "
        "through, what is promised, what it costs, how sure the choice is, and how to go on.",
        epilog="exit codes: 0 each part has an answer, 1 one has none that keeps to the limits, 2 bad input",
    )
    parser.add_argument("store", help="the output_dir of sweeps")
    parser.add_argument(
        "--category",
        default="*",
        metavar="PATTERN",
        help="only these parts, as dataset/category or category",
    )
    parser.add_argument(
        "--false-alarms",
        type=float,
        metavar="RATE",
        help="part of new good images that may be rejected, such as 0.01; models are then compared by "
        "the defects that they catch at that rate",
    )
    parser.add_argument(
        "--latency-ms", type=float, metavar="MS", help="milliseconds that an image may take"
    )
    parser.add_argument(
        "--memory-mb", type=float, metavar="MB", help="memory that the model may take"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="where speed and memory count; the newest measurement by default",
    )
    parser.add_argument(
        "--miss-cost",
        type=float,
        metavar="COST",
        help="of a defect that passes; models are then compared by what their errors cost",
    )
    parser.add_argument(
        "--alarm-cost", type=float, metavar="COST", help="of a good part that is rejected"
    )
    parser.add_argument(
        "--defect-rate",
        type=float,
        metavar="RATE",
        help="part of production that is defective, to weigh the costs; that of the test images by default",
    )
    parser.add_argument(
        "--robust",
        action="store_true",
        help="compare models by their worst case over the corruptions of the test images that were scored, see "
        "`adray stress`; by image AUROC, or by what errors cost where that is given",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also list what does not count: trials whose images have changed since, and those of older settings",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure speed and memory first where that is lacking, as a limit on them does too",
    )
    parser.add_argument(
        "--format", choices=("text", "json", "markdown"), default="text", help="default: text"
    )
    return parser
