"""What is promised of verdicts, in the words of the person who reads it."""

from __future__ import annotations

from adray.language.catalogue import Catalogue
from adray.thresholds import CONFIDENCE, Promise, percent, shortage_figures


def promise_text(promise: Promise, say: Catalogue, key: str = "promise given") -> str:
    """Say what is promised, and on further lines of how many chosen and what it lacks.

    Args:
        promise: of at least one calibration normal.
        say: the sentences of a language.
        key: of the sentence that promises.
    """
    assert promise.promised is not None, "there are calibration normals"
    assert promise.bound is not None, "there are calibration normals"
    given = say(
        key,
        promised=percent(promise.promised),
        bound=percent(promise.bound),
        confidence=percent(CONFIDENCE),
        normals=promise.normals,
    )
    if promise.tried > 1:
        given = f"{given}\n{say('promise tried', tried=promise.tried)}"
    if promise.is_kept:
        return given
    short = say("promise short", **shortage_figures(promise.rate, promise.normals, promise.tried))
    return f"{given}\n{short}"
