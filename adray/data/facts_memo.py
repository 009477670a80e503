"""What was found out of files, remembered from one run to the next.

Facts stand in a file of JSON lines in the cache folder, by path, size and time of each file. Lines
are appended whole, unreadable ones skipped, so writers may race and the file may be torn or deleted;
that costs time and nothing else.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from adray.data.file_facts import FileFacts

logger = logging.getLogger(__name__)

MEMO_NAME = "facts-5.jsonl"
"""Its number is raised with the fields of `FileFacts`, and with what they say."""
_MEMO_LIMIT = 64 * 2**20
"""Bytes above which the memo starts anew."""
_FACTS = b', {"digest": '
"""Begins the facts in a line. No path contains it, since JSON escapes the marks in a text."""


class MemoKey(NamedTuple):
    """A file as it was when it was read, and how it was looked at."""

    kind: str
    """``image``, ``mask``, ``pixels`` or ``picture``."""
    path: str
    """Absolute path."""
    size: int
    """In bytes."""
    mtime: int
    """Time of its last change, in ns."""

    @classmethod
    def of(cls, path: Path, kind: str) -> MemoKey | None:
        """Give the key under which a file's facts are remembered, or None for a missing file."""
        try:
            stat = path.stat()
        except OSError:
            return None
        return cls(kind, str(path.absolute()), stat.st_size, stat.st_mtime_ns)


class FactsMemo:
    """The memo as it was of some size at some time; a line is parsed when it is asked for.

    Args:
        lines: of the file.
    """

    def __init__(self, lines: list[bytes]) -> None:
        self._lines: dict[bytes, bytes] = {}
        self._facts: dict[MemoKey, FileFacts | None] = {}
        for line in lines:
            key, begin, rest = line.partition(_FACTS)
            if begin:
                self._lines[key] = begin[2:] + rest

    def get(self, key: MemoKey | None) -> FileFacts | None:
        """Give what is remembered under a key, None where nothing is or the line is torn."""
        if key is None:
            return None
        if key not in self._facts:
            line = self._lines.get(json.dumps(key)[:-1].encode())
            self._facts[key] = None if line is None else _parse(line)
        return self._facts[key]


def load_memo(path: Path) -> FactsMemo:
    """Read the memo, an empty one where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return FactsMemo([])
    return _read_memo(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read_memo(path: Path, file_size: int, file_mtime: int) -> FactsMemo:
    """Read the memo as it was of this size at this time."""
    try:
        return FactsMemo(path.read_bytes().splitlines())
    except OSError:
        return FactsMemo([])


def _parse(line: bytes) -> FileFacts | None:
    """Read the facts in the rest of a line, None where it is torn or of another form."""
    if not line.endswith(b"]"):
        return None
    try:
        return _facts_of(json.loads(line[:-1]))
    except (ValueError, TypeError):
        return None


def _facts_of(plain: Any) -> FileFacts:
    """Make facts of a line of the memo, which has lists for tuples and no defaults.

    Raises:
        TypeError: for a line of another form.
    """
    if not isinstance(plain, dict):
        raise TypeError(f"facts are an object, not {type(plain).__name__}")
    for name in ("declared", "regions"):
        if plain.get(name):
            plain[name] = _tuples(plain[name])
    return FileFacts(**plain)


def _tuples(value: Any) -> Any:
    """Make tuples of nested lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


_DEFAULTS = {field.name: field.default for field in fields(FileFacts) if field.name != "digest"}


def _plain(facts: FileFacts) -> dict[str, Any]:
    """Give the fields of facts that are not their defaults, for a short line."""
    plain = {"digest": facts.digest}
    for name, default in _DEFAULTS.items():
        value = getattr(facts, name)
        if value != default:
            plain[name] = value
    return plain


def remember(path: Path, facts: Mapping[MemoKey, FileFacts]) -> None:
    """Append facts to the memo in one write, unless its folder cannot be written."""
    if not facts:
        return
    lines = [json.dumps([*key, _plain(value)]) for key, value in facts.items()]
    # The first line end closes a line that a killed writer left torn.
    block = "\n" + "\n".join(lines) + "\n"

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _MEMO_LIMIT:
            path.unlink()
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, block.encode())
        finally:
            os.close(handle)
    except OSError as error:
        logger.info("%s: file facts are not remembered (%s)", path, error)
