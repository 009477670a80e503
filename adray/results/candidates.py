"""Which finished trials may be in one team: their scores by category, on the same images, calibrated, with their cost.

The members of a team have scored the same test images, and held the same normal images out: an image that one of them
was trained on would calibrate it, and the team's threshold, too low. Trials of another seed hold other images out, so
all members share one seed, and several seeds of one configuration are never in one team.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adray.errors import InputError, nearest
from adray.files import canonical_hash
from adray.results.ensemble import Calibration, calibrate
from adray.results.measurements import read_measurements
from adray.results.store import TrialRecord, read_store
from adray.results.trial_files import find_checkpoint, image_names, read_scores

if TYPE_CHECKING:
    import pandas as pd

Category = tuple[str, str]
"""Names of the data set and of the category."""


@dataclass(frozen=True)
class Cost:
    """What running one trial's model costs, None where unknown.

    Attributes:
        ms: milliseconds per image.
        mb: of memory, 2**20 bytes.
        source: the device that `python -m adray measure` used.
    """

    ms: float | None
    mb: float | None
    source: str = ""


@dataclass(frozen=True)
class Candidate:
    """What one trial says of the images of one category.

    Attributes:
        record: the trial.
        key: the same for trials of several categories that differ in nothing but the category.
        test: `label` and `pred_score` by image, sorted.
        holdout: the same of held-out normals.
        calibration: of its scores.
        cost: of running it.
    """

    record: TrialRecord
    key: str
    test: pd.DataFrame
    holdout: pd.DataFrame
    calibration: Calibration
    cost: Cost

    @property
    def configuration(self) -> str:
        """Name of the configuration, with a warning where its backbone was not trained."""
        untrained = (self.record.result or {}).get("weights") == "random"
        return str(self.record.trial["identity"]["configuration"]) + (
            " (UNTRAINED)" if untrained else ""
        )

    @property
    def images(self) -> str:
        """The same for candidates with the same test images, labels and held-out normals."""
        return canonical_hash(
            [list(self.test.index), self.test["label"].tolist(), list(self.holdout.index)]
        )


@dataclass(frozen=True)
class LeftOut:
    """A trial that is no candidate for a category, and why."""

    category: Category
    name: str
    reason: str


@dataclass(frozen=True)
class Wanted:
    """Which trials may be candidates.

    Attributes:
        models: patterns of configurations.
        categories: patterns of ``dataset/category`` or of the category alone.
        seed: of the trials; None for the seed with the most candidates.
        max_ms: milliseconds per image that a model may take.
        max_mb: MB of memory that a model may take.
        with_checkpoint: only trials that kept theirs.
    """

    models: tuple[str, ...] = ("*",)
    categories: tuple[str, ...] = ("*",)
    seed: int | None = None
    max_ms: float | None = None
    max_mb: float | None = None
    with_checkpoint: bool = False


Offer = dict[Category, list[Candidate]]


def find_candidates(store: str | Path, wanted: Wanted) -> tuple[Offer, list[LeftOut]]:
    """By category the trials that may be in one team, and all others with the reason.

    Raises:
        InputError: for a store that does not exist or has no finished trials, and for patterns that match nothing.
    """
    found: Offer = {}
    left_out = []
    for record in _wanted_records(store, wanted):
        for category, outcome in _read(record, wanted):
            if isinstance(outcome, Candidate):
                found.setdefault(category, []).append(outcome)
            else:
                left_out.append(LeftOut(category, trial_name(record), outcome))
    if not found and not left_out:
        raise InputError(f"--categories {' '.join(wanted.categories)} matches nothing in {store}")
    offer = {}
    for category in sorted(found):
        offer[category], others = _with_same_images(found[category])
        reason = (
            "its test images or held-out normals are not those of the others (another seed, split or holdout); --seed "
            "chooses"
        )
        left_out += [LeftOut(category, trial_name(other.record), reason) for other in others]
    return offer, left_out


def common_candidates(offer: Offer) -> list[list[Candidate]]:
    """By category the candidates that every category has, in the same order.

    Raises:
        InputError: where there is none.
    """
    by_key = [{candidate.key: candidate for candidate in found} for found in offer.values()]
    common = [key for key in by_key[0] if all(key in others for others in by_key)]
    if not common:
        raise InputError(
            f"no configuration finished, with one seed and one set of hyperparameters, in all of "
            f"{', '.join('/'.join(category) for category in offer)}; name fewer with --categories"
        )
    return [[found[key] for key in common] for found in by_key]


def trial_name(record: TrialRecord) -> str:
    """Configuration and id, for messages."""
    return f"{record.trial['identity']['configuration']} {record.id8}"


def _wanted_records(store: str | Path, wanted: Wanted) -> list[TrialRecord]:
    records = [
        record for record in read_store(store) if record.status == "done" and not record.searched
    ]
    if not records:
        raise InputError(f"store {store} holds no finished trial; run a sweep first")
    names = sorted({record.trial["identity"]["configuration"] for record in records})
    for pattern in wanted.models:
        if not fnmatch.filter(names, pattern):
            raise InputError(
                f"--models {pattern!r} matches no finished trial; {nearest(pattern, names)}"
            )
    seeds = sorted({record.trial["identity"]["seed"] for record in records})
    if wanted.seed is not None and wanted.seed not in seeds:
        raise InputError(
            f"--seed {wanted.seed} has no finished trial; {nearest(wanted.seed, seeds)}"
        )
    return [
        record
        for record in records
        if any(
            fnmatch.fnmatchcase(record.trial["identity"]["configuration"], p) for p in wanted.models
        )
        and wanted.seed in (None, record.trial["identity"]["seed"])
    ]


def _read(record: TrialRecord, wanted: Wanted) -> Iterator[tuple[Category, Candidate | str]]:
    """What a trial offers to each of its categories, a merged one to several; a sentence where it offers nothing."""
    identity, scores = record.trial["identity"], read_scores(record.folder)
    if scores is None:
        yield (
            ("+".join(identity["datasets"]), "+".join(identity["categories"])),
            "its scores.parquet cannot be read",
        )
        return
    cost = trial_cost(record)
    problem = _problem(record, cost, wanted)
    groups = list(scores.groupby(["dataset", "category"], sort=True))
    for (dataset, category), rows in groups:
        names = (f"{dataset}/{category}", str(category))
        if any(
            fnmatch.fnmatchcase(name, pattern) for name in names for pattern in wanted.categories
        ):
            key = record.trial["id"] if len(groups) > 1 else _recipe(identity)
            yield (str(dataset), str(category)), problem or _candidate(record, rows, key, cost)


def _problem(record: TrialRecord, cost: Cost, wanted: Wanted) -> str:
    """Why a trial is no candidate whatever its scores are; empty where it is one."""
    if wanted.with_checkpoint and find_checkpoint(record.folder) is None:
        return "it kept no checkpoint"
    for what, value, limit in (
        ("ms per image", cost.ms, wanted.max_ms),
        ("MB", cost.mb, wanted.max_mb),
    ):
        if limit is not None and value is None:
            return f"its {what} are not known; run `python -m adray measure` on the store"
        if limit is not None and value is not None and value > limit:
            return f"it alone takes more than {limit:g} {what}"
    return ""


def _candidate(record: TrialRecord, rows: pd.DataFrame, key: str, cost: Cost) -> Candidate | str:
    rows = rows.assign(path=image_names(rows["path"])).set_index("path").sort_index()
    test, holdout = rows[rows["split"] == "test"], rows[rows["split"] == "holdout"]
    if holdout.empty:
        return "it held no normal images out (holdout: 0), so it cannot be calibrated; run it with train.holdout: 0.1"
    if not test.index.is_unique or not np.isfinite(test["pred_score"]).all():
        return "its test scores are NaN, infinite or given twice"
    try:
        calibration = calibrate(holdout["pred_score"].to_numpy())
    except InputError as error:
        return str(error)
    return Candidate(
        record,
        key,
        test[["label", "pred_score"]],
        holdout[["label", "pred_score"]],
        calibration,
        cost,
    )


def _recipe(identity: dict[str, Any]) -> str:
    """Hash of all that decides a trial's result except its data."""
    return canonical_hash(
        {k: v for k, v in identity.items() if k not in ("datasets", "categories", "data")}
    )


def trial_cost(record: TrialRecord) -> Cost:
    """Time and memory of a trial's model by its newest measurement; what was timed while packed is no cost."""
    measured = read_measurements(record)
    if not measured:
        return Cost(None, None)
    newest = measured[-1]
    peak, base = newest.get("host_peak_mb"), newest.get("host_base_mb")
    own = None if peak is None or base is None else max(peak - base, 0.0)
    mb = newest.get("gpu_peak_mb") if newest["kind"] == "cuda" else own
    return Cost(newest.get("latency_ms"), mb, str(newest["device"]))


def _with_same_images(found: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """The largest group with the same images, of several the one with the lowest seed; and the others."""
    found = sorted(
        found, key=lambda c: (c.configuration, c.record.trial["identity"]["seed"], c.record.id8)
    )
    hashes = [candidate.images for candidate in found]
    seeds = [candidate.record.trial["identity"]["seed"] for candidate in found]
    chosen = max(range(len(found)), key=lambda i: (hashes.count(hashes[i]), -seeds[i]))
    same = [h == hashes[chosen] for h in hashes]
    return [c for c, s in zip(found, same, strict=True) if s], [
        c for c, s in zip(found, same, strict=True) if not s
    ]
