"""`python -m adray diff STORE_A STORE_B`: which cells changed by more than noise, say after an upgrade.

A cell is a configuration on a category, with all seeds that both stores finished with equal hyperparameters. Its change
counts when neither of two things explains it: another draw of the seed (the spread over seeds in either store), nor
the few test images that happened to change places (DeLong's paired test). The larger of the two p values decides, and
Holm's method keeps the chance of any false alarm in the whole comparison at about 5 %.

Of a configuration that ran with one seed nobody knows what another seed would change. Its cells are judged by their
test images alone and marked, since a training that an upgrade merely shuffles looks like a change there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from adray.errors import InputError
from adray.files import canonical_hash
from adray.metrics import METRICS
from adray.results.statistics import ERROR, Difference, PairedScores, holm, mean_paired_difference
from adray.results.store import TrialRecord, read_store
from adray.results.trial_files import image_names, read_scores

if TYPE_CHECKING:
    import pandas as pd

ROW_COLUMNS = (
    "dataset", "category", "configuration", "seeds", "a", "b", "change", "seed_noise", "image_noise", "score_shift",
    "p_value", "p_adjusted", "verdict", "id_a", "id_b",
)  # fmt: skip
_MOST_WEIGHT = (
    8.0  # degrees of freedom of a prior: cells that look alike by chance shall not make it sure
)
_SHOWN = 20  # lines of a list before the rest is counted

CHANGED = "changed"
CHANGED_OR_SEED = "changed, or another seed"
ALARMS = (CHANGED, CHANGED_OR_SEED)
"""Verdicts of cells that changed; the second where only one seed ran, so that its noise is not known."""
Key = tuple[str, str, str, int]
"""Data set, category, configuration and seed."""
Pair = tuple[TrialRecord, TrialRecord]


class Lone(NamedTuple):
    """A finished trial without a finished partner in the other store; `alarm` where the partner failed."""

    store: str
    key: Key
    reason: str
    alarm: bool


@dataclass(frozen=True)
class StoreDiff:
    """What differs between two stores.

    Attributes:
        metric: what was compared.
        cells: a row per cell, the surest change first. ``a``, ``b``: means over the common seeds; ``seed_noise``,
            ``image_noise``: standard errors of the change that other seeds, and other test images, would explain, NaN
            where unknown; ``score_shift``: median move of a test image's score, in standard deviations of the normal
            ones; ``verdict``: one of `ALARMS`, ``same``, or why there is none.
        lone: finished trials without a partner.
        surroundings: versions, machines and inputs that differ, each with the number of trials.
    """

    metric: str
    cells: pd.DataFrame
    lone: list[Lone]
    surroundings: list[str]

    @property
    def has_changed(self) -> bool:
        """Whether a cell changed, or a trial that finished in one store failed in the other."""
        return bool(self.cells["verdict"].isin(ALARMS).any()) or any(
            lone.alarm for lone in self.lone
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print what changed between two stores."""
    parser = argparse.ArgumentParser(
        prog="python -m adray diff",
        description="Which cells changed from STORE_A to STORE_B by more than other seeds and other test images would "
        "explain: for upgrades of drivers and libraries. Run the same sweep into both, best with several seeds.",
        epilog="Exit code 0: nothing changed; 1: a cell changed, or a trial failed in one store only; 2: bad input.",
    )
    parser.add_argument("store_a", metavar="STORE_A", help="output_dir of the sweep before")
    parser.add_argument("store_b", metavar="STORE_B", help="output_dir of the sweep after")
    parser.add_argument(
        "--metric",
        choices=list(METRICS),
        default="image_auroc",
        help="others than image_auroc are judged by their spread over seeds alone (default: image_auroc)",
    )
    parser.add_argument(
        "--format", choices=("text", "csv", "json"), default="text", help="csv: the cells only"
    )
    parser.add_argument(
        "--all", action="store_true", help="in text, also the cells that did not change"
    )
    options = parser.parse_args(argv)
    difference = compare_stores(options.store_a, options.store_b, options.metric)
    if options.format == "csv":
        print(difference.cells.to_csv(index=False), end="")
    else:
        print(
            as_json(difference)
            if options.format == "json"
            else as_text(difference, everything=options.all)
        )
    return int(difference.has_changed)


def compare_stores(
    store_a: str | Path, store_b: str | Path, metric: str = "image_auroc"
) -> StoreDiff:
    """Match the trials of two stores and judge the changes.

    Raises:
        InputError: for a store that does not exist or holds no trials, and for stores without a common cell.
    """
    import pandas as pd

    records_a, records_b = _read_store(store_a), _read_store(store_b)
    pairs, lone = match(records_a, records_b)
    if not pairs and not any(one.alarm for one in lone):
        hint = f" ({lone[0].reason})" if lone else ""
        raise InputError(
            f"no finished trial of {store_a} has a partner in {store_b}{hint}; give the output_dirs of two runs of the "
            "same sweep"
        )
    cells = defaultdict(list)
    for pair in pairs:
        cells[_cell(pair[0])].append(pair)
    spread = SeedSpread([*records_a, *records_b], metric)
    rows = [_row(members, metric, spread) for members in cells.values()]
    frame = pd.DataFrame(rows, columns=list(ROW_COLUMNS)).astype(
        {"p_value": np.float64, "p_adjusted": np.float64}
    )
    frame["p_adjusted"] = holm(frame["p_value"].to_numpy())
    judged = frame["p_value"].notna()
    one_seed = frame.loc[judged, "seed_noise"].isna()
    told = np.where(one_seed, CHANGED_OR_SEED, CHANGED)
    frame.loc[judged, "verdict"] = np.where(frame.loc[judged, "p_adjusted"] < ERROR, told, "same")
    frame = frame.sort_values(
        ["p_value", "dataset", "category", "configuration"], ignore_index=True
    )
    return StoreDiff(metric, frame, lone, _surroundings(pairs))


def _read_store(store: str | Path) -> list[TrialRecord]:
    records = [record for record in read_store(store) if not record.searched]
    if not records:
        raise InputError(f"store {store} holds no trials; name the output_dir of a sweep")
    return records


# ---- which trials belong together ----


def match(
    records_a: Sequence[TrialRecord], records_b: Sequence[TrialRecord]
) -> tuple[list[Pair], list[Lone]]:
    """Finished trials of the same cell and seed whose hyperparameters agree, and those without a partner.

    Hyperparameters that only one of two versions of the program knows do not count.
    """
    by_key: dict[Key, tuple[list[TrialRecord], list[TrialRecord]]] = {}
    for side, records in enumerate((records_a, records_b)):
        for record in records:
            by_key.setdefault(_key(record), ([], []))[side].append(record)
    pairs, lone = [], []
    for key, (of_a, of_b) in sorted(by_key.items()):
        found = _match_cell(of_a, of_b)
        pairs += found
        for side, (own, others) in enumerate(((of_a, of_b), (of_b, of_a))):
            taken = {id(pair[side]) for pair in found}
            left = [record for record in own if record.status == "done" and id(record) not in taken]
            lone += [_lone("AB"[side], key, record, others) for record in left]
    return pairs, lone


def _match_cell(of_a: Sequence[TrialRecord], of_b: Sequence[TrialRecord]) -> list[Pair]:
    free = [record for record in of_b if record.status == "done"]
    pairs = []
    for a in sorted(
        (record for record in of_a if record.status == "done"),
        key=lambda record: record.trial["id"],
    ):
        fitting = [b for b in free if not _disagreements(a, b)]
        if fitting:
            b = min(
                fitting,
                key=lambda record: (record.trial["id"] != a.trial["id"], record.trial["id"]),
            )
            pairs.append((a, b))
            free.remove(b)
    return pairs


def _lone(store: str, key: Key, record: TrialRecord, others: Sequence[TrialRecord]) -> Lone:
    other = "B" if store == "A" else "A"
    for candidate in others:
        if (
            candidate.failure is not None
            and candidate.result is None
            and not _disagreements(record, candidate)
        ):
            return Lone(
                store, key, f"failed in {other}: {candidate.failure.get('reason', '')}", True
            )
    done = [candidate for candidate in others if candidate.status == "done"]
    closest = min((_disagreements(record, candidate) for candidate in done), key=len, default=[])
    if closest:
        return Lone(store, key, f"other hyperparameters in {other}: {', '.join(closest)}", False)
    return Lone(store, key, f"not finished in {other}", False)


def _key(record: TrialRecord) -> Key:
    identity = record.trial["identity"]
    return (
        "+".join(identity["datasets"]),
        "+".join(identity["categories"]),
        identity["configuration"],
        identity["seed"],
    )


def _hyperparameters(record: TrialRecord) -> dict[str, Any]:
    parts = {part: record.trial["identity"].get(part) or {} for part in ("model", "train")}
    return {
        f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()
    }


def _variant(record: TrialRecord) -> str:
    return canonical_hash(_hyperparameters(record))


def _disagreements(one: TrialRecord, other: TrialRecord) -> list[str]:
    mine, theirs = _hyperparameters(one), _hyperparameters(other)
    return [
        f"{k} {mine[k]} and {theirs[k]}"
        for k in sorted(mine.keys() & theirs.keys())
        if mine[k] != theirs[k]
    ]


# ---- what noise explains ----


class SeedSpread:
    """Standard deviation over seeds within a cell, of all trials of both stores.

    A few seeds of one cell say little, and cells differ: what is a point on one category is nothing on another. So each
    cell's variance is drawn towards that of its configuration, the less the more the cells differ; see `_prior`.
    """

    def __init__(self, records: Iterable[TrialRecord], metric: str) -> None:
        groups: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
        for record in records:
            value = _value(record, metric)
            if value is not None:
                groups[(str(record.folder.parent), *_cell(record))].setdefault(
                    _key(record)[3], value
                )
        self._own: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for (
            group,
            by_seed,
        ) in groups.items():  # within a store: an upgrade's own change is no spread
            values = np.array(list(by_seed.values()))
            own = self._own[group[1:]]
            own[0] += float(((values - values.mean()) ** 2).sum())
            own[1] += len(values) - 1
        by_configuration = defaultdict(list)
        for cell, own in self._own.items():
            by_configuration[cell[0]].append(own)
        self._priors = {name: _prior(np.array(found)) for name, found in by_configuration.items()}

    def of(self, pair: Pair) -> tuple[float, float]:
        """Standard deviation and degrees of freedom for the cell of a pair; (NaN, 0) where no cell has two seeds."""
        cells = {_cell(record) for record in pair}
        squares, freedom = np.sum([self._own.get(cell, [0.0, 0.0]) for cell in cells], axis=0)
        variance, weight, total = self._priors.get(_key(pair[0])[2], (math.nan, 0.0, 0.0))
        if not total:
            return math.nan, 0.0
        return math.sqrt((squares + weight * variance) / (freedom + weight)), min(
            freedom + weight, total
        )


def _prior(cells: np.ndarray) -> tuple[float, float, float]:
    """What the cells of a configuration say of one more cell.

    The variances of the cells are taken as draws from a scaled inverse chi-square distribution, which is fitted to the
    mean and the variance of their logarithms (G. K. Smyth, "Linear models and empirical Bayes methods", 2004, section
    6.2).

    Args:
        cells: (C, 2) sums of squares, and their degrees of freedom.

    Returns:
        The typical variance, the degrees of freedom that it counts as, and those of all cells together.
    """
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    total = float(cells[:, 1].sum())
    pooled = float(cells[:, 0].sum()) / total if total else math.nan
    squares, freedom = cells[(cells[:, 1] > 0) & (cells[:, 0] > 1e-18)].T
    if len(squares) < 2:
        return pooled, _MOST_WEIGHT, total
    logs = np.log(squares / freedom) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
    if excess <= polygamma(1, _MOST_WEIGHT / 2):
        return pooled, _MOST_WEIGHT, total
    half = float(brentq(lambda value: polygamma(1, value) - excess, 1e-4, _MOST_WEIGHT / 2))
    return math.exp(float(logs.mean()) + float(digamma(half)) - math.log(half)), 2 * half, total


def _cell(record: TrialRecord) -> tuple[str, ...]:
    """The same for trials that differ in their seed alone."""
    dataset, category, configuration, _ = _key(record)
    return configuration, dataset, category, _variant(record)


def _value(record: TrialRecord, metric: str) -> float | None:
    value = (record.result or {}).get("metrics", {}).get(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def _row(pairs: Sequence[Pair], metric: str, spread: SeedSpread) -> dict[str, Any]:
    """One cell of the result; p is NaN where there is no verdict, and the verdict then says why."""
    dataset, category, configuration, _ = _key(pairs[0][0])
    row = {
        "dataset": dataset,
        "category": category,
        "configuration": configuration,
        "seeds": " ".join(str(_key(a)[3]) for a, _ in pairs),
        "id_a": pairs[0][0].id8,
        "id_b": pairs[0][1].id8,
        **dict.fromkeys(
            ("a", "b", "change", "seed_noise", "image_noise", "score_shift", "p_value"), math.nan
        ),
    }
    values = [(_value(a, metric), _value(b, metric)) for a, b in pairs]
    if any(a is None or b is None for a, b in values):
        return row | {"verdict": f"not compared: no {metric}"}
    before, after = np.mean(np.array(values, dtype=np.float64), axis=0)
    row |= {"a": before, "b": after, "change": after - before}
    scores = [_paired_scores(pair) for pair in pairs]
    if any(isinstance(paired, str) for paired in scores):
        return row | {"verdict": next(paired for paired in scores if isinstance(paired, str))}
    known = [paired for paired in scores if isinstance(paired, PairedScores)]
    images = (
        mean_paired_difference(known)
        if len(known) == len(pairs) and metric == "image_auroc"
        else None
    )
    return (
        row
        | {"score_shift": _score_shift(known)}
        | _judge(after - before, len(pairs), spread.of(pairs[0]), images)
    )


def _judge(
    change: float, seeds: int, spread: tuple[float, float], images: Difference | None
) -> dict[str, Any]:
    """The two noises, the larger p value, and what to say where there is none."""
    from scipy.special import stdtr

    deviation, freedom = spread
    noise = deviation * math.sqrt(2 / seeds)  # of the difference of two means over seeds
    p_values = [] if images is None else [images.p_value]
    if freedom:
        unexplained = abs(change) > 1e-12
        p_values.append(
            2 * float(stdtr(freedom, -abs(change) / noise)) if noise > 0 else float(not unexplained)
        )
    image_noise = math.nan if images is None else images.standard_error
    p_value = max(p_values, default=1.0 if change == 0 else math.nan)
    verdict = "no measure of noise: run several seeds"
    return {"seed_noise": noise, "image_noise": image_noise, "p_value": p_value, "verdict": verdict}


def _paired_scores(pair: Pair) -> PairedScores | str | None:
    """Scores of b and a on the same images; None where a file is missing, a sentence for other test images."""
    a, b = (_test_scores(record.folder) for record in pair)
    if a is None or b is None:
        return None
    if not a.index.equals(b.index) or not np.array_equal(a["label"], b["label"]):
        return "not compared: other test images"
    if not (np.isfinite(a["pred_score"]).all() and np.isfinite(b["pred_score"]).all()):
        return "not compared: scores are NaN or infinite"
    return PairedScores(
        b["pred_score"].to_numpy(), a["pred_score"].to_numpy(), a["label"].to_numpy(), a.index
    )


def _test_scores(folder: Path) -> pd.DataFrame | None:
    """`label` and `pred_score` by test image."""
    scores = read_scores(folder)
    rows = None if scores is None else scores[scores["split"] == "test"]
    if rows is None or rows.empty:
        return None
    names = (
        rows["dataset"].astype(str)
        + "/"
        + rows["category"].astype(str)
        + "/"
        + image_names(rows["path"])
    )
    return rows.set_index(names)[["label", "pred_score"]].sort_index()


def _score_shift(seeds: Sequence[PairedScores]) -> float:
    shifts = []
    for pair in seeds:
        moved = float(np.median(np.abs(pair.scores_a - pair.scores_b)))
        spread = (
            float(np.std(pair.scores_b[np.asarray(pair.labels) == 0]))
            if (pair.labels == 0).any()
            else 0.0
        )
        shifts.append(moved / spread if spread else (0.0 if moved == 0 else math.inf))
    return float(np.mean(shifts)) if shifts else math.nan


def _surroundings(pairs: Sequence[Pair]) -> list[str]:
    """Versions, machines, weights and data that differ, the most frequent first."""
    counts = Counter(change for pair in pairs for change in _changes(*pair))
    return [
        f"{change} ({count} {'trial' if count == 1 else 'trials'})"
        for change, count in counts.most_common()
    ]


def _changes(a: TrialRecord, b: TrialRecord) -> list[str]:
    found = []
    for name, (before, after) in _both(
        a.trial.get("environment", {}), b.trial.get("environment", {})
    ).items():
        found.append(f"{name} {before} -> {after}")
    of_a, of_b = a.trial["identity"], b.trial["identity"]
    for name, (before, after) in _both(of_a.get("versions", {}), of_b.get("versions", {})).items():
        what = f"results of {of_a['configuration']}" if name == "model" else f"{name} of adray"
        found.append(f"version of the {what} {before} -> {after}")
    for name, (before, after) in _both(of_a.get("weights", {}), of_b.get("weights", {})).items():
        found.append(f"weights {name} {str(before)[:8]} -> {str(after)[:8]}")
    if of_a.get("data") != of_b.get("data"):
        found.append("images of the data set")
    return found


def _both(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*before, *(name for name in after if name not in before)]
    pairs = {name: (before.get(name, "none"), after.get(name, "none")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# ---- how it is shown ----


def as_text(difference: StoreDiff, *, everything: bool = False) -> str:
    """For a terminal: what differs around the trials, the cells that changed, and what could not be compared."""
    cells = difference.cells
    counts = Counter(cells["verdict"])
    changed, same = counts.pop(CHANGED, 0), counts.pop("same", 0)
    lines = [
        f"{difference.metric}: {len(cells)} cells in both stores, {changed} changed, {same} did not"
        + "".join(f", {count} {verdict}" for verdict, count in counts.items())
    ]
    lines += (
        ["", "Around them:", *_listed(difference.surroundings, everything)]
        if difference.surroundings
        else []
    )
    shown = cells if everything else cells[cells["verdict"].isin(ALARMS)]
    if len(shown):
        lines += ["", _table(shown)]
    if (cells["verdict"] == CHANGED_OR_SEED).any():
        lines += [
            "",
            "Run several seeds in one of the stores to tell a change from what another seed does anyway.",
        ]
    for title, alarm in (("Failed in one store only:", True), ("In one store only:", False)):
        found = [_lone_line(one) for one in difference.lone if one.alarm == alarm]
        lines += ["", title, *_listed(found, everything)] if found else []
    return "\n".join(lines)


def _table(cells: pd.DataFrame) -> str:
    shown = cells[["dataset", "category", "configuration", "seeds"]].copy()
    for name, pattern in {
        "a": "{:.4f}",
        "b": "{:.4f}",
        "change": "{:+.4f}",
        "seed_noise": "{:.4f}",
        "image_noise": "{:.4f}",
        "score_shift": "{:.2g}",
        "p_adjusted": "{:.2g}",
    }.items():
        shown[name.replace("_", " ")] = [
            pattern.format(v) if v == v else "n/a" for v in cells[name]
        ]
    return shown.assign(verdict=cells["verdict"]).to_string(index=False)


def _lone_line(one: Lone) -> str:
    dataset, category, configuration, seed = one.key
    return f"{one.store}: {dataset}/{category}/{configuration} seed {seed}: {one.reason}"


def _listed(lines: Sequence[str], everything: bool) -> list[str]:
    shown = [f"  {line}" for line in (lines if everything else lines[:_SHOWN])]
    return shown + (
        [f"  ... and {len(lines) - _SHOWN} more; --all shows them"]
        if len(lines) > len(shown)
        else []
    )


def as_json(difference: StoreDiff) -> str:
    """All of it, for a program."""
    cells = [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in difference.cells.to_dict("records")
    ]
    found = {
        "metric": difference.metric,
        "changed": difference.has_changed,
        "surroundings": difference.surroundings,
        "cells": cells,
        "lone": [
            dict(zip(("dataset", "category", "configuration", "seed"), one.key, strict=True))
            | {"store": one.store, "reason": one.reason, "alarm": one.alarm}
            for one in difference.lone
        ],
    }
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
