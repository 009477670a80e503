"""What commands on the line share: packages that may be missing, backends, tokens, and numbers."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Mapping
from pathlib import Path

from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.runtime.backends import BACKENDS

_MOST_TOKEN = 4096
_MOST_SECONDS = 86_400.0


def check_packages(packages: Mapping[str, str], extra: str) -> None:
    """Refuse to start without a package.

    Args:
        packages: module to the name by which pip installs it.
        extra: of this package, that has them all.

    Raises:
        InputError: with all that are missing.
    """
    missing = [name for module, name in packages.items() if not _is_installed(module)]
    if missing:
        raise InputError(Sentence.of("packages missing", missing=" ".join(missing), extra=extra))


def _is_installed(module: str) -> bool:
    """Tell whether a module is there, without loading it."""
    return importlib.util.find_spec(module) is not None


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what runs the graph of a bundle."""
    parser.add_argument(
        "--backend",
        choices=tuple(BACKENDS),
        default="",
        help=f"of a bundle, what runs its graph: {' or '.join(BACKENDS)} (default: the first that is installed)",
    )


def read_token(option: str, path: str | None, variable: str) -> str:
    """Read a token from a file, or from the environment.

    Args:
        option: that named the file.
        path: the file, None for none.
        variable: of the environment, where no file is named; empty for none.

    Returns:
        The token, empty where there is none.

    Raises:
        InputError: for a file that cannot be read or holds no token.
    """
    if path is None:
        return os.environ.get(variable, "").strip() if variable else ""
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no plain text"
        raise InputError(
            Sentence.of("token unreadable", option=option, path=path, reason=reason)
        ) from error
    if not token or len(token) > _MOST_TOKEN or not token.isprintable() or " " in token:
        raise InputError(Sentence.of("token line", option=option, path=path))
    return token


def positive_number(text: str) -> float:
    """Read a number of seconds above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def number(text: str) -> float:
    """Read a number of seconds from 0 on."""
    value = float(text)
    if not math.isfinite(value) or not 0 <= value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and {_MOST_SECONDS:g}")
    return value
