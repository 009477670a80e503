"""What commands on a bundle share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


def loaded_bundle(path: str, threads: int, backend: str) -> Bundle:
    """Load a bundle.

    Raises:
        InputError: for a file that is no bundle, was changed, or cannot be run.
    """
    with bundle_errors():
        return load(path, threads, backend)


def precision_text(facts: Mapping[str, Any]) -> str:
    """Say what the network of a bundle counts in, and what a lower precision gained.

    Args:
        facts: `precision` of the manifest.
    """
    name = facts.get("name", "float32")
    if "milliseconds" not in facts:
        return f"precision {name}"
    return (
        f"precision {name}: where it was made, an image took {facts['milliseconds']:.1f} ms instead "
        f"of {facts['float32_milliseconds']:.1f} in float32, and the graph has "
        f"{facts['bytes'] / 2**20:.1f} MB instead of {facts['float32_bytes'] / 2**20:.1f}"
    )
