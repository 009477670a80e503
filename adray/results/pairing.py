"""Which trials of two stores belong together: one cell and seed, and equal hyperparameters.

Where a store holds trials of several batches of images, each meets the other store's trial of the
same images, if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from adray.files import canonical_hash
from adray.results.current import data_of
from adray.results.store import TrialRecord, counted_of, finished_of

Pair = tuple[TrialRecord, TrialRecord]
"""A finished trial of store A and its partner in store B."""


class Key(NamedTuple):
    """What names a trial for a person."""

    dataset: str
    """Data set, or several joined by +."""
    category: str
    """Category, or several joined by +."""
    configuration: str
    """Named row of the registry."""
    seed: int
    """Seed of the trial."""
    condition: str
    """How its training differs from the plain case, with the draw where there is one."""

    @classmethod
    def of(cls, record: TrialRecord) -> Key:
        """Read the key of a trial."""
        identity = record.identity
        draw = "" if record.draw is None else f" draw {record.draw}"
        condition = f"{record.condition}{draw}"
        return cls(
            dataset=record.dataset,
            category=record.category,
            configuration=identity["configuration"],
            seed=identity["seed"],
            condition=condition,
        )


@dataclass(frozen=True)
class Unpaired:
    """A finished trial without a finished partner in the other store."""

    store: str
    """``A`` or ``B``."""
    key: Key
    """The trial's."""
    reason: str
    """Why it has no partner."""
    alarm: bool
    """True where the partner failed."""


@dataclass(frozen=True)
class Matched:
    """The finished trials of two stores."""

    pairs: list[Pair]
    """Those with a partner, by key."""
    unpaired: list[Unpaired]
    """Those without, by key."""
    outdated: list[Unpaired]
    """Those without that are of images which their own store has newer trials of, by key."""


@dataclass
class _SameKey:
    """The trials of one key in both stores."""

    of_a: list[TrialRecord] = field(default_factory=list)
    """Those of store A."""
    of_b: list[TrialRecord] = field(default_factory=list)
    """Those of store B."""


def match(records_a: Sequence[TrialRecord], records_b: Sequence[TrialRecord]) -> Matched:
    """Pair the finished trials of the same cell and seed whose hyperparameters agree.

    Hyperparameters that only one of two versions of the program knows do not count. A trial of an
    older setting is paired with one that counts, or else left out.

    Args:
        records_a: of store A, as `adray.results.current.view_store` marks them.
        records_b: of store B, likewise.
    """
    by_key: dict[Key, _SameKey] = {}
    for record in records_a:
        by_key.setdefault(Key.of(record), _SameKey()).of_a.append(record)
    for record in records_b:
        by_key.setdefault(Key.of(record), _SameKey()).of_b.append(record)

    pairs = []
    unpaired = []
    outdated = []
    for _, same in sorted(by_key.items()):
        found = _pairs_of(same)
        pairs += found

        # Records are compared as objects: two stores may hold equal ones.
        paired = set(map(id, chain.from_iterable(found)))
        for store, own, others in (("A", same.of_a, same.of_b), ("B", same.of_b, same.of_a)):
            for record in finished_of(own):
                if id(record) in paired or record.superseded:
                    continue
                if record.outdated:
                    found_nowhere = Unpaired(store, Key.of(record), record.outdated, alarm=False)
                    outdated.append(found_nowhere)
                else:
                    unpaired.append(_unpaired(store, record, others))
    return Matched(pairs, unpaired, outdated)


def alarms_of(unpaired: Sequence[Unpaired]) -> list[Unpaired]:
    """Choose those that finished in one store and failed in the other."""
    return [one for one in unpaired if one.alarm]


def _pairs_of(same: _SameKey) -> list[Pair]:
    """Pair the finished trials that agree: the same id first, then the same images, then others."""
    fitting = []
    for a in finished_of(same.of_a):
        for b in finished_of(same.of_b):
            if _may_pair(a, b):
                fitting.append((a, b))

    pairs = []
    taken: set[int] = set()
    for a, b in sorted(fitting, key=_distance):
        if id(a) not in taken and id(b) not in taken:
            pairs.append((a, b))
            taken |= {id(a), id(b)}
    return sorted(pairs, key=lambda pair: _id_of(pair[0]))


def _may_pair(a: TrialRecord, b: TrialRecord) -> bool:
    """Tell whether two trials may be compared, or stand beside each other as the newest of each.

    Two that do not count say nothing of today, and an outdated one is only worth comparing on its own
    images.
    """
    if not counted_of((a, b)):
        return False
    is_same_data = data_of(a) == data_of(b)
    return (is_same_data or not (a.outdated or b.outdated)) and not _disagreements(a, b)


def _distance(pair: Pair) -> tuple[bool, bool, bool, str, str]:
    """Order pairs: the same id is nearer than the same images, which are nearer than others.

    Settings that count come before older ones, of which a trial may have the same id.
    """
    a, b = pair
    is_older = bool(a.superseded or b.superseded)
    ids = (_id_of(a), _id_of(b))
    return is_older, ids[0] != ids[1], data_of(a) != data_of(b), *ids


def _id_of(record: TrialRecord) -> str:
    """Read a trial's whole id."""
    return str(record.trial["id"])


def _unpaired(store: str, record: TrialRecord, others: Sequence[TrialRecord]) -> Unpaired:
    """Say why a finished trial has no partner among those of its key in the other store."""
    key = Key.of(record)
    other = "B" if store == "A" else "A"
    for candidate in others:
        if candidate.status == "failed" and not _disagreements(record, candidate):
            return Unpaired(store, key, f"failed in {other}: {candidate.reason}", alarm=True)

    # Of several with other hyperparameters, the one that differs in the fewest explains most.
    disagreements = [_disagreements(record, candidate) for candidate in finished_of(others)]
    closest = min(disagreements, key=len, default=[])
    if closest:
        reason = f"other hyperparameters in {other}: {', '.join(closest)}"
    else:
        reason = f"not finished in {other}"
    return Unpaired(store, key, reason, alarm=False)


# What a trial was asked


class Cell(NamedTuple):
    """What is the same for trials that differ in their seed alone."""

    configuration: str
    """Named row of the registry."""
    dataset: str
    """Data set, or several joined by +."""
    category: str
    """Category, or several joined by +."""
    variant: str
    """Hash of the hyperparameters and the condition."""

    @classmethod
    def of(cls, record: TrialRecord) -> Cell:
        """Read the cell of a trial."""
        key = Key.of(record)
        variant = canonical_hash([_hyperparameters(record), record.condition])
        return cls(key.configuration, key.dataset, key.category, variant)


def _hyperparameters(record: TrialRecord) -> Mapping[str, Any]:
    """Read the hyperparameters by their whole name, for instance ``train.num_epochs``."""
    found: dict[str, Any] = {}
    for part in ("model", "train"):
        for name, value in (record.identity.get(part) or {}).items():
            found[f"{part}.{name}"] = value
    return found


def _disagreements(one: TrialRecord, other: TrialRecord) -> list[str]:
    """List the hyperparameters that both have with different values."""
    mine = _hyperparameters(one)
    theirs = _hyperparameters(other)
    found = []
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name] != theirs[name]:
            found.append(f"{name} {mine[name]} and {theirs[name]}")
    return found
