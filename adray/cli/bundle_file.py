"""What commands on a bundle share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adray.errors import InputError
from adray.runtime import Bundle, load
from adray.runtime.errors import BundleError


@contextmanager
def bundle_errors() -> Iterator[None]:
    """Say what is wrong with a bundle as any other command says what is wrong with its input.

    Raises:
        InputError: in place of a `BundleError`.
    """
    try:
        yield
    except BundleError as error:
        raise InputError(str(error)) from error


def loaded_bundle(path: str, threads: int) -> Bundle:
    """Load a bundle.

    Raises:
        InputError: for a file that is no bundle, was changed, or cannot be run.
    """
    with bundle_errors():
        return load(path, threads)
