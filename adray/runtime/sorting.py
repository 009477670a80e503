"""Copies of judged images in a folder for each verdict. No file is ever written over."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from adray.runtime.arrivals import ChangedError, is_missing, read_whole
from adray.runtime.journal import DONE, REFUSED, Identity, Journal, JudgedFile
from adray.runtime.result_log import sync_file

logger = logging.getLogger(__name__)

_PART = ".adray-part-"
"""Beginning of the name of a copy that is being made."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
"""Answers of file systems without hard links."""


class Sorter:
    """Sorts images.

    Args:
        folder: in which each verdict has a folder.
        watched: the folder of the images, whose subfolders are kept.
        journal: that knows what is to be sorted.
        moves: delete an image once its copy is whole.
    """

    def __init__(self, folder: Path, watched: Path, journal: Journal, moves: bool) -> None:
        self._folder = folder
        self._watched = watched
        self._journal = journal
        self._moves = moves
        self._is_blocked = False

    def clean(self) -> None:
        """Delete copies that a killed process left half made."""
        for path in self._folder.rglob(f"{_PART}*"):
            path.unlink(missing_ok=True)

    def work(self) -> None:
        """Make the copies that are missing, as far as that can be done now."""
        for file, row, target in self._journal.unsorted():
            try:
                self._sort(file, row["verdict"], target)
                self._is_blocked = False
            except OSError as error:
                if not self._is_blocked:
                    logger.warning("%s cannot be sorted now (%s)", file.path, error.strerror)
                self._is_blocked = True
                return

    def _sort(self, file: JudgedFile, verdict: str, planned: Path | None) -> None:
        """Make the copy of an image.

        Raises:
            OSError: where it cannot be made now.
        """
        # A planned copy may have been made before the process was killed.
        if planned is None or not _has_content(planned, file.sha256):
            data = self._content(file)
            if data is None:
                logger.warning("%s changed before it could be sorted", file.path)
                self._journal.set_sorted(file.number, REFUSED, was_moved=False)
                return
            self._copy(file, verdict, data)

        was_moved = self._moves and _remove(file.path, file.identity)
        self._journal.set_sorted(file.number, DONE, was_moved)

    def _content(self, file: JudgedFile) -> bytes | None:
        """Read an image as it was judged, None where it is no longer there.

        Raises:
            OSError: where it cannot be read now.
        """
        try:
            data = read_whole(file.path, Identity.of(file.path.stat()))
        except ChangedError:
            return None
        except OSError as error:
            if is_missing(error):
                return None
            raise
        return data if hashlib.sha256(data).hexdigest() == file.sha256 else None

    def _copy(self, file: JudgedFile, verdict: str, data: bytes) -> None:
        """Write a copy under a name that is free.

        Raises:
            OSError: where that cannot be done.
        """
        wanted = self._folder / verdict / file.path.relative_to(self._watched)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        part = wanted.with_name(f"{_PART}{uuid.uuid4().hex}")
        try:
            with part.open("xb") as copy:
                copy.write(data)
                copy.flush()
                os.fsync(copy.fileno())
            os.utime(part, ns=(file.identity.changed, file.identity.changed))
            for target in _names(wanted):
                if target.exists() or target.is_symlink():
                    continue

                # First the plan, so that after a kill nobody makes the copy again.
                self._journal.plan_target(file.number, target)
                if _place(part, target):
                    break
        finally:
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            sync_file(wanted.parent)


def _names(wanted: Path) -> Iterator[Path]:
    """Give a name, and others like it."""
    yield wanted
    number = 1
    while True:
        yield wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")
        number += 1


def _place(part: Path, target: Path) -> bool:
    """Give a file a name that nobody has, and tell whether that was so.

    Raises:
        OSError: where it cannot be done.
    """
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _write_new(part, target)
    return True


def _write_new(part: Path, target: Path) -> bool:
    """Copy a file to a name that nobody has, where a file system knows no links.

    Raises:
        OSError: where it cannot be done.
    """
    try:
        with target.open("xb") as copy:
            copy.write(part.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
    except FileExistsError:
        return False
    return True


def _has_content(path: Path, sha256: str) -> bool:
    """Tell whether a file has a content."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def _remove(path: Path, identity: Identity) -> bool:
    """Delete a file where it still is what was judged, and tell whether it is gone.

    Raises:
        OSError: where it cannot be deleted.
    """
    try:
        now = Identity.of(path.stat())
    except OSError as error:
        if is_missing(error):
            return True
        raise
    is_same = (now.size, now.changed, now.inode) == (
        identity.size,
        identity.changed,
        identity.inode,
    )
    if is_same:
        path.unlink()
    return is_same
