"""The conditions of a grid: which of them a cell has, and what the plan says of them."""

from __future__ import annotations

import fnmatch
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from adray.conditions import PLAIN, PLAIN_LABEL, Condition, Corruption
from adray.config import ExcludeRule, GridConfig
from adray.data.conditions import names_to_leave_out, values_of
from adray.data.readers import list_samples
from adray.errors import InputError
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import Sentence, error_text, nearest_of
from adray.results.store import merged_name
from adray.settings import Settings


@dataclass(frozen=True)
class TrainingSet:
    """How many images a trial trains on."""

    condition: str = PLAIN_LABEL
    """Name that all draws of its condition have in common."""
    images: int = 0
    """Images that train; 0 where that is not known."""
    disguised: int = 0
    """Defects among them, put there by the condition."""
    pieces: int = 0
    """What is loaded of the images at most: tiles, where they are cut into some."""


def list_conditions(
    grid: GridConfig,
    datasets: tuple[str, ...],
    categories: tuple[str, ...],
    settings: Settings,
    problems: dict[str, None],
) -> list[tuple[str, Condition]]:
    """List the conditions of training of some categories with their names, each draw apart.

    Conditions of the test are of trials of the plain case, which then is in the grid by itself. A
    value to leave out that no image has becomes a problem.
    """
    found: list[tuple[str, Condition]] = []
    if any(config.is_of_test for config in grid.conditions.values()):
        found.append((PLAIN_LABEL, PLAIN))
    for name, config in grid.conditions.items():
        if config.is_of_test:
            continue
        values: list[str] = []
        if config.leave_out:
            try:
                values = _values(config.leave_out, datasets, categories, settings)
            except InputError as error:
                said = error_text(error, language_of(os.environ))
                problems[f"grid.conditions.{name}: {said}"] = None
        found += [(name, condition) for condition in config.expand(values)]
    return found


def _values(
    leave_out: str, datasets: tuple[str, ...], categories: tuple[str, ...], settings: Settings
) -> list[str]:
    """List the values of a group or column that some categories have.

    Raises:
        InputError: for data that cannot be listed, and where there are fewer than two.
    """
    samples = list_samples(datasets, categories, settings)
    values = values_of(samples, leave_out)
    if len(values) > 1:
        return values

    place = f"{merged_name(datasets)}/{merged_name(categories)}"
    known = names_to_leave_out(samples)
    hint = (
        Sentence.of("condition nearest", nearest=nearest_of(leave_out, known))
        if leave_out not in known
        else ""
    )
    raise InputError(
        Sentence.of(
            "condition groups",
            place=place,
            number=len(values),
            leave_out=leave_out,
            hint=hint,
            datasets=datasets[0],
        )
    )


def corruptions_of_grid(grid: GridConfig, rules: Sequence[ExcludeRule]) -> tuple[Corruption, ...]:
    """List under which corruptions the plain trials of a cell are scored, each once.

    Args:
        grid: names them.
        rules: those that leave the cell out, under some conditions.
    """
    patterns = _patterns(rules)
    found: dict[Corruption, None] = {}
    for name, config in grid.conditions.items():
        if not config.is_of_test or matches_any(name, patterns):
            continue
        for corruption in config.corruptions():
            if not matches_any(corruption.label, patterns):
                found[corruption] = None
    return tuple(found)


def without_excluded(
    conditions: Sequence[tuple[str, Condition]], rules: Sequence[ExcludeRule]
) -> list[Condition]:
    """Choose the conditions that no rule leaves out, by its name or what the plan calls it."""
    patterns = _patterns(rules)
    found = []
    for name, condition in conditions:
        if not matches_any(name, patterns) and not matches_any(condition.label, patterns):
            found.append(condition)
    return found


def _patterns(rules: Sequence[ExcludeRule]) -> list[str]:
    """List the conditions that some rules leave out."""
    patterns: list[str] = []
    for rule in rules:
        patterns += rule.conditions
    return patterns


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a name fits one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def condition_remarks(sets: Iterable[TrainingSet]) -> list[str]:
    """Say how many images each condition trains on, where there is any but the plain one."""
    by_name: dict[str, list[TrainingSet]] = defaultdict(list)
    for one in sets:
        by_name[one.condition].append(one)
    if set(by_name) <= {PLAIN_LABEL}:
        return []

    say = load_catalogue(language_of(os.environ))
    remarks = []
    for name, members in by_name.items():
        images = _range_of(one.images for one in members)
        remark = say("plan condition", condition=name, trials=len(members), images=images)
        defects = _range_of(one.disguised for one in members)
        remarks.append(
            remark if defects == "0" else say("plan dirty", plan=remark, defects=defects)
        )
    return remarks


def _range_of(numbers: Iterable[int]) -> str:
    """Write the least and the greatest of some numbers, once where they are the same."""
    ordered = sorted(numbers)
    low = ordered[0]
    high = ordered[-1]
    return str(low) if low == high else f"{low}-{high}"
