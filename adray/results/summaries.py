"""A large store read in short: what a table of its trials shows, remembered from the last time.

Reading twenty thousand files takes seconds, and a table shows little of what they hold. So that is
kept in one file at the top of the store. The files alone count: what is kept of a trial stands for
its files only as long as they are the very ones that were read, by number, size and both times of
change, which the system sets and nobody can set back. All others are read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from adray import __version__
from adray.files import atomic_path
from adray.results.store import Entry, TrialRecord, read_entry, read_store, whole_entries
from adray.thresholds import PROMISE
from adray.types import Json

FILE = ".summaries.json"
"""Name of the file at the top of a store."""
MANY = 500
"""Trials that were read anew before the file is written again: fewer are read as fast."""
_SETTLED_NS = 5 * 10**9
"""Before the reading began, in which a change may have the time of one that was made meanwhile."""
_FILES = ("trial.json", "result.json", "failure.json")
_OF_ASSIGNMENT = ("settings", "search", "leaky", "retry_level")
_OF_RESULT = (
    "metrics",
    "counts",
    "weights",
    "epochs",
    "timings",
    "memory",
    "shared_work",
    "finished",
)
_THRESHOLDS = (PROMISE, "percentile_95")
_OF_THRESHOLD = ("value", "promised", "bound")
_OF_FAILURE = ("kind", "reason", "attempts", "finished")
"""Keys of a trial's files that its row in a table, and the choice of rows, are made of."""


def read_summaries(store: str | Path) -> list[Entry]:
    """Read a store as `read_store` does, each trial with what a table shows of it.

    Raises:
        InputError: where there is no such folder.
    """
    summaries = _Summaries(Path(store))
    entries = read_store(store, summaries.read)
    summaries.keep()
    return entries


def whole_of(records: Iterable[TrialRecord]) -> Iterator[TrialRecord]:
    """Read summaries whole, with the marks that they have. One that went away is left out."""
    for record in records:
        entry = read_entry(record.folder)
        if isinstance(entry, TrialRecord):
            yield replace(
                entry,
                outdated=record.outdated,
                superseded=record.superseded,
                setting=record.setting,
            )


class _Summaries:
    """What is known of a store's trials.

    Args:
        store: its folder.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._began = time.time_ns()
        self._read_whole = whole_entries()
        self._commons, self._kept = _load(store / FILE)
        self._rows: dict[str, list[Any]] = {}
        self._numbers: dict[str, int] = {}
        self._read_anew = 0

    def read(self, path: Path) -> Entry | None:
        """Read what lies in a cell, by what is kept of it where that still holds."""
        stamps = _stamps(str(path))
        name = str(path.relative_to(self._store))
        row = self._kept.get(name)
        if row is not None and row[0] == stamps:
            self._rows[name] = row
            return self._record(path, row)

        # The stamps are older than what is read, so that a change in between shows the next time.
        entry = self._read_whole(path)
        if isinstance(entry, TrialRecord):
            self._read_anew += 1
            row = self._row(stamps, entry)
            self._rows[name] = row
            return self._record(path, row)
        return entry

    def _row(self, stamps: list[Any], record: TrialRecord) -> list[Any]:
        """Give what is kept of a trial: its stamps, the number of what others share, and its own."""
        trial = record.trial
        identity = record.identity
        common = {**trial, "id": "", "identity": {**identity, "seed": 0}}
        if "environment" in trial:
            common["environment"] = _some(trial["environment"], ("device",))
        if "assignment" in trial:
            common["assignment"] = _some(trial["assignment"], _OF_ASSIGNMENT)
        text = json.dumps(common)
        if text not in self._numbers:
            self._numbers[text] = len(self._commons)
            self._commons.append(common)

        own = [trial["id"], identity["seed"]]
        failure = None if record.failure is None else _some(record.failure, _OF_FAILURE)
        return [stamps, self._numbers[text], own, _short_result(record.result), failure]

    def _record(self, path: Path, row: list[Any]) -> TrialRecord:
        """Make the trial of what is kept of it."""
        _, number, (trial_id, seed), result, failure = row
        common = self._commons[number]
        # The keys keep their places.
        trial = {**common, "id": trial_id, "identity": {**common["identity"], "seed": seed}}
        return TrialRecord(path, trial, result, failure)

    def keep(self) -> None:
        """Write what is known, where much is new. A store that cannot be written goes without."""
        if self._read_anew < MANY:
            return
        with suppress(OSError), atomic_path(self._store / FILE) as temporary:
            temporary.touch()
            # The clock of the store's machine may differ from the one here.
            ahead = temporary.stat().st_mtime_ns - time.time_ns()
            settled = self._began + ahead - _SETTLED_NS
            rows = {name: row for name, row in self._rows.items() if _newest(row[0]) < settled}
            body = json.dumps({"commons": self._commons, "trials": rows}).encode()
            temporary.write_bytes(_head(body) + body)


def _load(file: Path) -> tuple[list[Json], dict[str, list[Any]]]:
    """Read what is kept; nothing where it is torn, changed or of another version of adray."""
    try:
        text = file.read_bytes()
    except OSError:
        return [], {}
    head, _, body = text.partition(b"\n")
    if head + b"\n" != _head(body):
        return [], {}
    found = json.loads(body)
    return found["commons"], found["trials"]


def _head(body: bytes) -> bytes:
    """Give the first line of the file: who wrote it, and the sum of the rest."""
    return f"adray {__version__} {hashlib.sha256(body).hexdigest()}\n".encode()


def _stamps(folder: str) -> list[Any]:
    """Give what tells a trial's files from all others that ever had their names."""
    stamps: list[Any] = []
    for name in _FILES:
        try:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116  a `Path` takes far longer
        except OSError:
            stamps.append(None)
            continue
        times = [status.st_mtime_ns, status.st_ctime_ns]
        stamps.append([*times, status.st_size, status.st_ino])
    return stamps


def _newest(stamps: list[Any]) -> int:
    """Give the latest change of a trial's files, in nanoseconds since the epoch."""
    latest = 0
    for stamp in stamps:
        if stamp is not None:
            latest = max(latest, stamp[0], stamp[1])
    return latest


def _short_result(result: Json | None) -> Json | None:
    """Give what a row shows of a result."""
    if result is None:
        return None
    short = _some(result, _OF_RESULT)
    thresholds = result.get("thresholds", {})
    short["thresholds"] = {
        name: _some(thresholds[name], _OF_THRESHOLD) for name in _THRESHOLDS if name in thresholds
    }
    return short


def _some(values: Any, names: tuple[str, ...]) -> Json:
    """Choose some keys of a mapping, as far as it has them."""
    return {name: values[name] for name in names if name in values}
