"""The store: one folder per finished trial, whole or absent.

What is done is read off these files alone.

A trial works in a hidden folder beside its final place and is published by one rename of the
folder, so that of two sweeps that race for the same trial the first wins, and nothing half-written
is ever visible. Where the file system does not know that (`adray.file_system`), its files are moved
one by one, the result last: without it a trial counts as unfinished.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from adray import __version__
from adray.conditions import PLAIN_LABEL, label_of
from adray.errors import InputError
from adray.file_system import ORDINARY, FileSystem
from adray.files import REFUSALS, move_over, read_json, sync, sync_folder, write_json
from adray.language.sentence import Sentence
from adray.machine import host_identity
from adray.results.json_parts import PartReader
from adray.results.record_shape import check_failure, check_result, check_trial
from adray.types import Json

logger = logging.getLogger(__name__)

HEADER_FILE = "store.json"
"""Name of the file that says what a store was opened with."""
UPDATED = "updated_"
"""Beginning of the names of the folders of updated trials, in that of the first parent."""
_ID = re.compile(r"[0-9a-f]{8}", re.IGNORECASE)  # some file systems know capitals only
_PARTIAL = re.compile(
    rf"\.({UPDATED})?(?P<id8>[0-9a-f]{{8}})\.(?P<host>.+)-(?P<pid>\d+)\.(partial|old)"
)
_HEARTBEAT_SECONDS = 1800
_RACES = 3
"""Times that a place is looked at again which another process may have taken."""
_ENDS = ("result.json", "failure.json")
"""Files that tell that a trial has ended."""
_NAME_BYTES = 80  # file names join three of these and must stay below 255 bytes
_OLD_KEYS = {"rung": "retry_level", "lives": "attempts_left"}
"""Keys of an assignment as version 0.1 wrote them, under ``message``, to what they are called
now."""


@dataclass(frozen=True)
class TrialRecord:
    """What the store says of one trial."""

    folder: Path
    """Where its files are."""
    trial: Json
    """What was asked (`trial.json`)."""
    result: Json | None
    """Metrics, timings, peak memory (`result.json`), or None."""
    failure: Json | None
    """Reason, attempts, log tail (`failure.json`), or None."""
    outdated: str = ""
    """Why its figures are not of the images of today, see `adray.results.current`; empty where they
    are, and where nobody looked."""
    superseded: str = ""
    """Which later setting of its cell counts in its place, see `adray.results.current`; empty where
    it counts itself, and where nobody looked."""
    setting: str = ""
    """What tells its setting from the others of its cell; empty where the cell has one, and where
    nobody looked."""

    @property
    def id8(self) -> str:
        """Give the first eight digits of the trial's id."""
        return self.folder.name.lower()

    @property
    def status(self) -> str:
        """Give ``done``, ``failed``, ``unfinished``, or ``outdated`` whatever came of it."""
        if self.outdated:
            return "outdated"
        if self.result is not None:
            return "done"
        return "failed" if self.failure is not None else "unfinished"

    @property
    def identity(self) -> Json:
        """Give all that decides the trial's result. JSON."""
        return self.trial["identity"]

    @property
    def dataset(self) -> str:
        """Name its data set, or several as ``a+b``."""
        return "+".join(self.identity["datasets"])

    @property
    def category(self) -> str:
        """Name its category, or several as ``a+b``."""
        return "+".join(self.identity["categories"])

    @property
    def assignment(self) -> Json:
        """Give what the worker got, without identity and folder.

        JSON, empty where no sweep ran it.
        """
        return read_assignment(self.trial)

    @property
    def evaluation(self) -> str:
        """Give ``test``, or ``synthetic`` where the figures are of drawn defects."""
        return str(self.identity.get("evaluation", "test"))

    @property
    def is_drawn(self) -> bool:
        """Tell whether its figures are of defects drawn on held-out normals."""
        return self.evaluation == "synthetic"

    @property
    def condition(self) -> str:
        """Name how its training differs from the plain case, ``plain`` where it does not."""
        return label_of(self.identity.get("condition") or {})

    @property
    def draw(self) -> int | None:
        """Give the number of its draw, None where no images were drawn."""
        return (self.identity.get("condition") or {}).get("draw")

    @property
    def searched(self) -> bool:
        """Tell whether it was one try of a search, whose figures stand in that search's report only."""
        return bool(self.assignment.get("search"))

    @property
    def leaky(self) -> bool:
        """Tell whether a search that tried it chooses by the test set."""
        return bool(self.assignment.get("leaky"))

    @property
    def retry_level(self) -> int:
        """Give how far it went up after running out of memory, 0 for not at all."""
        return int(self.assignment.get("retry_level", 0))

    @property
    def attempts(self) -> int:
        """Count how often it failed. 0 where there is no failure."""
        return 0 if self.failure is None else int(self.failure.get("attempts", 1))

    @property
    def failure_kind(self) -> str:
        """Give the kind of its failure, such as ``out_of_memory``. Empty where there is none."""
        return str((self.failure or {}).get("kind", ""))

    @property
    def reason(self) -> str:
        """Give why it is outdated, or why it failed. Empty where neither is so."""
        return self.outdated or str((self.failure or {}).get("reason", ""))

    @property
    def finished(self) -> str:
        """Give the time of its end in UTC, ISO 8601. Empty where it has not ended."""
        ended = self.result or self.failure or {}
        return str(ended.get("finished") or "")


@dataclass(frozen=True)
class Unread:
    """A folder of a store with files of a trial that do not count as one."""

    folder: Path
    """Where they are."""
    reason: str
    """Why they do not count."""
    is_unreachable: bool = False
    """Whether the file system refused to read them, for now or to this user, so that no sweep can
    replace them."""


Entry: TypeAlias = TrialRecord | Unread
"""What a folder of a store is read as."""
ReadEntry: TypeAlias = Callable[[Path], Entry | None]
"""Reads what lies in a cell, None for what is nothing of a trial."""
Parse: TypeAlias = Callable[[bytes], Any]
"""Gives the value of a file's text, or raises a ValueError."""


def read_assignment(trial: Mapping[str, Any]) -> Json:
    """Read what a worker got from a `trial.json`, in today's words.

    Version 0.1 called it ``message`` and had other names for two of its keys, which is said once.
    """
    if "assignment" in trial:
        return trial["assignment"]
    old = trial.get("message")
    if not old:
        return {}
    _say_old_keys()
    return {_OLD_KEYS.get(key, key): value for key, value in old.items()}


@functools.cache
def _say_old_keys() -> None:
    """Say once that the store has old names, which the version after this one will not read."""
    logger.warning(
        "the store has trials of adray 0.1, whose trial.json says message, rung and lives; they are read as "
        "assignment, retry_level and attempts_left, for this version still"
    )


def write_header(output_dir: str | Path, file_system: FileSystem) -> None:
    """Write down with which program and on which file system a store was opened last.

    Nothing reads it but people, who want to know how safe what they see is.
    """
    opened = datetime.now(timezone.utc).isoformat(timespec="seconds")
    header = {
        "adray": __version__,
        "host": host_identity(),
        "opened": opened,
        "file_system": asdict(file_system),
    }
    write_json(Path(output_dir) / HEADER_FILE, header)


def merged_name(names: Sequence[str]) -> str:
    """Name the folder of one or several merged data sets or categories.

    That is ``a+b``, and ``merged-<hash6>`` where it would be long.
    """
    joined = "+".join(names)
    if len(joined.encode()) <= _NAME_BYTES:
        return joined
    return f"merged-{hashlib.sha256(joined.encode()).hexdigest()[:6]}"


def cell_folder(
    output_dir: str | Path, dataset: str, category: str, configuration: str, custom: bool
) -> Path:
    """Name the folder of a cell's trials. Custom data sets stand under ``custom/``."""
    base = Path(output_dir) / "custom" if custom else Path(output_dir)
    return base / dataset / category / configuration


def read_trial(folder: Path) -> TrialRecord | None:
    """Read the trial in a folder, None where there is none."""
    trial = read_json(f"{folder}/trial.json")
    if not isinstance(trial, dict) or not isinstance(trial.get("identity"), dict):
        return None

    result = read_json(f"{folder}/result.json")
    if isinstance(result, dict):
        return TrialRecord(folder, trial, result, None)
    failure = read_json(f"{folder}/failure.json")
    return TrialRecord(folder, trial, None, failure if isinstance(failure, dict) else None)


def read_if_reachable(folder: Path) -> TrialRecord | None:
    """Read the trial in a folder, None where there is none or the store does not answer."""
    try:
        return read_trial(folder)
    except OSError:
        return None


def cell_trials(cell: Path) -> list[TrialRecord]:
    """Read all trials of one cell, by id. Those that are closed are left out, and named once."""
    records = []
    for entry in _read_each(cell, _trial_or_closed):
        if isinstance(entry, TrialRecord):
            records.append(entry)
        else:
            _say_left_out(entry)
    return records


@functools.cache
def _say_left_out(entry: Unread) -> None:
    """Say once that a folder is left out."""
    logger.warning("left out: %s: %s", entry.folder, entry.reason)


def all_trials(output_dir: str | Path) -> Iterator[TrialRecord]:
    """Read every trial of a store that says what it is of, whatever else its files hold.

    Those that are closed are left out, and named once.
    """
    for cell in cells_of(output_dir):
        yield from cell_trials(cell)


def read_store(output_dir: str | Path, read: ReadEntry | None = None) -> list[Entry]:
    """Read every folder of a store that has files of a trial, cell by cell.

    A store that is written meanwhile gives what is whole at this moment.

    Args:
        output_dir: of sweeps.
        read: reads what lies in a cell, `whole_entries` where None.

    Raises:
        InputError: where there is no such folder.
    """
    if not Path(output_dir).is_dir():
        raise InputError(Sentence.of("store missing", store=str(output_dir)))

    # Records hold no circles, and of ten thousand the collector takes a quarter of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    whole = whole_entries()
    try:
        entries: list[Entry] = []
        for cell in cells_of(output_dir):
            entries += _read_each(cell, read or whole)
        gc.freeze()  # nor does it look at them later
        return entries
    finally:
        if was_enabled:
            gc.enable()


def sound_trials(entries: Iterable[Entry]) -> list[TrialRecord]:
    """Choose the trials whose files can be read."""
    return [entry for entry in entries if isinstance(entry, TrialRecord)]


def cells_of(output_dir: str | Path) -> Iterator[Path]:
    """List the places of a store in which trials may lie, files too."""
    for depth in ("*/*/*", "custom/*/*/*"):
        for cell in sorted(Path(output_dir).glob(depth)):
            if not cell.name.startswith("."):
                yield cell


def trial_folders(cell: Path) -> list[Path]:
    """List what is named as a trial in a cell, by name, nothing where it is no folder."""
    try:
        paths = sorted(cell.iterdir())
    except OSError:
        return []
    return [path for path in paths if _ID.fullmatch(path.name)]


def whole_entries() -> ReadEntry:
    """Make what reads the files of trials whole. Parts that many have in common are kept once."""
    return functools.partial(_entry_or_copy, parse=PartReader().parse)


def _read_each(cell: Path, read: ReadEntry) -> Iterator[Entry]:
    """Read what lies in one cell, in the order of the names."""
    try:
        paths = sorted(cell.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        # It is none, or went away since it was listed.
        return
    except PermissionError:
        yield _closed(cell)
        return
    except OSError as error:
        yield Unread(cell, str(error), is_unreachable=True)
        return

    for path in paths:
        entry = read(path)
        if entry is not None:
            yield entry


def _trial_or_closed(path: Path) -> Entry | None:
    """Read a trial by what it says that it is of. None for all else that lies in a cell."""
    if not _ID.fullmatch(path.name):
        return None
    try:
        return read_trial(path)
    except PermissionError:
        return _closed(path)
    except OSError as error:
        return Unread(path, str(error), is_unreachable=True)


def _entry_or_copy(path: Path, parse: Parse) -> Entry | None:
    """Read what lies in a cell, where train() leaves its files too."""
    if path.name == "trial.json" and not _ID.fullmatch(path.parent.name):
        reason = "files of train(), which are a copy of your own and no part of the store"
        return Unread(path.parent, reason)
    return read_entry(path, parse)


def read_entry(folder: Path, parse: Parse = json.loads) -> Entry | None:
    """Read one folder of a cell, None where it is not there or has nothing of a trial.

    Args:
        folder: its place.
        parse: gives the value of a `trial.json`'s text.
    """
    try:
        if not folder.is_dir():
            return None
        if not _ID.fullmatch(folder.name) and not _is_stray(folder):
            return None
        return _sound_trial(folder, parse)
    except PermissionError:
        return _closed(folder)
    except OSError as error:
        return Unread(folder, str(error), is_unreachable=True)
    except InputError as error:
        return Unread(folder, str(error))


def _closed(folder: Path) -> Unread:
    """Say of a folder that this user may not read it."""
    reason = (
        "it cannot be read by this user; ask its owner for `chmod -R a+rX`, or move it out of the "
        "store"
    )
    return Unread(folder, reason, is_unreachable=True)


def _is_stray(folder: Path) -> bool:
    """Tell whether a folder has files of a trial under a name that no trial has, as copies have."""
    is_hidden = folder.name.startswith(".")
    # One level higher up than a trial lies what train() wrote of a custom data set.
    is_cell = folder.parents[2].name == "custom"
    return not is_hidden and not is_cell and (folder / "trial.json").is_file()


def _sound_trial(folder: Path, parse: Parse) -> TrialRecord:
    """Read the trial in a folder.

    Raises:
        InputError: for files that are missing, torn, foreign or newer, and for a folder that is not
            named by its trial's id.
        OSError: where they cannot be read.
    """
    trial = _json_of(folder, "trial.json", parse)
    if trial is None:
        raise InputError(Sentence.of("store no trial"))
    check_trial(trial)
    if folder.name.lower() != trial["id"][:8]:
        raise InputError(Sentence.of("store copy", trial=trial["id"][:8]))

    result = _json_of(folder, "result.json", json.loads)
    failure = _json_of(folder, "failure.json", json.loads)
    if result is not None:
        check_result(result)
    if failure is not None:
        check_failure(failure)
    return TrialRecord(folder, trial, result, failure)


def _json_of(folder: Path, name: str, parse: Parse) -> Json | None:
    """Read a file of a trial, None where it is missing.

    Raises:
        InputError: for a torn one.
    """
    try:
        # A store has tens of thousands of them, and this takes half the time of `Path.read_bytes`.
        with open(f"{folder}/{name}", "rb", buffering=0) as file:  # noqa: PTH123
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    value = None
    with contextlib.suppress(ValueError):
        value = parse(text)
    # A file that holds null is torn too.
    if value is None:
        raise InputError(Sentence.of("store torn", name=name))
    return value


def without_searches(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials that were no try of a search."""
    return [record for record in records if not record.searched]


def finished_of(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials that have a result, outdated ones too."""
    return [record for record in records if record.result is not None]


def done_of(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials whose result counts: finished, and not outdated."""
    return [record for record in records if record.status == "done"]


def current_of(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials that are not outdated, finished or not."""
    return [record for record in records if not record.outdated]


def counted_of(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials that answer for their cell: neither outdated nor of an older setting."""
    return [record for record in current_of(records) if not record.superseded]


def tested_of(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials that are judged by the images of the test, not by drawn defects."""
    return [record for record in records if record.evaluation == "test"]


def plain_of(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials that were trained in the plain way, under no condition."""
    return [record for record in records if record.condition == PLAIN_LABEL]


def find_trial(output_dir: str | Path, prefix: str) -> TrialRecord:
    """Find the trial whose id begins with `prefix`.

    Raises:
        InputError: for none, and for several.
    """
    found = [
        record for record in all_trials(output_dir) if record.trial.get("id", "").startswith(prefix)
    ]
    if len(found) != 1:
        hint = Sentence.of("store more digits" if found else "store see ids")
        raise InputError(
            Sentence.of(
                "store prefix",
                number=len(found),
                output_dir=str(output_dir),
                prefix=repr(prefix),
                hint=hint,
            )
        )
    return found[0]


def partial_folder(final: Path) -> Path:
    """Make a hidden working folder for the trial at `final`, named after this host and process."""
    partial = final.with_name(f".{final.name}.{host_identity()}-{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, final: Path, file_system: FileSystem = ORDINARY) -> bool:
    """Make a whole working folder visible as `final`.

    A failed or unfinished trial that is there already makes room, a done one stays.

    Args:
        partial: the working folder.
        final: its place.
        file_system: that they are on.

    Returns:
        False where another process had published a result first; the working folder is then
        removed.

    Raises:
        OSError: where the store cannot be written now. What is finished stays in the working
            folder, unless it became visible all the same.
    """
    for file in partial.iterdir():
        sync(file)

    move = _move_whole if file_system.moves_folders else _move_files
    aside = partial.with_suffix(".old")
    for _ in range(_RACES):
        if not _make_room(partial, final, aside):
            break
        try:
            move(partial, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue  # another process published in between: look again
        _settle(final, aside, file_system)
        return True
    shutil.rmtree(partial, ignore_errors=True)
    return False


def _move_whole(partial: Path, final: Path) -> None:
    """Give a working folder its final name in one step."""
    partial.rename(final)


def _move_files(partial: Path, final: Path) -> None:
    """Move the files of a working folder to their place, what tells the end last.

    Raises:
        FileExistsError: where another process was first.
    """
    final.mkdir()
    for file in sorted(partial.iterdir(), key=lambda file: file.name in _ENDS):
        move_over(file, final / file.name)
    shutil.rmtree(partial, ignore_errors=True)


def _settle(final: Path, aside: Path, file_system: FileSystem) -> None:
    """Flush a name that is visible already, and clear away what it replaced.

    No trouble with that makes the trial less visible.
    """
    try:
        if file_system.syncs_folders:
            sync_folder(final.parent)
    except OSError as error:
        logger.warning("%s is published, but not flushed to the disk: %s", final, error)
    shutil.rmtree(aside, ignore_errors=True)


def _make_room(partial: Path, final: Path, aside: Path) -> bool:
    """Move what is at `final` aside unless it is done.

    It is looked at again afterwards, since another process may have been faster.

    Returns:
        True where the place is free now.
    """
    if _is_done(final):
        return False
    shutil.rmtree(aside, ignore_errors=True)
    try:
        final.rename(aside)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return _clear(partial, final)
    if not _is_done(aside):
        return True
    with contextlib.suppress(OSError):
        aside.rename(final)
    return False


def _clear(partial: Path, final: Path) -> bool:
    """Delete a trial that is not done, where its file system moves no folder aside.

    Returns:
        False where another sweep may be moving its files there right now.
    """
    owner = owner_of(partial)
    if is_taken(final, "" if owner is None else owner.driver):
        return False
    if final.exists():
        shutil.rmtree(final)
    return True


def _is_done(folder: Path) -> bool:
    record = read_trial(folder)
    return record is not None and record.status == "done"


def dead_partials(cell: Path) -> list[Path]:
    """List the working folders in `cell` whose process ran on this host and is gone."""
    found = []
    for entry in cell.glob(".*") if cell.is_dir() else ():
        match = _PARTIAL.fullmatch(entry.name)
        if (
            match
            and match["host"] == host_identity()
            and not Path(f"/proc/{match['pid']}").exists()
        ):
            found.append(entry)
    return found


def foreign_partials(cell: Path) -> list[Path]:
    """List the working folders in `cell` of processes on other hosts, whether they run or not."""
    found = []
    for entry in sorted(cell.glob(".*")):
        match = _PARTIAL.fullmatch(entry.name)
        if match and match["host"] != host_identity():
            found.append(entry)
    return found


def take_away(folder: Path) -> Path:
    """Rename a trial's folder to a hidden one that a later sweep removes, and give its new name."""
    aside = folder.with_name(f".{folder.name}.{host_identity()}-{os.getpid()}.old")
    folder.rename(aside)
    return aside


def partials_of(final: Path) -> list[Path]:
    """List the working folders of the trial at `final`, the newest last."""
    found = [p for p in final.parent.glob(f".{final.name}.*.partial") if _PARTIAL.fullmatch(p.name)]
    return sorted(found, key=lambda p: p.stat().st_mtime)


def is_taken(final: Path, driver: str) -> bool:
    """Tell whether another sweep works on the trial at `final` right now.

    Args:
        final: place of the trial.
        driver: ``host-pid`` of the own sweep, whose working folders do not count.

    Returns:
        True where a working folder is of another driver that runs: on this host its process does,
        on another one something in the folder was written to in the last half hour.
    """
    for partial in partials_of(final):
        owner = owner_of(partial)
        if owner is not None and owner.driver != driver and _runs(owner.driver, partial):
            return True
    return False


@dataclass(frozen=True)
class Owner:
    """Who works in a working folder."""

    host: str
    """`host_identity` of the machine on which the trial runs."""
    pid: int
    """Its process there."""
    driver: str
    """``host-pid`` of the sweep that it runs for."""


def owner_of(partial: Path) -> Owner | None:
    """Read who works in a working folder. None while the folder does not say."""
    match = _PARTIAL.fullmatch(partial.name)
    driver = read_assignment(read_json(partial / "trial.json") or {}).get("driver", "")
    if match is None or not driver:
        return None
    return Owner(match["host"], int(match["pid"]), driver)


def _runs(driver: str, partial: Path) -> bool:
    """Tell whether a driver runs: by its process here, by new files in the folder elsewhere."""
    host, _, pid = driver.rpartition("-")
    if host == host_identity():
        return Path(f"/proc/{pid}").exists()
    try:
        newest = max(file.stat().st_mtime for file in partial.iterdir())
    except (OSError, ValueError):
        return False
    return time.time() - newest < _HEARTBEAT_SECONDS


def progress_file(final: Path) -> Path:
    """Name the file where a long trial leaves its progress checkpoint.

    It outlives a killed process.
    """
    return final.with_name(f".{final.name}.progress.pth")
