"""How wide a text is on a terminal, where a Hangul letter takes two columns."""

from __future__ import annotations

import unicodedata

_CUT = "…"


def display_width(text: str) -> int:
    """Count the columns that a text takes on a terminal."""
    return sum(map(_letter_width, text))


def fit(text: str, width: int) -> str:
    """Cut a text so that it takes at most so many columns, with an ellipsis where it is cut."""
    if display_width(text) <= width:
        return text
    taken = ""
    left = width - 1
    for letter in text:
        left -= _letter_width(letter)
        if left < 0:
            break
        taken += letter
    return taken + _CUT if width > 0 else ""


def pad(text: str, width: int) -> str:
    """Cut a text, or fill it up with spaces, so that it takes exactly so many columns."""
    fitted = fit(text, width)
    return fitted + " " * (width - display_width(fitted))


def pad_left(text: str, width: int) -> str:
    """Fill a text up with spaces in front, so that it takes at least so many columns."""
    return " " * (width - display_width(text)) + text


def _letter_width(letter: str) -> int:
    """Count the columns of one letter."""
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1
