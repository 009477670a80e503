"""The report as plain text: the ranking, and every category, as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from adray.conditions import PLAIN_LABEL
from adray.results.leaderboard import (
    by_setting,
    conditions_of,
    drawn_notes,
    is_drawn,
    number_texts,
)
from adray.results.ranking import rank_trials
from adray.results.store import TrialRecord

if TYPE_CHECKING:
    import pandas as pd


def format_markdown(frame: pd.DataFrame, records: Sequence[TrialRecord]) -> str:
    """Format the ranking by image AUROC, and image AUROC by category, for each condition.

    Each setting of a configuration has its own row, and outdated trials are listed below.

    Args:
        frame: of `adray.results.leaderboard.table`.
        records: the trials.
    """
    names = conditions_of(frame["condition"]) or [PLAIN_LABEL]
    texts = []
    for name in names:
        of_name = [record for record in records if record.condition == name]
        text = _format_condition(frame[frame["condition"] == name], of_name)
        texts.append(text if len(names) == 1 else f"## {name}\n\n{text}")
    return "\n".join(texts)


def _format_condition(frame: pd.DataFrame, records: Sequence[TrialRecord]) -> str:
    """Format the trials of one condition, as `format_markdown` does."""
    done = frame[frame["status"] == "done"]
    ranked = rank_trials(done, "image_auroc", records).table
    lines = _ranking_lines(ranked)
    lines += ["", *_category_lines(by_setting(done), ranked["configuration"])]
    for note in drawn_notes(done):
        lines.append(f"\n{note}")
    for row in by_setting(frame[frame["status"] != "done"]).itertuples():
        cell = f"{row.dataset}/{row.category}/{row.configuration}"
        lines.append(f"\n{row.status}: {cell} seed {row.seed}: {_reason(row)}")
    return "\n".join(lines) + "\n"


def _ranking_lines(ranked: pd.DataFrame) -> list[str]:
    """Write a row per configuration, the best first."""
    lines = [
        "| configuration | group | image AUROC | 95 % interval | mean rank | finished |",
        "|---|---|---|---|---|---|",
    ]
    for row in ranked.itertuples():
        mean, low, high = number_texts((row.mean, row.low, row.high), "{:.4f}")
        (rank,) = number_texts([row.mean_rank], "{:.2f}")
        figures = f"{mean} | {low}-{high} | {rank} | {row.coverage}/{row.cells}"
        lines.append(f"| {row.configuration} | {row.group} | {figures} |")
    return lines


def _category_lines(done: pd.DataFrame, configurations: Iterable[str]) -> list[str]:
    """Write a row per configuration and a column per category, means over seeds.

    A figure of drawn defects says so, and is in no mean with one of test images.
    """
    import pandas as pd

    by_cell = done.assign(cell=done["dataset"] + "/" + done["category"], drawn=is_drawn(done))
    places = by_cell.groupby(["configuration", "cell"])
    all_drawn = places["drawn"].transform("all")
    compared = by_cell[all_drawn | ~by_cell["drawn"]].groupby(["configuration", "cell"])
    figures = compared.agg({"image_auroc": "mean", "drawn": "all"})
    numbers = pd.Series(number_texts(figures["image_auroc"], "{:.4f}"), figures.index, dtype=str)
    marks = figures["drawn"].map({True: " (drawn)", False: ""})
    texts = (numbers + marks).unstack(fill_value="n/a")

    heads = "".join(f" {_escaped(name)} |" for name in texts.columns)
    lines = [f"| configuration |{heads}", "|---" * (len(texts.columns) + 1) + "|"]
    for name in configurations:
        values = texts.loc[name] if name in texts.index else []
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    return lines


def _reason(row: Any) -> str:
    """Say why a trial counts nowhere, of an outdated one with what it had found."""
    if row.status != "outdated":
        return str(row.reason)
    (found,) = number_texts([row.image_auroc], "{:.4f}")
    return f"image AUROC {found}, but {row.reason}"


def _escaped(name: str) -> str:
    """Keep a bar in a name from ending its place in the table."""
    return name.replace("|", "\\|")
