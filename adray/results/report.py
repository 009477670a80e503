"""`report.html`: everything a store knows of its finished trials, in one file that loads nothing.

The figures travel in the file as JSON; `report_assets/report.js` draws tables and charts from them
in the browser, and puts every name there as text, so that a folder called ``<script>`` is shown and
not run.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from importlib import resources
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.conditions import PLAIN_LABEL
from adray.files import atomic_path
from adray.language.catalogue import LANGUAGE_VARIABLE, LANGUAGES, language_of, load_catalogue
from adray.metrics import METRICS
from adray.results.fleet import fleet_of
from adray.results.gallery import (
    PICTURE_BYTES,
    THUMBNAILS,
    best_of_cells,
    judged_pictures,
    thumbnail,
)
from adray.results.leaderboard import (
    METRIC_COLUMNS,
    TrialRow,
    by_setting,
    conditions_of,
    table,
    trial_row,
)
from adray.results.learning_curves import TOLERANCE, Curve, condition_means, learning_curves
from adray.results.measurements import read_measurements
from adray.results.promises import (
    dots_of,
    group_figures,
    normals_by_rate,
    page_sentences,
    promised_figures,
    promised_whichever,
    verdict_notes,
)
from adray.results.ranking import rank_trials
from adray.results.rates import outcomes_by_rate
from adray.results.robustness_page import robustness_json
from adray.results.store import TrialRecord, counted_of, current_of
from adray.results.trial_names import part_name
from adray.thresholds import PROMISE, PROMISE_MEANING, THRESHOLDS

if TYPE_CHECKING:
    import pandas as pd

RANKED = METRIC_COLUMNS
"""The metrics that rankings and the heat map can be switched between."""
COSTS = (
    "latency_ms",
    "file_ms",
    "images_per_second",
    "host_peak_mb",
    "gpu_peak_mb",
    "parameters",
    "checkpoint_mb",
)
"""Those of `adray.results.measurements.FIELDS` that are shown."""
_DIGITS = 5
_REFRESH_SECONDS = 10
"""After which the page of a sweep that runs is read again."""

Json = dict[str, Any]
"""Plain values that `report_assets/report.js` reads."""


def report_data(
    name: str,
    records: Sequence[TrialRecord],
    skipped: Sequence[TrialRow] = (),
    progress: Mapping[str, Any] | None = None,
    *,
    base: Path,
    searches: Sequence[Mapping[str, Any]] = (),
    decisions: Sequence[Mapping[str, Any]] = (),
    safest: Sequence[Mapping[str, Any]] = (),
) -> Json:
    """Gather all that the report shows, as plain values.

    Each setting of a configuration is a row of its own. Outdated trials stand in a list of their
    own and nowhere else.

    Args:
        name: of the sweep or store.
        records: the trials, as `adray.results.current` marks them where a store has several of one
            cell.
        skipped: rows of `adray.results.leaderboard.skipped_row`, for cells that could not run.
        progress: of a sweep that runs: ``left`` and ``seconds``, and where known ``eta_seconds``
            and ``per_hour``; else None.
        base: folder of the report, from which pictures and folders are linked.
        searches: one per configuration that was searched: ``configuration``, ``objective``,
            ``leaky``, ``metric``, ``num_trials``, ``best`` and ``defaults`` (name to value),
            ``best_score``, ``default_score``, ``gain`` with ``low`` and ``high`` (its 95 %
            interval, corrected for choosing), ``note`` (a `Sentence` or None), and ``trials`` with ``id``, ``values``,
            ``score``, ``status`` and ``reason`` each. Their trials are not among `records`.
        decisions: one per part, as `adray.decisions.text.page_summaries` gives them.
        safest: the same of those by the worst case, of parts that have corruptions.
    """
    outdated = [record for record in records if record.status == "outdated"]
    # Conditions have a section of their own, all else is of the plain case.
    present = current_of(records)
    everything = table([*map(trial_row, present), *skipped])
    main = (conditions_of(everything["condition"]) or [PLAIN_LABEL])[0]
    records = [record for record in present if record.condition == main]
    skipped = [row for row in skipped if row.condition == main]
    rows = list(map(trial_row, records))
    frame = table([*rows, *skipped])
    done = frame[frame["status"] == "done"]
    axes = _Axes.of(frame)

    trials = []
    for record, row in zip(records, rows, strict=True):
        trials.append(_trial(record, row, axes, base))
    for row in skipped:
        trials.append(_skipped(row, axes))

    # Without any mask the metrics by pixel have nothing to rank.
    rankings: dict[str, Json] = {}
    for metric in RANKED:
        if done[metric].notna().any():
            rankings[metric] = _ranking(done, metric, records)

    # Promises, slider and pictures are all of the trial to deploy.
    decided = {one["trial"] for one in decisions}
    promises = _promises(records, rows, axes, decided)
    shown, linked = _pictures(records, rows, base, decided)
    return {
        "name": name,
        "generated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "progress": dict(progress) if progress else None,
        "refresh": _REFRESH_SECONDS,
        "metrics": list(RANKED),
        "condition": main,
        "conditions": _conditions(everything),
        "robustness": robustness_json(counted_of(records), base, safest),
        "configurations": list(axes.configurations),
        "cells": list(map(list, axes.cells)),
        "trials": trials,
        "outdated": [_outdated(record, base) for record in outdated],
        "rankings": rankings,
        "costs": _costs(records, rows),
        "machines": _machines(records),
        "fleet": fleet_of(records),
        "published": _published(done),
        "pictures": shown,
        "linked": linked,
        "promises": promises,
        "needed": normals_by_rate(promise["p"][1] for promise in promises),
        "sentences": page_sentences(),
        "meanings": _meanings(),
        "language": _chosen_language(),
        "searches": list(map(_search, searches)),
        "decisions": [_decision(one, records) for one in decisions],
    }


def write_report(path: Path, data: Json) -> None:
    """Write the report in one step, so that a reader never sees half of it."""
    with atomic_path(path) as temporary:
        # What is not UTF-8 in a name becomes an escape that the page's script reads back.
        temporary.write_text(render(data), encoding="utf-8", errors="backslashreplace")


def render(data: Json) -> str:
    """Make the HTML page of `report_data`'s values."""
    from jinja2 import Environment

    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # No text of the data may end the script element that carries it, or a line of it.
    for character, escape in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(character, escape)

    template = Environment(autoescape=True).from_string(_asset("report.html"))
    return template.render(
        name=data["name"],
        style=_asset("report.css"),
        script=_asset("report.js"),
        data=text,
    )


def _asset(name: str) -> str:
    """Read a file of the page that comes with the package."""
    folder = resources.files("adray.results").joinpath("report_assets")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _meanings() -> dict[str, dict[str, str]]:
    """Say by language what each metric and each threshold means."""
    meanings = {name: metric.meaning for name, metric in METRICS.items()}
    meanings |= {name: rule.meaning for name, rule in THRESHOLDS.items()}
    meanings[PROMISE] = PROMISE_MEANING

    found = {}
    for language in LANGUAGES:
        say = load_catalogue(language)
        found[language] = {name: say.meaning(text) for name, text in meanings.items()}
    return found


def _chosen_language() -> str | None:
    """Give the language that this program was told to speak, None where the browser's is as good."""
    return language_of(os.environ) if os.environ.get(LANGUAGE_VARIABLE) else None


# Trials


@dataclass(frozen=True)
class _Axes:
    """The rows and columns of the heat map, to which trials refer by number."""

    cells: Mapping[tuple[str, str], int]
    """Data set and category to their number."""
    configurations: Mapping[str, int]
    """Name, with its setting where there are several, to its number."""

    @classmethod
    def of(cls, frame: pd.DataFrame) -> _Axes:
        """Count through the cells and configurations of a table, in the order of their names."""
        cells = sorted(set(zip(frame["dataset"], frame["category"], strict=True)))
        names = sorted(set(by_setting(frame)["configuration"]))
        return cls(
            dict(zip(cells, range(len(cells)), strict=True)),
            dict(zip(names, range(len(names)), strict=True)),
        )

    def place(self, row: TrialRow) -> Json:
        """Say where a row stands: cell, configuration (m for model) and seed."""
        return {
            "c": self.cells[row.dataset, row.category],
            "m": self.configurations[row.name],
            "s": row.seed,
        }


_COUNTS = ("train", "holdout", "test_normal", "test_anomalous")


def _trial(record: TrialRecord, row: TrialRow, axes: _Axes, base: Path) -> Json:
    """Give one trial in short: keys of one letter, since there may be ten thousand."""
    trial = axes.place(row)
    trial |= {"x": record.status, "id": record.id8, "f": _link(record.folder, base)}
    if record.status != "done":
        return trial | {"r": row.reason}

    # value, image AUROC by defect type, thresholds, histogram, interval, numbers of images, epochs,
    # weights, seconds, notes, whether of drawn defects, what is promised
    result = record.result or {}
    by_type = result.get("per_defect_type", {})
    thresholds = result.get("thresholds", {})
    interval = result.get("image_auroc_interval")
    counts = result.get("counts", {})
    return trial | {
        "v": [_rounded(row.metrics[metric]) for metric in RANKED],
        "d": {name: _rounded(values.get(RANKED[0])) for name, values in by_type.items()} or None,
        "t": {name: _threshold(values) for name, values in thresholds.items()},
        "h": result.get("histogram"),
        "i": list(map(_rounded, interval)) if interval else None,
        "n": [counts.get(key, 0) for key in _COUNTS],
        "e": row.epochs,
        "w": int(row.weights == "random"),
        "k": _rounded(row.total_seconds),
        "z": result.get("notes", []),
        "y": int(record.is_drawn),
        "p": _promise(record),
    }


def _skipped(row: TrialRow, axes: _Axes) -> Json:
    """Give a cell that could not run, or has not run yet, with the same keys."""
    place = axes.place(row) | {"x": row.status}
    return place if row.status in ("waiting", "running") else place | {"r": row.reason}


def _outdated(record: TrialRecord, base: Path) -> Json:
    """Give a trial whose images have changed since: which it is, what it had found, and why."""
    row = trial_row(record)
    return {
        "configuration": row.configuration,
        "cell": f"{row.dataset}/{row.category}",
        "s": row.seed,
        "id": record.id8,
        "f": _link(record.folder, base),
        "v": [_rounded(row.metrics[metric]) for metric in RANKED],
        "finished": row.finished,
        "r": row.reason,
    }


def _threshold(values: Mapping[str, Any]) -> list[Any]:
    """Give the value, whether the test labels chose it, and the four counts at it."""
    counts = map(values.get, ("tp", "fn", "fp", "tn"))
    return [_rounded(values.get("value")), int(bool(values.get("oracle"))), *counts]


def _promise(record: TrialRecord) -> list[float | None] | None:
    """Give what a trial promises in rounded figures, None where that is nothing."""
    figures = promised_figures(record)
    return None if figures is None else list(map(_rounded, figures))


def _rounded(value: Any) -> float | None:
    """Round a number to five significant digits, None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _link(target: Path, base: Path) -> str:
    """Give the path from the report's folder to a file."""
    return os.path.relpath(target, base)


# Decisions and promises


def _decision(decision: Mapping[str, Any], records: Sequence[TrialRecord]) -> Json:
    """Complete what is said of a part by the numbers of its images and by other false-alarm rates."""
    found = dict(decision)
    for record in records:
        if str(record.folder) == decision["trial"]:
            counts = (record.result or {}).get("counts", {})
            found["counts"] = [counts.get(key, 0) for key in _COUNTS]
            found["rates"] = outcomes_by_rate(record)
    return found


def _promises(
    records: Sequence[TrialRecord], rows: Sequence[TrialRow], axes: _Axes, decided: set[str]
) -> list[Json]:
    """Give what the trial to deploy of each cell promises, and the scores of its picture."""
    by_cell = defaultdict(list)
    for record, row in zip(records, rows, strict=True):
        if record.status == "done":
            by_cell[row.dataset, row.category].append(record)

    found = []
    for i in best_of_cells(rows, decided):
        record = records[i]
        tried = by_cell[rows[i].dataset, rows[i].category]
        dots = dots_of(record)
        if dots is None:
            continue
        threshold = (record.result or {})["thresholds"]["promise"]
        promise = axes.place(rows[i]) | {"p": _promise(record), "y": int(record.is_drawn)}
        promise |= {"t": _threshold(threshold), "z": verdict_notes(record), "dots": dots}
        of_groups = group_figures(record)
        if of_groups is not None:
            promise["g"] = list(map(_rounded, of_groups))
        whichever = promised_whichever(tried)
        if whichever is not None:
            # Other keys than those of a trial, since the page reads both alike.
            promise |= {"tried": len(tried), "whichever": list(map(_rounded, whichever))}
        found.append(promise)
    return sorted(found, key=itemgetter("c"))


# Searches


def _search(found: Mapping[str, Any]) -> Json:
    """Give a search with rounded figures, and values that are numbers or text."""
    names = ("configuration", "objective", "metric", "num_trials")
    figures = ("best_score", "default_score", "gain", "low", "high")

    search = {name: found[name] for name in names}
    note = found.get("note")
    in_words = {name: note.text(load_catalogue(name)) for name in LANGUAGES} if note else None
    search |= {"leaky": bool(found["leaky"]), "note": in_words}
    search |= {name: _rounded(found.get(name)) for name in figures}
    search["best"] = _setting(found["best"])
    search["defaults"] = _setting(found["defaults"])
    search["trials"] = list(map(_try, found["trials"]))
    return search


def _try(trial: Mapping[str, Any]) -> Json:
    """Give one try of a search."""
    return {
        "id": trial["id"][:8],
        "values": _setting(trial["values"]),
        "score": _rounded(trial["score"]),
        "status": trial["status"],
        "reason": trial.get("reason", ""),
    }


def _setting(values: Mapping[str, Any]) -> Json:
    """Give hyperparameters by name, each a number or its text."""
    return {name: _value(value) for name, value in values.items()}


def _value(value: Any) -> float | str:
    """Give a hyperparameter's value: a number, or its text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


# Conditions


def _conditions(frame: pd.DataFrame) -> Json | None:
    """Give the means and the curves of all conditions by metric, None where there is one alone."""
    names = conditions_of(frame["condition"])
    if len(names) < 2:
        return None
    by_metric = {}
    for metric in RANKED:
        if frame[metric].notna().any():
            means = list(map(vars, condition_means(frame, metric)))
            curves = list(map(_curve, learning_curves(frame, metric)))
            by_metric[metric] = {"means": [_rounded_values(row) for row in means], "curves": curves}
    return {"names": names, "tolerance": TOLERANCE, "metrics": by_metric}


def _curve(curve: Curve) -> Json:
    """Give a curve with rounded figures."""
    points = [_rounded_values(vars(point)) for point in curve.points]
    found = curve.saturation
    saturation = None if found is None else _rounded_values(vars(found))
    return _rounded_values(vars(curve) | {"points": points, "saturation": saturation})


def _rounded_values(values: Mapping[str, Any]) -> Json:
    """Round the broken numbers among some values."""
    return {n: _rounded(v) if isinstance(v, float) else v for n, v in values.items()}


# Ranking, cost, machines


def _ranking(done: pd.DataFrame, metric: str, records: Sequence[TrialRecord]) -> Json:
    """Give the ranking by one metric."""
    ranked = rank_trials(done, metric, records)
    notes = {}
    for language in LANGUAGES:
        say = load_catalogue(language)
        notes[language] = [note.text(say) for note in ranked.notes]
    return {"rows": _plain_rows(ranked.table), "notes": notes}


def _plain_rows(frame: pd.DataFrame) -> list[Json]:
    """Turn a frame into rows of text and rounded numbers."""
    rows = []
    for values in frame.to_dict("records"):
        rows.append({str(name): _plain(value) for name, value in values.items()})
    return rows


def _plain(value: Any) -> str | float | None:
    """Give text as it is and a number rounded."""
    if isinstance(value, str) or value is None:
        return value
    return _rounded(float(value))


def _costs(records: Sequence[TrialRecord], rows: Sequence[TrialRow]) -> list[Json]:
    """Take the median over trials of what was measured, per configuration and device."""
    import pandas as pd

    found = []
    for record, row in zip(records, rows, strict=True):
        if record.result is not None:
            for measured in read_measurements(record):
                found.append({"configuration": row.name, **_cost(measured)})
    if not found:
        return []

    # Of several measurements of one trial on one device the last is there alone.
    frame = pd.DataFrame(found)
    columns = list(COSTS)
    frame[columns] = frame[columns].apply(pd.to_numeric)
    groups = frame.groupby(["configuration", "device", "kind"], sort=True)
    costs = groups[columns].median()
    costs["doubts"] = groups["doubts"].sum()
    costs["trials"] = groups.size()
    return _plain_rows(costs.reset_index())


def _cost(measured: Mapping[str, Any]) -> Json:
    """Take what is shown of a measurement, and count what casts doubt on it."""
    cost = {"device": measured["device"], "kind": measured["kind"]}
    cost |= {name: measured.get(name) for name in COSTS}
    cost["doubts"] = len(measured.get("warnings") or ())
    return cost


def _machines(records: Sequence[TrialRecord]) -> list[Json]:
    """Count the trials of each distinct environment, the most frequent first."""
    counts: Counter[str] = Counter()
    for record in records:
        if record.result is not None:
            counts[json.dumps(record.trial.get("environment", {}), sort_keys=True)] += 1
    return [json.loads(key) | {"trials": number} for key, number in counts.most_common()]


# Published figures


@lru_cache(maxsize=1)
def published_figures() -> tuple[dict[str, str], ...]:
    """Read `published.csv`: configuration, dataset, category, metric, percent, setting, source."""
    text = resources.files("adray.results").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(io.StringIO(text)))


def _published(done: pd.DataFrame) -> list[Json]:
    """Put published figures beside ours, the mean over seeds, in percent."""
    # A figure of several settings is none to set beside a published one.
    trained = by_setting(done[done["weights"] != "random"])
    values = trained.astype(dict.fromkeys(RANKED, "float64"))
    ours = values.groupby(["configuration", "dataset", "category"])[list(RANKED)].mean()

    beside = []
    for figure in published_figures():
        key = (figure["configuration"], figure["dataset"], figure["category"])
        value = _rounded(100 * ours.loc[key, figure["metric"]]) if key in ours.index else None
        if value is not None:
            beside.append({**figure, "percent": float(figure["percent"]), "ours": value})
    return beside


# Pictures


def _pictures(
    records: Sequence[TrialRecord], rows: Sequence[TrialRow], base: Path, decided: set[str]
) -> tuple[list[Json], list[Json]]:
    """Give the first verdicts with their picture, as far as the file takes them.

    The rest are links.
    """
    shown: list[Json] = []
    linked: list[Json] = []
    left = PICTURE_BYTES
    for judged in judged_pictures(records, rows, decided):
        picture = {
            "href": _link(judged.file, base),
            "cell": part_name(judged.dataset, judged.category),
            "configuration": judged.configuration,
            "path": judged.path,
            "score": _rounded(judged.pred_score),
            "verdict": judged.verdict,
        }

        # Torn pictures are linked too, and take no place from the others.
        image = thumbnail(judged.file) if len(shown) < THUMBNAILS and left > 0 else None
        if image is None:
            linked.append(picture)
        else:
            shown.append(picture | {"image": image})
            left -= len(image)
    return shown, linked
