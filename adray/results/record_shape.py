"""The shape of a trial's files: which of their values are read, and of which type each is.

A file may be torn, of another program, or of a newer version of this one. It is looked at once, when
it is read, so that it costs its own row and nobody behind has to doubt it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from adray.config import convert
from adray.errors import InputError
from adray.language.sentence import Sentence

TRIAL_FORMAT = 1
"""Version of the files of a trial, raised when an older program would misread them."""

_TRIAL: Mapping[str, Any] = {
    "id": str,
    "format": int,
    "environment": Mapping[str, Any],
    "assignment": Mapping[str, Any],
}
_NEEDED_OF_TRIAL = ("id",)
_IDENTITY: Mapping[str, Any] = {
    "configuration": str,
    "datasets": tuple[str, ...],
    "categories": tuple[str, ...],
    "seed": int,
    "train": Mapping[str, Any],
    "model": Mapping[str, Any],
    "versions": Mapping[str, Any],
    "weights": Mapping[str, Any],
    "data": str,
    "evaluation": str,
    "condition": Mapping[str, Any],
}
_NEEDED_OF_IDENTITY = ("configuration", "datasets", "categories", "seed")
_RESULT: Mapping[str, Any] = {
    "metrics": Mapping[str, float | None],
    "thresholds": Mapping[str, Mapping[str, Any]],
    "per_defect_type": Mapping[str, Mapping[str, float | None]],
    "counts": Mapping[str, int],
    "timings": Mapping[str, float | None],
    "memory": Mapping[str, float | None],
    "verdict": Mapping[str, Any],
    "notes": tuple[str, ...],
    "weights": str,
    "epochs": int,
    "finished": str,
}
_PROMISE: Mapping[str, Any] = {
    "rate": float,
    "normals": int,
    "rank": int,
    "value": float | None,
    "promised": float | None,
    "bound": float | None,
    "tried": int,
}
_FAILURE: Mapping[str, Any] = {"kind": str, "reason": str, "attempts": int, "finished": str}


def check_trial(trial: Any) -> None:
    """Check what `trial.json` holds.

    Raises:
        InputError: for a file of a newer version, a key that is missing, and a value of another type.
    """
    _check(trial, _TRIAL, _NEEDED_OF_TRIAL, "trial.json")
    version = trial.get("format", TRIAL_FORMAT)
    if version > TRIAL_FORMAT:
        raise InputError(Sentence.of("record format", version=version, trial_format=TRIAL_FORMAT))
    _check(trial.get("identity"), _IDENTITY, _NEEDED_OF_IDENTITY, "trial.json: identity")


def check_result(result: Any) -> None:
    """Check what `result.json` holds.

    Raises:
        InputError: for a value of another type.
    """
    _check(result, _RESULT, (), "result.json")
    promise = result.get("thresholds", {}).get("promise", {})
    _check(promise, _PROMISE, (), "result.json: thresholds.promise")
    _check(result.get("verdict", {}), {"notes": tuple[str, ...]}, (), "result.json: verdict")


def check_failure(failure: Any) -> None:
    """Check what `failure.json` holds.

    Raises:
        InputError: for a value of another type.
    """
    _check(failure, _FAILURE, (), "failure.json")


def _check(values: Any, types: Mapping[str, Any], needed: tuple[str, ...], where: str) -> None:
    """Check the values of a mapping by their keys. Keys that are not known are left alone."""
    if not isinstance(values, Mapping):
        raise InputError(Sentence.of("record no mapping", where=where))
    for key in needed:
        if key not in values:
            raise InputError(Sentence.of("record lacks", where=where, field=repr(key)))
    for key, hint in types.items():
        if key not in values:
            continue
        # A text would pass for a list of one.
        is_text_for_list = hint == tuple[str, ...] and isinstance(values[key], str)
        if is_text_for_list:
            raise InputError(Sentence.of("record list", where=where, field=key))
        is_plain = _PLAIN.get(hint)
        if is_plain is None or not is_plain(values[key]):
            convert(values[key], hint, f"{where}.{key}")


# Ten thousand trials have millions of values. What JSON gives for most of them is looked at in a
# few steps here, and only what is not as plain goes through `convert`, which has the last word.


def _is_mapping(value: Any) -> bool:
    return type(value) is dict  # in JSON all keys are text


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_figure(value: Any) -> bool:
    """Tell whether it is a finite number."""
    return type(value) in (float, int) and math.isfinite(value)


def _is_figure_or_none(value: Any) -> bool:
    return value is None or _is_figure(value)


def _are_texts(value: Any) -> bool:
    return type(value) is list and set(map(type, value)) <= {str}


def _are_figures(value: Any) -> bool:
    """Tell whether it maps names to finite numbers or None."""
    if type(value) is not dict:
        return False
    figures = value.values()
    if not set(map(type, figures)) <= {float, int, type(None)}:
        return False
    # The sum of numbers is finite unless one is not, or they are huge.
    return math.isfinite(sum(filter(None, figures)))


def _are_counts(value: Any) -> bool:
    return type(value) is dict and set(map(type, value.values())) <= {int}


def _are_mappings(value: Any) -> bool:
    return type(value) is dict and all(map(_is_mapping, value.values()))


def _are_figures_by_name(value: Any) -> bool:
    return type(value) is dict and all(map(_are_figures, value.values()))


_PLAIN: Mapping[Any, Callable[[Any], bool]] = {
    str: _is_text,
    int: _is_whole,
    float: _is_figure,
    float | None: _is_figure_or_none,
    tuple[str, ...]: _are_texts,
    Mapping[str, Any]: _is_mapping,
    Mapping[str, int]: _are_counts,
    Mapping[str, float | None]: _are_figures,
    Mapping[str, Mapping[str, Any]]: _are_mappings,
    Mapping[str, Mapping[str, float | None]]: _are_figures_by_name,
}
"""Type to a quick look that is right where it says yes."""
