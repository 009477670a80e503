"""The store: one folder per finished trial, whole or absent. What is done is read off these files alone.

A trial works in a hidden folder beside its final place and is published by one rename of the folder, so that of two
sweeps that race for the same trial the first wins, and nothing half-written is ever visible.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adray.errors import InputError
from adray.files import read_json, sync

_ID = re.compile(r"[0-9a-f]{8}")
_HEARTBEAT_SECONDS = 1800
_NAME_BYTES = 80  # file names join three of these and must stay below 255 bytes
_PARTIAL = re.compile(r"\.(?P<id8>[0-9a-f]{8})\.(?P<host>.+)-(?P<pid>\d+)\.(partial|old)")


@dataclass(frozen=True)
class TrialRecord:
    """What the store knows of one trial.

    Attributes:
        folder: where its files are.
        trial: what was asked (`trial.json`).
        result: metrics, timings, peak memory (`result.json`), or None.
        failure: reason, attempts, log tail (`failure.json`), or None.
    """

    folder: Path
    trial: dict[str, Any]
    result: dict[str, Any] | None
    failure: dict[str, Any] | None

    @property
    def id8(self) -> str:
        """First eight digits of the trial's id."""
        return self.folder.name

    @property
    def status(self) -> str:
        """``done``, ``failed`` or ``unfinished``."""
        if self.result is not None:
            return "done"
        return "failed" if self.failure is not None else "unfinished"

    @property
    def evaluation(self) -> str:
        """``test``, or ``synthetic`` where the figures are of drawn defects and not of the test set."""
        return str(self.trial["identity"].get("evaluation", "test"))

    @property
    def searched(self) -> bool:
        """Whether it was one try of a hyperparameter search, whose figures stand in no ranking but the search's own."""
        return self.evaluation != "test" or bool(self.trial.get("message", {}).get("search"))


def merged_name(names: Sequence[str]) -> str:
    """Folder name of one or several merged data sets or categories: ``a+b``, ``merged-<hash6>`` when long."""
    joined = "+".join(names)
    if len(joined.encode()) <= _NAME_BYTES:
        return joined
    return f"merged-{hashlib.sha256(joined.encode()).hexdigest()[:6]}"


def cell_folder(
    output_dir: str | Path, dataset: str, category: str, configuration: str, custom: bool
) -> Path:
    """Where the trials of a configuration on a category lie; custom data sets stand under ``custom/``."""
    base = Path(output_dir) / "custom" if custom else Path(output_dir)
    return base / dataset / category / configuration


def read_trial(folder: Path) -> TrialRecord | None:
    """The trial in a folder, or None where there is none."""
    trial = read_json(folder / "trial.json")
    if not isinstance(trial, dict) or not isinstance(trial.get("identity"), dict):
        return None
    result, failure = read_json(folder / "result.json"), read_json(folder / "failure.json")
    return TrialRecord(
        folder,
        trial,
        result if isinstance(result, dict) else None,
        failure if isinstance(failure, dict) else None,
    )


def cell_trials(cell: Path) -> list[TrialRecord]:
    """All trials of one cell, by id."""
    if not cell.is_dir():
        return []
    folders = sorted(entry for entry in cell.iterdir() if _ID.fullmatch(entry.name))
    return [record for folder in folders if (record := read_trial(folder)) is not None]


def all_trials(output_dir: str | Path) -> Iterator[TrialRecord]:
    """Every trial of a store."""
    root = Path(output_dir)
    for depth in ("*/*/*", "custom/*/*/*"):
        for cell in sorted(root.glob(depth)):
            yield from cell_trials(cell) if cell.is_dir() else ()


def read_store(output_dir: str | Path) -> list[TrialRecord]:
    """Every trial of a store that a user named.

    Raises:
        InputError: where there is no such folder.
    """
    if not Path(output_dir).is_dir():
        raise InputError(f"store {output_dir} does not exist; name the output_dir of a sweep")
    return list(all_trials(output_dir))


def find_trial(output_dir: str | Path, prefix: str) -> TrialRecord:
    """The trial whose id begins with `prefix`.

    Raises:
        InputError: for none, and for several.
    """
    found = [
        record for record in all_trials(output_dir) if record.trial.get("id", "").startswith(prefix)
    ]
    if len(found) != 1:
        hint = "see `python -m adray status STORE` for the ids" if not found else "give more digits"
        raise InputError(
            f"{len(found)} trials in {output_dir} have an id that begins with {prefix!r}; {hint}"
        )
    return found[0]


def partial_folder(final: Path) -> Path:
    """A fresh hidden working folder for the trial at `final`, named after this host and process."""
    partial = final.with_name(f".{final.name}.{socket.gethostname()}-{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, final: Path) -> bool:
    """Make a whole working folder visible as `final`.

    A failed or unfinished trial that is there already makes room, a done one stays.

    Returns:
        False where another process had published a result first; the working folder is then removed.
    """
    for file in partial.iterdir():
        sync(file)
    aside = partial.with_suffix(".old")
    for _ in range(3):
        if not _make_room(final, aside):
            break
        try:
            partial.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # the store cannot be written now; what is finished stays in the working folder
            continue  # another process published in between: look again
        sync(final.parent)
        shutil.rmtree(aside, ignore_errors=True)
        return True
    shutil.rmtree(partial, ignore_errors=True)
    return False


def _make_room(final: Path, aside: Path) -> bool:
    """Move what is at `final` aside unless it is done; looked at again afterwards, since a rival may be faster."""
    if _is_done(final):
        return False
    shutil.rmtree(aside, ignore_errors=True)
    try:
        final.rename(aside)
    except FileNotFoundError:
        return True
    if not _is_done(aside):
        return True
    with contextlib.suppress(OSError):
        aside.rename(final)
    return False


def _is_done(folder: Path) -> bool:
    record = read_trial(folder)
    return record is not None and record.status == "done"


def dead_partials(cell: Path) -> list[Path]:
    """Working folders in `cell` whose process ran on this host and is gone."""
    found = []
    for entry in cell.glob(".*") if cell.is_dir() else ():
        match = _PARTIAL.fullmatch(entry.name)
        if (
            match
            and match["host"] == socket.gethostname()
            and not Path(f"/proc/{match['pid']}").exists()
        ):
            found.append(entry)
    return found


def partials_of(final: Path) -> list[Path]:
    """Working folders of the trial at `final`, the newest last."""
    found = [p for p in final.parent.glob(f".{final.name}.*.partial") if _PARTIAL.fullmatch(p.name)]
    return sorted(found, key=lambda p: p.stat().st_mtime)


def has_rival(final: Path, driver: str) -> bool:
    """Whether another sweep works on the trial at `final` right now.

    Args:
        final: place of the trial.
        driver: ``host-pid`` of the own sweep, whose working folders do not count.

    Returns:
        True where a working folder is of another driver that lives: on this host its process does, on another one
        something in the folder was written to in the last half hour.
    """
    for partial in partials_of(final):
        owner = owner_of(partial)
        if owner is not None and owner.driver != driver and _lives(owner.driver, partial):
            return True
    return False


@dataclass(frozen=True)
class Owner:
    """Who works in a working folder.

    Attributes:
        host: name of the machine on which the trial runs.
        pid: its process there.
        driver: ``host-pid`` of the sweep that it runs for.
    """

    host: str
    pid: int
    driver: str


def owner_of(partial: Path) -> Owner | None:
    """Who works in a working folder; None while the folder does not say."""
    match = _PARTIAL.fullmatch(partial.name)
    driver = ((read_json(partial / "trial.json") or {}).get("message") or {}).get("driver", "")
    return Owner(match["host"], int(match["pid"]), driver) if match and driver else None


def _lives(driver: str, partial: Path) -> bool:
    host, _, pid = driver.rpartition("-")
    if host == socket.gethostname():
        return Path(f"/proc/{pid}").exists()
    try:
        newest = max(file.stat().st_mtime for file in partial.iterdir())
    except (OSError, ValueError):
        return False
    return time.time() - newest < _HEARTBEAT_SECONDS


def progress_file(final: Path) -> Path:
    """Where a long trial leaves its progress checkpoint; it outlives a killed process."""
    return final.with_name(f".{final.name}.progress.pth")
