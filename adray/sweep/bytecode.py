"""Compiled modules for the processes of a sweep, where Python keeps none.

Python compiles a module when it is first imported and keeps the result beside it. Some environments
keep none: images of containers that set PYTHONDONTWRITEBYTECODE, and packages in a folder that the
user cannot write. There each worker compiles torch and Ray anew, which is half of its start. The
cache folder holds such files as well.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
from pathlib import Path

from adray.settings import Settings

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def keep_bytecode(settings: Settings) -> None:
    """Have this process and its children keep compiled modules in the cache folder.

    Nothing is done where Python keeps them itself, and where others could put theirs there.
    """
    if _keeps_bytecode("torch"):
        return
    folder = Path(settings.cache_dir).expanduser() / "bytecode"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_safe = _is_mine(folder) and _is_safe(folder.parent)
    except OSError:
        return
    if is_safe:
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.pycache_prefix = str(folder)
        sys.dont_write_bytecode = False


def _keeps_bytecode(package: str) -> bool:
    """Tell whether a package is compiled already, or will be once it is imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.cached is None or spec.origin is None:
        return True
    if Path(spec.cached).is_file():
        return True
    return not sys.dont_write_bytecode and os.access(Path(spec.origin).parent, os.W_OK)


def _is_mine(folder: Path) -> bool:
    """Tell whether nobody but this user can put files into a folder."""
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def _is_safe(folder: Path) -> bool:
    """Tell whether nobody else can put another folder in the place of one in here."""
    status = folder.stat()
    is_closed = not status.st_mode & _OTHERS_WRITE or bool(status.st_mode & stat.S_ISVTX)
    return is_closed and status.st_uid in (0, os.geteuid())
