"""Which files of a folder are images that stopped changing, and the bytes of one as it was then."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adray.runtime.journal import Identity

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""Of names of images. Others, and names that begin with a dot, are passed over."""
MOST_BYTES = 2**30
"""A larger file is not read."""
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "afs", "virtiofs")
"""File systems that do not tell of changes which another machine makes."""


class ChangedError(Exception):
    """A file that is no longer what it was when it was looked at."""


@dataclass
class _Waiting:
    """A file that may still be written."""

    identity: Identity
    """What it was when it was last looked at."""
    due: float
    """When it may be judged, should it stay so."""


class Arrivals:
    """Files of a folder that are new or changed.

    Args:
        folder: with all below it.
        settle: seconds for which a file must have stayed the same.
    """

    def __init__(self, folder: Path, settle: float) -> None:
        self._folder = folder
        self._settle = settle
        self._done: dict[Path, Identity] = {}
        self._waiting: dict[Path, _Waiting] = {}

    def look_all(self, now: float) -> set[Path]:
        """Look at the whole folder.

        Args:
            now: on a clock that is never set back, in seconds.

        Returns:
            All images in it.

        Raises:
            OSError: where the folder cannot be listed, such as one on a share that is gone.
        """
        found = set()
        for path in _images_below(self._folder):
            if self._look(path, now):
                found.add(path)
        for known in (self._done, self._waiting):
            for path in [path for path in known if path not in found]:
                del known[path]
        return found

    def look(self, paths: Iterable[Path], now: float) -> None:
        """Look at some files, of which somebody said that they changed."""
        for path in paths:
            hidden = any(part.startswith(".") for part in path.relative_to(self._folder).parts)
            if is_image(path) and not hidden and not self._look(path, now):
                self._waiting.pop(path, None)

    def _look(self, path: Path, now: float) -> bool:
        """Look at a file, and tell whether there is one."""
        try:
            status = path.stat()
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode):
            return False

        identity = Identity.of(status)
        if self._done.get(path) == identity:
            return True
        waiting = self._waiting.get(path)
        if waiting is None or waiting.identity != identity:
            self._waiting[path] = _Waiting(identity, now + self._settle)
        return True

    def due(self, now: float) -> list[tuple[Path, Identity]]:
        """List the files that stayed the same for long enough, the oldest first."""
        ready = []
        for path, waiting in self._waiting.items():
            if waiting.due <= now:
                ready.append((path, waiting.identity))
        return sorted(ready, key=lambda file: (file[1].changed, os.fsencode(file[0])))

    def next_due(self) -> float | None:
        """Say when a file may be judged next, None where none waits."""
        return min((waiting.due for waiting in self._waiting.values()), default=None)

    def put_off(self, path: Path, seconds: float, now: float) -> None:
        """Judge a file later."""
        if path in self._waiting:
            self._waiting[path].due = now + seconds

    def settle_again(self, path: Path, now: float) -> None:
        """Look at a file anew, since it changed."""
        self._waiting.pop(path, None)
        self._look(path, now)

    def done(self, path: Path, identity: Identity) -> None:
        """Pass over a file until it changes."""
        self._waiting.pop(path, None)
        self._done[path] = identity


def is_image(path: Path) -> bool:
    """Tell whether a name is an image's."""
    return path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")


def _images_below(folder: Path) -> Iterator[Path]:
    """List the names of images in a folder and below it. Hidden ones are passed over.

    Raises:
        OSError: where the folder itself cannot be listed.
    """
    os.scandir(folder).close()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place) / name
            if is_image(path):
                yield path


def read_whole(path: Path, identity: Identity) -> bytes:
    """Read a file, all of which is what it was when it was looked at.

    Raises:
        ChangedError: for one that is no longer.
        OSError: for one that cannot be read.
    """
    # A pipe that took its place would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not _is(file.fileno(), identity):
            raise ChangedError(path)
        data = file.read(identity.size + 1)
        if not _is(file.fileno(), identity) or len(data) != identity.size:
            raise ChangedError(path)
        return data


def _is(descriptor: int, identity: Identity) -> bool:
    """Tell whether an open file is one that was looked at."""
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and Identity.of(status) == identity


def is_missing(error: OSError) -> bool:
    """Tell whether there is no such file any more."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP)


def network_kind(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Name the file system of a folder where it is another machine's, else empty.

    Args:
        folder: that exists.
        mounts: what the system says of its file systems.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = Path(os.path.realpath(folder))
    kind = ""
    longest = -1
    for line in lines:
        parts = line.split(" ")
        place = Path(_unescaped(parts[1])) if len(parts) > 2 else None
        if place is not None and real.is_relative_to(place) and len(place.parts) >= longest:
            longest = len(place.parts)
            kind = parts[2]
    return kind if kind in _NETWORK else ""


def _unescaped(text: str) -> str:
    """Read a path of the system's list of mounts, which writes some letters by their numbers."""
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text
