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

from adray.errors import InputError
from adray.language.catalogue import language_of
from adray.settings import expand_path

WRITTEN = frozenset(
    {"cache_dir", "log", "metrics", "out", "output", "output_dir", "page", "sort_into", "write"}
)
"""Options and arguments of all commands, as argparse keeps them, that name what is written."""
READ = frozenset(
    {
        "backbone_dir",
        "data",
        "dataset_dir",
        "defects",
        "drop",
        "file",
        "folder",
        "logs",
        "mqtt_login_file",
        "store",
        "store_a",
        "store_b",
        "tls_cert",
        "tls_key",
        "token_file",
        "webhook_token_file",
    }
)
"""Those that name what is read."""
PATH_OR_NAME = frozenset({"bundle", "images", "model", "path", "remove", "trial", "trials"})
"""Those that name what is read by its path, or by a name or pattern that is none."""

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

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, and fill in ``~`` and variables of those that name files and folders.

        Raises:
            InputError: for a variable or a user that is not there.
        """
        parsed = super().parse_args(args, namespace)
        for action in self._actions:
            given = getattr(parsed, action.dest, None)
            name = action.option_strings[-1] if action.option_strings else action.dest.upper()
            if isinstance(given, str):
                setattr(parsed, action.dest, _filled_in(action.dest, name, given))
            elif isinstance(given, list):
                paths = [_filled_in(action.dest, name, text) for text in given]
                setattr(parsed, action.dest, paths)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and end with 2."""
        for text in _OF_ARGPARSE:
            message = message.replace(text, help_text(text))
        super().error(message)


def _filled_in(kind: str, name: str, given: Any) -> Any:
    """Fill in ``~`` and variables of what names a file or folder, and keep all else as it is.

    What is there by its very name, such as a share's ``prices_$5.png``, is read as that.

    Raises:
        InputError: see `CommandParser.parse_args`.
    """
    is_read = kind in READ | PATH_OR_NAME
    if kind not in WRITTEN and not is_read:
        return given
    if is_read and os.path.lexists(given):
        return given
    try:
        return expand_path(name, given)
    except InputError:
        if kind in PATH_OR_NAME:
            return given
        raise


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
