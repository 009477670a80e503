"""The one exception for bad input."""

from __future__ import annotations


class InputError(ValueError):
    """Input that the user can mend: one sentence with the value, what is allowed and the remedy.

    It is made of a `Sentence`, so that a command says it in the reader's language. Commands print
    the sentence alone and end with exit code 2.
    """
