"""A sentence that is put into words only where it is read, in the reader's language."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias, Union

from adray.language.catalogue import Catalogue, load_catalogue


@dataclass(frozen=True)
class Term:
    """A word of the program's own, which has a translation, unlike names of files."""

    text: str
    """In English."""


Value: TypeAlias = Union[str, int, Term, "Sentence", tuple["Sentence", ...]]
"""Stands in a place of a sentence. Several sentences are joined by semicolons."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of the catalogue with what stands in its places."""

    key: str
    """In the catalogue."""
    values: tuple[tuple[str, Value], ...] = ()
    """Name of each place, and what stands there."""

    @classmethod
    def of(cls, key: str, **values: Value) -> Sentence:
        """Make a sentence of its key and the values by the names of their places."""
        return cls(key, tuple(values.items()))

    def text(self, say: Catalogue) -> str:
        """Put it into the words of a language.

        Bytes of a name that are not UTF-8 become replacement characters.
        """
        words = {name: _in_words(value, say) for name, value in self.values}
        return say(self.key, **words)

    def __str__(self) -> str:
        """Put it into English."""
        return self.text(load_catalogue("en"))


def quoted(text: str) -> Sentence:
    """Make a sentence of a text that has no translation."""
    return Sentence.of("quoted", text=text)


def nearest_of(name: object, allowed: Iterable[object], limit: int = 12) -> Sentence:
    """Make the sentence of what was allowed in place of `name`: the closest match, else `limit` names."""
    names = list(map(str, allowed))
    close = difflib.get_close_matches(str(name), names, n=1)
    if close:
        return Sentence.of("nearest close", name=repr(close[0]))

    if not names:
        return Sentence.of("nearest none")
    shown = ", ".join(names[:limit])
    if len(names) > limit:
        return Sentence.of("nearest some", names=shown, number=len(names))
    return Sentence.of("nearest all", names=shown)


def sentence_of(error: Exception) -> Sentence:
    """Give the sentence that an error was made of, or its text as one."""
    content = error.args[0] if error.args else ""
    return content if isinstance(content, Sentence) else quoted(str(error))


def error_text(error: Exception, language: str) -> str:
    """Put an error into the words of a language, where it was made of a sentence.

    Any other stays as it is, and no catalogue is read for it.
    """
    content = error.args[0] if error.args else ""
    return content.text(load_catalogue(language)) if isinstance(content, Sentence) else str(error)


def _in_words(value: Value, say: Catalogue) -> str:
    """Put a value into the words of a language."""
    if isinstance(value, Term):
        return say.word(value.text)
    if isinstance(value, Sentence):
        return value.text(say)
    if isinstance(value, tuple):
        return "; ".join(sentence.text(say) for sentence in value)
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
