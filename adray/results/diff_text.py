"""What differs between two stores, as text for a terminal and as JSON for a program."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adray.conditions import PLAIN_LABEL
from adray.language.catalogue import Catalogue
from adray.results.diff import ALARMS, CHANGED, CHANGED_OR_SEED, StoreDiff
from adray.results.leaderboard import number_texts
from adray.results.pairing import Unpaired, alarms_of

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20
"""Lines of a list before the rest is counted."""


def as_text(difference: StoreDiff, say: Catalogue, *, everything: bool = False) -> str:
    """Say for a terminal what differs around the trials, and which cells changed or stand alone."""
    cells = difference.cells
    lists = [("diff around", difference.surroundings)]

    shown = cells if everything else cells[cells["verdict"].isin(ALARMS)]
    blocks = [_headline(difference, say)]
    blocks += _list_texts(lists, say, everything)
    if len(shown):
        blocks.append(_table(shown))
    if (cells["verdict"] == CHANGED_OR_SEED).any():
        blocks.append(say("diff one seed"))

    # What failed is a change too; what one store has besides is not.
    alarms = alarms_of(difference.unpaired)
    others = [one for one in difference.unpaired if not one.alarm]
    lists = [
        ("diff failed", list(map(_unpaired_line, alarms))),
        ("diff alone", list(map(_unpaired_line, others))),
        ("diff outdated", list(map(_unpaired_line, difference.outdated))),
        ("diff not compared", difference.notes),
    ]
    blocks += _list_texts(lists, say, everything)
    return "\n\n".join(blocks)


def _list_texts(
    lists: Sequence[tuple[str, list[str]]], say: Catalogue, everything: bool
) -> Iterator[str]:
    """Write lists that hold anything, each below the sentence of its key."""
    for key, found in lists:
        if found:
            yield "\n".join([say(key), *_listed(found, say, everything)])


def _headline(difference: StoreDiff, say: Catalogue) -> str:
    """Count the cells by verdict, and say what a cell is."""
    counts = Counter(difference.cells["verdict"])
    changed = counts.pop(CHANGED, 0)
    same = counts.pop("same", 0)
    head = say(
        "diff head",
        metric=difference.metric,
        cells=len(difference.cells),
        changed=changed,
        same=same,
    )
    return ", ".join([head, *(f"{count} {verdict}" for verdict, count in counts.items())])


_FORMATS = {
    "a": "{:.4f}",
    "b": "{:.4f}",
    "change": "{:+.4f}",
    "seed_noise": "{:.4f}",
    "image_noise": "{:.4f}",
    "score_shift": "{:.2g}",
    "p_adjusted": "{:.2g}",
}


def _table(cells: pd.DataFrame) -> str:
    """Format the cells as a table."""
    shown = cells[["dataset", "category", "configuration", "seeds"]].copy()
    for name, pattern in _FORMATS.items():
        shown[name.replace("_", " ")] = number_texts(cells[name], pattern)
    return shown.assign(verdict=cells["verdict"]).to_string(index=False)


def _unpaired_line(one: Unpaired) -> str:
    """Say which trial has no partner, and why."""
    key = one.key
    cell = f"{key.dataset}/{key.category}/{key.configuration}"
    if key.condition != PLAIN_LABEL:
        cell += f" {key.condition}"
    return f"{one.store}: {cell} seed {key.seed}: {one.reason}"


def _listed(lines: Sequence[str], say: Catalogue, everything: bool) -> list[str]:
    """Indent a list, and count what is too much for a terminal."""
    shown = lines if everything else lines[:_SHOWN]
    indented = list(map("  {}".format, shown))
    if len(lines) > len(shown):
        indented.append("  " + say("diff more", number=len(lines) - _SHOWN))
    return indented


def as_json(difference: StoreDiff) -> str:
    """Write all of it for a program."""
    found = {
        "metric": difference.metric,
        "changed": difference.has_changed,
        "surroundings": difference.surroundings,
        "cells": list(map(_finite, difference.cells.to_dict("records"))),
        "lone": list(map(_unpaired_values, difference.unpaired)),
        "outdated": list(map(_unpaired_values, difference.outdated)),
        "notes": difference.notes,
    }
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)


def _unpaired_values(one: Unpaired) -> Mapping[str, Any]:
    """Give a trial without a partner as plain values."""
    return one.key._asdict() | {"store": one.store, "reason": one.reason, "alarm": one.alarm}


def _finite(row: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Put None in place of numbers that JSON does not know."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        is_unknown = isinstance(value, float) and not math.isfinite(value)
        values[str(name)] = None if is_unknown else value
    return values
