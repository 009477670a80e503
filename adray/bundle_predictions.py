"""What a bundle says of images, as the tables and maps that `predict` writes of a trial.

No torch here, and no package that draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.prediction_table import (
    COLUMNS,
    LINES,
    MAPS,
    TABLE,
    line_of,
    map_name,
    open_lines,
    write_map,
    write_table,
)
from adray.runtime import Result
from adray.runtime.rows import short
from adray.types import Json


def make_folder(out: Path) -> None:
    """Make the folder of predictions, which must hold none.

    Raises:
        InputError: where it cannot be made, or holds predictions.
    """
    if (out / LINES).exists() or (out / TABLE).exists():
        raise InputError(Sentence.of("predict out taken", out=str(out)))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            Sentence.of("predict out no folder", out=str(out), error=str(error.strerror))
        ) from error


def write_results(results: Iterable[Result], out: Path, threshold: float) -> list[Json]:
    """Write a line for each image as it comes, its map if it has one, and the table at the end.

    Scores have all digits of a float32, so that a verdict is that of the figures.

    Args:
        results: of a bundle.
        out: an existing folder.
        threshold: of the bundle.

    Returns:
        The rows of the table. JSON.
    """
    rows = []
    with open_lines(out) as lines:
        for number, result in enumerate(results):
            row = _row(result, threshold)
            if result.anomaly_map is not None:
                name = map_name(number, result.name)
                low, high = write_map(result.anomaly_map, out, name)
                row |= {"map_low": short(low), "map_high": short(high), "map": f"{MAPS}/{name}"}
            rows.append(row)
            lines.write(line_of(row))
    write_table(out / TABLE, rows, COLUMNS)
    return rows


def _row(result: Result, threshold: float) -> Json:
    """Give one line of the table. JSON."""
    return {
        "image": result.name,
        "pred_score": short(result.pred_score),
        "p_value": result.p_value,
        "verdict": result.verdict,
        "threshold": short(threshold),
        "map_low": None,
        "map_high": None,
        "map": "",
        "reason": result.reason,
    }
