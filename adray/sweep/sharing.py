"""Which trials of a sweep have the same frozen stage, what they together want of it, and how they stand in line for it.

Trials are not bound to the node or the process that has the files: in Ray 2.60 a bundle can only demand a label, and a
trial that demands what left with its node would wait for ever. On another node the files are built once more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from adray.files import canonical_hash
from adray.registry import ModelRegistry
from adray.sweep.plan import PlannedTrial
from adray.types import Sharing

T = TypeVar("T")


def frozen_key(trial: PlannedTrial) -> str:
    """What trials have in common that can read the same features; empty for a trial that shares none."""
    job, identity = trial.job, trial.identity
    if not identity or not ModelRegistry.trainer_class(job.configuration).shares_features:
        return ""
    config = job.resolved.config
    drawn_from = job.seed if config.weights == "random" else None
    train = [
        identity["train"][name] for name in ("img_size", "crop_size", "normalize", "precision")
    ]
    data = [identity["datasets"], identity["categories"]]
    return canonical_hash([config.backbone, identity["weights"], drawn_from, train, data])


def sharings(trials: Iterable[PlannedTrial]) -> dict[str, Sharing]:
    """For each trial, by id, what it should keep of its frozen stage for others; left out where it is the only one.

    A try of a search is never the only one: others will follow.
    """
    groups: dict[str, list[PlannedTrial]] = defaultdict(list)
    for trial in trials:
        groups[frozen_key(trial)].append(trial)
    groups.pop("", None)
    return {
        trial.id8: _sharing(trial, members)
        for members in groups.values()
        if len(members) > 1 or members[0].search
        for trial in members
    }


def _sharing(trial: PlannedTrial, members: Sequence[PlannedTrial]) -> Sharing:
    layers = tuple(
        sorted({layer for member in members for layer in member.job.resolved.config.layers})
    )
    ratios = [_coreset_ratio(member) for member in members if _patches(member) == _patches(trial)]
    same = ratios.count(_coreset_ratio(trial)) > 1 or bool(trial.search)
    return Sharing(layers, max(ratios), same and max(ratios) > 0)


def _patches(trial: PlannedTrial) -> tuple[object, ...]:
    """What decides which patches there are to choose from, beyond the features."""
    return trial.identity["trainer"], trial.job.resolved.config.layers, trial.job.seed


def _coreset_ratio(trial: PlannedTrial) -> float:
    """Part of the training patches that a trial keeps; 0 for models that keep none."""
    return float(getattr(trial.job.resolved.config, "coreset_ratio", 0.0))


def spread(ordered: Sequence[T], key_of: Callable[[T], str], slots: int) -> list[T]:
    """Change an order as little as needed so that no trial starts beside the one that builds what it waits for.

    The first of each group is its builder. The others come when at least `slots` trials have started after it, as long
    as there is other work.

    Args:
        ordered: trials, the most urgent first.
        key_of: group of a trial, empty for none.
        slots: trials that run at a time.
    """
    begun, held, result = dict[str, int](), defaultdict[str, list[int]](list), list[int]()
    for place, key in enumerate(map(key_of, ordered)):
        while due := [other for other in held if len(result) - begun[other] >= slots]:
            result += sorted(p for other in due for p in held.pop(other))
        if key in begun and len(result) - begun[key] < slots:
            held[key].append(place)
            continue
        if key:
            begun.setdefault(key, len(result))
        result.append(place)
    result += sorted(place for places in held.values() for place in places)
    return [ordered[place] for place in result]
