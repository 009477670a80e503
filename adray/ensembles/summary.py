"""What is printed of a team: who is in it, what it gains, what it costs and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path

from adray.ensembles.build import BuiltTeam
from adray.ensembles.candidates import Candidate, LeftOut, categories_text, trial_name
from adray.ensembles.team import read_ensemble
from adray.results.trial_files import find_checkpoint
from adray.thresholds import CONFIDENCE, percent


def team_text(team: BuiltTeam) -> str:
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
    lines = [
        f"{categories_text(team.pool.categories)}: {' + '.join(_distinct(members[0]))}",
        f"  selected with the test labels: {normal} normal and {anomalous} anomalous "
        f"images, {len(team.pool.candidates[0])} candidates, calibrated on {held_out} held-out "
        "normals",
        *_gain_lines(team),
        f"  chosen again without a fold of the images: {_chosen_again(team)}",
        *map(_promise_line, team.files),
        _cost_line(members),
        *_checkpoint_lines(members),
        *map("  {}".format, team.files),
    ]
    return "\n".join(lines)


def _gain_lines(team: BuiltTeam) -> Iterator[str]:
    """Say what the team gains over the best single model, honestly first."""
    selection = team.selection
    honest = selection.honest
    single = team.pool.candidates[0][selection.single].configuration
    optimistic = selection.team_value - selection.single_value

    yield (
        f"  cross-validated gain {honest.gain:+.4f} (standard error {honest.error:.4f}): "
        f"{team.metric} {honest.team:.4f}, best single model {honest.single:.4f}"
    )
    yield (
        f"  optimistic, on the images that chose: {optimistic:+.4f}: "
        f"{selection.team_value:.4f}, best single model {selection.single_value:.4f} ({single})"
    )
    if honest.gain <= honest.error:
        yield f"  the gain is not beyond its error: {single} alone may do as well"


def _chosen_again(team: BuiltTeam) -> str:
    """Say of each member how often it was chosen again."""
    selection = team.selection
    shares = selection.honest.chosen[list(selection.team)]
    names = _distinct(team.members[0])
    return ", ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True))


def _promise_line(file: Path) -> str:
    """Say what a team promises of new normals, and among how many it was chosen."""
    figures = read_ensemble(file).figures
    assert figures is not None, "just written"
    found = figures["promise"]
    alone = found["promise"]
    whichever = found["whichever_chosen"]
    return (
        f"  at most {percent(alone['promised'])} of new normals are anomalous "
        f"({percent(alone['bound'])} with {percent(CONFIDENCE)} confidence); {found['tried']} teams "
        "were compared by labels alone. Had the held-out normals chosen too, it were at most "
        f"{percent(whichever['promised'])} ({percent(whichever['bound'])})"
    )


def _cost_line(members: Sequence[Sequence[Candidate]]) -> str:
    """Sum what the members cost, of the category where that is most."""
    sources = {candidate.cost.source for candidate in chain.from_iterable(members)}
    if "" in sources:
        return (
            "  what the members cost is not known; "
            "`python -m adray measure` on the store measures it"
        )

    ms = _largest_sum(members, attrgetter("cost.ms"))
    mb = _largest_sum(members, attrgetter("cost.mb"))
    time = "ms per image unknown" if ms is None else f"{ms:.1f} ms per image"
    memory = "MB unknown" if mb is None else f"{mb:.1f} MB"
    return f"  members together {time}, {memory}: measured on {', '.join(sorted(sources))}"


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


def _checkpoint_lines(members: Sequence[Sequence[Candidate]]) -> Iterator[str]:
    """Warn of members that cannot be run."""
    lacking = []
    for candidate in chain.from_iterable(members):
        if find_checkpoint(candidate.record.folder) is None:
            lacking.append(trial_name(candidate.record))
    if lacking:
        yield (
            f"  predict cannot run it, since {_listed(lacking)} kept no checkpoint; "
            "--with-checkpoint avoids such"
        )


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
        names = ["/".join((*trial.category, trial.name)) for trial in group]
        lines.append(f"left out: {_listed(names)}: {reason}")
    return lines


def _listed(names: Sequence[str], limit: int = 4) -> str:
    """Join names with commas, and count those beyond the limit."""
    shown = ", ".join(names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
