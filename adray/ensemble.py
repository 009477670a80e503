"""The best team of models for each category of a store, and what it really gains; `python -m adray ensemble STORE`.

Only the scores that finished trials left behind are read; nothing is trained or loaded. What comes out is a file per
category that `python -m adray predict` runs like a trial.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from adray.errors import InputError
from adray.files import file_sha256
from adray.results.candidates import (
    Candidate,
    Category,
    LeftOut,
    Wanted,
    common_candidates,
    find_candidates,
    trial_name,
)
from adray.results.ensemble import (
    MOST_MEMBERS,
    Ensemble,
    Member,
    combine_scores,
    relative_folder,
    write_ensemble,
)
from adray.results.selection import METRIC_NAMES, Cell, Rules, Selection, select
from adray.results.trial_files import find_checkpoint
from adray.thresholds import compute_thresholds


def main(argv: Sequence[str] | None = None) -> int:
    """Choose teams, write their files and say what they gain; the exit code is 1 where a category has no team."""
    options = parse_options(argv)
    wanted = Wanted(
        tuple(options.models),
        tuple(options.categories),
        options.seed,
        options.max_ms,
        options.max_mb,
        options.with_checkpoint,
    )
    offer, left_out = find_candidates(options.store, wanted)
    if Path(options.out or "").suffix == ".json" and len(offer) > 1:
        raise InputError(
            f"--out {options.out} is one file, but {len(offer)} categories get one each; name a folder"
        )
    together = [(list(offer), common_candidates(offer))] if options.together and offer else []
    written, problems = [], []
    for categories, found in together or [
        ([category], [found]) for category, found in offer.items()
    ]:
        try:
            written += _write_teams(categories, found, options)
        except InputError as error:
            problems.append(f"{', '.join('/'.join(category) for category in categories)}: {error}")
    notes = [*problems, *_reasons(left_out)]
    if not written:
        raise InputError(f"no team in {options.store}: {'; '.join(notes)}")
    for note in notes:
        print(note)
    return int(bool(problems))


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m adray ensemble",
        description="Choose a team of models for each category from the scores of finished trials, by the labels of "
        "the test images, and say in cross-validation what it gains over the best single model. Trials need held-out "
        "normals (train.holdout above 0), on which scores are calibrated.",
    )
    parser.add_argument("store", help="the output_dir of sweeps")
    parser.add_argument(
        "--size", default="3..5", help="number of members, or a range of it (default: 3..5)"
    )
    parser.add_argument(
        "--metric", choices=METRIC_NAMES, default="image_auroc", help="what a good team is good at"
    )
    parser.add_argument(
        "--max-ms", type=float, help="milliseconds per image that the members may take together"
    )
    parser.add_argument(
        "--max-mb", type=float, help="MB of memory that the members may take together"
    )
    parser.add_argument(
        "--models", nargs="+", default=["*"], metavar="PATTERN", help="only these configurations"
    )
    parser.add_argument(
        "--categories",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="only these, as dataset/category or category",
    )
    parser.add_argument(
        "--seed", type=int, help="only trials of this seed; the one with most candidates by default"
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="one team of configurations for all these categories",
    )
    parser.add_argument(
        "--with-checkpoint", action="store_true", help="only trials that predict can run"
    )
    parser.add_argument(
        "--out", help="folder of the files, or the one file *.json; STORE/ensembles by default"
    )
    options = parser.parse_args(argv)
    options.size = parse_size(options.size)
    for name in ("max_ms", "max_mb"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} is {value:g}, but must be above 0")
    return options


def parse_size(text: str) -> tuple[int, int]:
    """Least and largest number of members of ``4`` or ``3..5``.

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 2 <= low <= high <= MOST_MEMBERS:
        raise InputError(
            f"--size {text!r} is no number of members; give one from 2 to {MOST_MEMBERS}, or 3..5"
        )
    return low, high


# Teams


def _write_teams(
    categories: list[Category], found: list[list[Candidate]], options: argparse.Namespace
) -> list[Path]:
    """Choose one team for these categories and write a file for each; `found` has the same candidates in each."""
    selection = select(_cells(found), _rules(found, options))
    written = []
    for category, of_category in zip(categories, found, strict=True):
        file = _file(category, options)
        ensemble = _ensemble(category, of_category, selection, file, options)
        write_ensemble(file, ensemble)
        written.append(file)
    print(
        "\n".join(
            [*_words(categories, found, selection, options), *(f"  {file}" for file in written)]
        )
    )
    return written


def _cells(found: list[list[Candidate]]) -> list[Cell]:
    return [
        Cell(
            np.stack([c.calibration(c.test["pred_score"].to_numpy()) for c in of_category]),
            of_category[0].test["label"].to_numpy() == 1,
        )
        for of_category in found
    ]


def _rules(found: list[list[Candidate]], options: argparse.Namespace) -> Rules:
    """A team for several categories costs what it costs in the most expensive one."""
    asked = [
        (name, limit)
        for name, limit in (("ms", options.max_ms), ("mb", options.max_mb))
        if limit is not None
    ]
    costs = [
        [max(getattr(c.cost, name) for c in same) for same in zip(*found, strict=True)]
        for name, _ in asked
    ]
    limits = np.array([limit for _, limit in asked])
    smallest, largest = options.size
    return Rules(smallest, largest, options.metric, np.array(costs), limits)


def _file(category: Category, options: argparse.Namespace) -> Path:
    out = Path(options.out or Path(options.store) / "ensembles")
    return out if out.suffix == ".json" else out / f"{'_'.join(category)}.json"


def _ensemble(
    category: Category,
    found: list[Candidate],
    selection: Selection,
    file: Path,
    options: argparse.Namespace,
) -> Ensemble:
    team = [found[i] for i in selection.team]
    members = tuple(_member(candidate, 1 / len(team), file) for candidate in team)
    scored = [combine_scores([c.test["pred_score"].to_numpy() for c in team], members)]
    scored.append(combine_scores([c.holdout["pred_score"].to_numpy() for c in team], members))
    thresholds = compute_thresholds(scored[0], team[0].test["label"].to_numpy(), scored[1])
    return Ensemble(
        *category,
        members,
        {
            name: threshold.value
            for name, threshold in thresholds.items()
            if threshold.value is not None
        },
        (0.0, 1.0) if any(member.map_range is not None for member in members) else None,
        _figures(found, selection, options),
    )


def _member(candidate: Candidate, weight: float, file: Path) -> Member:
    record, checkpoint = candidate.record, find_checkpoint(candidate.record.folder)
    map_range = (record.result or {}).get("map_range")
    return Member(
        folder=relative_folder(record.folder, file),
        id=record.trial["id"],
        configuration=record.trial["identity"]["configuration"],
        weight=weight,
        center=candidate.calibration.center,
        scale=candidate.calibration.scale,
        freedom=candidate.calibration.freedom,
        map_range=None
        if map_range is None or not map_range[1] > map_range[0]
        else tuple(map_range),
        checkpoint_sha256=None if checkpoint is None else file_sha256(checkpoint),
    )


def _figures(
    found: list[Candidate], selection: Selection, options: argparse.Namespace
) -> dict[str, Any]:
    """How the team was chosen, for whoever opens the file."""
    honest, single, label = selection.honest, found[selection.single], found[0].test["label"]
    return {
        "chosen_by": f"{options.metric} on the labels of the test images"
        + (", mean over several categories" if options.together else ""),
        "cross_validated": {
            "team": honest.team,
            "best_single": honest.single,
            "gain": honest.gain,
            "gain_standard_error": honest.error,
            "folds": honest.folds,
            "repeats": honest.repeats,
            "members_chosen_again": [float(honest.chosen[i]) for i in selection.team],
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
        "cost": [
            {"ms_per_image": c.cost.ms, "mb": c.cost.mb, "measured_on": c.cost.source or None}
            for c in (found[i] for i in selection.team)
        ],
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


# Words


def _words(
    categories: list[Category],
    found: list[list[Candidate]],
    selection: Selection,
    options: argparse.Namespace,
) -> list[str]:
    first, labels = (
        found[0],
        np.concatenate([of_category[0].test["label"] for of_category in found]),
    )
    teams = [[of_category[i] for i in selection.team] for of_category in found]
    held_out = sum(len(of_category[0].holdout) for of_category in found)
    return [
        f"{', '.join('/'.join(c) for c in categories)}: {' + '.join(_distinct(teams[0]))}",
        f"  selected with the test labels: {int((labels == 0).sum())} normal and {int((labels == 1).sum())} anomalous "
        f"images, {len(first)} candidates, calibrated on {held_out} held-out normals",
        *_gain_words(selection, first[selection.single].configuration, options.metric),
        f"  chosen again without a fold of the images: {_again_words(teams[0], selection)}",
        _cost_words(teams),
        *_lacking_words(teams),
    ]


def _gain_words(selection: Selection, single: str, metric: str) -> Iterator[str]:
    honest = selection.honest
    yield (
        f"  cross-validated gain {honest.gain:+.4f} (standard error {honest.error:.4f}): {metric} {honest.team:.4f}, "
        f"best single model {honest.single:.4f}"
    )
    yield (
        f"  optimistic, on the images that chose: {selection.team_value - selection.single_value:+.4f}: "
        f"{selection.team_value:.4f}, best single model {selection.single_value:.4f} ({single})"
    )
    if honest.gain <= honest.error:
        yield f"  the gain is not beyond its error: {single} alone may do as well"


def _again_words(team: list[Candidate], selection: Selection) -> str:
    shares = selection.honest.chosen[list(selection.team)]
    return ", ".join(
        f"{name} {share:.0%}" for name, share in zip(_distinct(team), shares, strict=True)
    )


def _cost_words(teams: list[list[Candidate]]) -> str:
    """Sums over the members, of the category where they are largest."""
    sums = []
    for what, name in (("ms per image", "ms"), ("MB", "mb")):
        values = [[getattr(candidate.cost, name) for candidate in team] for team in teams]
        known = all(value is not None for row in values for value in row)
        sums.append(f"{max(sum(row) for row in values):.1f} {what}" if known else f"{what} unknown")
    costs = [candidate.cost for team in teams for candidate in team]
    sources = sorted({cost.source for cost in costs if cost.source})
    if not all(cost.source for cost in costs):
        return "  what the members cost is not known; `python -m adray measure` on the store measures it"
    return f"  members together {', '.join(sums)}: measured on {', '.join(sources)}"


def _lacking_words(teams: list[list[Candidate]]) -> Iterator[str]:
    lacking = [
        trial_name(c.record)
        for team in teams
        for c in team
        if find_checkpoint(c.record.folder) is None
    ]
    if lacking:
        yield f"  predict cannot run it, since {_listed(lacking)} kept no checkpoint; --with-checkpoint avoids such"


def _distinct(team: list[Candidate]) -> list[str]:
    """Configurations, with their ids where one occurs twice."""
    names = [candidate.configuration for candidate in team]
    return [
        n if names.count(n) == 1 else f"{n} {c.record.id8}"
        for n, c in zip(names, team, strict=True)
    ]


def _reasons(left_out: list[LeftOut]) -> list[str]:
    """One line per reason."""
    lines = []
    for reason, group in groupby(
        sorted(left_out, key=lambda o: (o.reason, o.category, o.name)), lambda o: o.reason
    ):
        names = ["/".join((*trial.category, trial.name)) for trial in group]
        lines.append(f"left out: {_listed(names)}: {reason}")
    return lines


def _listed(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


if __name__ == "__main__":
    from adray.__main__ import run_command

    sys.exit(run_command(main))
