"""Files that are whole or absent: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and replaces `path`, on an error it is removed."""
    path = Path(path)
    path.parent.mkdir(
        exist_ok=True
    )  # no more: below a mount that is gone, nothing is to be made anew
    # The suffix is kept since writers such as savefig choose the format by it.
    temporary = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON; NaN and infinity are refused, since no other reader accepts them."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def read_json(path: str | Path) -> Any:
    """The value in a JSON file, or None where the file is missing or torn."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def canonical_hash(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, remembered in this process while size and time stay the same.

    That of a folder is the hash of the names and hashes of all files below it, but for hidden ones: those are left by
    tools that copied it.
    """
    path = Path(path)
    if path.is_dir():
        names = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        visible = (name for name in names if not any(part.startswith(".") for part in name.parts))
        return canonical_hash({name.as_posix(): file_sha256(path / name) for name in visible})
    status = path.stat()
    return _file_sha256(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
