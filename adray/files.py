"""Files that are whole or absent: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REFUSALS = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.EBADF,
    errno.ENOTSUP,
    errno.ENOTTY,
    errno.ENOLCK,
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
)
"""Answers of file systems that do not know an operation. All others, such as EIO, are trouble."""


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First signs of what spreadsheets compute, or cut off before they look; the last four are wide."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which it replaces unless there is an error."""
    path = Path(path)
    # No more than the last folder: below a mount that is gone, nothing is to be made anew.
    path.parent.mkdir(exist_ok=True)

    # The suffix is kept since writers such as savefig choose the format by it.
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        move_over(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_over(source: Path, target: Path) -> None:
    """Give a file another one's place, in one step where its file system knows that.

    Where it does not, the contents are copied, and who reads meanwhile may find half of them.
    """
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        shutil.copyfile(source, target)
        sync(target)
        source.unlink()


def sync(path: Path) -> None:
    """Flush a file to the disk, where its file system can.

    Where it cannot, what was written is as safe as the file system makes it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's list of names to the disk, where its file system can."""
    try:
        sync(path)
    except OSError as error:
        # Some do not even open a folder.
        if error.errno not in REFUSALS:
            raise


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON.

    NaN and infinity are refused, since no other reader accepts them.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        # What is not UTF-8 in a name becomes an escape that JSON reads back.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def readable_name(name: str) -> str:
    """Write a file name that is not UTF-8 with escapes for its odd bytes. Others stay."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def spreadsheet_text(value: str, escape: str = "'") -> str:
    """Give the text of a cell that no spreadsheet takes for a formula.

    Args:
        value: the text.
        escape: what stands before one that would be taken for a formula.
    """
    text = readable_name(value)
    return escape + text if text.startswith(_FORMULA_STARTS) else text


def read_json(path: str | Path) -> Any:
    """Give the value in a JSON file, or None where the file is missing or torn.

    A mark of the encoding at its beginning, as editors on Windows write it, is passed over.
    """
    try:
        # A store has tens of thousands of them, and this takes half the time of `Path.read_text`.
        with open(path, "rb") as file:  # noqa: PTH123
            return json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def canonical_hash(value: Any) -> str:
    """Give the sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Give the sha256 of a file's bytes, or of a folder's names and contents.

    That of a file is remembered in this process while its size and time stay the same. That of a
    folder leaves out hidden files, which tools that copied it have left.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_sha256(path)
    status = path.stat()
    return _file_sha256(str(path), status.st_size, status.st_mtime_ns)


def _folder_sha256(folder: Path) -> str:
    """Hash the names and hashes of all files below a folder that are not hidden."""
    hashes = {}
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden:
            hashes[name.as_posix()] = file_sha256(file)
    return canonical_hash(hashes)


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    """Hash a file as it was of this size at this time."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
