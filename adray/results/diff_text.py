"""What differs between two stores, as text for a terminal and as JSON for a program."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adray.conditions import PLAIN_LABEL
from adray.results.diff import ALARMS, CHANGED, CHANGED_OR_SEED, StoreDiff
from adray.results.leaderboard import number_texts
from adray.results.pairing import Unpaired, alarms_of

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20
"""Lines of a list before the rest is counted."""


def as_text(difference: StoreDiff, *, everything: bool = False) -> str:
    """Say for a terminal what differs around the trials, and which cells changed or stand alone."""
    cells = difference.cells
    lines = [_headline(difference)]
    if difference.surroundings:
        lines += ["", "Around them:", *_listed(difference.surroundings, everything)]

    shown = cells if everything else cells[cells["verdict"].isin(ALARMS)]
    if len(shown):
        lines += ["", _table(shown)]
    if (cells["verdict"] == CHANGED_OR_SEED).any():
        lines += [
            "",
            "Run several seeds in one of the stores to tell a change "
            "from what another seed does anyway.",
        ]

    # What failed is a change too; what one store has besides is not.
    alarms = alarms_of(difference.unpaired)
    others = [one for one in difference.unpaired if not one.alarm]
    lists = (
        ("Failed in one store only:", alarms),
        ("In one store only:", others),
        ("Outdated, and compared with nothing:", difference.outdated),
    )
    for title, found in lists:
        if found:
            lines += ["", title, *_listed(list(map(_unpaired_line, found)), everything)]
    if difference.notes:
        lines += ["", "Not compared:", *_listed(difference.notes, everything)]
    return "\n".join(lines)


def _headline(difference: StoreDiff) -> str:
    """Count the cells by verdict."""
    counts = Counter(difference.cells["verdict"])
    changed = counts.pop(CHANGED, 0)
    same = counts.pop("same", 0)
    parts = [
        f"{difference.metric}: {len(difference.cells)} cells in both stores",
        f"{changed} changed",
        f"{same} did not",
    ]
    parts += [f"{count} {verdict}" for verdict, count in counts.items()]
    return ", ".join(parts)


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


def _listed(lines: Sequence[str], everything: bool) -> list[str]:
    """Indent a list, and count what is too much for a terminal."""
    shown = lines if everything else lines[:_SHOWN]
    indented = list(map("  {}".format, shown))
    if len(lines) > len(shown):
        indented.append(f"  ... and {len(lines) - _SHOWN} more; --all shows them")
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
