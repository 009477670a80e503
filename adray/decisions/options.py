"""From the trials of a part to the candidates for it, with what they find, promise and cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter

import numpy as np

from adray.conditions import PLAIN_LABEL, Corruption
from adray.decisions.decision import (
    Excess,
    LeftOut,
    Option,
    TypeCount,
    Verdicts,
    Wishes,
    WorstCase,
)
from adray.language.sentence import Sentence
from adray.results.contest import Figure, Judged, RankFigure, RateFigure, WorstFigure
from adray.results.corrupted_scores import CorruptedScores, read_corrupted, stored_corruptions
from adray.results.leaderboard import trial_row
from adray.results.measurements import Cost, trial_cost
from adray.results.pairing import Cell
from adray.results.store import TrialRecord
from adray.results.trial_files import (
    JudgedImages,
    find_checkpoint,
    folder_to_deploy,
    image_names,
    read_judged_images,
)
from adray.thresholds import FALSE_ALARMS, PROMISE, Promise, make_promise
from adray.types import Json

Part = tuple[str, str]
"""Names of the data set and of the category."""
NO_COST = Cost(None, None)
"""Of what nobody has measured."""


def part_of(record: TrialRecord) -> Part:
    """Name the part that a trial is of."""
    return record.dataset, record.category


# Candidates


@dataclass(frozen=True)
class _Trial:
    """One trial, with what judges it."""

    record: TrialRecord
    """The trial."""
    judged: Judged
    """Its figure, and the images behind it."""
    images: JudgedImages
    """What it says of them."""
    promise: Promise
    """Of its threshold."""
    worst: WorstCase | None = None
    """Under what that is lowest; None where the images as they are judge it."""


@dataclass(frozen=True)
class Candidate:
    """A model: the trials of one setting, and the option that it makes."""

    trials: tuple[_Trial, ...]
    """By seed, at least one."""
    option: Option
    """Without what a contest says."""


def candidates_of(
    records: Sequence[TrialRecord], wishes: Wishes, costs: Costs
) -> tuple[list[Candidate], list[LeftOut]]:
    """Make a candidate of each setting, and say of the others why they are none."""
    by_setting: dict[Cell, list[TrialRecord]] = defaultdict(list)
    for record in records:
        by_setting[costs.cell_of(record)].append(record)

    names = _Names()
    tried = _tried_together(records, wishes)
    corruptions = _shared_corruptions(records) if wishes.robust else ()
    candidates = []
    left_out = []
    for _, of_setting in sorted(by_setting.items()):
        trials = []
        for record in sorted(of_setting, key=_seed_of):
            outcome = _trial(record, wishes, names, corruptions, tried)
            if isinstance(outcome, _Trial):
                trials.append(outcome)
            else:
                left_out.append(LeftOut(f"{name_of(record)} {record.id8}", outcome))

        if trials:
            candidates.append(_candidate(trials, wishes, costs))
    return candidates, left_out


def _tried_together(records: Sequence[TrialRecord], wishes: Wishes) -> int:
    """Count the trials that the calibration normals choose among, 1 where they choose nothing.

    Figures of verdicts go by thresholds that these normals set, and drawn defects are told from
    nothing but these normals. A trial that they chose before counts those of that choice.
    """
    is_drawn = any(record.is_drawn for record in records)
    if wishes.objective == "image_auroc" and not is_drawn:
        return 1
    return sum(map(_tried_of, records))


def _tried_of(record: TrialRecord) -> int:
    """Read of how many trials the calibration normals chose one, 1 where nobody chose."""
    return int(_stored_promise(record).get("tried", 1))


def _stored_promise(record: TrialRecord) -> Json:
    """Read what a trial promises. JSON, empty in trials of version 0.1."""
    return dict((record.result or {}).get("thresholds", {}).get(PROMISE, {}))


def _shared_corruptions(records: Sequence[TrialRecord]) -> tuple[Corruption, ...]:
    """List the corruptions under which all trials were scored that were under any."""
    shared: list[Corruption] = []
    for record in records:
        stored = [one for one in stored_corruptions(record.folder) if read_corrupted(record, one)]
        if stored and shared:
            shared = [one for one in shared if one in stored]
        elif stored:
            shared = stored
    return tuple(shared)


def _seed_of(record: TrialRecord) -> int:
    """Read the seed of a trial."""
    return int(record.identity["seed"])


class _Names:
    """Names of images that are the same wherever the data lie."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """Name the images of some files. Most trials have the same, and each list is looked at once."""
        if paths not in self._known:
            names = tuple(image_names(paths)) if paths else ()
            self._known[paths] = names
        return self._known[paths]


def _trial(
    record: TrialRecord,
    wishes: Wishes,
    names: _Names,
    corruptions: Sequence[Corruption],
    tried: int,
) -> _Trial | Sentence:
    """Read what judges a trial, or say why nothing does."""
    images = read_judged_images(record.folder, is_drawn=record.is_drawn)
    if images is None:
        return Sentence.of("decide no scores")

    promise = _promise_of(record, images, wishes, tried)
    if wishes.robust:
        return _robust_trial(record, images, promise, wishes, names, corruptions)
    figure = _figure(images, promise, wishes)
    if isinstance(figure, Sentence):
        return figure

    return _Trial(record, Judged(names.of(images.paths), figure), images, promise)


def _robust_trial(
    record: TrialRecord,
    images: JudgedImages,
    promise: Promise,
    wishes: Wishes,
    names: _Names,
    corruptions: Sequence[Corruption],
) -> _Trial | Sentence:
    """Judge a trial by its worst case, or say why that is not known."""
    under = _under(record, images, corruptions)
    if not under:
        return Sentence.of("decide no corruptions")
    # A defect that was moved out of one picture counts in none, so that all have the same.
    stays = ~np.any([scores.gone for scores in under.values()], axis=0)
    figures = []
    everything: list[JudgedImages | CorruptedScores] = [images, *under.values()]
    for seen in everything:
        kept = replace(images, positive=seen.positive[stays], scores=seen.scores[stays])
        figure = _figure(kept, promise, wishes)
        if isinstance(figure, Sentence):
            return figure
        figures.append(figure)

    of_all = names.of(images.paths)
    kept_names = tuple(of_all[place] for place in np.flatnonzero(stays))
    worst = WorstFigure(tuple(figures))
    conditions = (PLAIN_LABEL, *under)
    judged = Judged(kept_names, worst)
    case = WorstCase(conditions[worst.worst], judged.value, len(conditions))
    return _Trial(record, judged, images, promise, case)


def _under(
    record: TrialRecord, images: JudgedImages, corruptions: Sequence[Corruption]
) -> dict[str, CorruptedScores]:
    """Read a trial's scores under some corruptions, nothing where one of them lacks."""
    found = {}
    for corruption in corruptions:
        scores = read_corrupted(record, corruption)
        if scores is None or scores.paths != images.paths:
            return {}
        found[corruption.label] = scores
    return found


def _promise_of(record: TrialRecord, images: JudgedImages, wishes: Wishes, tried: int) -> Promise:
    """Read what a trial promises, or compute it for another rate, or for a choice among several."""
    stored = _stored_promise(record)
    rate = wishes.false_alarms or stored.get("rate", FALSE_ALARMS)
    tried = max(tried, _tried_of(record))

    names = list(map(attrgetter("name"), fields(Promise)))
    is_stored = set(names) <= set(stored)
    if is_stored and (rate, tried) == (stored["rate"], stored["tried"]):
        return Promise(*map(stored.__getitem__, names))
    return make_promise(images.calibration, rate, tried)


def _figure(images: JudgedImages, promise: Promise, wishes: Wishes) -> Figure | Sentence:
    """Make the figure by which a trial is compared, or say why it has none."""
    positive = images.positive
    if not positive.any():
        return Sentence.of("decide no defects")
    if wishes.objective != "caught" and positive.all():
        return Sentence.of("decide no normals")

    # The other figures are of verdicts, for which there must be a threshold.
    if wishes.objective == "image_auroc":
        return RankFigure(positive, images.scores)
    if promise.score is None:
        return Sentence.of("decide no calibration")

    reported = images.scores > promise.score
    if wishes.objective == "caught":
        return RateFigure(positive, reported, 1.0, 0.0)

    # Less cost is better; an error is a defect that passes or a normal that is reported.
    assert wishes.miss_cost is not None, "costs are asked for together"
    assert wishes.alarm_cost is not None, "costs are asked for together"
    rate = float(positive.mean()) if wishes.defect_rate is None else wishes.defect_rate
    of_misses = -rate * wishes.miss_cost
    of_alarms = -(1 - rate) * wishes.alarm_cost
    return RateFigure(positive, reported != positive, of_misses, of_alarms)


def _candidate(trials: Sequence[_Trial], wishes: Wishes, costs: Costs) -> Candidate:
    """Make a candidate of the trials of one setting, by seed."""
    median = _median(trials)
    record = median.record
    result = record.result or {}
    interval = result.get("image_auroc_interval")
    cost, cost_of = costs.of(record)

    # What the model is worth is the mean over seeds; what is deployed is one of them.
    values = list(map(attrgetter("judged.value"), trials))
    records = map(attrgetter("record"), trials)
    option = Option(
        name=name_of(record),
        place=record.folder,
        is_team=False,
        seed=_seed_of(record),
        seeds=tuple(map(_seed_of, records)),
        has_checkpoint=find_checkpoint(record.folder) is not None,
        value=float(np.mean(values)),
        lowest=min(values),
        highest=max(values),
        image_auroc=result.get("metrics", {}).get("image_auroc"),
        interval=None if interval is None else (interval[0], interval[1]),
        promise=median.promise,
        verdicts=verdicts_of(median.images, median.promise, record.is_drawn),
        cost=cost,
        cost_of=cost_of,
        worst=median.worst,
    )
    return Candidate(tuple(trials), replace(option, excesses=excesses_of(option, wishes)))


def _median(trials: Sequence[_Trial]) -> _Trial:
    """Choose the seed to deploy."""
    by_folder = {}
    for trial in sorted(trials, key=attrgetter("judged.value")):
        by_folder[trial.record.folder] = trial
    return by_folder[folder_to_deploy(list(by_folder))]


def name_of(record: TrialRecord) -> str:
    """Name a trial's model."""
    return trial_row(record).name


def verdicts_of(images: JudgedImages, promise: Promise, is_drawn: bool) -> Verdicts | None:
    """Count what becomes of the test images, None without a threshold."""
    if promise.score is None:
        return None
    passes = images.scores <= promise.score
    missed = passes & images.positive

    # By type, the one with most misses first.
    counts: dict[str, list[bool]] = defaultdict(list)
    for place in np.flatnonzero(images.positive):
        counts[images.types[place]].append(bool(missed[place]))
    by_type = []
    for name, of_type in counts.items():
        by_type.append(TypeCount(name, sum(of_type), len(of_type)))
    by_type.sort(key=lambda one: (-one.missed, one.name))

    normals = int((~images.positive).sum())
    return Verdicts(
        missed=int(missed.sum()),
        defects=int(images.positive.sum()),
        alarms=None if is_drawn else normals - int((passes & ~images.positive).sum()),
        normals=normals,
        by_type=tuple(by_type),
    )


# Costs and limits


class Costs:
    """What models cost, as the trials of a store were measured.

    Speed and memory do not depend on what a network has learnt, so that `python -m adray measure`
    measures one of several alike: another trial of the same model stands for one that was not.

    Args:
        records: trials of the store.
        kind: of the device, ``cpu`` or ``cuda``; any where None.
    """

    def __init__(self, records: Sequence[TrialRecord], kind: str | None) -> None:
        self._cells: dict[int, Cell] = {}  # by the trial's place in memory
        self._measured: dict[tuple[str, str], list[tuple[TrialRecord, Cost]]] = defaultdict(list)
        for record in records:
            cell = Cell.of(record)
            self._cells[id(record)] = cell
            cost = trial_cost(record, kind)
            if cost.source:
                self._measured[cell.configuration, cell.variant].append((record, cost))

    def cell_of(self, record: TrialRecord) -> Cell:
        """Give the cell of one of the trials, which all seeds of a setting share."""
        return self._cells[id(record)]

    def of(self, record: TrialRecord) -> tuple[Cost, str]:
        """Give what a trial's model costs, and of which other part that was measured, if so."""
        cell = self.cell_of(record)
        part = part_of(record)
        alike = self._measured.get((cell.configuration, cell.variant), [])
        if not alike:
            return NO_COST, ""

        # Its own measurement is the nearest, then one of the same part.
        def distance(measured: tuple[TrialRecord, Cost]) -> tuple[bool, bool]:
            return measured[0] is not record, part_of(measured[0]) != part

        nearest, cost = min(alike, key=distance)
        return cost, "" if part_of(nearest) == part else "/".join(part_of(nearest))


def excesses_of(option: Option, wishes: Wishes) -> tuple[Excess, ...]:
    """List the limits that an option does not keep, or is not known to keep."""
    found = {
        "false_alarms": option.promise.promised,
        "latency_ms": option.cost.ms,
        "memory_mb": option.cost.mb,
    }
    excesses = []
    for limit, value in found.items():
        allowed = getattr(wishes, limit)
        if allowed is not None and (value is None or value > allowed):
            excesses.append(Excess(limit, allowed, value))
    return tuple(excesses)
