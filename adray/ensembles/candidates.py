"""Which finished trials may be in one team: calibrated scores of the same images, and their cost.

The members of a team have scored the same test images, and held the same normal images out: an
image that one of them was trained on would calibrate it, and the team's threshold, too low. Trials
of another seed hold other images out, so all members share one seed, and several seeds of one
configuration are never in one team. Trials whose images have changed since are never candidates:
their scores belong to other pictures, even of the same names. Nor are those of older settings,
unless they are asked for.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adray.ensembles.calibration import Calibration, calibrate
from adray.errors import InputError
from adray.files import canonical_hash
from adray.language.sentence import Sentence, nearest_of
from adray.results.current import Look, mark_settings, view_store
from adray.results.image_units import image_units
from adray.results.leaderboard import trial_row
from adray.results.measurements import Cost, trial_cost
from adray.results.store import TrialRecord, finished_of, plain_of, tested_of
from adray.results.trial_files import find_checkpoint, image_names, read_scores
from adray.results.trial_names import part_name

if TYPE_CHECKING:
    import pandas as pd

Category = tuple[str, str]
"""Names of the data set and of the category."""


@dataclass(frozen=True)
class Candidate:
    """What one trial says of the images of one category."""

    record: TrialRecord
    """The trial."""
    key: str
    """The same for trials of several categories that differ in nothing but the category."""
    test: pd.DataFrame
    """`label`, `pred_score` and `unit` by image, sorted; images of one unit stay together."""
    holdout: pd.DataFrame
    """The same of held-out normals, with the `peak` of each one's map where the trial noted it."""
    calibration: Calibration
    """Of its scores."""
    cost: Cost
    """Of running it."""

    @property
    def configuration(self) -> str:
        """Give the configuration's name and setting, and warn where its backbone was not trained."""
        name = trial_row(self.record).name
        untrained = (self.record.result or {}).get("weights") == "random"
        return f"{name} (UNTRAINED)" if untrained else name

    @property
    def seed(self) -> int:
        """Read the seed of the trial."""
        return int(self.record.identity["seed"])

    @property
    def test_scores(self) -> np.ndarray:
        """Give the scores of the test images, (N,), in the order of `test`."""
        return self.test["pred_score"].to_numpy()

    @property
    def holdout_scores(self) -> np.ndarray:
        """Give the scores of the held-out normals, (M,), in the order of `holdout`."""
        return self.holdout["pred_score"].to_numpy()

    @property
    def holdout_peaks(self) -> np.ndarray | None:
        """Give the highest value of each held-out normal's map, (M,) float32, in the same order.

        None where the trial noted none.
        """
        return self.holdout["peak"].to_numpy(np.float32) if "peak" in self.holdout else None

    @property
    def view(self) -> float:
        """Give the part of an image's side that the model sees, 1 without a crop."""
        train = self.record.identity["train"]
        return (train.get("crop_size") or train["img_size"]) / train["img_size"]

    @property
    def images(self) -> str:
        """Hash the test images, their labels and the held-out normals: a team has the same ones."""
        labels = self.test["label"].tolist()
        parts = [list(self.test.index), labels, list(self.holdout.index)]
        # Maps are laid over each other, for which images must lie alike in what models see.
        train = self.record.identity["train"]
        if "fit" in train:
            parts.append(train["fit"])
        if "aspect" in train:
            parts.append(f"aspect {train['aspect']}")
        if "tile" in train:
            parts.append(self.record.id8)  # stays by itself
        return canonical_hash(parts)


@dataclass(frozen=True)
class LeftOut:
    """A trial that is no candidate for a category."""

    category: Category
    """The category."""
    name: str
    """Configuration and id of the trial."""
    reason: str
    """Why it is none."""


@dataclass(frozen=True)
class Wanted:
    """Which trials may be candidates."""

    models: tuple[str, ...] = ("*",)
    """Patterns of configurations."""
    categories: tuple[str, ...] = ("*",)
    """Patterns of ``dataset/category`` or of the category alone."""
    seed: int | None = None
    """Seed of the trials; None for the seed with the most candidates."""
    max_ms: float | None = None
    """Milliseconds per image that a model may take."""
    max_mb: float | None = None
    """MB of memory that a model may take."""
    with_checkpoint: bool = False
    """Take only trials that kept their checkpoint."""
    everything: bool = False
    """Take trials of older settings too, where later ones of their cells count."""


@dataclass(frozen=True)
class Found:
    """The candidates of a store."""

    by_category: Mapping[Category, list[Candidate]]
    """Those that may be in one team."""
    left_out: list[LeftOut]
    """All other trials."""


@dataclass(frozen=True)
class Pool:
    """Categories that get the same team, and who may be in it."""

    categories: list[Category]
    """One or several."""
    candidates: list[list[Candidate]]
    """By category, the same configurations in the same order."""


def find_candidates(store: str | Path, wanted: Wanted, look: Look | None = None) -> Found:
    """Find by category the trials that may be in one team, and say of all others why they may not.

    Args:
        store: the output_dir of sweeps.
        wanted: which trials are asked for.
        look: finds the fingerprints that the folders of data sets give now; None where nobody
            looks there.

    Raises:
        InputError: for a store that does not exist or has no finished trials, and for patterns that
            match nothing.
    """
    usable: dict[Category, list[Candidate]] = {}
    left_out = []
    for record in _wanted_records(store, wanted, look):
        for category, outcome in _read(record, wanted):
            if isinstance(outcome, Candidate):
                usable.setdefault(category, []).append(outcome)
            else:
                left_out.append(LeftOut(category, trial_name(record), outcome))
    if not usable and not left_out:
        raise InputError(
            Sentence.of(
                "team no categories", categories=" ".join(wanted.categories), store=str(store)
            )
        )

    by_category = {}
    for category in sorted(usable):
        same, others = _with_same_images(usable[category])
        by_category[category] = same
        reason = (
            "its test images or held-out normals are not those of the others "
            "(another seed, split or holdout); --seed chooses"
        )
        for other in others:
            left_out.append(LeftOut(category, trial_name(other.record), reason))
    return Found(by_category, left_out)


def pool_of_all(by_category: Mapping[Category, list[Candidate]]) -> Pool:
    """Gather the candidates that every category has.

    Raises:
        InputError: where there is none.
    """
    by_key = []
    for found in by_category.values():
        by_key.append({candidate.key: candidate for candidate in found})

    # The order of the first category serves for all.
    shared = set.intersection(*map(set, by_key))
    common = [key for key in by_key[0] if key in shared]
    if not common:
        raise InputError(
            Sentence.of("team none finished", categories_text=categories_text(by_category))
        )
    return Pool(list(by_category), [list(map(found.__getitem__, common)) for found in by_key])


def categories_text(categories: Iterable[Category]) -> str:
    """Join the names of categories."""
    return ", ".join(itertools.starmap(part_name, categories))


def trial_name(record: TrialRecord) -> str:
    """Give a trial's configuration and id, for messages."""
    return f"{record.identity['configuration']} {record.id8}"


# Which trials


def _wanted_records(store: str | Path, wanted: Wanted, look: Look | None) -> list[TrialRecord]:
    """Read the finished trials of the wanted configurations and seed, marked where none counts."""
    view = view_store(store, look)
    finished = mark_settings(finished_of(view.records))
    if not finished:
        others = "; ".join(f"{one.folder}: {one.reason}" for one in view.unread)
        if others:
            raise InputError(Sentence.of("team none read", store=str(store), others=others))
        raise InputError(Sentence.of("team store empty", store=str(store)))
    plain = plain_of(finished)
    if not plain:
        raise InputError(
            Sentence.of("team only conditions", store=str(store), condition=finished[0].condition)
        )
    records = tested_of(plain)
    if not records:
        raise InputError(Sentence.of("team only drawn", store=str(store)))

    # A pattern or a seed that fits nothing is a mistake of the user, not an empty choice.
    identities = [record.identity for record in records]
    names = sorted(set(map(itemgetter("configuration"), identities)))
    for pattern in wanted.models:
        if not fnmatch.filter(names, pattern):
            raise InputError(
                Sentence.of(
                    "team no model", pattern=repr(pattern), nearest=nearest_of(pattern, names)
                )
            )
    seeds = sorted(set(map(itemgetter("seed"), identities)))
    if wanted.seed is not None and wanted.seed not in seeds:
        raise InputError(
            Sentence.of("team no seed", seed=wanted.seed, nearest=nearest_of(wanted.seed, seeds))
        )

    return [record for record in records if _is_wanted(record.identity, wanted)]


def _is_wanted(identity: Mapping[str, Any], wanted: Wanted) -> bool:
    """Tell whether a trial's configuration and seed are asked for."""
    is_seed = wanted.seed in (None, identity["seed"])
    return is_seed and _matches([identity["configuration"]], wanted.models)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Tell whether one of the names fits one of the patterns."""
    return any(fnmatch.fnmatchcase(*pair) for pair in itertools.product(names, patterns))


def _with_same_images(found: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Part off the largest group with the same images, of several the one with the lowest seed."""
    found = sorted(found, key=lambda c: (c.configuration, c.seed, c.record.id8))
    hashes = list(map(attrgetter("images"), found))
    chosen = max(range(len(found)), key=lambda i: (hashes.count(hashes[i]), -found[i].seed))

    same = []
    others = []
    for candidate, images in zip(found, hashes, strict=True):
        if images == hashes[chosen]:
            same.append(candidate)
        else:
            others.append(candidate)
    return same, others


# What a trial says and costs


def _read(record: TrialRecord, wanted: Wanted) -> Iterator[tuple[Category, Candidate | str]]:
    """Give what a trial says of each of its categories, a merged one of several.

    Yields:
        The category, with the candidate or the sentence why it is none.
    """
    identity = record.identity
    scores = read_scores(record.folder)
    if scores is None:
        yield (record.dataset, record.category), "its scores.parquet cannot be read"
        return

    cost = trial_cost(record)
    problem = _problem(record, cost, wanted)
    groups = list(scores.groupby(["dataset", "category"], sort=True))
    # A merged trial is the same model in each of its categories, and like no other.
    key = record.trial["id"] if len(groups) > 1 else _recipe(identity)
    for (dataset, name), rows in groups:
        if _matches([f"{dataset}/{name}", str(name)], wanted.categories):
            outcome = problem or _candidate(record, rows, key, cost)
            yield (str(dataset), str(name)), outcome


def _problem(record: TrialRecord, cost: Cost, wanted: Wanted) -> str:
    """Say why a trial is no candidate whatever its scores are, empty where nothing is against it."""
    if record.outdated:
        return record.outdated
    if record.superseded and not wanted.everything:
        return f"{record.superseded}; --all takes it too"
    if wanted.with_checkpoint and find_checkpoint(record.folder) is None:
        return "it kept no checkpoint"
    limits = (("ms per image", cost.ms, wanted.max_ms), ("MB", cost.mb, wanted.max_mb))
    for unit, value, limit in limits:
        if limit is None:
            continue
        if value is None:
            return f"its {unit} are not known; run `python -m adray measure` on the store"
        if value > limit:
            return f"it alone takes more than {limit:g} {unit}"
    return ""


def _candidate(record: TrialRecord, rows: pd.DataFrame, key: str, cost: Cost) -> Candidate | str:
    """Make a candidate of a trial's scores on one category, or say why it is none."""
    # By names that are the same wherever the data lie.
    names = image_names(rows["path"])
    rows = rows.assign(path=names, unit=image_units(rows)).set_index("path").sort_index()
    test = rows[rows["split"] == "test"]
    holdout = rows[rows["split"] == "holdout"]
    if holdout.empty:
        return (
            "it held no normal images out (holdout: 0), so it cannot be calibrated; "
            "run it with train: {holdout: 0.1, calibration: holdout}"
        )
    if not test.index.is_unique or not np.isfinite(test["pred_score"]).all():
        return "its test scores are NaN, infinite or given twice"

    try:
        calibration = calibrate(holdout["pred_score"].to_numpy())
    except InputError as error:
        return str(error)
    shown = ["label", "pred_score", "unit"]
    noted = [*shown, "peak"] if "peak" in holdout else shown
    return Candidate(record, key, test[shown], holdout[noted], calibration, cost)


def _recipe(identity: Mapping[str, Any]) -> str:
    """Hash all that decides a trial's result except its data."""
    data = ("datasets", "categories", "data")
    return canonical_hash({key: value for key, value in identity.items() if key not in data})
