"""Which trial or team of a store to deploy for each part, and how sure that is.

    for decision in decide(view_store("outputs").shown(everything=False)):
        print(decision.part, decision.state, decision.chosen)

The console, `status`, the report page and `python -m adray decide` all say what `decide` says, in
the words of `adray.decisions.text`. Candidates are compared by their mean over seeds: by image
AUROC, by the defects that are caught at a promised rate of false alarms, or by what errors cost. On
request their worst case over corruptions of the test images counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

from adray.decisions.decision import (
    DECIDED,
    NO_WISHES,
    NOT_JUDGED,
    NOTHING_FITS,
    ONLY,
    TEAM,
    UNDECIDED,
    Decision,
    Images,
    LeftOut,
    Option,
    Wishes,
)
from adray.decisions.notes import notes_on
from adray.decisions.options import Candidate, Costs, Part, candidates_of, name_of, part_of
from adray.decisions.teams import StoredTeam, best_team
from adray.language.sentence import Sentence
from adray.results.contest import DRAWS, Contest, hold_contest
from adray.results.corrupted_scores import stored_corruptions
from adray.results.current import mark_settings
from adray.results.saturation import Saturation
from adray.results.store import (
    TrialRecord,
    counted_of,
    done_of,
    finished_of,
    plain_of,
    tested_of,
    without_searches,
)
from adray.thresholds import Promise, normals_needed


def decide(
    records: Sequence[TrialRecord],
    wishes: Wishes = NO_WISHES,
    teams: Sequence[StoredTeam] = (),
    draws: int = DRAWS,
) -> list[Decision]:
    """Decide for each part of a store which trial or team to deploy.

    Args:
        records: trials of one store, as `adray.results.current.view_store` marks them. Those that do
            not count are no candidates, and are listed with the reason.
        wishes: limits, and what errors cost.
        teams: of the same store.
        draws: how often the test images are drawn again, to say how sure a choice is. That takes
            most of the time, and 0 leaves `Option.wins` unknown and all else as it is.

    Returns:
        By part, in the order of their names.
    """
    # Trials under a condition, such as with few images, are there to be compared with.
    plain = plain_of(without_searches(records))
    counted = mark_settings(counted_of(plain))
    uncounted = _uncounted(plain)

    request = _Request(wishes, Costs(counted, wishes.kind), draws)
    by_part: dict[Part, list[TrialRecord]] = defaultdict(list)
    for record in counted:
        by_part[part_of(record)].append(record)

    teams_of: dict[Part, list[StoredTeam]] = defaultdict(list)
    for team in teams:
        teams_of[_part_of_team(team, by_part)].append(team)

    few_of = _few_shot(records)
    decisions = []
    for part in sorted({*by_part, *uncounted}):
        decision = _decide_part(part, by_part[part], request, teams_of[part])
        more = _saturation(decision, few_of[part])
        decisions.append(replace(decision, saturation=more, uncounted=tuple(uncounted[part])))
    return decisions


def _part_of_team(team: StoredTeam, parts: Container[Part]) -> Part:
    """Name the part that a team is for.

    A plain folder is one category by the name of its data set to a team, and ``all`` to a trial.
    """
    dataset = team.ensemble.dataset
    own = (dataset, team.ensemble.category)
    whole = (dataset, "all")
    is_folder = team.ensemble.category == dataset and own not in parts and whole in parts
    return whole if is_folder else own


def _uncounted(records: Sequence[TrialRecord]) -> dict[Part, list[LeftOut]]:
    """List by part the finished trials that do not answer for their cell, and why not."""
    found: dict[Part, list[LeftOut]] = defaultdict(list)
    if len(counted_of(records)) == len(records):
        return found
    for record in finished_of(mark_settings(records)):
        key = "decide outdated" if record.outdated else "decide superseded"
        if record.outdated or record.superseded:
            one = LeftOut(f"{name_of(record)} {record.id8}", Sentence.of(key))
            found[part_of(record)].append(one)
    return found


def _few_shot(records: Sequence[TrialRecord]) -> dict[Part, list[TrialRecord]]:
    """List by part the trials that differ in how many images they saw, plain ones too."""
    found: dict[Part, list[TrialRecord]] = defaultdict(list)
    for record in counted_of(without_searches(records)):
        if set(record.identity.get("condition", {})) <= {"k_shot", "draw"}:
            found[part_of(record)].append(record)
    return found


def _saturation(decision: Decision, records: Sequence[TrialRecord]) -> Saturation | None:
    """Estimate how many images are enough for the chosen model of a part.

    Args:
        decision: for the part.
        records: of the part, see `_few_shot`.
    """
    single = decision.single
    few = [record for record in records if "k_shot" in record.identity.get("condition", {})]
    if single is None or not few:
        return None

    # Pandas takes a second to import, and most stores have no such trials.
    from adray.results.leaderboard import table, trial_row
    from adray.results.learning_curves import learning_curves

    for curve in learning_curves(table(map(trial_row, records)), "image_auroc"):
        if curve.configuration == single.name and curve.axis == "k_shot" and not curve.rest:
            return curve.saturation
    return None


def decide_safest(records: Sequence[TrialRecord]) -> list[Decision]:
    """Decide by the worst case for each part that has trials which were scored under corruptions.

    Args:
        records: as for `decide`.
    """
    if not any(stored_corruptions(record.folder) for record in records):
        return []
    decisions = decide(records, Wishes(robust=True), draws=0)
    return [decision for decision in decisions if decision.chosen is not None]


@dataclass(frozen=True)
class _Request:
    """What is the same for all parts."""

    wishes: Wishes
    """Limits, and what errors cost."""
    costs: Costs
    """Of running the models."""
    draws: int
    """How often the test images are drawn again."""


def _decide_part(
    part: Part,
    records: Sequence[TrialRecord],
    request: _Request,
    teams: Sequence[StoredTeam],
) -> Decision:
    """Decide for one part."""
    done = done_of(records)
    # Drawn defects are found more or less easily than real ones: they are compared apart.
    judged = tested_of(done) or done
    candidates, left_out = candidates_of(judged, request.wishes, request.costs)
    contest = _contest(candidates, request.draws)
    options = _options(candidates, contest)

    chosen = _chosen(options)
    state = _state(options, chosen)

    # A team costs more, so that it has to be better beyond its error. Under corruptions no team is
    # scored.
    considered = () if request.wishes.robust else teams
    team_option, gain = best_team(considered, judged, request.wishes, request.costs)
    if team_option is not None and gain is not None and not gain.problem and gain.is_beyond_error:
        chosen = team_option
        state = TEAM

    record = None if chosen is None else _record_of(chosen, judged)
    decision = Decision(
        dataset=part[0],
        category=part[1],
        state=state,
        wishes=request.wishes,
        chosen=chosen,
        cheaper=_cheaper(options, chosen),
        options=tuple(options),
        left_out=tuple(left_out),
        uncounted=(),
        models=len(set(map(request.costs.cell_of, judged))),
        trials=len(judged),
        failed=list(map(attrgetter("status"), records)).count("failed"),
        team=gain,
        images=None if record is None else _images_of(record),
        normals_missing=0 if chosen is None else _normals_missing(chosen.promise),
        images_factor=_images_factor(candidates, contest),
        notes=(),
    )
    return replace(decision, notes=notes_on(decision, judged, record))


# The choice


def _contest(candidates: Sequence[Candidate], draws: int) -> Contest | None:
    """Compare those that fit, or all where none does. None without candidates."""
    field = _field(candidates)
    if not field:
        return None
    models = []
    for candidate in field:
        models.append(list(map(attrgetter("judged"), candidate.trials)))
    return hold_contest(models, draws)


def _field(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Choose the candidates that fit, or all where none does."""
    fitting = list(filter(attrgetter("option.fits"), candidates))
    return fitting or list(candidates)


def _options(candidates: Sequence[Candidate], contest: Contest | None) -> list[Option]:
    """Give the options with what the contest says of them, those that fit first, then the best."""
    if contest is None:
        return []
    field = _field(candidates)
    options = []
    for candidate in candidates:
        option = candidate.option
        if candidate in field:
            number = field.index(candidate)
            wins = float(contest.wins[number])
            option = replace(
                option,
                wins=None if math.isnan(wins) else wins,
                is_tied=bool(contest.is_tied[number]),
            )
        options.append(option)
    return sorted(options, key=lambda one: (not one.fits, -(one.value or 0.0), one.name))


def _chosen(options: Sequence[Option]) -> Option | None:
    """Choose the best of those that fit, else the nearest, None without options."""
    if options and options[0].fits:
        return options[0]
    return min(options, key=_distance, default=None)


def _state(options: Sequence[Option], chosen: Option | None) -> str:
    """Say how a choice among single models ended."""
    if chosen is None:
        return NOT_JUDGED
    if not chosen.fits:
        return NOTHING_FITS

    # Only those that fit were in the contest.
    tied = list(filter(attrgetter("is_tied"), options))
    if len(tied) > 1:
        return UNDECIDED
    return DECIDED if len(options) > 1 and options[1].fits else ONLY


def _cheaper(options: Sequence[Option], chosen: Option | None) -> Option | None:
    """Find the fastest option that cannot be told from the chosen model, where it is faster."""
    if chosen is None or chosen.is_team or chosen.cost.ms is None or not chosen.fits:
        return None

    # Times on different devices are not compared.
    faster = []
    for option in options:
        is_same_device = option.cost.source == chosen.cost.source
        if option.is_tied and option.fits and option.cost.ms is not None and is_same_device:
            faster.append((option.cost.ms, option.name, option))
    _, _, fastest = min(faster, default=(0.0, "", chosen))
    return None if fastest is chosen or fastest.name == chosen.name else fastest


def _images_factor(candidates: Sequence[Candidate], contest: Contest | None) -> float | None:
    """Say how many times as many test images would tell the best from the next, if known."""
    if contest is None:
        return None

    # The next is the best of the others that are not told from it.
    others = np.where(contest.is_tied, contest.values, -np.inf)
    others[contest.leader] = -np.inf
    following = int(np.argmax(others))
    factor = float(contest.images_factor[following])
    return factor if math.isfinite(factor) and math.isfinite(others[following]) else None


def _distance(option: Option) -> tuple[int, float, float]:
    """Order options that do not fit: first few limits, then how far the worst of them is."""
    factors = []
    for excess in option.excesses:
        factors.append(math.inf if excess.found is None else excess.found / excess.allowed)
    return len(factors), max(factors, default=1.0), -(option.value or 0.0)


# What stands beside it


def _record_of(option: Option, records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Find the trial of an option, None for a team."""
    for record in records:
        if record.folder == option.place:
            return record
    return None


def _images_of(record: TrialRecord) -> Images:
    """Count the images behind a trial."""
    counts = (record.result or {}).get("counts", {})
    return Images(
        train=counts.get("train", 0),
        held_out=counts.get("holdout", 0),
        normal=counts.get("test_normal", 0),
        anomalous=counts.get("test_anomalous", 0),
    )


def _normals_missing(promise: Promise) -> int:
    """Count the further held-out normals without which a rate cannot be promised."""
    return max(0, normals_needed(promise.rate, promise.tried) - promise.normals)
