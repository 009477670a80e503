"""The one exception for bad input, and the words that help to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that the user can mend: one sentence with the value, what is allowed and the remedy.

    Commands print the sentence alone and end with exit code 2.
    """


def nearest(name: object, allowed: Iterable[object], limit: int = 12) -> str:
    """Say what was allowed in place of `name`, the closest match first.

    Returns:
        ``"did you mean 'padim'?"`` where something is close, else ``"allowed: a, b, c"`` with at
        most `limit` names.
    """
    names = list(map(str, allowed))
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"

    shown = ", ".join(names[:limit]) or "nothing"
    if len(names) > limit:
        shown += f", ... ({len(names)} in all)"
    return f"allowed: {shown}"
