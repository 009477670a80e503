"""Results as lines of JSON, a file a day, each written before its result is given to anybody.

A killed process leaves all lines that it wrote, and at most one torn one, whose result nobody got.
The torn one is cut off when the log is opened again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from adray.runtime.errors import BundleError
from adray.runtime.rows import Row, now

NAME = "results-{day}.jsonl"
_PATTERN = "results-????-??-??.jsonl"
REMEMBERED = 10_000
"""Requests whose results are known when they are sent again."""
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF)
"""Answers of file systems that do not know an operation."""
_READ_AT_START = 64 * 2**20
"""Bytes of the newest files that are read for them."""


class ResultLog:
    """A folder of results. Several threads may use it, one process alone.

    Args:
        folder: made where it does not exist.

    Raises:
        BundleError: for a folder that cannot be written.

    Attributes:
        recent: the last rows of earlier processes, the oldest first.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Row] = OrderedDict()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claim = claimed(self.folder)
            self.recent = list(self._earlier_rows())
        except OSError as error:
            raise BundleError(
                f"results cannot be written into {self.folder} ({error.strerror}); name another "
                "folder"
            ) from error
        for row in self.recent:
            self._remember(row)

    def known(self, request: str) -> Row | None:
        """Give the result of a request that was answered before, None for a new one."""
        with self._lock:
            return self._known.get(request)

    def add(self, row: Row) -> None:
        """Write a row.

        Raises:
            OSError: where it cannot be written. Nothing of it is left then.
        """
        line = line_of(row)
        day = str(row.get("time") or now())[:10]
        with self._lock:
            append_whole(self.folder / NAME.format(day=day), line)
            self._remember(row)

    def flush(self) -> None:
        """Flush the newest file to the disk, where its file system can."""
        for path in self._files()[-1:]:
            sync_file(path)

    def close(self) -> None:
        """Flush, and let others write into the folder."""
        self.flush()
        os.close(self._claim)

    def _remember(self, row: Row) -> None:
        """Keep the result of a request that has a name."""
        request = row.get("request")
        if isinstance(request, str) and request:
            self._known[request] = row
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def _files(self) -> list[Path]:
        """List the files, the oldest first."""
        return sorted(self.folder.glob(_PATTERN))

    def _earlier_rows(self) -> Iterator[Row]:
        """Read the end of the log, and cut off a torn line."""
        files = self._files()
        for path in files[-1:]:
            cut_torn_line(path)

        newest: list[Path] = []
        left = _READ_AT_START
        for path in reversed(files):
            newest.insert(0, path)
            left -= path.stat().st_size
            if left < 0:
                break
        for path in newest:
            yield from read_rows(path, _READ_AT_START)


def line_of(row: Row) -> bytes:
    """Give a row as a line. Bytes of a name that are not UTF-8 become escapes that JSON reads."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def append_whole(path: Path, line: bytes) -> None:
    """Append a line to a file, or leave the file as it was.

    Raises:
        OSError: where it cannot be written, such as on a full disk.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    descriptor = os.open(path, flags, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last end of a line, which a killed process left."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        kept = end
        while kept:
            start = max(0, kept - 65536)
            file.seek(start)
            place = file.read(kept - start).rfind(b"\n")
            kept = start + place + 1 if place >= 0 else start
            if place >= 0:
                break
        if kept != end:
            file.truncate(kept)


def read_rows(path: Path, most_bytes: int | None = None) -> Iterator[Row]:
    """Read the rows of a log. A line that is none is passed over.

    Args:
        path: of the file.
        most_bytes: read at most so many, from the end; None for all.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = 0 if most_bytes is None else max(0, size - most_bytes)
        file.seek(start)
        if start:
            file.readline()  # the rest of a line whose beginning is not read
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def sync_file(path: Path) -> None:
    """Flush a file to the disk. A file system that knows no such thing is trusted.

    Raises:
        OSError: where the disk is in trouble.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(descriptor)


def claimed(folder: Path) -> int:
    """Keep other processes from writing into a folder for as long as this one lives.

    Raises:
        BundleError: where another one does.
        OSError: where nothing can be written there.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BundleError(
            f"another process writes its results into {folder}; end it, or name another folder"
        ) from error
    except OSError as error:
        # Some network shares know no locks. Then the user alone can know.
        if error.errno not in _UNKNOWN:
            raise
    return descriptor
