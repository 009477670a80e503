"""What is promised of verdicts, in the words of the person who reads it."""

from __future__ import annotations

from adray.language.catalogue import Catalogue
from adray.thresholds import CONFIDENCE, Promise, percent, shortage_figures


def promise_text(promise: Promise, say: Catalogue) -> str:
    """Say what is promised, and on further lines of how many chosen and what it lacks.

    Args:
        promise: of at least one calibration normal.
        say: the sentences of a language.
    """
    lines = [given_text(promise, say)]
    if promise.tried > 1:
        lines.append(say("promise tried", tried=promise.tried))
    if not promise.is_kept:
        figures = shortage_figures(promise.rate, promise.normals, promise.tried)
        lines.append(say("promise short", **figures))
    return "\n".join(lines)


def given_text(promise: Promise, say: Catalogue, key: str = "promise given") -> str:
    """Say what is promised, in the sentence of a key.

    Args:
        promise: of at least one calibration normal.
        say: the sentences of a language.
        key: ``promise given`` for verdicts, ``regions given`` for regions.
    """
    assert promise.promised is not None, "there are calibration normals"
    assert promise.bound is not None, "there are calibration normals"
    return say(
        key,
        promised=percent(promise.promised),
        bound=percent(promise.bound),
        confidence=percent(CONFIDENCE),
        normals=promise.normals,
    )
