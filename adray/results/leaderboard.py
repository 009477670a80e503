"""Tables derived from finished trials: one row per trial, and one line per configuration."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.conditions import PLAIN_LABEL
from adray.fields import meanings_of
from adray.files import atomic_path, spreadsheet_text
from adray.language.catalogue import Catalogue
from adray.language.columns import display_width, pad_left
from adray.language.sentence import Sentence
from adray.metrics import METRICS
from adray.results.store import TrialRecord
from adray.thresholds import PROMISE

if TYPE_CHECKING:
    import pandas as pd

METRIC_COLUMNS = tuple(METRICS)
_MOST_CELLS = 3
"""Cells that a note names before it counts the rest."""


@dataclass(frozen=True)
class TrialRow:
    """One row of the leaderboard: a trial, or a cell that could not run.

    The text under a field is the meaning of its column, as the documents print it. None is an empty
    place.
    """

    dataset: str
    """data set, or several joined by +"""
    category: str
    """category, or several joined by +"""
    configuration: str
    """named row of the registry"""
    seed: int
    """seed of splits and of everything random in the model"""
    status: str
    """done, failed, skipped, unread where its files could not be read, or outdated where its images
    have changed since"""
    reason: str
    """why it failed, was skipped, could not be read or is outdated"""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """by name, each a column of its own with the meaning that `METRICS` has"""
    setting: str = ""
    """what tells it from the other settings of its configuration, where a cell has several"""
    condition: str = PLAIN_LABEL
    """how its training differs from the plain case, such as k_shot=4; means are over one condition"""
    draw: int | None = None
    """number of the draw of the images that a condition takes"""
    train_images: int | None = None
    """images that trained"""
    threshold_promise: float | None = None
    """from which on a score is anomalous; found on calibration normals"""
    promised: float | None = None
    """part of new normals that is anomalous at it at most, on average"""
    promised_bound: float | None = None
    """the same with 95 % confidence, for the calibration normals that there are"""
    threshold_percentile_95: float | None = None
    """95th percentile of the held-out normals' scores, which promises nothing"""
    weights: str | None = None
    """pretrained or random backbone, none where there is none"""
    epochs: int | None = None
    """passes over the training images"""
    holdout: float | None = None
    """part of the training normals that was held out"""
    evaluation: str | None = None
    """what was scored, test or synthetic; test (LEAKY search) where a search chose by it"""
    fit_seconds: float | None = None
    """training; the device may have been shared"""
    predict_seconds: float | None = None
    """scoring the test images; the device may have been shared"""
    total_seconds: float | None = None
    """the whole trial"""
    own_seconds: float | None = None
    """the whole trial without work that others share, and without waiting for it"""
    alone_seconds: float | None = None
    """what it would have taken had nothing been shared"""
    shared_seconds: float | None = None
    """its part of decoding, features and coresets: their time by the trials here that used them"""
    host_peak_mb: float | None = None
    """largest resident memory of the process"""
    gpu_peak_mb: float | None = None
    """largest memory reserved on the GPU"""
    retry_level: int | None = None
    """how far it went up after running out of memory, 0 for not at all"""
    device: str | None = None
    """where it ran"""
    finished: str | None = None
    """time of its end, UTC"""
    id: str | None = None
    """hash of all that decides the result"""
    folder: str | None = None
    """where its files are"""
    shared_work: Sequence[Mapping[str, Any]] | None = None
    """work that it shares with other trials, as its result has it; no column, `table` makes
    shared_seconds of it"""

    @property
    def image_auroc(self) -> float | None:
        """Give the metric by which rows are sorted."""
        return self.metrics.get("image_auroc")

    @property
    def name(self) -> str:
        """Give the configuration, with condition and setting where it has more than one."""
        condition = "" if self.condition == PLAIN_LABEL else self.condition
        apart = ", ".join(filter(None, (condition, self.setting)))
        return f"{self.configuration} ({apart})" if apart else self.configuration


def _columns() -> dict[str, str]:
    """Collect the fields of a row and the metrics, with their meanings."""
    columns: dict[str, str] = {}
    for name, meaning in meanings_of(TrialRow).items():
        if name == "metrics":
            for metric, known in METRICS.items():
                columns[metric] = known.meaning
        elif name != "shared_work":
            columns[name] = meaning
    return columns


COLUMNS = _columns()
"""Every column of `leaderboard.csv` and `results.parquet`, in their order, with its meaning."""


# Rows


def trial_row(record: TrialRecord) -> TrialRow:
    """Give a trial as one flat row."""
    identity = record.identity
    result = record.result or {}
    metrics = result.get("metrics", {})
    thresholds = result.get("thresholds", {})
    promise = thresholds.get(PROMISE, {})
    timings = result.get("timings", {})
    memory = result.get("memory", {})

    # A figure by which a search chose shall not be read as one of unseen images.
    evaluation = record.evaluation
    if record.leaky:
        evaluation = f"{evaluation} (LEAKY search)"

    return TrialRow(
        dataset=record.dataset,
        category=record.category,
        configuration=identity["configuration"],
        seed=identity["seed"],
        status=record.status,
        reason="" if record.status == "done" else record.reason,
        metrics={name: metrics.get(name) for name in METRIC_COLUMNS},
        setting=record.setting,
        condition=record.condition,
        draw=record.draw,
        train_images=result.get("counts", {}).get("train"),
        threshold_promise=promise.get("value"),
        promised=promise.get("promised"),
        promised_bound=promise.get("bound"),
        threshold_percentile_95=thresholds.get("percentile_95", {}).get("value"),
        weights=result.get("weights"),
        epochs=result.get("epochs"),
        holdout=(identity.get("train") or {}).get("holdout"),
        evaluation=evaluation,
        fit_seconds=timings.get("fit_seconds"),
        predict_seconds=timings.get("predict_seconds"),
        total_seconds=timings.get("total_seconds"),
        own_seconds=timings.get("own_seconds"),
        alone_seconds=timings.get("alone_seconds"),
        host_peak_mb=memory.get("host_peak_mb"),
        gpu_peak_mb=memory.get("gpu_peak_mb"),
        retry_level=record.retry_level,
        device=record.trial.get("environment", {}).get("device"),
        finished=record.finished or None,
        id=record.trial["id"],
        folder=str(record.folder),
        shared_work=result.get("shared_work"),
    )


def repetition_of(row: Any) -> str:
    """Name what trials of one cell differ in: the seed, and the draw where there is one.

    Args:
        row: a `TrialRow`, or a row of `table`.
    """
    import pandas as pd

    return f"seed {row.seed}" if pd.isna(row.draw) else f"seed {row.seed} draw {row.draw}"


def skipped_row(cell: Sequence[str], seed: int, reason: str) -> TrialRow:
    """Give the row of a cell that could not run."""
    dataset, category, configuration = cell
    return TrialRow(dataset, category, configuration, seed, "skipped", reason)


# Tables


def table(rows: Iterable[TrialRow]) -> pd.DataFrame:
    """Order rows by data set and category, the best image AUROC first, those without one last."""
    import pandas as pd

    # Column by column, which is many times as fast as row by row.
    rows = list(rows)
    values: dict[str, list[Any]] = {}
    for name in COLUMNS:
        if name in METRICS:
            values[name] = [row.metrics.get(name) for row in rows]
        else:
            values[name] = list(map(attrgetter(name), rows))
    values["shared_seconds"] = _shares(rows)
    # Of no rows pandas would make columns of numbers.
    frame = pd.DataFrame(values) if rows else pd.DataFrame(columns=list(COLUMNS))
    frame["image_auroc"] = pd.to_numeric(frame["image_auroc"])
    # A whole number also beside rows that have none.
    frame["draw"] = frame["draw"].astype("Int64")
    order = ["dataset", "category", "image_auroc", "configuration", "seed", "draw"]
    ascending = [True, True, False, True, True, True]
    return frame.sort_values(order, ascending=ascending, na_position="last", ignore_index=True)


def _shares(rows: Sequence[TrialRow]) -> list[float | None]:
    """Give ``shared_seconds`` of rows: what several used costs each of them the same part."""
    users: Counter[str] = Counter()
    for row in rows:
        users.update({item["key"] for item in row.shared_work or ()})
    return [_share(row.shared_work, users) for row in rows]


def _share(work: Sequence[Mapping[str, Any]] | None, users: Mapping[str, int]) -> float | None:
    """Sum the parts of the work of one row, None where a time is not known."""
    if work is None or any(item["build_seconds"] is None for item in work):
        return None
    return round(sum(item["build_seconds"] / users[item["key"]] for item in work), 4)


def by_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """Name each row of `table` as `TrialRow.name` does. No mean is taken over different names."""
    condition = frame["condition"].where(frame["condition"] != PLAIN_LABEL, "")
    apart = (condition + ", " + frame["setting"]).str.strip(", ")
    named = frame["configuration"] + " (" + apart + ")"
    return frame.assign(configuration=named.where(apart != "", frame["configuration"]))


def conditions_of(names: Iterable[str]) -> list[str]:
    """Put the names of conditions in order, each once: the plain case first, then by number."""
    return sorted(set(names), key=lambda name: (name != PLAIN_LABEL, _with_numbers(name)))


def _with_numbers(name: str) -> list[tuple[str, float]]:
    """Take a name apart, so that 16 comes after 4."""
    # Each text up to a digit, with the number behind it, if there is one.
    parts = re.findall(r"([^\d]+)(\d*\.?\d*)", name)
    return [(text, float(number) if number.strip(".") else 0.0) for text, number in parts]


def csv_text(frame: pd.DataFrame) -> str:
    """Give a table as CSV in which no cell of text is taken for a formula."""

    def cell(value: object) -> object:
        return spreadsheet_text(value) if isinstance(value, str) else value

    safe = {}
    for name in frame.columns:
        # Objects and text. Numbers are never taken for anything else.
        if frame[name].dtype.kind == "O":
            safe[name] = frame[name].map(cell)
    return frame.assign(**safe).to_csv(index=False)


def write_tables(folder: Path, frame: pd.DataFrame) -> None:
    """Write `leaderboard.csv`, which a spreadsheet opens, and `results.parquet`."""
    with atomic_path(folder / "leaderboard.csv") as temporary:
        # The mark at the start tells a spreadsheet that Hangul is UTF-8.
        temporary.write_text(csv_text(frame), encoding="utf-8-sig")

    # The file has types: a column that happens to be empty has that of its values elsewhere.
    text = (
        "reason",
        "setting",
        "condition",
        "weights",
        "evaluation",
        "device",
        "finished",
        "id",
        "folder",
    )
    empty = frame.columns[frame.isna().all()] if len(frame) else ()
    types = dict.fromkeys((*METRIC_COLUMNS, *empty), "float64") | dict.fromkeys(text, "string")
    with atomic_path(folder / "results.parquet") as temporary:
        frame.astype(types).to_parquet(temporary, index=False)


def is_drawn(frame: pd.DataFrame) -> pd.Series:
    """Tell of each row whether its figures are of defects drawn on held-out normals."""
    return frame["evaluation"].fillna("").str.startswith("synthetic")


def comparable(done: pd.DataFrame) -> pd.DataFrame:
    """Give the finished rows whose figures are of test images, all where there are no such.

    Drawn defects are found more or less easily than real ones, so their figures are not compared
    with each other.
    """
    drawn = is_drawn(done)
    return done if drawn.all() else done[~drawn]


def drawn_notes(done: pd.DataFrame) -> list[Sentence]:
    """Say of finished rows which figures are of drawn defects, and what is ranked by them."""
    drawn = done[is_drawn(done)]
    if drawn.empty:
        return []
    cells = sorted(set(drawn["dataset"] + "/" + drawn["category"]))
    shown = ", ".join(cells[:_MOST_CELLS])
    more = len(cells) - _MOST_CELLS
    named = Sentence.of("names", names=shown)
    if more > 0:
        named = Sentence.of("names and more", names=shown, number=more)
    key = "ranking drawn alone" if len(drawn) == len(done) else "ranking drawn apart"
    return [Sentence.of(key, cells=named)]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Average each configuration of one condition over the categories that all of them finished.

    A mean over different categories would mislead, so configurations that finished nothing are left
    out of the choice of common categories and have no mean. Neither are figures of drawn defects
    averaged with those of test images, see `comparable`. Outdated trials count nowhere.

    Returns:
        One row per configuration and setting, the best image AUROC first; empty where there is no row.
    """
    import pandas as pd

    frame = by_setting(frame[frame["status"] != "outdated"])
    frame = frame.assign(cell=frame["dataset"] + "/" + frame["category"])
    cells = frame["cell"].nunique()
    # Common are the cells of all configurations that finished any.
    done = frame[frame["status"] == "done"]
    compared = comparable(done)
    finished = compared.groupby("configuration")["cell"].agg(set)
    common = set.intersection(*finished) if len(finished) else set()

    means = _means(compared[compared["cell"].isin(common)])
    rows = []
    for name, group in frame.groupby("configuration", sort=False):
        mine = done[done["configuration"] == name]
        rows.append(
            {
                "configuration": name,
                "weights": "/".join(sorted(set(map(str, mine["weights"])))),
                **means.get(name, dict.fromkeys(METRIC_COLUMNS, math.nan)),
                "done": f"{mine['cell'].nunique()}/{cells}",
                "failed": int((group["status"] == "failed").sum()),
                "skipped": int((group["status"] == "skipped").sum()),
                "fit_seconds": mine["fit_seconds"].mean(),
            }
        )
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).sort_values(
        "image_auroc", ascending=False, na_position="last", ignore_index=True
    )


def _means(rows: pd.DataFrame) -> dict[Any, dict[str, float]]:
    """Average each metric of each configuration over seeds, then over categories."""
    metrics = list(METRIC_COLUMNS)
    values = rows.astype(dict.fromkeys(metrics, "float64"))
    by_cell = values.groupby(["configuration", "cell"])[metrics].mean()
    return by_cell.groupby("configuration").mean().to_dict("index")


_SHOWN = (
    "image_auroc",
    "pixel_auroc",
    "pixel_aupro",
    "done",
    "failed",
    "skipped",
    "fit_seconds",
)
"""Columns of the summary that a terminal shows."""
_FORMATS = {
    "image_auroc": "{:.4f}",
    "pixel_auroc": "{:.4f}",
    "pixel_aupro": "{:.4f}",
    "fit_seconds": "{:.1f}",
}


def number_texts(values: Iterable[float], pattern: str) -> list[str]:
    """Format numbers, where those that are not known read n/a."""
    return ["n/a" if math.isnan(value) else pattern.format(value) for value in values]


def format_summary(frame: pd.DataFrame, say: Catalogue) -> str:
    """Format the summary for a terminal, a table for each condition, with what it must not hide.

    That is untrained backbones, and means over fewer categories than some configuration finished.

    Args:
        frame: of `table`.
        say: the sentences of the reader's language.
    """
    names = conditions_of(frame["condition"]) or [PLAIN_LABEL]
    texts = []
    for name in names:
        rows = frame[frame["condition"] == name]
        # The heading has said it: the rows need not say it again.
        text = _format_condition(rows.assign(condition=PLAIN_LABEL), say)
        texts.append(text if names == [PLAIN_LABEL] else f"{name}:\n{text}")
    return "\n".join(texts)


def _format_condition(frame: pd.DataFrame, say: Catalogue) -> str:
    """Format the summary of the trials of one condition, as `format_summary` does."""
    best = summary(frame)
    if best.empty:
        return say("summary none today" if len(frame) else "summary none")

    untrained = best["weights"].str.contains("random")
    shown = best[["configuration", *_SHOWN]].copy()
    shown.loc[untrained, "configuration"] += f" ({say('summary untrained mark')})"
    for name, pattern in _FORMATS.items():
        shown[name] = number_texts(best[name].astype(float), pattern)

    done = frame[frame["status"] == "done"]
    titles = {name: say(f"summary {name}") for name in shown.columns}
    if len(done) and is_drawn(done).all():
        titles["image_auroc"] += f" ({say('summary drawn mark')})"
    lines = _columns_of_text(shown.rename(columns=titles))
    lines += [note.text(say) for note in drawn_notes(done)]
    if best["done"].nunique() > 1:
        lines.append(say("summary common"))
    if untrained.any():
        lines.append(say("summary untrained"))
    return "\n".join(lines)


def _columns_of_text(frame: pd.DataFrame) -> list[str]:
    """Set a table in columns, each to the right, where a Hangul letter takes two places."""
    columns = []
    for name in frame.columns:
        texts = [str(name), *map(str, frame[name])]
        width = max(map(display_width, texts))
        columns.append([pad_left(text, width) for text in texts])
    return ["  ".join(row) for row in zip(*columns, strict=True)]
