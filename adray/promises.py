"""What is promised of verdicts, in the words of the person who reads it."""

from __future__ import annotations

from adray.language.catalogue import Catalogue
from adray.thresholds import CONFIDENCE, Promise, percent, shortage_figures


def promise_text(promise: Promise, say: Catalogue) -> str:
    """Say what is promised, and on a second line where that is less than was asked for.

    Args:
        promise: of at least one calibration normal.
        say: the sentences of a language.
    """
    assert promise.promised is not None, "there are calibration normals"
    assert promise.bound is not None, "there are calibration normals"
    given = say(
        "promise given",
        promised=percent(promise.promised),
        bound=percent(promise.bound),
        confidence=percent(CONFIDENCE),
        normals=promise.normals,
    )
    if promise.is_kept:
        return given
    short = say("promise short", **shortage_figures(promise.rate, promise.normals))
    return f"{given}\n{short}"
