"""What the report says of promises: a sentence of each trial, and a picture of each cell's best one.

The sentences stand in the catalogue and are put together in the reader's browser; here are their
figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from adray.language.catalogue import LANGUAGES, load_catalogue
from adray.results.store import TrialRecord
from adray.results.trial_files import SCORES_FILE, read_score_table
from adray.thresholds import (
    FALSE_ALARMS,
    PROMISE,
    normals_needed,
    normals_to_be_sure,
    promised_rate,
    rate_to_be_sure,
)
from adray.types import Json

RATES = (0.1, FALSE_ALARMS, 0.01, 0.001)
"""Rates of false alarms of which the page says how many normals they need."""
MOST_DOTS = 150
"""Images of one kind that a picture shows; of more some are taken, the ends always."""
_FIGURES = ("normals", "rank", "rate", "value", "promised", "bound")
"""What a threshold has that promises something."""
_GROUP_FIGURES = ("groups", "score", "promised", "bound")
"""What is said of new groups."""
_PREFIX = "report "


def promised_figures(record: TrialRecord) -> list[float] | None:
    """Give number of calibration normals, wanted rate, promised rate and its 95 % bound.

    None where a trial promises nothing.
    """
    promise = (record.result or {}).get("thresholds", {}).get(PROMISE, {})
    if any(promise.get(name) is None for name in _FIGURES):
        return None
    return [promise[name] for name in ("normals", "rate", "promised", "bound")]


def promised_whichever(records: Iterable[TrialRecord]) -> list[float] | None:
    """Give what is kept whichever of some trials is used, and however it was chosen.

    Returns:
        The promised rate and its 95 % bound; None where one of the trials promises nothing.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for record in records:
        if promised_figures(record) is None:
            return None
        promise = (record.result or {})["thresholds"][PROMISE]
        at_or_above = promise["normals"] + 1 - promise["rank"]
        counts[promise["normals"], at_or_above] += promise.get("tried", 1)

    # The largest rate of all is at most the sum of the largest of each kind.
    rates = []
    bounds = []
    for (normals, at_or_above), tried in counts.items():
        rates.append(promised_rate(normals, at_or_above, tried))
        bounds.append(rate_to_be_sure(normals, at_or_above, counts.total()))
    return [min(1.0, sum(rates)), max(bounds)] if rates else None


def dots_of(record: TrialRecord) -> Json | None:
    """Give the scores that the picture of a trial shows, rising, by the kind of its images.

    Returns:
        Those below and those at or above the threshold of ``calibration``, ``normal`` and
        ``defect``. None where the trial promises nothing, or its scores cannot be read. JSON.
    """
    file = record.folder / SCORES_FILE
    if promised_figures(record) is None or not file.is_file():
        return None
    threshold = (record.result or {})["thresholds"][PROMISE]["value"]
    return _dots(record.folder, threshold, file.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _dots(folder: Path, threshold: float, mtime_ns: int) -> Json | None:
    """Read the scores of a trial, once for all the reports that a sweep writes while it runs."""
    table = read_score_table(folder)
    if table is None:
        return None
    split = np.array(table["split"].to_pylist(), dtype=object)
    label = table["label"].to_numpy()
    scores = table["pred_score"].to_numpy()
    # However the calibration normals came about, they are the normals outside of the test.
    kinds = {
        "calibration": (split != "test") & (label == 0),
        "normal": (split == "test") & (label == 0),
        "defect": label == 1,
    }
    return {kind: _halves(scores[chosen], threshold) for kind, chosen in kinds.items()}


def _halves(scores: np.ndarray, threshold: float) -> list[list[float]]:
    """Part scores into those below a threshold and the others, each rising and at most so many."""
    rising = np.sort(scores)
    return [_thinned(rising[rising < threshold]), _thinned(rising[rising >= threshold])]


def _thinned(rising: np.ndarray) -> list[float]:
    """Take evenly spaced ones of many scores, with five digits."""
    places = np.linspace(0, len(rising) - 1, min(MOST_DOTS, len(rising))).round().astype(int)
    return [float(f"{rising[place]:.5g}") for place in places]


def normals_by_rate(asked: Iterable[float]) -> list[list[float]]:
    """Say how many normals each rate needs to be promised, and to be sure.

    Args:
        asked: rates that trials were asked for, beside `RATES`.

    Returns:
        Rows of rate and the two numbers, the largest rate first.
    """
    rows = []
    for rate in sorted({*RATES, *asked}, reverse=True):
        rows.append([rate, normals_needed(rate), normals_to_be_sure(rate)])
    return rows


def page_sentences() -> dict[str, dict[str, str]]:
    """Give the sentences of the page by language and key, places in braces."""
    found = {}
    for language in LANGUAGES:
        texts = load_catalogue(language).texts
        keys = [key for key in texts if key.startswith(_PREFIX)]
        found[language] = {key.removeprefix(_PREFIX): texts[key] for key in keys}
    return found


def verdict_notes(record: TrialRecord) -> dict[str, Sequence[str]]:
    """Give what the trial says of its calibration, a sentence each, by language."""
    verdict = (record.result or {}).get("verdict", {})
    # Trials of before say it in English alone.
    sentences = verdict.get("sentences", {})
    return {language: sentences.get(language, verdict.get("notes", [])) for language in LANGUAGES}


def group_figures(record: TrialRecord) -> list[float] | None:
    """Give number of groups, score, promised rate of new groups and its 95 % bound.

    None where nothing is promised of groups.
    """
    promises = (record.result or {}).get("verdict", {}).get("group_promises")
    if not promises:
        return None
    return [promises[0][name] for name in _GROUP_FIGURES]
