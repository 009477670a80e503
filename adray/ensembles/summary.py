"""What is printed of a team: who is in it, what it gains, what it costs and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path

from adray.ensembles.build import BuiltTeam
from adray.ensembles.candidates import (
    Candidate,
    LeftOut,
    categories_text,
    trial_name,
)
from adray.ensembles.team import read_ensemble
from adray.language.catalogue import Catalogue, spoken
from adray.results.trial_files import find_checkpoint
from adray.results.trial_names import part_name
from adray.thresholds import CONFIDENCE, percent


def team_text(team: BuiltTeam, say: Catalogue) -> str:
    """Say who was chosen by what, what it gains, and where it is written."""
    # All candidates of a category have the same images.
    normal = 0
    anomalous = 0
    held_out = 0
    for first, *_ in team.pool.candidates:
        normal += int((first.test["label"] == 0).sum())
        anomalous += int((first.test["label"] == 1).sum())
        held_out += len(first.holdout)

    members = team.members
    chosen_by = say(
        "ensemble chosen by",
        normal=normal,
        anomalous=anomalous,
        candidates=len(team.pool.candidates[0]),
        held_out=held_out,
    )
    lines = [
        chosen_by,
        *_gain_lines(team, say),
        say("ensemble chosen again", shares=_chosen_again(team)),
        *map(partial(_promise_line, say=say), team.files),
        _cost_line(members, say),
        *_checkpoint_lines(members, say),
        *map(str, team.files),
    ]
    head = f"{categories_text(team.pool.categories)}: {' + '.join(_distinct(members[0]))}"
    return "\n".join([head, *map("  {}".format, lines)])


def _gain_lines(team: BuiltTeam, say: Catalogue) -> Iterator[str]:
    """Say what the team gains over the best single model, honestly first."""
    selection = team.selection
    honest = selection.honest
    single = team.pool.candidates[0][selection.single].configuration
    optimistic = selection.team_value - selection.single_value

    yield say(
        "ensemble gain",
        gain=f"{honest.gain:+.4f}",
        error=f"{honest.error:.4f}",
        metric=team.metric,
        team=f"{honest.team:.4f}",
        single=f"{honest.single:.4f}",
    )
    yield say(
        "ensemble optimistic",
        gain=f"{optimistic:+.4f}",
        team=f"{selection.team_value:.4f}",
        single=f"{selection.single_value:.4f}",
        name=single,
    )
    if honest.gain <= honest.error:
        yield say("ensemble within error", name=single)


def _chosen_again(team: BuiltTeam) -> str:
    """Say of each member how often it was chosen again."""
    selection = team.selection
    shares = selection.honest.chosen[list(selection.team)]
    names = _distinct(team.members[0])
    return ", ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True))


def _promise_line(file: Path, say: Catalogue) -> str:
    """Say what a team promises of new normals, and among how many it was chosen."""
    figures = read_ensemble(file).figures
    assert figures is not None, "just written"
    found = figures["promise"]
    alone = found["promise"]
    whichever = found["whichever_chosen"]
    return say(
        "ensemble promise",
        promised=percent(alone["promised"]),
        bound=percent(alone["bound"]),
        confidence=percent(CONFIDENCE),
        tried=found["tried"],
        whichever=percent(whichever["promised"]),
        whichever_bound=percent(whichever["bound"]),
    )


def _cost_line(members: Sequence[Sequence[Candidate]], say: Catalogue) -> str:
    """Sum what the members cost, of the category where that is most."""
    sources = {candidate.cost.source for candidate in chain.from_iterable(members)}
    if "" in sources:
        return say("ensemble cost unknown")

    ms = _largest_sum(members, attrgetter("cost.ms"))
    mb = _largest_sum(members, attrgetter("cost.mb"))
    return say(
        "ensemble cost",
        ms="n/a" if ms is None else f"{ms:.1f}",
        mb="n/a" if mb is None else f"{mb:.1f}",
        devices=", ".join(sorted(sources)),
    )


def _largest_sum(
    members: Sequence[Sequence[Candidate]], cost_of: Callable[[Candidate], float | None]
) -> float | None:
    """Sum a cost over the members, of the category where it is most, None where one is unknown."""
    sums = []
    for of_category in members:
        total = 0.0
        for value in map(cost_of, of_category):
            if value is None:
                return None
            total += value
        sums.append(total)
    return max(sums)


def _checkpoint_lines(members: Sequence[Sequence[Candidate]], say: Catalogue) -> Iterator[str]:
    """Warn of members that cannot be run."""
    lacking = []
    for candidate in chain.from_iterable(members):
        if find_checkpoint(candidate.record.folder) is None:
            lacking.append(trial_name(candidate.record))
    if lacking:
        yield say("ensemble no checkpoint", names=_listed(lacking))


def _distinct(team: Sequence[Candidate]) -> list[str]:
    """Give the configurations' names, with their ids where one occurs twice."""
    names = list(map(attrgetter("configuration"), team))
    distinct = []
    for name, candidate in zip(names, team, strict=True):
        distinct.append(name if names.count(name) == 1 else f"{name} {candidate.record.id8}")
    return distinct


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """Say why trials are no candidates, a line per reason."""
    ordered = sorted(left_out, key=lambda trial: (trial.reason, trial.category, trial.name))
    lines = []
    for reason, group in groupby(ordered, key=lambda trial: trial.reason):
        names = [f"{part_name(*trial.category)}/{trial.name}" for trial in group]
        lines.append(spoken("ensemble left out", names=_listed(names), reason=reason))
    return lines


def _listed(names: Sequence[str], limit: int = 4) -> str:
    """Join names with commas, and count those beyond the limit."""
    shown = ", ".join(names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
