"""How training or test of a trial differs from the plain case.

A sweep names conditions under ``grid.conditions``. Those of training become one `Condition` or
more, which are part of the trial's id. Which images a condition takes is drawn in
`adray.data.conditions`. Those of the test become `Corruption`s, under which a trained trial is scored again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from adray.errors import InputError
from adray.fields import check_choice, check_fields, option
from adray.language.sentence import Sentence
from adray.types import Json

VERSION = 1
"""Raised by hand when a condition takes other images than before."""
PLAIN_LABEL = "plain"
"""Name of the plain case."""
GROUP = "group"
"""What `Condition.leave_out` calls the groups that a reader finds, beside columns of a list."""
_MOST_CONTAMINATION = 0.6

TestDefects = Literal["no_overlap", "overlap"]
HoldOut = Literal["contaminated", "clean"]
Kind = Literal[
    "brightness",
    "contrast",
    "gamma",
    "white_balance",
    "gradient",
    "glare",
    "defocus",
    "motion",
    "noise",
    "jpeg",
    "shift",
    "rotation",
    "scale",
    "dust",
]
"""What may happen to a picture, see `adray.data.corruptions`."""
AnyKind = Literal["all", Kind]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEVERITIES = (1, 2, 3, 4, 5)
"""From mild to strong."""
CORRUPTION_VERSION = 1
"""Raised by hand when a corruption gives other pixels than before."""


def _check_one_size(k_shot: object, train_fraction: object) -> None:
    """Refuse two sizes of one training set.

    Raises:
        InputError: with both.
    """
    if k_shot not in (None, ()) and train_fraction not in (None, ()):
        raise InputError(
            Sentence.of(
                "condition few twice", k_shot=str(k_shot), train_fraction=str(train_fraction)
            )
        )


def _check_apart(leave_out: str, contamination: object) -> None:
    """Refuse defects of the test in a training that shall not know what is tested.

    Raises:
        InputError: with both.
    """
    if leave_out and contamination not in (None, ()):
        raise InputError(
            Sentence.of(
                "condition leave_out contamination",
                leave_out=leave_out,
                contamination=str(contamination),
            )
        )


@dataclass(frozen=True)
class Condition:
    """How the training of one trial differs from the plain case, which is the default."""

    k_shot: int | None = option(None, low=1)
    """Normal images of each category that train; None for all."""
    train_fraction: float | None = option(None, low=1e-4, high=1)
    """Part of the normal training images of each category that train; None for all."""
    contamination: float | None = option(None, low=0, high=_MOST_CONTAMINATION)
    """Part of the training images that are unlabelled defects, taken from the test; None for
    none."""
    test_defects: TestDefects = "no_overlap"
    """``no_overlap`` takes the defects that train out of the test, ``overlap`` leaves them in."""
    hold_out: HoldOut = "contaminated"
    """``contaminated`` puts the same part of defects among the held-out normals, ``clean`` none."""
    leave_out: str = ""
    """``group``, or a column of the own list, of which one value does not train and alone tests;
    empty for none."""
    left_out: str = ""
    """That value, for instance the name of a lot."""
    draw: int = option(1, low=1)
    """Number of the draw, by which other images are taken."""

    def __post_init__(self) -> None:
        """Check ranges, and what goes together."""
        check_fields(self)
        _check_one_size(self.k_shot, self.train_fraction)
        _check_apart(self.leave_out, self.contamination)
        if bool(self.leave_out) != bool(self.left_out):
            raise InputError(
                Sentence.of(
                    "condition leave_out",
                    leave_out=repr(self.leave_out),
                    left_out=repr(self.left_out),
                )
            )

    @property
    def has_fewer(self) -> bool:
        """Tell whether not all normal images train."""
        return self.k_shot is not None or self.train_fraction not in (None, 1)

    @property
    def is_dirty(self) -> bool:
        """Tell whether defects train as if they were normal."""
        return bool(self.contamination)

    @property
    def is_plain(self) -> bool:
        """Tell whether nothing differs."""
        return not (self.has_fewer or self.is_dirty or self.leave_out)

    @property
    def label(self) -> str:
        """Give the name that all draws of it have in common, see `label_of`."""
        return label_of(self.stored())

    @property
    def title(self) -> str:
        """Give the name of this very draw."""
        stored = self.stored()
        return f"{self.label} draw {self.draw}" if "draw" in stored else self.label

    def stored(self) -> Json:
        """Give what a trial's identity holds of it: what says something. Empty for the plain case."""
        kept: Json = {}
        if self.k_shot is not None:
            kept["k_shot"] = self.k_shot
        elif self.has_fewer:
            kept["train_fraction"] = self.train_fraction
        if self.is_dirty:
            kept["contamination"] = self.contamination
            kept["test_defects"] = self.test_defects
            kept["hold_out"] = self.hold_out
        if kept:
            kept["draw"] = self.draw
        if self.leave_out:
            kept["leave_out"] = self.leave_out
            kept["left_out"] = self.left_out
        return kept


PLAIN = Condition()


@dataclass(frozen=True, order=True)
class Corruption:
    """What happens to the test images of a trial, normal and defective ones alike."""

    kind: Kind
    """What happens."""
    severity: int = option(3, low=SEVERITIES[0], high=SEVERITIES[-1])
    """How strongly, from 1 to 5."""

    def __post_init__(self) -> None:
        """Check both values."""
        check_choice("corruption", self.kind, KINDS)
        check_fields(self)

    @property
    def label(self) -> str:
        """Give its name, the same in all languages."""
        return f"{self.kind} {self.severity}"


def corruptions_of(kinds: Sequence[Kind], severities: Sequence[int]) -> list[Corruption]:
    """Multiply kinds and severities out."""
    found = []
    for kind, severity in itertools.product(kinds, severities):
        found.append(Corruption(kind, severity))
    return found


@dataclass(frozen=True)
class ConditionConfig:
    """A named entry of ``grid.conditions``; lists are multiplied out, and none is the plain case."""

    k_shot: int | tuple[int, ...] = option((), low=1)
    """Normal images of each category that train, or several such numbers."""
    train_fraction: float | tuple[float, ...] = option((), low=1e-4, high=1)
    """Part of the normal training images of each category that train, or several such."""
    contamination: float | tuple[float, ...] = option((), low=0, high=_MOST_CONTAMINATION)
    """Part of the training images that are unlabelled defects, taken from the test, or several
    such."""
    test_defects: TestDefects = "no_overlap"
    """``no_overlap`` takes the defects that train out of the test, ``overlap`` leaves them in."""
    hold_out: HoldOut = "contaminated"
    """``contaminated`` puts the same part of defects among the held-out normals, ``clean`` none."""
    leave_out: str = ""
    """``group``, or a column of the own list: each of its values in turn does not train and alone
    tests."""
    draws: int = option(1, low=1, high=1000)
    """Times that images are drawn anew, for the spread that the choice of images makes."""
    corruption: AnyKind | tuple[Kind, ...] = ()
    """What happens to the test images, or ``all`` that may; the trials of the plain case are scored
    under each, without training."""
    severity: int | tuple[int, ...] = option(SEVERITIES, low=SEVERITIES[0], high=SEVERITIES[-1])
    """How strongly, from 1 to 5, or several of them."""

    def __post_init__(self) -> None:
        """Check ranges, and what goes together."""
        check_fields(self)
        for name in ("k_shot", "train_fraction", "contamination", "corruption", "severity"):
            _check_values(name, getattr(self, name))
        self._check_apart_from_training()
        _check_one_size(self.k_shot, self.train_fraction)
        _check_apart(self.leave_out, self.contamination)
        if self.draws > 1 and not (self.k_shot or self.train_fraction or self.contamination):
            raise InputError(Sentence.of("condition draws", draws=self.draws))

    def _check_apart_from_training(self) -> None:
        """Refuse a corruption beside what changes the training, and a severity of nothing.

        Raises:
            InputError: with both.
        """
        if not self.corruption:
            if self.severity != SEVERITIES:
                raise InputError(Sentence.of("condition severity", severity=str(self.severity)))
            return
        if self.severity == ():
            raise InputError(Sentence.of("condition severity empty"))
        of_training = (self.k_shot, self.train_fraction, self.contamination, self.leave_out)
        if any(value not in ((), "") for value in of_training):
            raise InputError(Sentence.of("condition corruption", corruption=str(self.corruption)))

    @property
    def is_of_test(self) -> bool:
        """Tell whether it changes the test and not the training."""
        return bool(self.corruption)

    def corruptions(self) -> list[Corruption]:
        """Multiply out what happens to the test images, with the mild before the strong."""
        kinds = KINDS if self.corruption == "all" else _several(self.corruption)
        return corruptions_of(kinds, sorted(_several(self.severity)))

    def expand(self, values: Sequence[str] = ()) -> list[Condition]:
        """Multiply the lists out.

        Args:
            values: of `leave_out`, as the data have them; none gives no condition with it.
        """
        left_out = values if self.leave_out else ("",)
        found = []
        for value in left_out:
            for condition in self._of_sizes():
                found.append(replace(condition, leave_out=self.leave_out, left_out=value))
        return found

    def _of_sizes(self) -> list[Condition]:
        """Multiply out what is drawn."""
        found = []
        sizes = itertools.product(
            _several(self.k_shot), _several(self.train_fraction), _several(self.contamination)
        )
        for k_shot, train_fraction, contamination in sizes:
            for draw in range(1, self.draws + 1):
                condition = Condition(
                    k_shot=k_shot,
                    train_fraction=train_fraction,
                    contamination=contamination,
                    test_defects=self.test_defects,
                    hold_out=self.hold_out,
                    draw=draw,
                )
                found.append(condition)
        return found


def _several(value: Any) -> tuple[Any, ...]:
    """Give the values of a field that is one or several, and None alone for none."""
    values = value if isinstance(value, tuple) else (value,)
    return values or (None,)


def _check_values(name: str, value: Any) -> None:
    """Refuse a value that a list names twice.

    Raises:
        InputError: with the list.
    """
    values = _several(value)
    if len(set(values)) != len(values):
        raise InputError(Sentence.of("condition twice", name=name, values=str(list(values))))


def label_of(stored: Mapping[str, Any]) -> str:
    """Name a condition by its settings, the same in all languages. All draws have one name.

    Args:
        stored: as `Condition.stored` gives it, or as a newer version wrote it.
    """
    parts = []
    for name in ("k_shot", "train_fraction"):
        if name in stored:
            parts.append(f"{name}={stored[name]}")
    if "contamination" in stored:
        parts.append(f"contamination={stored['contamination']} {stored.get('test_defects')}")
    if stored.get("hold_out") == "clean":
        parts.append("hold_out=clean")
    if "leave_out" in stored:
        parts.append(f"leave_out {stored['leave_out']}={stored.get('left_out')}")
    return ", ".join(parts) or PLAIN_LABEL


@dataclass(frozen=True)
class Step:
    """Where a condition stands on an axis, for curves over several of them."""

    axis: str
    """``k_shot``, ``train_fraction`` or ``contamination``."""
    value: float
    """Its value there."""
    rest: str
    """What else its name says, which is the same along a curve."""


def step_of(label: str) -> Step | None:
    """Read where a condition stands from its name, None for one on no axis of numbers."""
    # One of the three names, its number, and whatever follows.
    match = re.fullmatch(r"(k_shot|train_fraction|contamination)=([\d.e-]+),? ?(.*)", label)
    return Step(match[1], float(match[2]), match[3]) if match else None
