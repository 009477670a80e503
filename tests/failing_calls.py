"""File systems that refuse or fail calls, as patches of the calls themselves."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable

import pytest

CODES = ("EPERM", "ENOSYS", "EINVAL", "EIO", "ESTALE", "ENOSPC")
CALLS = ("rename", "link", "flock", "fsync of files", "fsync of folders")


def fail(patch: pytest.MonkeyPatch, call: str, code: str) -> None:
    """Have a call fail from now on, as long as `patch` lasts."""
    error = getattr(errno, code)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    if call == "rename":
        patch.setattr(os, "rename", refuse)
        patch.setattr(os, "replace", refuse)
    elif call == "link":
        patch.setattr(os, "link", refuse)
    elif call == "flock":
        patch.setattr(fcntl, "flock", refuse)
    else:
        before = os.fsync
        patch.setattr(os, "fsync", _failing_fsync(before, refuse, call == "fsync of folders"))


def _failing_fsync(
    before: Callable[[int], None], refuse: Callable[[int], None], of_folders: bool
) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        (refuse if is_folder == of_folders else before)(descriptor)

    return fsync
