"""What the team of a part is worth, and what it finds, promises and costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from adray.results.trial_files import JudgedImages, find_checkpoint, read_judged_images
from adray.thresholds import make_promise


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
    found = []
    for team in teams:
        figures = (team.ensemble.figures or {}).get("cross_validated", {})
        gain = figures.get("gain")
        error = figures.get("gain_standard_error")
        if gain is not None and error is not None:
            found.append((float(gain), float(error), team))
    if not found:
        return None, None

    # Of equal gains the last file's, so that the answer is always the same.
    gain, error, team = max(found, key=lambda one: (one[0], str(one[2].file)))
    name = " + ".join(map(attrgetter("configuration"), team.ensemble.members))
    worth = TeamGain(team.file, name, gain, error, "")
    option = _team_option(team, name, _members_of(team, records), wishes, costs)
    if option is None:
        return None, replace(worth, problem="outdated")
    return option, replace(worth, problem="limits" if option.excesses else "")


def _members_of(team: StoredTeam, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Find the trials of a team's members, nobody where one of them is not among the trials."""
    by_id = dict(zip(map(_id_of, records), records, strict=True))
    ids = list(map(attrgetter("id"), team.ensemble.members))
    return list(map(by_id.__getitem__, ids)) if set(ids) <= by_id.keys() else []


def _id_of(record: TrialRecord) -> str:
    """Read a trial's whole id."""
    return str(record.trial["id"])


def _team_option(
    team: StoredTeam,
    name: str,
    members: Sequence[TrialRecord],
    wishes: Wishes,
    costs: Costs,
) -> Option | None:
    """Make an option of a team, None where its members are no longer what they were."""
    images = _images_of(team, members)
    if images is None:
        return None

    ensemble = team.ensemble
    rate = ensemble.rate if wishes.false_alarms is None else wishes.false_alarms
    promise = make_promise(np.array(ensemble.calibration), rate, ensemble.tried)
    seed = int(members[0].identity["seed"])
    folders = map(attrgetter("folder"), members)
    option = Option(
        name=name,
        place=team.file,
        is_team=True,
        seed=seed,
        seeds=(seed,),
        has_checkpoint=all(map(find_checkpoint, folders)),
        value=None,
        lowest=None,
        highest=None,
        image_auroc=RankFigure(images.positive, images.scores).value(),
        interval=None,
        promise=promise,
        verdicts=verdicts_of(images, promise, members[0].is_drawn),
        cost=_sum_of(members, costs),
        cost_of="",
    )
    return replace(option, excesses=excesses_of(option, wishes))


def _images_of(team: StoredTeam, members: Sequence[TrialRecord]) -> JudgedImages | None:
    """Combine what the members say of their images, None where these are not the same."""
    scores = []
    images: JudgedImages | None = None
    for record in members:
        found = read_judged_images(record.folder, is_drawn=record.is_drawn)
        if found is None or (images is not None and found.paths != images.paths):
            return None
        images = found
        scores.append(found.scores)

    if images is None:
        return None
    return replace(images, scores=combine_scores(scores, team.ensemble.members))


def _sum_of(members: Sequence[TrialRecord], known: Costs) -> Cost:
    """Sum what the members of a team cost, unknown where that of one is."""
    costs = []
    for record in members:
        cost, _ = known.of(record)
        costs.append(cost)

    # Times of two devices have no sum.
    sources = set(map(attrgetter("source"), costs))
    if len(sources) > 1 or "" in sources:
        return NO_COST
    ms = _total(map(attrgetter("ms"), costs))
    mb = _total(map(attrgetter("mb"), costs))
    return Cost(ms, mb, sources.pop(), sum(map(attrgetter("doubts"), costs)))


def _total(values: Iterable[float | None]) -> float | None:
    """Sum values, None where one is unknown."""
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total
