"""`report.html`: everything a store knows of its finished trials, in one file that loads nothing.

The figures travel in the file as JSON; `report_assets/report.js` draws tables and charts from them in the browser, and
puts every name there as text, so that a folder called ``<script>`` is shown and not run.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.files import atomic_path
from adray.results.image_ranking import ranking_on_images
from adray.results.leaderboard import METRIC_COLUMNS, table, trial_row
from adray.results.measurements import read_measurements
from adray.results.statistics import LEAST_CELLS, ranking
from adray.results.store import TrialRecord
from adray.results.trial_files import read_score_table

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
"""What is shown of `adray.results.measurements.FIELDS`."""
THUMBNAILS = 200
"""Pictures that go into the file; further ones are linked."""
_THUMBNAIL_HEIGHT = 96
_DIGITS = 5


def report_data(
    name: str,
    records: Sequence[TrialRecord],
    skipped: Iterable[Mapping[str, Any]] = (),
    progress: Mapping[str, Any] | None = None,
    *,
    base: Path,
    searches: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """All that the report shows, as plain values.

    Args:
        name: of the sweep or store.
        records: the trials.
        skipped: rows of `adray.results.leaderboard.skipped_row`, for cells that could not run.
        progress: of a sweep that runs: ``left``, ``seconds``, ``eta_seconds`` with ``eta_low`` and ``eta_high``, and
            ``per_hour``; else None.
        base: folder of the report, from which pictures and folders are linked.
        searches: one per configuration that was searched: ``configuration``, ``objective``, ``leaky``, ``metric``,
            ``num_trials``, ``best`` and ``defaults`` (name to value), ``best_score``, ``default_score``, ``gain`` with
            ``low`` and ``high`` (its 95 % interval, corrected for choosing), ``note``, and ``trials`` with ``id``,
            ``values``, ``score``, ``status`` and ``reason`` each. Their trials are not among `records`.
    """
    rows = [trial_row(record) for record in records]
    frame = table([*rows, *skipped])
    configurations = sorted(set(frame["configuration"]))
    cells = sorted(set(zip(frame["dataset"], frame["category"], strict=True)))
    places = {cell: i for i, cell in enumerate(cells)}, {c: i for i, c in enumerate(configurations)}
    trials = [_trial(record, row, *places, base) for record, row in zip(records, rows, strict=True)]
    trials += [_skipped(row, *places) for row in skipped]
    done = frame[frame["status"] == "done"]
    pictures, linked = _gallery(records, rows, base)
    return {
        "name": name,
        "generated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "progress": dict(progress) if progress else None,
        "metrics": list(RANKED),
        "configurations": configurations,
        "cells": [list(cell) for cell in cells],
        "trials": trials,
        "rankings": {
            metric: _ranking(done, metric, records)
            for metric in RANKED
            if done[metric].notna().any()
        },
        "costs": _costs(records, rows),
        "machines": _machines(records),
        "published": _published(done),
        "pictures": pictures,
        "linked": linked,
        "searches": [_search(found) for found in searches],
    }


def write_report(path: Path, data: Mapping[str, Any]) -> None:
    """Write the report in one step, so that a reader never sees half of it."""
    with atomic_path(path) as temporary:
        temporary.write_text(render(data), encoding="utf-8")


def render(data: Mapping[str, Any]) -> str:
    """The HTML page of `report_data`'s values."""
    from jinja2 import Environment

    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    template = Environment(autoescape=True).from_string(_asset("report.html"))
    return template.render(
        name=data["name"], style=_asset("report.css"), script=_asset("report.js"), data=safe
    )


def _asset(name: str) -> str:
    return (
        resources.files("adray.results").joinpath("report_assets", name).read_text(encoding="utf-8")
    )


# Trials


def _trial(
    record: TrialRecord,
    row: Mapping[str, Any],
    cells: Mapping[tuple[str, str], int],
    configurations: Mapping[str, int],
    base: Path,
) -> dict[str, Any]:
    """One trial in short: keys of one letter, since there may be ten thousand."""
    result = record.result or {}
    trial = {
        "c": cells[row["dataset"], row["category"]],
        "m": configurations[row["configuration"]],
        "s": row["seed"],
        "x": record.status,
        "id": record.id8,
        "f": link(record.folder, base),
    }
    if record.status != "done":
        return {**trial, "r": row["reason"]}
    counts = result.get("counts", {})
    return {
        **trial,
        "v": [_rounded(row[metric]) for metric in RANKED],
        "t": {name: _threshold(values) for name, values in result.get("thresholds", {}).items()},
        "h": result.get("histogram"),
        "i": [_rounded(v) for v in result["image_auroc_interval"]]
        if result.get("image_auroc_interval")
        else None,
        "n": [counts.get(key, 0) for key in ("train", "holdout", "test_normal", "test_anomalous")],
        "e": row["epochs"],
        "w": int(row["weights"] == "random"),
        "k": _rounded(row["total_seconds"]),
        "z": result.get("notes", []),
    }


def _skipped(
    row: Mapping[str, Any], cells: Mapping[tuple[str, str], int], configurations: Mapping[str, int]
) -> dict[str, Any]:
    cell, configuration = (
        cells[row["dataset"], row["category"]],
        configurations[row["configuration"]],
    )
    return {"c": cell, "m": configuration, "s": row["seed"], "x": row["status"], "r": row["reason"]}


def _threshold(values: Mapping[str, Any]) -> list[Any]:
    """Value, whether the test labels chose it, and the four counts at it."""
    return [_rounded(values.get("value")), int(bool(values.get("oracle")))] + [
        values.get(key) for key in ("tp", "fn", "fp", "tn")
    ]


def _rounded(value: Any) -> float | None:
    """A number to five significant digits after the point of its size, None where there is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def link(target: Path, base: Path) -> str:
    """Path from the report's folder to a file."""
    return os.path.relpath(target, base)


_SEARCH_FIGURES = ("best_score", "default_score", "gain", "low", "high")


def _search(found: Mapping[str, Any]) -> dict[str, Any]:
    """A search as the page shows it: figures rounded, values as short text, so that any kind of value can be shown."""
    trials = [
        {
            "id": trial["id"][:8],
            "values": {name: _value(value) for name, value in trial["values"].items()},
            "score": _rounded(trial["score"]),
            "status": trial["status"],
            "reason": trial.get("reason", ""),
        }
        for trial in found["trials"]
    ]
    words = {key: found[key] for key in ("configuration", "objective", "metric", "num_trials")}
    return {
        **words,
        "leaky": bool(found["leaky"]),
        "note": found.get("note", ""),
        **{key: _rounded(found.get(key)) for key in _SEARCH_FIGURES},
        **{
            key: {name: _value(value) for name, value in found[key].items()}
            for key in ("best", "defaults")
        },
        "trials": trials,
    }


def _value(value: Any) -> float | str:
    """A hyperparameter's value: a number, or its text."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(f"{value:.{_DIGITS}g}") if number else _words(value)


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# Ranking, cost, machines


def _ranking(done: pd.DataFrame, metric: str, records: Sequence[TrialRecord]) -> dict[str, Any]:
    ranked = rank_trials(done, metric, records)
    return {
        "rows": [
            {key: _plain(value) for key, value in row.items()} for row in ranked.to_dict("records")
        ],
        "notes": list(ranked.attrs["notes"]),
    }


def rank_trials(done: pd.DataFrame, metric: str, records: Sequence[TrialRecord]) -> pd.DataFrame:
    """The ranking over categories or, where these are too few to tell anything apart, over their test images.

    Args:
        done: rows of finished trials.
        metric: one of `RANKED`; only image AUROC can be ranked by images.
        records: the trials, whose scores are read where images decide.
    """
    few = len(done.groupby(["dataset", "category"])) < LEAST_CELLS
    scores = _image_scores(records) if few and metric == "image_auroc" else None
    return ranking(done, metric) if scores is None else ranking_on_images(scores)


def _image_scores(records: Sequence[TrialRecord]) -> pd.DataFrame | None:
    """Scores of the test images of all finished trials, one trial per cell and seed; None where a file is missing."""
    import pandas as pd
    import pyarrow

    fields = ["configuration", "dataset", "category", "seed"]
    tables: dict[tuple[Any, ...], pyarrow.Table] = {}
    for record in records:
        if record.result is None:
            continue
        scores = read_score_table(record.folder)
        if scores is None:
            return None
        row = trial_row(record)
        tables.setdefault(
            tuple(row[field] for field in fields), scores.drop_columns(["dataset", "category"])
        )
    if not tables:
        return None
    together = pyarrow.concat_tables(tables.values()).replace_schema_metadata(None).to_pandas()
    names = pd.DataFrame(list(tables), columns=fields)
    repeated = names.loc[
        names.index.repeat([table.num_rows for table in tables.values()])
    ].reset_index(drop=True)
    return pd.concat([repeated, together], axis=1)[together["split"] == "test"]


def _plain(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    return _rounded(float(value))


def _costs(
    records: Sequence[TrialRecord], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Per configuration and device, the median over its trials of what `python -m adray measure` found."""
    import pandas as pd

    fields = list(COSTS)
    found = [
        {
            "configuration": row["configuration"],
            "device": measured["device"],
            "kind": measured["kind"],
        }
        | {field: measured.get(field) for field in fields}
        | {"doubts": len(measured.get("warnings") or ())}
        for record, row in zip(records, rows, strict=True)
        if record.result is not None
        for measured in read_measurements(record)
    ]
    if not found:
        return []
    frame = pd.DataFrame(found)
    frame[fields] = frame[fields].apply(pd.to_numeric)
    groups = frame.groupby(["configuration", "device", "kind"], sort=True)
    costs = (
        groups[fields].median().join(groups["doubts"].sum()).join(groups.size().rename("trials"))
    )
    return [
        {key: _plain(value) for key, value in row.items()}
        for row in costs.reset_index().to_dict("records")
    ]


def _machines(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """What the figures were computed on: each distinct environment, with its number of trials."""
    counted: dict[str, int] = {}
    for record in records:
        if record.result is not None:
            key = json.dumps(record.trial.get("environment", {}), sort_keys=True)
            counted[key] = counted.get(key, 0) + 1
    return [
        json.loads(key) | {"trials": number}
        for key, number in sorted(counted.items(), key=lambda kv: -kv[1])
    ]


# Published figures


@lru_cache(maxsize=1)
def published_figures() -> tuple[dict[str, str], ...]:
    """The figures of `published.csv`: configuration, dataset, category, metric, percent, setting, source."""
    text = resources.files("adray.results").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(io.StringIO(text)))


def _published(done: pd.DataFrame) -> list[dict[str, Any]]:
    """Published figures of what is in the store, beside ours, both in percent; ours is the mean over seeds."""
    trained = done[done["weights"] != "random"]
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


def _gallery(
    records: Sequence[TrialRecord], rows: Sequence[Mapping[str, Any]], base: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Misses and false alarms of each cell's best trial: the first `THUMBNAILS` with a thumbnail, the rest linked."""
    best: dict[tuple[str, str], tuple[float, int]] = {}
    for i, row in enumerate(rows):
        if row["status"] == "done":
            cell, score = (row["dataset"], row["category"]), row["image_auroc"]
            best[cell] = max(best.get(cell, (-2.0, -1)), (-1.0 if score is None else score, i))
    queues = [_errors(records[i], rows[i], base) for _, i in best.values()]
    turns = [
        queue[k]
        for k in range(max(map(len, queues), default=0))
        for queue in queues
        if k < len(queue)
    ]
    shown: list[dict[str, Any]] = []
    linked: list[dict[str, Any]] = []
    for picture in turns:
        file = Path(picture.pop("source"))
        image = (
            thumbnail(file, file.stat().st_mtime_ns)
            if len(shown) < THUMBNAILS and file.is_file()
            else None
        )
        (linked if image is None else shown).append(picture | ({"image": image} if image else {}))
    return shown, linked


def _errors(record: TrialRecord, row: Mapping[str, Any], base: Path) -> list[dict[str, Any]]:
    pictures = (record.result or {}).get("pictures", [])
    wrong = [p for p in pictures if p.get("verdict") in ("miss", "false alarm")]
    return [
        {
            "source": str(record.folder / p["file"]),
            "href": link(record.folder / p["file"], base),
            "cell": f"{row['dataset']}/{row['category']}",
            "configuration": row["configuration"],
            "path": "/".join(Path(p["path"]).parts[-3:]),
            "score": _rounded(p["pred_score"]),
            "verdict": p["verdict"],
        }
        for p in wrong
    ]


@lru_cache(maxsize=4 * THUMBNAILS)
def thumbnail(path: Path, mtime_ns: int) -> str | None:
    """A picture of a trial as a small JPEG in a data URI, remembered by its time; None for one that is torn."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    small.thumbnail((small.width, _THUMBNAIL_HEIGHT))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# Plain text


def format_markdown(frame: pd.DataFrame, records: Sequence[TrialRecord]) -> str:
    """The ranking by image AUROC, and image AUROC by category, as Markdown tables.

    Args:
        frame: of `adray.results.leaderboard.table`.
        records: the trials.
    """
    done = frame[frame["status"] == "done"]
    ranked = rank_trials(done, "image_auroc", records)
    lines = [
        "| configuration | group | image AUROC | 95 % interval | mean rank | finished |",
        "|---|---|---|---|---|---|",
    ]
    for row in ranked.itertuples():
        figures = (
            _number(row.mean),
            f"{_number(row.low)}-{_number(row.high)}",
            _number(row.mean_rank, 2),
        )
        lines.append(
            f"| {row.configuration} | {row.group} | {' | '.join(figures)} | {row.coverage}/{row.cells} |"
        )
    by_cell = done.assign(cell=done["dataset"] + "/" + done["category"])
    means = by_cell.groupby(["configuration", "cell"])["image_auroc"].mean().unstack()
    heads = "".join(f" {name.replace('|', chr(92) + '|')} |" for name in means.columns)
    lines += ["", f"| configuration |{heads}", "|---" * (len(means.columns) + 1) + "|"]
    for configuration in ranked["configuration"]:
        values = means.loc[configuration] if configuration in means.index else []
        lines.append(
            f"| {configuration} | " + " | ".join(_number(value) for value in values) + " |"
        )
    for row in frame[frame["status"] != "done"].itertuples():
        lines.append(
            f"\n{row.status}: {row.dataset}/{row.category}/{row.configuration} seed {row.seed}: {row.reason}"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int = 4) -> str:
    return "n/a" if value is None or value != value else f"{value:.{digits}f}"
