"""Folders of files that can be made again.

One process builds a file, others wait for it, the oldest go for new ones.

`<key><ending>` is what was made, `<key><sidecar>` what tells that it is whole (written first),
`<group>.lock` is held while building; the group of a key is what stands before its dash. Whoever
uses a file holds a shared lock on it, which keeps it from eviction; deleting it is harmless all the
same, since Linux keeps an open file until its last user goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adray.files import REFUSALS

logger = logging.getLogger(__name__)

_FIRST_NAP = 0.005
"""Seconds until a lock is tried again; each further nap is twice as long."""
_LONGEST_NAP = 0.5
"""Seconds that a nap grows to."""
_RECENT_SECONDS = 3600.0
"""Age below which a file counts as in use where there are no locks."""


class NotWholeError(Exception):
    """A file of a cache that is damaged or of which a part is missing."""


@dataclass(frozen=True)
class SharedWork:
    """Work that a trial used and that others may use too."""

    kind: str
    """``decoding``, ``features``, ``coreset`` or ``neighbors``."""
    key: str
    """What it is of; equal work has an equal key."""
    build_seconds: float | None
    """Wall time that it took to make, writing included; None where that is not known."""
    alone_seconds: float | None
    """What this trial would have taken for its part of it, had it not been shared."""
    built: bool
    """Whether this trial made it."""
    waited_seconds: float = 0.0
    """How long this trial stood waiting until another one had made it."""


@dataclass(frozen=True)
class CacheFolder:
    """Where files of one kind lie."""

    path: Path
    """The folder."""
    ending: str
    """Of the files' names."""
    sidecar: str
    """Ending of the small file beside each."""
    limit: int
    """Bytes that all files may take together."""

    def file(self, key: str) -> Path:
        """Give the place of the file of a key."""
        return self.path / f"{key}{self.ending}"

    def side(self, key: str) -> Path:
        """Give the place of the small file beside it."""
        return self.path / f"{key}{self.sidecar}"

    def temporary(self, key: str) -> Path:
        """Make up a fresh hidden name for a file that is being built.

        What is left of it after a kill, `make_room` sweeps.
        """
        return self.path / f".{key}.{uuid.uuid4().hex[:8]}.tmp{self.ending}"

    @contextlib.contextmanager
    def lock(self, group: str, seconds: float = math.inf) -> Iterator[float]:
        """Hold the lock of a group of keys, which the kernel frees when the process dies.

        Yields:
            How long it was waited for, in seconds.

        Raises:
            TimeoutError: where another process holds it for longer than `seconds`.
            OSError: where the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f"{group}.lock").open("w") as file:
            yield _wait_for(file, seconds)

    def open(self, key: str) -> IO[bytes]:
        """Open a file for reading, kept from eviction until it is closed, and mark it as used.

        Raises:
            FileNotFoundError: where there is none.
        """
        path = self.file(key)
        file = path.open("rb")
        _take_lock(file, fcntl.LOCK_SH)
        # A read-only cache serves as well, only its order of use is not kept.
        with contextlib.suppress(OSError):
            os.utime(path)
        return file

    def remove(self, key: str) -> None:
        """Take a file away, for instance a damaged one, whose users keep what they opened."""
        for path in (self.file(key), self.side(key)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def make_room(self, needed: int = 0, building: str = "") -> None:
        """Delete the files used longest ago until `needed` more bytes stay below the limit.

        Files in use stay. What killed builders left under temporary names goes first.

        Args:
            needed: bytes about to be written.
            building: the group whose lock the caller holds; its files stay.
        """
        self._sweep(building)
        found = sorted(self._stats(), key=lambda item: item[1].st_mtime_ns)
        total = needed + sum(stat.st_size for _, stat in found)

        for path, stat in found:
            if total <= self.limit:
                return
            key = path.name.removesuffix(self.ending)
            if group_of(key) != building and not _in_use(path):
                self.remove(key)
                total -= stat.st_size
                logger.info("evicted %s to keep the cache below its limit", path)

    def unused(self) -> list[Path]:
        """List the files that no process uses now, the one used longest ago first."""
        found = sorted(self._stats(), key=lambda item: item[1].st_mtime_ns)
        return [path for path, _ in found if not _in_use(path)]

    def _sweep(self, building: str) -> None:
        """Delete temporary files whose builder is gone, which shows by its lock."""
        for path in self.path.glob(".*.tmp.*"):
            group = group_of(path.name.split(".")[1])
            if group == building or not _in_use(self.path / f"{group}.lock"):
                path.unlink(missing_ok=True)

    def _stats(self) -> list[tuple[Path, os.stat_result]]:
        """List all files that have their name, with their size and time."""
        found = []
        for path in self.path.glob(f"[!.]*{self.ending}"):
            # Another process may delete it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.stat()))
        return found


def group_of(key: str) -> str:
    """Give the group that a key's lock is named by."""
    return key.partition("-")[0]


def _wait_for(file: IO[str], seconds: float) -> float:
    """Take the exclusive lock of an open file, and give the seconds that it took."""
    started = time.monotonic()
    nap = _FIRST_NAP
    while _take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
        waited = time.monotonic() - started
        if waited > seconds:
            raise TimeoutError(f"{file.name} was held by another process for {waited:.0f} s")
        time.sleep(nap)
        nap = min(2 * nap, _LONGEST_NAP)
    return time.monotonic() - started


def _in_use(path: Path) -> bool:
    """Tell whether another open file holds a lock on this one, or did something without locks."""
    try:
        with path.open("rb") as file:
            is_free = _take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            age = time.time() - os.fstat(file.fileno()).st_mtime
    except OSError:
        return False
    return age < _RECENT_SECONDS if is_free is None else not is_free


def _take_lock(file: IO[str] | IO[bytes], how: int) -> bool | None:
    """Take a lock of an open file as `flock` knows it.

    Returns:
        False where another open file holds one that excludes it, None where the file system knows
        no locks.
    """
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return None
    return True
