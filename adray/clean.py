"""What of a store nothing refers to any more: scratch of dead processes, outdated trials, caches.

A trial that counts, or that a later setting replaced, is a result and stays. So does an outdated one
that a team's file names, and one in whose folder `adray update` made further models.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adray.cache_folder import CacheFolder
from adray.changed_data import present_fingerprints
from adray.components.feature_folder import feature_folder
from adray.data.cache import decoded_folder
from adray.ensembles.team import read_ensemble
from adray.errors import InputError
from adray.results.current import view_store
from adray.results.store import (
    UPDATED,
    cells_of,
    dead_partials,
    foreign_partials,
    read_trial,
    take_away,
    trial_folders,
)
from adray.settings import Settings

_PROGRESS = re.compile(r"\.(?P<id8>[0-9a-f]{8})\.progress\.pth")
_RUNNING = re.compile(r"\..+\.(?P<pid>\d+)\.running")
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\..+)?")
_DAY = 86_400
_LONG_DEAD = 7 * _DAY
"""Seconds without a new byte after which scratch of another machine counts as left behind."""


@dataclass(frozen=True)
class Waste:
    """A file or folder that nothing refers to."""

    path: Path
    """Where it is."""
    kind: str
    """``scratch``, ``outdated trial`` or ``cache``."""
    reason: str
    """Why nothing refers to it."""
    size: int
    """Bytes that it takes."""


@dataclass(frozen=True)
class Found:
    """What `find_waste` found."""

    waste: list[Waste]
    """All that may go."""
    notes: list[str]
    """What stays although one might think otherwise, a sentence each."""


def find_waste(store: str | Path) -> Found:
    """Look for what nothing refers to below a store. Nothing is touched.

    Raises:
        InputError: for a store that does not exist.
    """
    outdated = []
    for record in view_store(store, present_fingerprints).records:
        if record.outdated:
            outdated.append(record)
    teams = _Teams.of(Path(store))

    waste = []
    notes = list(teams.notes)
    for record in outdated:
        if record.trial["id"] in teams.members:
            notes.append(f"{record.folder} is outdated and stays, since a team's file names it")
        elif any(record.folder.glob(f"{UPDATED}*")):
            notes.append(
                f"{record.folder} is outdated and stays, since models that update made lie in it"
            )
        else:
            waste.append(_waste(record.folder, "outdated trial", record.outdated))
    for cell in cells_of(store):
        waste += _scratch_of(cell)
    return Found(waste, notes)


def find_caches(settings: Settings) -> list[Waste]:
    """List the files of this machine's caches that no process uses now.

    They are made again when they are needed, which takes time.
    """
    waste = []
    for folder in (decoded_folder(settings), feature_folder(settings)):
        for path in folder.unused():
            waste.append(_waste(path, "cache", "it is made again when it is needed"))
    return waste


def remove(waste: Iterable[Waste], settings: Settings) -> int:
    """Remove what was found.

    Returns:
        The bytes that were freed. What could not be removed is left out.
    """
    freed = 0
    for item in waste:
        if item.kind == "cache":
            _cache_of(item.path, settings).remove(item.path.stem)
        elif item.kind == "outdated trial":
            # Hidden first, so that nobody reads a trial of which half is gone.
            shutil.rmtree(take_away(item.path), ignore_errors=True)
        elif item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)
        if not item.path.exists():
            freed += item.size
    return freed


def _cache_of(path: Path, settings: Settings) -> CacheFolder:
    """Find the cache that a file lies in."""
    decoded = decoded_folder(settings)
    return decoded if path.parent == decoded.path else feature_folder(settings)


@dataclass(frozen=True)
class _Teams:
    """The trials that the files of teams name."""

    members: frozenset[str]
    """Whole ids."""
    notes: tuple[str, ...]
    """Files that cannot be read, a sentence each."""

    @classmethod
    def of(cls, store: Path) -> _Teams:
        """Read the files that `adray ensemble` wrote into a store."""
        members = set()
        notes = []
        for file in sorted((store / "ensembles").glob("*.json")):
            try:
                team = read_ensemble(file)
            except InputError as error:
                notes.append(str(error))
                continue
            for member in team.members:
                members.add(member.id)
        return cls(frozenset(members), tuple(notes))


# Scratch


def _scratch_of(cell: Path) -> Iterator[Waste]:
    """Find what killed processes left in a cell and beside it."""
    # An update works in the folder of the trial that it began with.
    for place in (cell, *trial_folders(cell)):
        yield from _partials_in(place)

    for file in sorted(cell.glob(".*")):
        reason = _reason_of_file(file)
        if reason:
            yield _waste(file, "scratch", reason)
    for folder in sorted(cell.parent.glob(f".{cell.name}.*.running")):
        if _is_dead_run(folder):
            yield _waste(folder, "scratch", "the train() that wrote it is gone")


def _partials_in(place: Path) -> Iterator[Waste]:
    """Find the working folders that nobody works in any more."""
    for folder in dead_partials(place):
        yield _waste(folder, "scratch", "the process that wrote it is gone")
    for folder in foreign_partials(place):
        if _age(folder) > _LONG_DEAD:
            days = _age(folder) / _DAY
            reason = f"another machine left it, which wrote nothing for {days:.0f} days"
            yield _waste(folder, "scratch", reason)


def _reason_of_file(file: Path) -> str:
    """Say why a hidden file of a cell is of no use, empty where it is."""
    progress = _PROGRESS.fullmatch(file.name)
    if progress:
        record = read_trial(file.with_name(progress["id8"]))
        is_done = record is not None and record.result is not None
        return "its trial has finished" if is_done else ""
    is_old = file.is_file() and _age(file) > _DAY
    if is_old and _TEMPORARY.fullmatch(file.name):
        return "it was never put in its place"
    return ""


def _is_dead_run(folder: Path) -> bool:
    """Tell whether a working folder of train() belongs to nobody: it does not say which machine."""
    match = _RUNNING.fullmatch(folder.name)
    is_alive_here = match is not None and Path(f"/proc/{match['pid']}").exists()
    return match is not None and not is_alive_here and _age(folder) > _DAY


def _age(path: Path) -> float:
    """Give the seconds since something in a file or folder was written last."""
    newest = 0.0
    for file in _files_of(path):
        newest = max(newest, file.lstat().st_mtime)
    return time.time() - (newest or path.lstat().st_mtime)


def _files_of(path: Path) -> list[Path]:
    """List a file itself, or all files below a folder."""
    if not path.is_dir():
        return [path]
    return [file for file in path.rglob("*") if not file.is_dir()]


def _waste(path: Path, kind: str, reason: str) -> Waste:
    """Weigh a file or folder."""
    size = sum(file.lstat().st_size for file in _files_of(path))
    return Waste(path, kind, reason, size)
