"""Which cells changed from one store to another by more than noise.

This is for upgrades of drivers and libraries. A cell is a configuration on a category, with all
seeds that both stores finished with equal hyperparameters. Its change counts when neither of two
things explains it: another draw of the seed (the spread over seeds in either store), nor the few
test images that happened to change places (DeLong's paired test). The larger of the two p values
decides, and Holm's method keeps the chance of any false alarm in the whole comparison at about 5 %.

Of a configuration that ran with one seed nobody knows what another seed would change. Its cells are
judged by their test images alone and marked, since a training that an upgrade merely shuffles looks
like a change there.

Trials of other images are not compared: their figures stand beside each other without a verdict.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.results.current import StoreView, data_of, mark_settings, view_store
from adray.results.image_statistics import (
    ERROR,
    Difference,
    PairedScores,
    holm,
    mean_paired_difference,
)
from adray.results.leaderboard import trial_row
from adray.results.pairing import Cell, Key, Pair, Unpaired, alarms_of, match
from adray.results.seed_noise import SeedSpread, Spread, metric_value
from adray.results.store import TrialRecord, counted_of, tested_of
from adray.results.trial_files import image_names, read_scores

if TYPE_CHECKING:
    import pandas as pd

CHANGED = "changed"
CHANGED_OR_SEED = "changed, or another seed"
ALARMS = (CHANGED, CHANGED_OR_SEED)
"""Verdicts of cells that changed; the second where only one seed ran, so that its noise is not
known."""


@dataclass(frozen=True)
class CellChange:
    """How one cell changed from store A to store B; a column of the output per field."""

    dataset: str
    """Data set, or several joined by +."""
    category: str
    """Category, or several joined by +."""
    configuration: str
    """Named row of the registry, with its setting where a cell has several."""
    seeds: str
    """The common seeds, with spaces between."""
    a: float = math.nan
    """Mean over the common seeds in store A."""
    b: float = math.nan
    """Mean over the common seeds in store B."""
    change: float = math.nan
    """b minus a."""
    seed_noise: float = math.nan
    """Standard error of the change that other seeds would explain; NaN where unknown."""
    image_noise: float = math.nan
    """Standard error of the change that other test images would explain; NaN where unknown."""
    score_shift: float = math.nan
    """Median move of a test image's score, in standard deviations of the normal ones."""
    p_value: float = math.nan
    """Of the hypothesis that noise explains the change; NaN where there is no measure of noise."""
    p_adjusted: float = math.nan
    """The same for all cells together."""
    verdict: str = ""
    """One of `ALARMS`, ``same``, or why there is none."""
    id_a: str = ""
    """First digits of the id of the first seed's trial in store A."""
    id_b: str = ""
    """First digits of the id of the first seed's trial in store B."""


@dataclass(frozen=True)
class StoreDiff:
    """What differs between two stores."""

    metric: str
    """The metric that was compared."""
    cells: pd.DataFrame
    """A row per cell, the surest change first, with the fields of `CellChange` as columns."""
    unpaired: list[Unpaired]
    """Finished trials without a partner."""
    outdated: list[Unpaired]
    """Those without one whose images have changed since within their store."""
    surroundings: list[str]
    """Versions, machines and inputs that differ, each with the number of trials."""
    notes: list[str]
    """What of either store is not compared, a sentence each."""

    @property
    def has_changed(self) -> bool:
        """Tell whether a cell changed, or a trial failed in one store only."""
        is_alarm = self.cells["verdict"].isin(ALARMS)
        return bool(is_alarm.any()) or bool(alarms_of(self.unpaired))


def compare_stores(
    store_a: str | Path,
    store_b: str | Path,
    metric: str = "image_auroc",
    *,
    everything: bool = False,
) -> StoreDiff:
    """Match the trials of two stores and judge the changes.

    Args:
        store_a: the output_dir before.
        store_b: the output_dir after.
        metric: a name of `adray.metrics.METRICS`.
        everything: compare trials of older settings too, where later ones of their cells count.

    Raises:
        InputError: for a store that does not exist or holds no trials, and for stores without a
            common cell.
    """
    # What the folders of the data sets hold by now does not matter here.
    view_a = view_store(store_a)
    view_b = view_store(store_b)
    records_a = _compared(view_a, store_a, everything)
    records_b = _compared(view_b, store_b, everything)
    matched = match(records_a, records_b)
    if not matched.pairs and not alarms_of(matched.unpaired):
        hint = f" ({matched.unpaired[0].reason})" if matched.unpaired else ""
        raise InputError(
            Sentence.of("diff no partner", store_a=str(store_a), store_b=str(store_b), hint=hint)
        )

    # A cell is judged once, by all its seeds; those on other images are another question.
    cells = defaultdict(list)
    for pair in matched.pairs:
        cells[Cell.of(pair[0]), _has_same_data(pair)].append(pair)
    spread = SeedSpread(counted_of((*records_a, *records_b)), metric)
    changes = [_change_of(pairs, metric, spread) for pairs in cells.values()]
    frame = _frame(_with_verdicts(changes))
    surroundings = _surroundings(matched.pairs)
    notes = [*_notes_on("A", view_a, everything), *_notes_on("B", view_b, everything)]
    return StoreDiff(metric, frame, matched.unpaired, matched.outdated, surroundings, notes)


def _compared(view: StoreView, store: str | Path, everything: bool) -> list[TrialRecord]:
    """Choose the trials of a store that are judged by test images.

    Raises:
        InputError: where there are none.
    """
    records = tested_of(mark_settings(view.records))
    if not records:
        key = "diff only drawn" if view.records else "diff no trials"
        raise InputError(Sentence.of(key, store=str(store)))
    if everything:
        return [replace(record, superseded="") for record in records]
    return records


def _notes_on(name: str, view: StoreView, everything: bool) -> list[str]:
    """Say what of a store is not compared. Outdated trials have a list of their own."""
    older = sum(bool(record.superseded) for record in view.records)
    notes = []
    if older and not everything:
        notes.append(f"{name}: {older} trials of older settings; --all compares them too")
    for folder in view.unread:
        notes.append(f"{name}: {folder.folder} is not read: {folder.reason}")
    return notes


def _has_same_data(pair: Pair) -> bool:
    """Tell whether both trials saw the same images."""
    return data_of(pair[0]) == data_of(pair[1])


def _with_verdicts(changes: Sequence[CellChange]) -> list[CellChange]:
    """Adjust the p values for their number, and judge the cells that have one."""
    adjusted = holm(np.array([change.p_value for change in changes]))
    judged = []
    for change, p_adjusted in zip(changes, adjusted.tolist(), strict=True):
        verdict = change.verdict
        if not math.isnan(change.p_value):
            alarm = CHANGED_OR_SEED if math.isnan(change.seed_noise) else CHANGED
            verdict = alarm if p_adjusted < ERROR else "same"
        judged.append(replace(change, p_adjusted=p_adjusted, verdict=verdict))
    return judged


def _frame(changes: Sequence[CellChange]) -> pd.DataFrame:
    """Put the cells in order, the surest change first."""
    import pandas as pd

    columns = [field.name for field in fields(CellChange)]
    frame = pd.DataFrame(changes, columns=columns)
    frame = frame.astype({"p_value": np.float64, "p_adjusted": np.float64})
    order = ["p_value", "dataset", "category", "configuration"]
    return frame.sort_values(order, ignore_index=True)


# One cell


class _NotComparedError(Exception):
    """Why a cell has no verdict."""


def _change_of(pairs: Sequence[Pair], metric: str, spread: SeedSpread) -> CellChange:
    """Measure the change of a cell and the noise, or say in its verdict why that cannot be."""
    first_a, first_b = pairs[0]
    key = Key.of(first_a)
    cell = CellChange(
        dataset=key.dataset,
        category=key.category,
        configuration=trial_row(first_a).name,
        seeds=" ".join(str(Key.of(a).seed) for a, _ in pairs),
        id_a=first_a.id8,
        id_b=first_b.id8,
    )

    try:
        before, after = _mean_values(pairs, metric)
        cell = replace(cell, a=before, b=after, change=after - before)
        if not all(map(_has_same_data, pairs)):
            raise _NotComparedError("the images have changed")
        scores = list(map(_paired_scores, pairs))
    except _NotComparedError as reason:
        return replace(cell, verdict=f"not compared: {reason}")

    # An image has a score, which decides image AUROC and says nothing of metrics by pixel.
    known = [paired for paired in scores if paired is not None]
    cell = replace(cell, score_shift=_score_shift(known))
    images = None
    if metric == "image_auroc" and len(known) == len(pairs):
        images = mean_paired_difference(known)
    return _with_noise(cell, len(pairs), spread.of(pairs[0]), images)


def _mean_values(pairs: Sequence[Pair], metric: str) -> tuple[float, float]:
    """Average the metric over the seeds, before and after."""
    values = []
    for a, b in pairs:
        before = metric_value(a, metric)
        after = metric_value(b, metric)
        if before is None or after is None:
            raise _NotComparedError(f"no {metric}")
        values.append((before, after))
    means = np.mean(np.array(values), axis=0)
    return float(means[0]), float(means[1])


def _with_noise(
    cell: CellChange, seeds: int, spread: Spread, images: Difference | None
) -> CellChange:
    """Give a cell both noises and the larger p value, or say that nothing measures its noise."""
    from scipy.special import stdtr

    p_values = []
    if images is not None:
        p_values.append(images.p_value)

    # The change is a difference of two means over seeds.
    seed_noise = spread.deviation * math.sqrt(2 / seeds)
    if spread.freedom and seed_noise > 0:
        p_values.append(2 * float(stdtr(spread.freedom, -abs(cell.change) / seed_noise)))
    elif spread.freedom:
        p_values.append(1.0 if abs(cell.change) <= 1e-12 else 0.0)

    return replace(
        cell,
        seed_noise=seed_noise,
        image_noise=math.nan if images is None else images.standard_error,
        p_value=max(p_values, default=1.0 if cell.change == 0 else math.nan),
        verdict="no measure of noise: run several seeds",
    )


def _paired_scores(pair: Pair) -> PairedScores | None:
    """Read the scores of b and a on the same images, None where a file is missing."""
    a = _test_scores(pair[0].folder)
    b = _test_scores(pair[1].folder)
    if a is None or b is None:
        return None
    if not a.index.equals(b.index) or not np.array_equal(a["label"], b["label"]):
        raise _NotComparedError("other test images")
    if not (np.isfinite(a["pred_score"]).all() and np.isfinite(b["pred_score"]).all()):
        raise _NotComparedError("scores are NaN or infinite")

    # A difference of these is b minus a, as the change is.
    return PairedScores(
        scores_a=b["pred_score"].to_numpy(),
        scores_b=a["pred_score"].to_numpy(),
        labels=a["label"].to_numpy(),
        images=a.index,
    )


def _test_scores(folder: Path) -> pd.DataFrame | None:
    """Read `label` and `pred_score` by test image."""
    scores = read_scores(folder)
    rows = None if scores is None else scores[scores["split"] == "test"]
    if rows is None or rows.empty:
        return None
    category = rows["dataset"].astype(str) + "/" + rows["category"].astype(str)
    names = category + "/" + image_names(rows["path"])
    return rows.set_index(names)[["label", "pred_score"]].sort_index()


def _score_shift(seeds: Sequence[PairedScores]) -> float:
    """Average over seeds how far a score moved, in deviations of the normal images of store A."""
    shifts = []
    for pair in seeds:
        moved = float(np.median(np.abs(pair.scores_a - pair.scores_b)))
        normal = pair.scores_b[pair.labels == 0]
        spread = float(np.std(normal)) if len(normal) else 0.0
        if spread:
            shifts.append(moved / spread)
        else:
            shifts.append(0.0 if moved == 0 else math.inf)
    return float(np.mean(shifts)) if shifts else math.nan


# What differs around the trials


def _surroundings(pairs: Sequence[Pair]) -> list[str]:
    """Count the versions, machines, weights and data that differ, the most frequent first."""
    counts: Counter[str] = Counter()
    for a, b in pairs:
        counts.update(_surrounding_changes(a, b))

    lines = []
    for change, count in counts.most_common():
        lines.append(f"{change} ({count} {'trial' if count == 1 else 'trials'})")
    return lines


def _surrounding_changes(a: TrialRecord, b: TrialRecord) -> list[str]:
    """Say what differs between two trials beside their figures."""
    found = []
    environments = (a.trial.get("environment", {}), b.trial.get("environment", {}))
    for name, before, after in _differing(*environments):
        found.append(f"{name} {before} -> {after}")

    of_a = a.identity
    of_b = b.identity
    for name, before, after in _differing(of_a.get("versions", {}), of_b.get("versions", {})):
        what = f"results of {of_a['configuration']}" if name == "model" else f"{name} of adray"
        found.append(f"version of the {what} {before} -> {after}")
    for name, before, after in _differing(of_a.get("weights", {}), of_b.get("weights", {})):
        found.append(f"weights {name} {str(before)[:8]} -> {str(after)[:8]}")
    if of_a.get("data") != of_b.get("data"):
        found.append("images of the data set")
    return found


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """List names whose values differ, with both values, where ``none`` is one that is missing."""
    found = []
    for name in dict.fromkeys((*before, *after)):
        values = (before.get(name, "none"), after.get(name, "none"))
        if values[0] != values[1]:
            found.append((name, *values))
    return found
