"""What a watcher has judged and what is still to be done with it, in one file that a kill leaves whole.

An image is judged once its row is committed here, with all that is to follow: the lines of the
result files, a sorted copy, a message. Each of these is done afterwards and noted then, so that a
watcher which is started again does what is missing, and nothing twice.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adray.runtime.errors import BundleError
from adray.runtime.rows import Row

FILE = "journal.sqlite"
_FORMAT = "1"
NOT_ASKED = 0
PENDING = 1
DONE = 2
REFUSED = 3
"""What became of a thing that follows a verdict."""
CHANNELS = ("posted", "published")
"""Columns of what is sent: to a webhook, and by MQTT."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    number INTEGER PRIMARY KEY,
    path BLOB NOT NULL,
    size INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    status_changed INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    is_gone INTEGER NOT NULL DEFAULT 0,
    result TEXT NOT NULL,
    sorted INTEGER NOT NULL,
    target BLOB,
    posted INTEGER NOT NULL,
    published INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_path ON images (path);
CREATE INDEX IF NOT EXISTS by_inode ON images (inode);
CREATE INDEX IF NOT EXISTS to_sort ON images (number) WHERE sorted = 1;
CREATE INDEX IF NOT EXISTS to_post ON images (number) WHERE posted = 1;
CREATE INDEX IF NOT EXISTS to_publish ON images (number) WHERE published = 1;
"""
_SET_FACT = "INSERT OR REPLACE INTO facts VALUES (?, ?)"
_IMAGE = "number, path, size, changed, status_changed, inode, sha256, is_gone"


@dataclass(frozen=True)
class Identity:
    """What tells without reading whether a file is still the same."""

    size: int
    """In bytes."""
    changed: int
    """When its content changed, in nanoseconds."""
    status_changed: int
    """When its content, name or rights changed, in nanoseconds."""
    inode: int
    """Its number in the file system."""

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Take it from what the system says of a file."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True)
class JudgedFile:
    """A file that was judged."""

    number: int
    """Of its result."""
    path: Path
    """Where it lay when it was last seen."""
    identity: Identity
    """What it was then."""
    sha256: str
    """Of its content."""
    is_gone: bool
    """It was seen no more at its path."""


@dataclass(frozen=True)
class Followers:
    """What is to follow a verdict, each `NOT_ASKED` or `PENDING`."""

    sorted: int = NOT_ASKED
    """A copy in the folder of its verdict."""
    posted: int = NOT_ASKED
    """A message to a webhook."""
    published: int = NOT_ASKED
    """A message by MQTT."""


class Journal:
    """The file. Several threads may use it, one process alone.

    Args:
        path: made where it does not exist.

    Raises:
        BundleError: for a file that is no journal, or cannot be written.

    Attributes:
        id: tells journals apart.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._open(path)
        except sqlite3.Error as error:
            raise BundleError(
                f"the journal {path} cannot be used ({error}); put it on a disk of this machine, or "
                "name another folder"
            ) from error

    def _open(self, path: Path) -> None:
        """Open the file, which is flushed to the disk at each commit.

        Raises:
            BundleError: for one of another version.
            sqlite3.Error: for one that cannot be used.
        """
        self._base = sqlite3.connect(path, check_same_thread=False, timeout=30)
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.executescript(_SCHEMA)
        if self.fact("format") is None:
            self.set_fact("format", _FORMAT)
            self.set_fact("id", uuid.uuid4().hex)
        if self.fact("format") != _FORMAT:
            raise BundleError(
                f"the journal {path} has format {self.fact('format')}, this program reads {_FORMAT}; "
                "install the version of adray that wrote it, or name another folder"
            )
        self.id = str(self.fact("id"))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def fact(self, name: str) -> str | None:
        """Read a fact by its name, None where it is not known."""
        found = self._all("SELECT value FROM facts WHERE name = ?", (name,))
        return found[0][0] if found else None

    def set_fact(self, name: str, value: str) -> None:
        """Note a fact."""
        self._change(_SET_FACT, (name, value))

    # Which files were judged

    def at_path(self, path: Path) -> JudgedFile | None:
        """Find the file that was last judged at a path."""
        rows = self._all(
            f"SELECT {_IMAGE} FROM images WHERE path = ? ORDER BY number DESC LIMIT 1",
            (os.fsencode(path),),
        )
        return _judged_file(rows[0]) if rows else None

    def of_inode(self, identity: Identity) -> list[JudgedFile]:
        """Find files that were judged under the same number, of the same size and time."""
        rows = self._all(
            f"SELECT {_IMAGE} FROM images WHERE inode = ? AND size = ? AND changed = ?",
            (_figures(identity)[3], identity.size, identity.changed),
        )
        return [_judged_file(row) for row in rows]

    def present_paths(self) -> list[Path]:
        """List where judged files lay when they were last seen."""
        rows = self._all("SELECT path FROM images WHERE is_gone = 0", ())
        return [Path(os.fsdecode(row[0])) for row in rows]

    def set_place(self, number: int, path: Path, identity: Identity) -> None:
        """Note that a judged file lies at a path now."""
        self._change(
            "UPDATE images SET path = ?, size = ?, changed = ?, status_changed = ?, inode = ?, "
            "is_gone = 0 WHERE number = ?",
            (os.fsencode(path), *_figures(identity), number),
        )

    def set_gone(self, paths: Sequence[Path]) -> None:
        """Note that nothing lies at these paths any more."""
        with self._lock, self._base:
            self._base.executemany(
                "UPDATE images SET is_gone = 1 WHERE path = ?",
                [(os.fsencode(path),) for path in paths],
            )

    # Results

    @property
    def last_number(self) -> int:
        """Give the number of the last result, 0 where there is none."""
        return int(self._all("SELECT COALESCE(MAX(number), 0) FROM images", ())[0][0])

    def add(
        self,
        row: Row,
        path: Path,
        identity: Identity,
        followers: Followers,
        facts: Mapping[str, str],
    ) -> None:
        """Note a result, which is judged from then on.

        Args:
            row: with its number and the hash of the image.
            path: of the image.
            identity: of the file that was judged.
            followers: what is to be done with it.
            facts: noted in the same step, by their names.
        """
        values = (row["number"], os.fsencode(path), *_figures(identity), row["sha256"])
        text = json.dumps(row, allow_nan=False)
        follow = (followers.sorted, followers.posted, followers.published)
        with self._lock, self._base:
            self._base.execute(
                "INSERT INTO images (number, path, size, changed, status_changed, inode, sha256, "
                "result, sorted, posted, published) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, text, *follow),
            )
            self._base.executemany(_SET_FACT, list(facts.items()))

    def rows_after(self, number: int, most: int = 1000) -> list[Row]:
        """Give the results behind a number, in their order, at most so many."""
        found = self._all(
            "SELECT result FROM images WHERE number > ? ORDER BY number LIMIT ?", (number, most)
        )
        return [json.loads(row[0]) for row in found]

    # What follows

    def unsorted(self) -> list[tuple[JudgedFile, Row, Path | None]]:
        """List the files that have no sorted copy yet, each with its result and the planned path."""
        found = self._all(
            f"SELECT {_IMAGE}, result, target FROM images WHERE sorted = {PENDING} ORDER BY number",
            (),
        )
        rows = []
        for row in found:
            target = None if row[9] is None else Path(os.fsdecode(row[9]))
            rows.append((_judged_file(row[:8]), json.loads(row[8]), target))
        return rows

    def plan_target(self, number: int, target: Path) -> None:
        """Note where a sorted copy will be, before it is made."""
        self._change("UPDATE images SET target = ? WHERE number = ?", (os.fsencode(target), number))

    def set_sorted(self, number: int, state: int, was_moved: bool) -> None:
        """Note what became of a sorted copy.

        Args:
            number: of the result.
            state: `DONE` or `REFUSED`.
            was_moved: the image itself is gone, and whatever comes to its path is new.
        """
        self._change("UPDATE images SET sorted = ? WHERE number = ?", (state, number))
        if was_moved:
            self._change(
                "UPDATE images SET is_gone = 1, inode = -1, changed = -1 WHERE number = ?",
                (number,),
            )

    def pending(self, channel: str, most: int = 100) -> list[Row]:
        """Give the results that a channel has not delivered yet, in their order."""
        found = self._all(
            f"SELECT result FROM images WHERE {_channel(channel)} = {PENDING} ORDER BY number "
            "LIMIT ?",
            (most,),
        )
        return [json.loads(row[0]) for row in found]

    def count_pending(self, channel: str) -> int:
        """Count the results that a channel has not delivered yet."""
        found = self._all(f"SELECT COUNT(*) FROM images WHERE {_channel(channel)} = {PENDING}", ())
        return int(found[0][0])

    def set_delivered(self, channel: str, number: int, state: int) -> None:
        """Note what became of a message: `DONE` or `REFUSED`."""
        self._change(f"UPDATE images SET {_channel(channel)} = ? WHERE number = ?", (state, number))

    # SQL

    def _all(self, question: str, values: tuple[object, ...]) -> list[tuple]:
        """Ask."""
        with self._lock:
            return self._base.execute(question, values).fetchall()

    def _change(self, order: str, values: tuple[object, ...]) -> None:
        """Change, and flush it to the disk."""
        with self._lock, self._base:
            self._base.execute(order, values)


def _channel(name: str) -> str:
    """Give a name back that is a channel's."""
    assert name in CHANNELS, name
    return name


def _figures(identity: Identity) -> tuple[int, int, int, int]:
    """Give the columns of an identity. SQLite's whole numbers end at 2^63."""
    inode = identity.inode - 2**64 if identity.inode >= 2**63 else identity.inode
    return identity.size, identity.changed, identity.status_changed, inode


def _judged_file(row: Sequence) -> JudgedFile:
    """Read the columns of a judged file."""
    number, path, size, changed, status_changed, inode, sha256, is_gone = row
    whole = inode + 2**64 if inode < -1 else inode
    identity = Identity(size, changed, status_changed, whole)
    return JudgedFile(number, Path(os.fsdecode(path)), identity, sha256, bool(is_gone))
