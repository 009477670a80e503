"""What a trial does under corruptions and shifts, as a table for a console and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from adray.files import atomic_path, spreadsheet_text
from adray.language.catalogue import Catalogue
from adray.results.corrupted_scores import STRESS_FOLDER
from adray.results.robustness import PLAIN_SEVERITY, StressFigure, TrialStress
from adray.thresholds import percent
from adray.types import Json

FIGURES_FILE = f"{STRESS_FOLDER}/figures.csv"
"""The table in the folder of a trial."""
_MORE_COLUMNS = ("alarm_rate", "miss_rate", "promised")
_DIGITS = 6


def write_stress_csv(stress: TrialStress) -> Path:
    """Write the figures of a trial beside its scores, and give the file."""
    columns = [field.name for field in fields(StressFigure)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, *_MORE_COLUMNS], lineterminator="\n")
    writer.writeheader()
    for figure in (stress.plain, *stress.figures):
        writer.writerow(_cells(figure, stress.promised))
    path = stress.record.folder / FIGURES_FILE
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        # The mark at the start tells a spreadsheet that Hangul is UTF-8.
        temporary.write_text(text.getvalue(), encoding="utf-8-sig")
    return path


def _cells(figure: StressFigure, promised: float | None) -> Json:
    """Give the values of a row. What is not known stays empty."""
    cells = asdict(figure)
    cells["alarm_rate"] = figure.alarm_rate
    cells["miss_rate"] = figure.miss_rate
    cells["promised"] = promised
    for name, value in cells.items():
        if isinstance(value, float):
            cells[name] = round(value, _DIGITS)
        elif isinstance(value, str):
            cells[name] = spreadsheet_text(value)
    return cells


def stress_lines(stress: TrialStress, say: Catalogue) -> list[str]:
    """Say what conditions of the test do to a trial: a table, and where the promise breaks."""
    table = [_header(say), _row(stress.plain, say)]
    table += [_row(figure, say) for figure in stress.figures]
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = [
            cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return [*lines, *_broken(stress, say), *_gone(stress.figures, say)]


def _width(text: str) -> int:
    """Count the columns of a text on a console, where a Hangul syllable takes two."""
    return len(text) + sum("\uac00" <= character <= "\ud7a3" for character in text)


def _header(say: Catalogue) -> list[str]:
    """Give the heads of the columns."""
    names = ("condition", "auroc", "drop", "alarms", "misses", "promise")
    return [say(f"stress column {name}") for name in names]


def _row(figure: StressFigure, say: Catalogue) -> list[str]:
    """Give the cells of a condition."""
    state = ""
    if figure.is_broken is not None:
        state = say("stress broken") if figure.is_broken else say("stress kept")
    return [
        figure.condition,
        "n/a" if figure.image_auroc is None else f"{figure.image_auroc:.3f}",
        "" if figure.drop is None else f"{figure.drop:+.3f}",
        _count(figure.alarms, figure.normals, figure.alarm_rate, say),
        _count(figure.misses, figure.defects, figure.miss_rate, say),
        state,
    ]


def _count(count: int | None, total: int, rate: float | None, say: Catalogue) -> str:
    """Say how many of how many."""
    if rate is None:
        return "n/a"
    return say("stress count", count=count, total=total, rate=percent(rate))


def _broken(stress: TrialStress, say: Catalogue) -> list[str]:
    """Say from which severity on the promise is broken."""
    if stress.promised is None:
        return [say("stress no promise")]
    promised = percent(stress.promised)
    breaks = stress.breaks()
    if PLAIN_SEVERITY in breaks.values():
        return [say("stress breaks plain", promised=promised)]

    lines = []
    broken = [f"{kind} {severity}" for kind, severity in breaks.items() if severity is not None]
    if broken:
        lines.append(say("stress breaks", promised=promised, conditions=", ".join(broken)))
    kept = [kind for kind, severity in breaks.items() if severity is None]
    if kept:
        lines.append(say("stress keeps", promised=promised, kinds=", ".join(kept)))
    return lines


def _gone(figures: Sequence[StressFigure], say: Catalogue) -> list[str]:
    """Say how many defects were moved out of their images."""
    found = [f"{figure.condition}: {figure.gone}" for figure in figures if figure.gone]
    return [say("stress gone", conditions=", ".join(found))] if found else []
