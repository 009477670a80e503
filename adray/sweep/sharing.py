"""Which trials have the same frozen stage, what they want of it, and in which order they start.

Trials are not bound to the node or the process that has the files: a trial that waited for these
would leave GPUs idle. On another node the files are built once more.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from adray.files import canonical_hash
from adray.registry import ModelRegistry
from adray.sweep.plan import PlannedTrial
from adray.types import Sharing

T = TypeVar("T")


def frozen_key(trial: PlannedTrial) -> str:
    """Hash what trials have in common that can read the same features.

    Empty for a trial that shares none.
    """
    job = trial.job
    identity = trial.identity
    if not identity or not ModelRegistry.method(job.configuration).shares_features:
        return ""

    config = job.resolved.config
    drawn_from = job.seed if config.weights == "random" else None
    if "tile" in identity["train"]:
        return ""
    names = ("img_size", "crop_size", "fit", "aspect", "normalize", "precision")
    train = [identity["train"].get(name) for name in names]
    data = [identity["datasets"], identity["categories"]]
    return canonical_hash([config.backbone, identity["weights"], drawn_from, train, data])


def sharings(trials: Iterable[PlannedTrial]) -> dict[str, Sharing]:
    """Say for each trial, by id, what it should keep of its frozen stage for others.

    One that is the only one with its stage is left out. A try of a search is never the only one:
    others will follow.
    """
    groups: dict[str, list[PlannedTrial]] = defaultdict(list)
    for trial in trials:
        groups[frozen_key(trial)].append(trial)
    groups.pop("", None)

    found: dict[str, Sharing] = {}
    for members in groups.values():
        if len(members) > 1 or members[0].search:
            found |= _sharings_of(members)
    return found


def _sharings_of(members: Sequence[PlannedTrial]) -> dict[str, Sharing]:
    """Say for each trial of a group, by id, what it should keep for the others."""
    layers: set[str] = set()
    ratios: dict[object, Counter[float]] = defaultdict(Counter)
    for member in members:
        layers |= set(_layers(member))
        ratios[_patches(member)][_coreset_ratio(member)] += 1

    found: dict[str, Sharing] = {}
    for trial in members:
        same_patches = ratios[_patches(trial)]
        largest = max(same_patches)
        has_same = same_patches[_coreset_ratio(trial)] > 1 or bool(trial.search)
        found[trial.id8] = Sharing(tuple(sorted(layers)), largest, has_same and largest > 0)
    return found


def _layers(trial: PlannedTrial) -> tuple[str, ...]:
    """Give the layers of the backbone that a trial reads."""
    return trial.job.resolved.config.layers


def _patches(trial: PlannedTrial) -> tuple[object, ...]:
    """Give what decides which patches there are to choose from, beyond the features."""
    return trial.identity["trainer"], _layers(trial), trial.job.seed, trial.job.condition


def _coreset_ratio(trial: PlannedTrial) -> float:
    """Give the part of the training patches that a trial keeps. 0 for models that keep none."""
    return float(getattr(trial.job.resolved.config, "coreset_ratio", 0.0))


def spread(ordered: Sequence[T], key_of: Callable[[T], str], slots: int) -> list[T]:
    """Change an order so that no trial starts beside the one that builds what it waits for.

    The first of each group is its builder. The others come when at least `slots` trials have
    started after it, as long as there is other work.

    Args:
        ordered: trials, the most urgent first.
        key_of: group of a trial, empty for none.
        slots: trials that run at a time.
    """
    builders: dict[str, int] = {}  # group to the place of its builder in the new order
    held: dict[str, list[int]] = defaultdict(list)  # group to the old places of those that wait
    order: list[int] = []  # old places in their new order

    for place, trial in enumerate(ordered):
        _release(held, builders, slots, order)
        key = key_of(trial)
        if key in builders and len(order) - builders[key] < slots:
            held[key].append(place)
            continue
        if key:
            builders.setdefault(key, len(order))
        order.append(place)

    # No other work is left.
    rest = list(itertools.chain.from_iterable(held.values()))
    order += sorted(rest)
    return [ordered[place] for place in order]


def _release(
    held: dict[str, list[int]], builders: dict[str, int], slots: int, order: list[int]
) -> None:
    """Let those go on whose builder has had enough trials after it."""
    while True:
        due = [key for key in held if len(order) - builders[key] >= slots]
        if not due:
            return
        released = []
        for key in due:
            released += held.pop(key)
        order += sorted(released)
