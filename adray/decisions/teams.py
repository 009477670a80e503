"""What the team of a part is worth, and what it finds, promises and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from adray.decisions.decision import Option, TeamGain, Wishes
from adray.decisions.options import NO_COST, Costs, excesses_of, verdicts_of
from adray.ensembles.team import Ensemble, combine_scores, read_ensemble
from adray.errors import InputError
from adray.results.contest import RankFigure
from adray.results.measurements import Cost
from adray.results.store import TrialRecord
from adray.results.trial_files import find_checkpoint, read_judged_images
from adray.thresholds import FALSE_ALARMS, make_promise


@dataclass(frozen=True)
class StoredTeam:
    """A team that `python -m adray ensemble` chose."""

    file: Path
    """Where it lies."""
    ensemble: Ensemble
    """What it holds."""


def read_teams(store: str | Path) -> list[StoredTeam]:
    """Read the teams below a store's `ensembles`. A damaged file counts as absent."""
    teams = []
    for file in sorted(Path(store, "ensembles").glob("*.json")):
        try:
            teams.append(StoredTeam(file, read_ensemble(file)))
        except InputError:
            continue
    return teams


def best_team(
    teams: Sequence[StoredTeam], records: Sequence[TrialRecord], wishes: Wishes, costs: Costs
) -> tuple[Option | None, TeamGain | None]:
    """Choose the team of a part with the largest gain, and say what it is worth."""
    by_id = {record.trial["id"]: record for record in records}
    found = []
    for team in teams:
        figures = (team.ensemble.figures or {}).get("cross_validated", {})
        gain = figures.get("gain")
        error = figures.get("gain_standard_error")
        if gain is not None and error is not None:
            found.append((float(gain), float(error), team))
    if not found:
        return None, None

    gain, error, team = max(found, key=lambda one: (one[0], str(one[2].file)))
    name = " + ".join(map(attrgetter("configuration"), team.ensemble.members))
    worth = TeamGain(team.file, name, gain, error, "")
    members = [by_id.get(member.id) for member in team.ensemble.members]
    option = _team_option(team, name, members, wishes, costs)
    if option is None:
        return None, replace(worth, problem="outdated")
    return option, replace(worth, problem="limits" if option.excesses else "")


def _team_option(
    team: StoredTeam,
    name: str,
    members: Sequence[TrialRecord | None],
    wishes: Wishes,
    costs: Costs,
) -> Option | None:
    """Make an option of a team, None where its members are no longer what they were."""
    scores = []
    images = None
    for record in members:
        found = None
        if record is not None:
            found = read_judged_images(record.folder, is_drawn=record.is_drawn)
        if record is None or found is None or (images and found.paths != images.paths):
            return None
        images = found
        scores.append(found.scores)
    if images is None:
        return None

    trials = [record for record in members if record is not None]
    together = combine_scores(scores, team.ensemble.members)
    rate = FALSE_ALARMS if wishes.false_alarms is None else wishes.false_alarms
    promise = make_promise(np.array(team.ensemble.calibration), rate)
    combined = replace(images, scores=together)
    figure = RankFigure(images.positive, together)
    option = Option(
        name=name,
        place=team.file,
        is_team=True,
        seed=int(trials[0].identity["seed"]),
        seeds=(int(trials[0].identity["seed"]),),
        has_checkpoint=all(find_checkpoint(record.folder) for record in trials),
        value=None,
        lowest=None,
        highest=None,
        image_auroc=figure.value(),
        interval=None,
        promise=promise,
        verdicts=verdicts_of(combined, promise, trials[0].is_drawn),
        cost=_sum_of([costs.of(record)[0] for record in trials]),
        cost_of="",
    )
    return replace(option, excesses=excesses_of(option, wishes))


def _sum_of(costs: Sequence[Cost]) -> Cost:
    """Sum what the members of a team cost, unknown where that of one is."""
    sources = {cost.source for cost in costs}
    if len(sources) > 1 or "" in sources:
        return NO_COST
    ms = _total([cost.ms for cost in costs])
    mb = _total([cost.mb for cost in costs])
    return Cost(ms, mb, sources.pop(), sum(cost.doubts for cost in costs))


def _total(values: Sequence[float | None]) -> float | None:
    """Sum values, None where one is unknown."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total
