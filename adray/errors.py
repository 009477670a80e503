"""The one exception for bad input, and the words that help to mend it."""

from __future__ import annotations

from collections.abc import Iterable

from adray.language.sentence import nearest_of


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
    return str(nearest_of(name, allowed, limit))
