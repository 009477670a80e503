"""Reads the files of sentences, also on the machines of a line, which have no PyYAML.

They are YAML, of which they use little: keys and texts, each text plain, in quotes, or folded behind
``>-``. A test holds this to what PyYAML reads of them. It takes a hundredth of the time that PyYAML's
parser in Python takes.
"""

from __future__ import annotations

import json
import re

_ENTRY = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|.*?):(?: (.*))?""")
"""A key, quoted or plain, and what its line has of the text."""


def read_plain(text: str) -> dict[str, str]:
    """Read keys and their texts.

    Args:
        text: of a file of sentences.

    Raises:
        ValueError: for a line that is neither an entry nor goes on with one.
    """
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0] == " ":
            # What is indented goes on with the text above, however that began.
            found[key] = f"{found[key]} {line.strip()}".strip()
            continue
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            raise ValueError(f"no key and text: {line!r}")
        key = _unquoted(entry[1])
        begun = (entry[2] or "").strip()
        found[key] = "" if begun == ">-" else begun
    return {name: _unquoted(value) for name, value in found.items()}


def _unquoted(value: str) -> str:
    """Take the quotes off a text that has some."""
    if value.startswith('"'):
        return json.loads(value)
    if value.startswith("'"):
        return value[1:-1].replace("''", "'")
    return value
