"""JSON files that say the same in most of their parts: each part is parsed once.

Ten thousand trials of a sweep name the same versions, settings and hyperparameters again and again.
`adray.files.write_json` begins a line with each key, so that a text can be cut there unparsed.
"""

from __future__ import annotations

import json
from typing import Any

from adray.types import Json

_KEY = (b'\n  "', b'\n    "')
"""What stands before each key of the outermost mapping, and of a mapping in it."""
_END = (b"\n}", b"\n  }")
"""What ends such a mapping."""


class PartReader:
    """Parses texts, and remembers their parts.

    What it gives for several texts shares what is the same in them, so nobody may change it.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, Any]] = {}

    def parse(self, text: bytes) -> Any:
        """Give the value of a JSON text, as `json.loads` does.

        Raises:
            ValueError: for a text that is none.
        """
        value = self._mapping(text.rstrip(), 0)
        return json.loads(text) if value is None else value

    def _mapping(self, text: bytes, depth: int) -> Json | None:
        """Parse a mapping, None for a text that is none or is laid out in another way.

        Args:
            text: from its first brace to its last.
            depth: 0 for the outermost mapping, 1 for one in it.
        """
        first, *parts = text.split(_KEY[depth])
        if first != b"{" or not text.endswith(_END[depth]):
            return None
        # All parts end with a comma then: `key": value,`.
        parts[-1] = parts[-1][: -len(_END[depth])] + b","

        found = {}
        for part in parts:
            member = self._known.get(part)
            if member is None:
                member = self._member(part, depth)
                if member is None:
                    return None
                self._known[part] = member
            found[member[0]] = member[1]
        return found

    def _member(self, part: bytes, depth: int) -> tuple[str, Any] | None:
        """Parse one key with its value, None where there is not exactly one."""
        if not part.endswith(b","):
            return None
        text = part[:-1]
        try:
            if depth == 0 and b'": {\n' in text:
                key, _, inner = text.partition(b'": ')
                value = self._mapping(inner, 1)
                if value is not None:
                    return json.loads(b'"' + key + b'"'), value
            member = json.loads(b'{"' + text + b"}")
        except ValueError:
            return None
        return next(iter(member.items())) if len(member) == 1 else None
