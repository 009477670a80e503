"""What is printed of a team: who is in it, what it gains, what it costs and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from adray.ensembles.build import Team
from adray.ensembles.candidates import Candidate, LeftOut, trial_name
from adray.results.trial_files import find_checkpoint


def team_text(team: Team) -> str:
    """Say who was chosen by what, what it gains, and where it is written."""
    pool = team.pool
    members = team.members
    labels = np.concatenate([found[0].test["label"] for found in pool.candidates])
    normal = int((labels == 0).sum())
    anomalous = int((labels == 1).sum())
    held_out = sum(len(found[0].holdout) for found in pool.candidates)

    categories = ", ".join("/".join(category) for category in pool.categories)
    lines = [
        f"{categories}: {' + '.join(_distinct(members[0]))}",
        f"  selected with the test labels: {normal} normal and {anomalous} anomalous "
        f"images, {len(pool.candidates[0])} candidates, calibrated on {held_out} held-out normals",
        *_gain_lines(team),
        f"  chosen again without a fold of the images: {_chosen_again(team)}",
        _cost_line(members),
        *_checkpoint_lines(members),
        *(f"  {file}" for file in team.files),
    ]
    return "\n".join(lines)


def _gain_lines(team: Team) -> Iterator[str]:
    """Say what the team gains over the best single model, honestly first."""
    selection = team.selection
    honest = selection.honest
    single = team.pool.candidates[0][selection.single].configuration
    optimistic = selection.team_value - selection.single_value
    yield (
        f"  cross-validated gain {honest.gain:+.4f} (standard error {honest.error:.4f}): {team.metric} "
        f"{honest.team:.4f}, best single model {honest.single:.4f}"
    )
    yield (
        f"  optimistic, on the images that chose: {optimistic:+.4f}: "
        f"{selection.team_value:.4f}, best single model {selection.single_value:.4f} ({single})"
    )
    if honest.gain <= honest.error:
        yield f"  the gain is not beyond its error: {single} alone may do as well"


def _chosen_again(team: Team) -> str:
    """Say of each member how often it was chosen again."""
    selection = team.selection
    shares = selection.honest.chosen[list(selection.team)]
    names = _distinct(team.members[0])
    return ", ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True))


def _cost_line(members: Sequence[Sequence[Candidate]]) -> str:
    """Sum what the members cost, of the category where that is most."""
    costs = [candidate.cost for of_category in members for candidate in of_category]
    if not all(cost.source for cost in costs):
        return "  what the members cost is not known; `python -m adray measure` on the store measures it"

    ms = _largest_sum(members, "ms")
    mb = _largest_sum(members, "mb")
    time = "ms per image unknown" if ms is None else f"{ms:.1f} ms per image"
    memory = "MB unknown" if mb is None else f"{mb:.1f} MB"
    sources = sorted({cost.source for cost in costs})
    return f"  members together {time}, {memory}: measured on {', '.join(sources)}"


def _largest_sum(members: Sequence[Sequence[Candidate]], name: str) -> float | None:
    """Sum a cost over the members, of the category where it is most; None where one is unknown."""
    sums = []
    for of_category in members:
        values = [getattr(candidate.cost, name) for candidate in of_category]
        if None in values:
            return None
        sums.append(sum(values))
    return max(sums)


def _checkpoint_lines(members: Sequence[Sequence[Candidate]]) -> Iterator[str]:
    """Warn of members that cannot be run."""
    lacking = []
    for of_category in members:
        for candidate in of_category:
            if find_checkpoint(candidate.record.folder) is None:
                lacking.append(trial_name(candidate.record))
    if lacking:
        yield (
            f"  predict cannot run it, since {_listed(lacking)} kept no checkpoint; --with-checkpoint avoids such"
        )


def _distinct(team: Sequence[Candidate]) -> list[str]:
    """Name the configurations, with their ids where one occurs twice."""
    names = [candidate.configuration for candidate in team]
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
