"""What a field of a config may hold: range, unit, and what a search tries, declared where the field is.

    sigma: float = option(4.0, low=0.1, high=100, unit="pixels", search=uniform(1, 8))
    \"\"\"Standard deviation of the Gaussian that smooths the map.\"\"\"

The check of a config, a search's space, `--help` and the tables of the documents all read it from there.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of

_LIMITS = "limits"


@dataclass(frozen=True)
class Domain:
    """The values that a search may give one field."""

    kind: str
    """``uniform`` and ``log_uniform`` for numbers, ``int`` and ``log_int`` for whole ones,
    ``choice`` for a list."""
    low: float | None = None
    """Least value, itself possible; None for a choice."""
    high: float | None = None
    """Greatest value, itself possible; None for a choice."""
    choices: tuple[Any, ...] = ()
    """The values of a choice, plain as YAML has them; empty for the others."""
    note: str = dataclasses.field(default="", compare=False)
    """Why these values, for the reader of an example."""

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value: evenly over the range, its logarithm for ``log_*``, or the choices."""
        if self.kind == "choice":
            return self.choices[int(rng.integers(len(self.choices)))]
        return self._at(float(rng.uniform()))

    def grid(self, points: int) -> list[Any]:
        """Give at most `points` values from end to end, each once and rising.

        All values of a choice.
        """
        if self.kind == "choice":
            return list(self.choices)
        places = np.linspace(0, 1, points) if points > 1 else [0.5]
        return list(dict.fromkeys(self._at(float(place)) for place in places))

    @property
    def ends(self) -> tuple[Any, ...]:
        """Give the values to be checked: both ends, or all choices."""
        return self.choices if self.kind == "choice" else (self._at(0.0), self._at(1.0))

    def plain(self) -> dict[str, list[Any]]:
        """Write the domain as YAML has it, for instance ``{"uniform": [1, 8]}``."""
        values = self.choices if self.kind == "choice" else (self.low, self.high)
        return {self.kind: list(values)}

    def _at(self, place: float) -> float | int:
        """Give the value at a place in [0, 1] of the range, to four digits.

        Whole numbers share it evenly.
        """
        assert self.low is not None, "a choice has no range"
        assert self.high is not None, "a choice has no range"
        whole = self.kind in ("int", "log_int")
        # Each whole number gets as much of the range as the next: half a step further at both ends.
        low = self.low - 0.5 if whole else self.low
        high = self.high + 0.5 if whole else self.high

        if self.kind.startswith("log_"):
            value = low * (high / low) ** place
        else:
            value = low + (high - low) * place

        value = round(value) if whole else float(f"{value:.4g}")
        value = min(max(value, self.low), self.high)
        return int(value) if whole else float(value)


def uniform(low: float, high: float, note: str = "") -> Domain:
    """Draw a number evenly between two ends."""
    return Domain("uniform", low, high, note=note)


def log_uniform(low: float, high: float, note: str = "") -> Domain:
    """Draw a number evenly in its logarithm, for what acts by factors."""
    return Domain("log_uniform", low, high, note=note)


def integers(low: int, high: int, note: str = "") -> Domain:
    """Draw a whole number evenly between two ends."""
    return Domain("int", low, high, note=note)


def log_integers(low: int, high: int, note: str = "") -> Domain:
    """Draw a whole number evenly in its logarithm."""
    return Domain("log_int", low, high, note=note)


def choice(*values: Any, note: str = "") -> Domain:
    """Draw one of some values, lists among them."""
    plain = tuple(list(value) if isinstance(value, tuple) else value for value in values)
    return Domain("choice", choices=plain, note=note)


@dataclass(frozen=True)
class Limits:
    """What `option` declared of a field."""

    low: float | None = None
    """Least value that is allowed, None for none; of a list, that of each item."""
    high: float | None = None
    """Greatest value that is allowed, None for none; of a list, that of each item."""
    unit: str = ""
    """What a number counts, for instance ``pixels``; empty for a plain number or text."""
    search: Domain | None = None
    """What a search tries by default; None for a field that it leaves alone."""
    synonyms: Mapping[bool, str] = dataclasses.field(default_factory=dict)
    """What true and false mean where a file may give them in place of a word."""
    later: bool = False
    """Whether the field came after results were stored, so that files leave out its default."""


def option(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    search: Domain | None = None,
    synonyms: Mapping[bool, str] | None = None,
    later: bool = False,
) -> Any:
    """Declare a field of a config dataclass with its default and its limits.

    Args:
        default: value where none is given.
        low: least value that is allowed; of a list, of each item.
        high: greatest value that is allowed; of a list, of each item.
        unit: what a number counts.
        search: what a search tries by default.
        synonyms: what true and false mean where a file may give them in place of a word.
        later: the field came after results were stored, and its default says what they were made
            with. Ids and checkpoints then name it only where it has another value.
    """
    limits = Limits(low, high, unit, search, synonyms or {}, later)
    return dataclasses.field(default=default, metadata={_LIMITS: limits})


def limits_of(cls: Any) -> Mapping[str, Limits]:
    """Give each field's limits by name. Those of a plain field allow everything."""
    return {f.name: f.metadata.get(_LIMITS, Limits()) for f in dataclasses.fields(cls)}


def meanings_of(cls: Any) -> Mapping[str, str]:
    """Give the text under each field of a dataclass, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)

    found = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if is_field and is_text:
            found[statement.target.id] = " ".join(str(following.value.value).split())  # type: ignore[attr-defined]
    return found


def check_fields(config: Any) -> None:
    """Refuse values of a config dataclass outside of what its fields declare.

    None passes everywhere, since the type of the field says whether it may be left out.

    Raises:
        InputError: with the field, its value and what is allowed.
    """
    cls = type(config)
    for name, limits in limits_of(cls).items():
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float):
                check_range(name, item, limits.low, limits.high)

    literals = _literals_of(cls)  # type: ignore[arg-type]  # mypy doubts that a class can be hashed
    for name, words in literals.items():
        check_choice(name, getattr(config, name), words)


@functools.cache
def _literals_of(cls: Any) -> Mapping[str, tuple[Any, ...]]:
    """Give the words of each field that allows only some."""
    hints = typing.get_type_hints(cls)
    return {
        name: typing.get_args(hint)
        for name, hint in hints.items()
        if typing.get_origin(hint) is Literal
    }


def check_range(
    name: str, value: float | None, low: float | None, high: float | None = None
) -> None:
    """Refuse a number outside [low, high]. None passes, and sets no limit.

    Raises:
        InputError: with the name, the value and the range.
    """
    if value is None or (low is None and high is None):
        return
    least = -math.inf if low is None else low
    most = math.inf if high is None else high
    if least <= value <= most:
        return

    if high is None:
        raise InputError(Sentence.of("field least", name=name, value=str(value), low=f"{low:g}"))
    if low is None:
        raise InputError(Sentence.of("field most", name=name, value=str(value), high=f"{high:g}"))
    raise InputError(
        Sentence.of("field between", name=name, value=str(value), low=f"{low:g}", high=f"{high:g}")
    )


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a word that is not one of `allowed`.

    Raises:
        InputError: with the nearest word.
    """
    if value not in allowed:
        raise InputError(
            Sentence.of(
                "field choice", name=name, value=repr(value), nearest=nearest_of(value, allowed)
            )
        )
