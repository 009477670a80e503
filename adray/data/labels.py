"""Words of tables that say what an image shows, and which part of a data set it belongs to."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from adray.data.names import NORMAL_WORDS, looks_defective, same_name
from adray.errors import InputError
from adray.language.sentence import Sentence, Value

NORMAL_LABELS = NORMAL_WORDS | {"0", "false", "pass", "io"}
"""Labels of normal images, in lower case."""

SPLIT_LABELS = {
    "train": "train",
    "training": "train",
    "labeled": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
"""Words for a split, in lower case, to the split that they mean."""

_UNKNOWN = frozenset(
    {"?", "-", "nan", "none", "null", "n/a", "na", "unknown", "unlabeled", "todo", "미정"}
)
_UNNAMED = frozenset({"1", "true"})


@dataclass(frozen=True)
class Label:
    """What a label says of an image."""

    value: int
    """0 normal, 1 anomalous."""
    defect_type: str
    """Kind of the defect, ``good`` for a normal image."""


NORMAL = Label(0, "good")


def read_label(written: str, where: Value) -> Label:
    """Read a label: a word for good, or else a kind of defect.

    Args:
        written: as the table has it.
        where: names the table and the row.

    Raises:
        InputError: for a label that is empty, says that nothing is known, is no whole number, or is
            nearly a word for good.
    """
    word = _without_point(same_name(written.strip()))
    if word in NORMAL_LABELS:
        return NORMAL

    if not word:
        raise InputError(Sentence.of("label empty", where=where))
    if word in _UNKNOWN:
        raise InputError(Sentence.of("label unknown", where=where, value=repr(written)))
    if _is_odd_number(word):
        raise InputError(Sentence.of("label number", where=where, value=repr(written)))

    close = difflib.get_close_matches(word, NORMAL_LABELS, n=1, cutoff=0.8)
    if close and not looks_defective(word):
        raise InputError(
            Sentence.of("label misspelt", where=where, value=repr(written), close=repr(close[0]))
        )
    return Label(1, "anomaly" if word in _UNNAMED else written.strip())


def read_split(written: str, where: Value) -> str:
    """Read the name of a split.

    Args:
        written: as the table has it.
        where: names the table and the row.

    Raises:
        InputError: for another word.
    """
    split = SPLIT_LABELS.get(same_name(written.strip()))
    if split is None:
        raise InputError(Sentence.of("label split", where=where, value=repr(written)))
    return split


def _without_point(word: str) -> str:
    """Write a whole number without its point, as tables of numbers have ``0.0``."""
    match = re.fullmatch(r"(\d+)\.0*", word)
    return word if match is None else match[1]


def _is_odd_number(word: str) -> bool:
    """Tell whether a label is a number, but not a whole one from 0 on."""
    try:
        float(word)
    except ValueError:
        return False
    return not word.isdecimal()
