"""The best team of models for each category of a store, as a file that predict runs like a trial.

Only the scores that finished trials left behind are read; nothing is trained or loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adray.ensembles.calibration import calibrate_each
from adray.ensembles.candidates import (
    Candidate,
    Category,
    Found,
    Pool,
    Wanted,
    pool_of_all,
)
from adray.ensembles.selection import Cell, Rules, Selection, select, teams_compared
from adray.ensembles.team import (
    Ensemble,
    MapPart,
    Member,
    combine_peaks,
    combine_scores,
    relative_folder,
    write_ensemble,
)
from adray.files import file_sha256
from adray.results.trial_files import find_checkpoint
from adray.thresholds import (
    FALSE_ALARMS,
    MOST_TRIED,
    PROMISE,
    compute_thresholds,
    make_promise,
)
from adray.types import Json


@dataclass(frozen=True)
class TeamRequest:
    """What somebody wants of the teams of a store."""

    store: Path
    """The output_dir of sweeps."""
    wanted: Wanted
    """Which trials may be candidates; its limits hold for a whole team too."""
    smallest: int
    """Least number of members."""
    largest: int
    """Largest number of members."""
    metric: str
    """What a good team is good at, one of `adray.ensembles.selection.METRIC_NAMES`."""
    together: bool
    """True for one team of configurations for all categories."""
    out: Path
    """Folder of the files, or the one file ``*.json``."""

    @property
    def is_one_file(self) -> bool:
        """Tell whether `out` is the file itself."""
        return self.out.suffix == ".json"

    def file_of(self, category: Category) -> Path:
        """Give the file of a category's team."""
        return self.out if self.is_one_file else self.out / f"{'_'.join(category)}.json"


@dataclass(frozen=True)
class BuiltTeam:
    """Who was chosen for the categories of a pool, and where that is written."""

    pool: Pool
    """The categories and their candidates."""
    selection: Selection
    """Who was chosen, and what it is worth."""
    metric: str
    """The metric that chose."""
    files: list[Path]
    """One by category."""

    @property
    def members(self) -> list[list[Candidate]]:
        """Give the members by category, in the order of choice."""
        return [_chosen(found, self.selection) for found in self.pool.candidates]


def _chosen(found: Sequence[Candidate], selection: Selection) -> list[Candidate]:
    """Take the members out of the candidates of one category."""
    return [found[i] for i in selection.team]


def pools_of(found: Found, together: bool) -> list[Pool]:
    """Give each category a pool of its own, or all one together.

    Raises:
        InputError: where no candidate is common to all.
    """
    if together and found.by_category:
        return [pool_of_all(found.by_category)]
    return [Pool([category], [same]) for category, same in found.by_category.items()]


def build_team(pool: Pool, request: TeamRequest) -> BuiltTeam:
    """Choose one team for the categories of a pool and write a file for each.

    Raises:
        InputError: for too few candidates or test images, and where the limits allow no team.
    """
    cells = list(map(_cell, pool.candidates))
    selection = select(cells, _rules(pool, request))

    files = []
    for category, found in zip(pool.categories, pool.candidates, strict=True):
        file = request.file_of(category)
        write_ensemble(file, _ensemble(category, found, selection, request))
        files.append(file)
    return BuiltTeam(pool, selection, request.metric, files)


def _cell(found: Sequence[Candidate]) -> Cell:
    """Calibrate the scores of the candidates on the test images of one category."""
    scores = np.stack(list(map(_calibrated, found)))  # (K, N)
    first = found[0].test
    return Cell(scores, first["label"].to_numpy() == 1, first["unit"].to_numpy())


def _calibrated(candidate: Candidate) -> np.ndarray:
    """Calibrate the scores of a candidate's test images, (N,)."""
    return candidate.calibration(candidate.test_scores)


def _rules(pool: Pool, request: TeamRequest) -> Rules:
    """Say what a team may be.

    One for several categories costs what it costs in the most expensive one.
    """
    costs = []
    limits = []
    asked = {"cost.ms": request.wanted.max_ms, "cost.mb": request.wanted.max_mb}
    for name, limit in asked.items():
        if limit is None:
            continue

        # What has no known cost is no candidate where there is a limit.
        cost_of = attrgetter(name)
        by_category = [list(map(cost_of, found)) for found in pool.candidates]
        costs.append(np.max(by_category, axis=0))
        limits.append(limit)

    return Rules(
        request.smallest, request.largest, request.metric, np.array(costs), np.array(limits)
    )


# The file


def _ensemble(
    category: Category, found: Sequence[Candidate], selection: Selection, request: TeamRequest
) -> Ensemble:
    """Describe the team of one category, with thresholds on its combined score."""
    team = _chosen(found, selection)
    file = request.file_of(category)
    weight = 1 / len(team)  # greedy selection takes each once, and all count the same
    members = [_member(candidate, weight, file) for candidate in team]
    has_maps = any(member.map_range is not None for member in members)

    dataset, name = category
    holdout = _holdout_scores(team, members)
    asked = _asked_of(team)
    return Ensemble(
        dataset=dataset,
        category=name,
        members=tuple(members),
        thresholds=_thresholds(team, members, holdout, asked),
        map_range=(0.0, 1.0) if has_maps else None,
        figures=_figures(found, selection, request)
        | {"promise": _promise(holdout, found, team, asked)},
        calibration=tuple(sorted(holdout.tolist())),
        calibration_peaks=_peaks(team, members),
        rate=asked.rate,
        tried=asked.tried,
    )


@dataclass(frozen=True)
class _Asked:
    """What a team is asked to promise."""

    rate: float
    """Of false alarms, the smallest that its members were asked for."""
    tried: int
    """Number of teams, had the calibration normals chosen other settings of the members."""


def _asked_of(team: Sequence[Candidate]) -> _Asked:
    """Read what the trials of the members were asked to promise."""
    rate = 1.0
    tried = 1
    for candidate in team:
        thresholds = (candidate.record.result or {}).get("thresholds", {})
        promise = thresholds.get(PROMISE, {})
        rate = min(rate, promise.get("rate", FALSE_ALARMS))
        tried *= promise.get("tried", 1)
    return _Asked(rate, min(tried, MOST_TRIED))


def _peaks(team: Sequence[Candidate], members: Sequence[Member]) -> tuple[float, ...]:
    """Say what the combined maps of the held-out normals reach at most, rising.

    Nothing where no member has maps, and where one did not note what its own reach.
    """
    parts = []
    for position, (candidate, member) in enumerate(zip(team, members, strict=True)):
        if member.map_range is None:
            continue
        peaks = candidate.holdout_peaks
        if peaks is None:
            return ()
        part = MapPart(position, peaks, member.map_range, member.weight, candidate.view)
        parts.append(part)
    return tuple(sorted(combine_peaks(parts).tolist())) if parts else ()


def _holdout_scores(team: Sequence[Candidate], members: Sequence[Member]) -> NDArray[np.float64]:
    """Combine the scores of the held-out normals, each calibrated by the others alone, (M,).

    Raises:
        InputError: where all but one score of a member are equal.
    """
    calibrated = []
    for candidate, member in zip(team, members, strict=True):
        calibrated.append(member.weight * calibrate_each(candidate.holdout_scores))
    return np.sum(calibrated, axis=0)


def _promise(
    holdout: NDArray[np.float64],
    found: Sequence[Candidate],
    team: Sequence[Candidate],
    asked: _Asked,
) -> Json:
    """Say what is promised, and what would be had the held-out normals chosen the team. JSON."""
    tried = min(asked.tried * teams_compared(len(found), len(team)), MOST_TRIED)
    return {
        "chosen_by": "the labels of the test images, not the held-out normals",
        "tried": tried,
        "promise": asdict(make_promise(holdout, asked.rate, asked.tried)),
        "whichever_chosen": asdict(make_promise(holdout, asked.rate, tried)),
    }


def _thresholds(
    team: Sequence[Candidate],
    members: Sequence[Member],
    holdout: NDArray[np.float64],
    asked: _Asked,
) -> dict[str, float]:
    """Compute the thresholds on the combined score, by rule, where there is one."""
    test = combine_scores(list(map(attrgetter("test_scores"), team)), members)
    label = team[0].test["label"].to_numpy()
    found = compute_thresholds(test, label, holdout, asked.rate, asked.tried)
    return {name: rule.value for name, rule in found.items() if rule.value is not None}


def _member(candidate: Candidate, weight: float, file: Path) -> Member:
    """Describe a member for the file."""
    record = candidate.record
    checkpoint = find_checkpoint(record.folder)

    # Maps that are the same everywhere have no range to be scaled by, and say nothing.
    stored = (record.result or {}).get("map_range")
    map_range = tuple(stored) if stored is not None and stored[1] > stored[0] else None

    return Member(
        folder=relative_folder(record.folder, file),
        id=record.trial["id"],
        configuration=record.identity["configuration"],
        weight=weight,
        center=candidate.calibration.center,
        scale=candidate.calibration.scale,
        freedom=candidate.calibration.freedom,
        map_range=map_range,
        checkpoint_sha256=None if checkpoint is None else file_sha256(checkpoint),
    )


def _figures(found: Sequence[Candidate], selection: Selection, request: TeamRequest) -> Json:
    """Say how the team was chosen, for whoever opens the file."""
    honest = selection.honest
    single = found[selection.single]
    label = found[0].test["label"]
    chosen_by = f"{request.metric} on the labels of the test images"
    if request.together:
        chosen_by += ", mean over several categories"

    return {
        "chosen_by": chosen_by,
        "cross_validated": {
            "team": honest.team,
            "best_single": honest.single,
            "gain": honest.gain,
            "gain_standard_error": honest.error,
            "folds": honest.folds,
            "repeats": honest.repeats,
            "members_chosen_again": honest.chosen[list(selection.team)].tolist(),
        },
        "in_sample_optimistic": {
            "team": selection.team_value,
            "best_single": selection.single_value,
            "gain": selection.team_value - selection.single_value,
        },
        "best_single": {"configuration": single.configuration, "id": single.record.trial["id"]},
        "candidates": len(found),
        "test_normal": int((label == 0).sum()),
        "test_anomalous": int((label == 1).sum()),
        "holdout": len(found[0].holdout),
        "cost": list(map(_cost, _chosen(found, selection))),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _cost(candidate: Candidate) -> Json:
    """Say what running a member costs."""
    cost = candidate.cost
    return {"ms_per_image": cost.ms, "mb": cost.mb, "measured_on": cost.source or None}
