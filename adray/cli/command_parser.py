"""The parser of every command, which explains it in the reader's language.

`korean_help.json` beside the catalogues has each English text of help with its Korean one. It is
JSON, as the line has no package that reads YAML.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, NoReturn

from adray.language.catalogue import language_of

_DEFAULT = re.compile(r"(?P<text>.*?)\s*\(default: (?P<default>[^()]*(?:\(default\)s)?)\)")
"""A text that ends with what an option is where nobody sets it."""
_PLACE = "%(default)s"
_ONLY_DEFAULT = re.compile(r"default: (?P<default>.*)")
_OF_ARGPARSE = (
    "the following arguments are required",
    "unrecognized arguments",
    "expected one argument",
    "expected at least one argument",
    "invalid choice",
    "choose from",
    "not allowed with argument",
)
"""What argparse itself says of wrong arguments."""


class CommandParser(argparse.ArgumentParser):
    """Parses the arguments of a command.

    Args:
        prog: the command as it is typed.
        description: what it does, in English.
        epilog: what stands below the options, in English.
    """

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=_HelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end with 2."""
        for text in _OF_ARGPARSE:
            message = message.replace(text, help_text(text))
        super().error(message)


class _HelpFormatter(argparse.HelpFormatter):
    """Lays out help in the reader's language."""

    def add_text(self, text: str | None) -> None:
        super().add_text(help_text(text) if text else text)

    def start_section(self, heading: str | None) -> None:
        super().start_section(help_text(heading) if heading else heading)

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        super().add_usage(
            usage, actions, groups, help_text("usage: ") if prefix is None else prefix
        )

    def _get_help_string(self, action: argparse.Action) -> str:
        return help_text(action.help or "")


def help_text(text: str) -> str:
    """Give a text of help in the language of the environment.

    Args:
        text: in English; one that nobody translated stays as it is.
    """
    if language_of(os.environ) != "ko":
        return text
    return korean_help(text) or text


def korean_help(text: str) -> str | None:
    """Give the Korean of a text of help, None where nobody translated it.

    Args:
        text: in English, with the default at its end or without.
    """
    translated = _korean()
    if text in translated:
        return translated[text]

    only = _ONLY_DEFAULT.fullmatch(text)
    if only:
        return f"기본값: {only['default']}"
    found = _DEFAULT.fullmatch(text)
    if found is None:
        return None
    if found["text"] in translated:
        return f"{translated[found['text']]}(기본값: {found['default']})"
    # The default stands behind a unit, within the same brackets.
    whole = translated.get(f"{found['text']} (default: {_PLACE})")
    return whole and whole.replace(_PLACE, found["default"])


@lru_cache(maxsize=1)
def _korean() -> Mapping[str, str]:
    """Read the Korean texts by their English ones."""
    file = resources.files("adray.language").joinpath("korean_help.json")
    return json.loads(file.read_text(encoding="utf-8"))
