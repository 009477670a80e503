"""What came out of a search: the best setting, its gain, and a file that runs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from adray.config import SearchConfig, SweepConfig, to_plain
from adray.data.base import SYNTHETIC
from adray.files import atomic_path
from adray.job import Job
from adray.language.catalogue import Catalogue, load_catalogue
from adray.language.sentence import Sentence
from adray.metrics import METRICS
from adray.registry import ModelRegistry, Resolved
from adray.results.image_units import image_units
from adray.results.search_gain import CellScores, Gain, search_gain
from adray.results.store import read_trial
from adray.results.trial_files import read_scores
from adray.search_space import with_values
from adray.settings import Settings
from adray.types import Json

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Tried:
    """One setting of a search; the first of a search are the defaults."""

    values: Json
    """Dotted name to value."""
    folders: list[Path] = field(default_factory=list)
    """Of its trials, one per cell, as far as they were planned."""
    status: str = "waiting"
    """``waiting``, ``done``, ``failed``, or ``stopped`` by the scheduler."""
    reason: str = ""
    """Why it failed."""
    score: float | None = None
    """Mean of the metric over all cells, higher is better; None unless done."""


@dataclass(frozen=True)
class Tries:
    """What a search has tried so far, and what it is judged by."""

    config: SweepConfig
    """The sweep, with its `search`."""
    settings: Settings
    """Paths and limits, absolute."""
    base: Resolved
    """The configuration with the sweep's overrides, before any setting."""
    how: SearchConfig
    """How it searches."""
    cells: Sequence[Job]
    """One job with the defaults for each category and seed that the search looks at."""
    stages: Sequence[int]
    """How many cells a setting has run on before settings that fall behind are stopped; the last
    is all of them."""
    settings_tried: Sequence[Tried]
    """The settings in the order in which they were tried, the defaults first."""

    @property
    def configuration(self) -> str:
        """Name the configuration as the registry does."""
        return self.base.spec.name

    @property
    def ended(self) -> list[Tried]:
        """List the settings that were tried to an end, whatever came of them."""
        return [tried for tried in self.settings_tried if tried.status != "waiting"]

    @property
    def leaky(self) -> bool:
        """Tell whether the search chooses by the images that later judge."""
        return self.how.objective == "test"

    @property
    def chosen_by_calibration(self) -> bool:
        """Tell whether the search chooses by the held-out normals that calibrate its trials."""
        return self.how.objective == SYNTHETIC

    @property
    def defaults(self) -> Tried:
        """Give the setting with the configuration's own values."""
        return self.settings_tried[0]

    @property
    def done(self) -> list[Tried]:
        """List the settings that have a score."""
        return [tried for tried in self.settings_tried if tried.score is not None]


def mean_metric(tried: Tried, cells: int, metric: str) -> float:
    """Average a metric over the first cells of a setting, so that higher is better.

    Returns:
        The mean, minus infinity where a cell has none.
    """
    values = []
    for folder in tried.folders[:cells]:
        record = read_trial(folder)
        if record is not None and record.result is not None:
            values.append(record.result.get("metrics", {}).get(metric))
    if len(values) < cells or any(value is None for value in values):
        return -math.inf
    sign = 1 if METRICS[metric].higher_is_better else -1
    return sign * float(np.mean(values))


def best_of(tries: Tries) -> Tried | None:
    """Find the setting with the highest score.

    Of equal ones the first, which may be the defaults.
    """
    best = None
    highest = -math.inf
    for tried in tries.settings_tried:
        if tried.score is not None and tried.score > highest:
            best = tried
            highest = tried.score
    return best


# The gain


def gain_of(tries: Tries) -> Gain | None:
    """Measure the gain over the defaults, see `search_gain`.

    Returns:
        None for other metrics than image AUROC, and where there are too few images.
    """
    done = tries.done
    if tries.how.metric != "image_auroc" or len(done) < 2 or tries.defaults not in done:
        return None

    judging = _unseen(tries) or range(len(tries.cells))
    of_cells = []
    for i in judging:
        tables = _cell_tables([tried.folders[i] for tried in done])
        if tables is None:
            return None
        of_cells.append(tables)
    return search_gain(_cell_scores(of_cells), 0, tries.how.seed)


def _unseen(tries: Tries) -> list[int]:
    """List the cells whose images stopped no setting.

    Who got through looks too good on the others.
    """
    has_stopped = any(tried.status == "stopped" for tried in tries.settings_tried)
    looked_at = tries.stages[-2] if len(tries.stages) > 1 and has_stopped else 0
    seen = {(job.datasets, job.categories) for job in tries.cells[:looked_at]}
    return [i for i, job in enumerate(tries.cells) if (job.datasets, job.categories) not in seen]


def _cell_tables(folders: Sequence[Path]) -> list[pd.DataFrame] | None:
    """Read the scores of all tries on the images that the objective looked at.

    None where files are missing or differ.

    Args:
        folders: one trial per try.
    """
    tables: list[pd.DataFrame] = []
    for folder in folders:
        table = _objective_rows(folder)
        if table is None or (tables and not table["path"].equals(tables[0]["path"])):
            return None
        tables.append(table)
    return tables


def _cell_scores(of_cells: Sequence[Sequence[pd.DataFrame]]) -> list[CellScores]:
    """Put the scores of each cell together, with the units of images that all cells share.

    Args:
        of_cells: for each cell one table per try, of the same images.
    """
    import pandas as pd

    firsts = [tables[0] for tables in of_cells]
    units = image_units(pd.concat(firsts, ignore_index=True))
    ends = np.cumsum([len(first) for first in firsts])

    cells = []
    for tables, unit in zip(of_cells, np.split(units, ends[:-1]), strict=True):
        scores = np.stack([table["pred_score"].to_numpy() for table in tables])
        cells.append(CellScores(scores, tables[0]["label"].to_numpy(), unit))
    return cells


def _objective_rows(folder: Path) -> pd.DataFrame | None:
    """Read the scores that a search looks at: on synthetic defects if any, else on the test set."""
    scores = read_scores(folder)
    if scores is None:
        return None
    has_synthetic = (scores["split"] == "synthetic").any()
    splits = ["synthetic", "holdout"] if has_synthetic else ["test"]
    return scores[scores["split"].isin(splits)].sort_values("path", ignore_index=True)


# What is said and written


def summary_of(tries: Tries) -> Json:
    """Give what the report shows, see `adray.results.report.report_data`. JSON."""
    best = best_of(tries) or tries.defaults
    gain = gain_of(tries)
    return {
        "configuration": tries.configuration,
        "objective": tries.how.objective,
        "leaky": tries.leaky,
        "metric": tries.how.metric,
        "num_trials": len(tries.ended),
        "best": best.values,
        "defaults": tries.defaults.values,
        "best_score": best.score,
        "default_score": tries.defaults.score,
        "gain": gain.value if gain else None,
        "low": gain.low if gain else None,
        "high": gain.high if gain else None,
        "note": _note(tries, gain),
        "trials": [_row(tried) for tried in tries.ended],
    }


def _row(tried: Tried) -> Json:
    """Give one setting as the report shows it. JSON."""
    return {
        "id": tried.folders[0].name if tried.folders else "",
        "values": tried.values,
        "score": tried.score,
        "status": tried.status,
        "reason": tried.reason,
    }


def _note(tries: Tries, gain: Gain | None) -> Sentence | None:
    """Say what has to be known of the gain."""
    if gain is None:
        return Sentence.of("search note no gain")
    return None if _unseen(tries) else Sentence.of("search note stopped")


def values_text(values: Json, defaults: Json) -> str:
    """Write what a setting changes of the defaults, empty for the defaults themselves."""
    changed = [f"{name}={value}" for name, value in values.items() if value != defaults[name]]
    return ", ".join(changed)


def write_winner(tries: Tries, folder: Path, say: Catalogue) -> bool:
    """Say what came out and write the winner as a sweep's file.

    Args:
        tries: of the search.
        folder: of the file.
        say: the sentences of the reader's language.

    Returns:
        Whether a setting has a score.
    """
    best = best_of(tries)
    name = tries.configuration
    if best is None:
        print(say("search no score", name=name, reason=tries.defaults.reason))
        return False

    figures = _figures(tries, say)
    values = values_text(best.values, tries.defaults.values) or say("search defaults")
    print(say("search best", name=name, values=values, figures=figures))

    with atomic_path(folder / f"best_{tries.configuration}.yaml") as temporary:
        temporary.write_text(_winner_file(tries, best), encoding="utf-8")
    return True


def _winner_file(tries: Tries, best: Tried) -> str:
    """Write a file with which a normal sweep trains just as the best setting did."""
    name = tries.configuration
    plain = to_plain(tries.config)
    del plain["search"]
    plain["name"] = f"{tries.config.name}_best_{name}"
    plain["settings"] = to_plain(tries.settings)
    plain["overrides"] = {name: _overrides_of(tries, best)}
    plain["grid"]["models"] = [name]
    if tries.how.categories:  # those chose, the others judge
        plain["grid"]["exclude"] += [{"categories": list(tries.how.categories)}]

    count = len(tries.ended)
    if tries.chosen_by_calibration:
        plain["verdict"]["tried"] = count
    figures = _figures(tries, load_catalogue("en"))
    lines = [
        f"# Best of {count} settings of {name}, search {tries.config.name}.",
        f"# objective: {tries.how.objective}, {figures}",
    ]
    if tries.chosen_by_calibration:
        lines.append(
            f"# The held-out normals chose among these {count}, and calibrate too (verdict.tried)."
        )
    if tries.leaky:
        lines.append(
            "# LEAKY: chosen on the test set, so what this sweep reports on it is too good."
        )
    return "\n".join(lines) + "\n" + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _overrides_of(tries: Tries, best: Tried) -> Json:
    """Give the overrides that make a configuration the best setting. JSON.

    They hold what differs from the configuration's own values, and what the search's file says of
    it in any of its entries: which of these wins is settled here.
    """
    config = tries.config
    own = ModelRegistry.resolve(tries.configuration, budget=config.budget, weights=config.weights)
    wanted = with_values(tries.base, best.values)
    sections = {
        "train": (to_plain(own.train_config), to_plain(wanted.train_config)),
        "model": (to_plain(own.config), to_plain(wanted.config)),
    }

    overrides = {}
    for section, (before, now) in sections.items():
        said = _said(config, tries.configuration, section)
        values = {key: value for key, value in now.items() if key in said or value != before[key]}
        # Epochs that are given alone would take the steps away.
        if "num_epochs" in values:
            values["max_steps"] = now["max_steps"]
        if values:
            overrides[section] = values
    return overrides


def _said(config: SweepConfig, configuration: str, section: str) -> set[str]:
    """Name the fields that a sweep's overrides set of a configuration."""
    said: set[str] = set()
    for pattern, changes in config.overrides.items():
        if ModelRegistry.matches(pattern, configuration):
            said |= set(changes.get(section, {}))
    return said


def _figures(tries: Tries, say: Catalogue) -> str:
    """Print the score against the defaults', and the gain with its spread.

    Where the defaults are the best there is neither.
    """
    found = summary_of(tries)
    drawn = tries.how.objective == SYNTHETIC
    metric = say("search metric drawn", metric=tries.how.metric) if drawn else tries.how.metric
    default = _four_digits(found["default_score"])
    if best_of(tries) is tries.defaults:
        return say("search kept", metric=metric, score=default)

    best = _four_digits(found["best_score"])
    parts = [say("search scores", metric=metric, default=default, best=best)]
    if found["gain"] is not None:
        ends = {"low": f"{found['low']:+.4f}", "high": f"{found['high']:+.4f}"}
        key = "search gain unsure" if found["low"] <= 0 else "search gain"
        parts.append(say(key, gain=f"{found['gain']:+.4f}", **ends))
        if found["note"] is not None:
            parts.append(found["note"].text(say))
    if tries.leaky:
        parts.append(say("search leaky"))
    return "; ".join(parts)


def _four_digits(score: float | None) -> str:
    return "n/a" if score is None else f"{score:.4f}"
