"""Which trials of a store answer for their cell, and what tells their settings apart.

A cell may hold trials of images that were replaced since, and trials of several settings. Their
figures answer different questions, so no mean is taken over them. Seeds and draws are averaged,
nothing else.

One cell has one answer, which `view_store` finds for every command: the trials of the images of
today, and of these the setting that finished last. The condition of training is part of the cell. A
setting is all that decides a result beside the images, the condition and the seed: hyperparameters,
weights and the versions of adray's results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from adray.conditions import PLAIN_LABEL
from adray.files import canonical_hash
from adray.language.sentence import Sentence
from adray.results.store import (
    Entry,
    TrialRecord,
    Unread,
    counted_of,
    current_of,
    finished_of,
    read_store,
    sound_trials,
    without_searches,
)
from adray.results.trial_files import image_names, read_scores

_NO_SETTING = (
    "configuration",
    "datasets",
    "categories",
    "data",
    "seed",
    "evaluation",
    "condition",
)
"""Parts of an identity that say which cell and seed a trial is of, and no setting."""
_PARTLY_VERSIONED = ("versions.defects", "versions.conditions")
"""Versions that only some cells have: those judged by drawn defects, those under a condition."""
_UNSET = "unset"
_MOST_FIELDS = 3
"""Fields that a setting is told by before the rest is counted."""
_LONGEST_VALUE = 20


class Images(NamedTuple):
    """What decides which images of a data set a trial is given."""

    datasets: tuple[str, ...]
    """Names of the data sets."""
    categories: tuple[str, ...]
    """Names of the categories."""
    split_mode: str
    """Which of VisA's splits."""
    train_defects: float
    """Part of the defects that train."""
    seed: int | None
    """Seed of the split; None for all, where the data come with a split of their own."""

    @classmethod
    def of(cls, record: TrialRecord) -> Images:
        """Read it from a trial."""
        identity = record.identity
        train = identity.get("train") or {}
        return cls(
            tuple(identity["datasets"]),
            tuple(identity["categories"]),
            str(train.get("split_mode", "1cls")),
            float(train.get("train_defects", 0.0)),
            int(identity["seed"]),
        )


Look = Callable[[Sequence[TrialRecord]], Mapping[Images, str]]
"""Finds the fingerprints that the folders of trials' images give now."""


# The one rule


@dataclass(frozen=True)
class StoreView:
    """A store, where every trial says whether it counts."""

    records: list[TrialRecord]
    """All trials but those of searches, marked."""
    searched: int
    """Number of trials of searches, which the reports of their sweeps show."""
    unread: list[Unread]
    """Folders whose files do not count as a trial."""

    def shown(self, *, everything: bool) -> list[TrialRecord]:
        """Choose the trials that answer for their cells, or all of them, and name their settings.

        Args:
            everything: also outdated trials and those of older settings.
        """
        return mark_settings(self.records if everything else counted_of(self.records))

    def notes(self, *, everything: bool) -> list[Sentence]:
        """Say what `shown` leaves out, and which means hold several settings, a sentence each."""
        notes: list[Sentence] = []
        if not everything:
            notes += self._left_out()
            notes += _mixed_settings(counted_of(self.records))
        if self.searched:
            notes.append(Sentence.of("store searched", number=self.searched))
        for folder in self.unread:
            place = str(folder.folder)
            notes.append(Sentence.of("store unread", folder=place, reason=folder.reason))
        return notes

    def _left_out(self) -> list[Sentence]:
        """Count the trials that do not count."""
        notes: list[Sentence] = []
        outdated = sum(bool(record.outdated) for record in self.records)
        if outdated:
            notes.append(Sentence.of("store outdated", number=outdated))
        superseded = sum(bool(record.superseded) for record in self.records)
        if superseded:
            notes.append(Sentence.of("store superseded", number=superseded))
        return notes


def view_store(
    output_dir: str | Path,
    look: Look | None = None,
    read: Callable[[str | Path], list[Entry]] = read_store,
) -> StoreView:
    """Read a store that a user named, and mark the trials that do not count.

    Args:
        output_dir: of sweeps.
        look: finds the fingerprints that the folders of data sets give now; None where nobody
            looks there.
        read: reads the store, `adray.results.summaries.read_summaries` for tables alone.

    Raises:
        InputError: where there is no such folder.
    """
    entries = read(output_dir)
    records, copies = _without_copies(sound_trials(entries))
    unread = [entry for entry in entries if isinstance(entry, Unread)] + copies

    ordinary = without_searches(records)
    marked = mark_superseded(mark_outdated(ordinary, look(ordinary) if look else {}))
    return StoreView(marked, len(records) - len(ordinary), unread)


def _without_copies(records: Sequence[TrialRecord]) -> tuple[list[TrialRecord], list[Unread]]:
    """Part the trials of a store from copies of them, which lie where another data set belongs.

    Each trial is kept where its own data set says, else where it is found first.
    """
    kept: dict[str, TrialRecord] = {}
    for record in records:
        first = kept.setdefault(record.trial["id"], record)
        if not _is_in_place(first) and _is_in_place(record):
            kept[record.trial["id"]] = record

    copies = []
    for record in records:
        if kept[record.trial["id"]] is not record:
            reason = str(Sentence.of("store copy", trial=record.id8))
            copies.append(Unread(record.folder, reason))
    if not copies:
        return list(records), []
    return [record for record in records if kept[record.trial["id"]] is record], copies


def _is_in_place(record: TrialRecord) -> bool:
    """Tell whether a trial lies in the folder of its data set."""
    return record.folder.parents[2].name == record.dataset


# Outdated trials


def mark_outdated(
    records: Sequence[TrialRecord], present: Mapping[Images, str] | None = None
) -> list[TrialRecord]:
    """Say of each trial whether its images, or how they are read, were changed since.

    Of several fingerprints of the same images one is of today: that which the folder gives now, and
    where nobody can look there, that of the trial which ended last.

    Args:
        records: trials of one store.
        present: fingerprints that the folders give now, as far as they are known.

    Returns:
        The trials in their order, with `TrialRecord.outdated` filled in.
    """
    by_images: dict[Images, list[TrialRecord]] = defaultdict(list)
    for record in records:
        by_images[Images.of(record)._replace(seed=None)].append(record)

    reasons: dict[int, str] = {}
    for family in by_images.values():
        for same in _with_one_split(family):
            today = _fingerprint_of_today(same, present or {})
            for record in same:
                if data_of(record) != today:
                    reasons[id(record)] = _changed(data_of(record), today)
    return _with_marks(records, "outdated", reasons)


def _with_marks(
    records: Sequence[TrialRecord], name: str, marks: Mapping[int, str]
) -> list[TrialRecord]:
    """Write a field of trials, by their place in memory. One that has it already stays as it is."""
    marked = []
    for record in records:
        change: dict[str, Any] = {name: marks.get(id(record), "")}
        is_same = getattr(record, name) == change[name]
        marked.append(record if is_same else replace(record, **change))
    return marked


def data_of(record: TrialRecord) -> str:
    """Read the fingerprint of a trial's images."""
    return str(record.identity.get("data", ""))


def _with_one_split(family: Sequence[TrialRecord]) -> Iterable[list[TrialRecord]]:
    """Part trials by seed where that decides their split, and so their fingerprint too."""
    if not _is_split_by_seed(family):
        return [list(family)]
    by_seed = defaultdict(list)
    for record in family:
        by_seed[record.identity["seed"]].append(record)
    return by_seed.values()


def _is_split_by_seed(family: Sequence[TrialRecord]) -> bool:
    """Tell whether the seed may be why fingerprints differ."""
    seeds = defaultdict(set)
    examples = {}
    # Conditions test other images of the same data, so a plain trial is the better example.
    for record in sorted(family, key=lambda record: record.condition == PLAIN_LABEL):
        seeds[data_of(record)].add(record.identity["seed"])
        examples[data_of(record)] = record
    if len(seeds) == 1 or any(len(of_data) > 1 for of_data in seeds.values()):
        return False
    if len(set.union(*seeds.values())) == 1:
        return False

    # Each fingerprint has a seed of its own. Another split tests other images, by their names.
    first, *others = map(_test_images, examples.values())
    return first is None or any(other != first for other in others)


def _test_images(record: TrialRecord) -> list[tuple[str, int]] | None:
    """Read names and labels of the test images, None where they are not known."""
    scores = read_scores(record.folder)
    rows = None if scores is None else scores[scores["split"] == "test"]
    if rows is None or rows.empty:
        return None
    return sorted(zip(image_names(rows["path"]), rows["label"].tolist(), strict=True))


def _fingerprint_of_today(same: Sequence[TrialRecord], present: Mapping[Images, str]) -> str:
    """Choose the fingerprint of today among those of trials that were given the same images."""
    newest_first = sorted(same, key=lambda record: record.finished, reverse=True)
    for record in newest_first:
        if Images.of(record) in present:
            return present[Images.of(record)]
    return data_of(newest_first[0])


def _changed(before: str, today: str) -> str:
    """Write why a trial is outdated."""
    return (
        f"its images, or how they are read, were changed since: "
        f"fingerprint {before[:8] or 'unknown'}, now {today[:8] or 'unknown'}"
    )


# Older settings


def mark_superseded(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Say of each trial whether a later setting of its cell counts in its place.

    The setting that finished last counts, with all its seeds, and of several trials of one seed and
    draw the last. A trial that failed after that is no answer and no past either: it stays.

    Args:
        records: trials of one store, as `mark_outdated` marks them.

    Returns:
        The trials in their order, with `TrialRecord.superseded` filled in.
    """
    by_cell: dict[Any, list[TrialRecord]] = defaultdict(list)
    for record in current_of(records):
        by_cell[record.identity["configuration"], _cell_of(record)].append(record)

    reasons: dict[int, str] = {}
    for trials in by_cell.values():
        reasons |= _superseded_of(trials)
    return _with_marks(records, "superseded", reasons)


def _superseded_of(trials: Sequence[TrialRecord]) -> dict[int, str]:
    """Say why trials of one cell do not count, by their place in memory."""
    finished = finished_of(trials)
    if not finished:
        return {}
    newest = max(finished, key=lambda record: (record.finished, record.id8))
    counting = _setting_of(newest)

    reasons = {}
    of_counting: list[TrialRecord] = []
    for alike in _by_setting(trials):
        setting = _setting_of(alike[0])
        if setting == counting:
            of_counting += alike
            continue
        for record in alike:
            if not _failed_after(record, newest):
                reasons[id(record)] = _superseded_reason(setting, counting)
    return reasons | _repeated(of_counting)


def _repeated(trials: Sequence[TrialRecord]) -> dict[int, str]:
    """Say why all but the last trial of a seed and draw do not count, by their place in memory.

    Args:
        trials: of one cell and setting.
    """
    repetitions: dict[Any, list[TrialRecord]] = defaultdict(list)
    for record in trials:
        key = record.identity["seed"], record.draw, record.evaluation
        repetitions[key].append(record)

    reasons = {}
    for same in repetitions.values():
        finished = finished_of(same)
        if len(same) < 2 or not finished:
            continue
        last = max(finished, key=lambda record: (record.finished, record.id8))
        for record in same:
            if record is not last and not _failed_after(record, last):
                reasons[id(record)] = _superseded_reason(
                    _fields_of(record, ()), _fields_of(last, ())
                )
    return reasons


def _failed_after(record: TrialRecord, other: TrialRecord) -> bool:
    """Tell whether a trial failed after another one finished."""
    return record.result is None and record.finished > other.finished


def _superseded_reason(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Write which fields the setting that counts has other values of."""
    differing = sorted(_differing([before, now]), key=_is_minor)
    parts = []
    for field in differing[:_MOST_FIELDS]:
        old_value = _short(before.get(field, _UNSET))
        new_value = _short(now.get(field, _UNSET))
        parts.append(f"{field} {old_value} -> {new_value}")
    more = len(differing) - _MOST_FIELDS
    if more > 0:
        parts.append(f"{more} more")
    return f"a later setting of its cell counts: {', '.join(parts)}"


# Settings


def mark_settings(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Say what tells a trial's setting apart, where a cell has trials of several.

    Returns:
        The trials in their order, with `TrialRecord.setting` filled in. Outdated ones are left as
        they are, since each stands for itself anyway.
    """
    by_configuration: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        if not record.outdated:
            by_configuration[str(record.identity["configuration"])].append(record)

    names: dict[int, str] = {}
    for trials in by_configuration.values():
        names |= _setting_names(trials)
    return _with_marks(records, "setting", names)


def _setting_names(trials: Sequence[TrialRecord]) -> dict[int, str]:
    """Name the settings of one configuration, by the trial's place in memory.

    There are none where each cell has one setting only.
    """
    settings: dict[str, Mapping[str, Any]] = {}
    hashes: dict[int, str] = {}
    cells = defaultdict(set)
    for alike in _by_setting(trials):
        setting = _setting_of(alike[0])
        key = canonical_hash(setting)
        settings[key] = setting
        for record in alike:
            hashes[id(record)] = key
            cells[_cell_of(record)].add(key)
    if all(len(of_cell) == 1 for of_cell in cells.values()):
        return {}

    names = _told_apart(settings)
    return {place: names[key] for place, key in hashes.items()}


def _cell_of(record: TrialRecord) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Give data sets, categories and condition of a trial."""
    identity = record.identity
    return tuple(identity["datasets"]), tuple(identity["categories"]), record.condition


def _by_setting(trials: Sequence[TrialRecord]) -> Iterable[list[TrialRecord]]:
    """Put trials of one configuration and setting together, so that it is gathered once for all."""
    alike = defaultdict(list)
    for record in trials:
        identity = record.identity
        setting = [item for item in identity.items() if item[0] not in _NO_SETTING]
        alike[identity["configuration"], repr(setting)].append(record)
    return alike.values()


def _setting_of(record: TrialRecord) -> dict[str, Any]:
    """Gather a trial's setting by whole names, for instance ``train.num_epochs``."""
    return _fields_of(record, _NO_SETTING)


def _fields_of(record: TrialRecord, without: Sequence[str]) -> dict[str, Any]:
    """Gather a trial's identity by whole names, but for some of its parts."""
    found: dict[str, Any] = {}
    for part, value in record.identity.items():
        if part in without:
            continue
        if isinstance(value, Mapping):
            for name, inner in value.items():
                found[f"{part}.{name}"] = inner
        else:
            found[part] = value
    return found


def _mixed_settings(counted: Sequence[TrialRecord]) -> list[Sentence]:
    """Say of each configuration that has several settings over its cells what they differ in.

    A cell has one of them, so that a mean over cells is the only place where they meet.
    """
    by_configuration: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for alike in _by_setting(finished_of(counted)):
        setting = _setting_of(alike[0])
        for name in _PARTLY_VERSIONED:
            setting.pop(name, None)
        configuration = alike[0].identity["configuration"]
        by_configuration[configuration][canonical_hash(setting)] = setting

    notes: list[Sentence] = []
    for configuration, settings in sorted(by_configuration.items()):
        if len(settings) > 1:
            names = " | ".join(_told_apart(settings).values())
            notes.append(Sentence.of("store mixed", name=configuration, settings=names))
    return notes


def _told_apart(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name settings by the fields in which they differ, hyperparameters first.

    Args:
        settings: by their hash.
    """
    differing = sorted(_differing(settings.values()), key=_is_minor)
    names = {}
    for key, setting in settings.items():
        parts = []
        for field in differing[:_MOST_FIELDS]:
            parts.append(f"{field}={_short(setting.get(field, _UNSET))}")
        more = len(differing) - _MOST_FIELDS
        if more > 0:
            parts.append(f"{more} more")
        names[key] = ", ".join(parts)

    # What was cut off may be what tells two of them apart.
    counts = list(names.values())
    for key, name in names.items():
        if counts.count(name) > 1:
            names[key] = f"{name}, setting {key[:6]}"
    return names


def _differing(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the fields that have several values, in their order."""
    values: dict[str, set[str]] = {}
    settings = list(settings)
    for setting in settings:
        values |= {field: set() for field in setting if field not in values}
    for field, found in values.items():
        found.update(repr(setting.get(field, _UNSET)) for setting in settings)
    return [field for field, found in values.items() if len(found) > 1]


def _is_minor(field: str) -> bool:
    """Tell whether a field is no hyperparameter, which a person would not name first."""
    return not field.startswith(("model.", "train."))


def _short(value: Any) -> str:
    """Write a value, of a hash or another long one its beginning."""
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:8]}..."
