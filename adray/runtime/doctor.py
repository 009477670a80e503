"""Whether a machine runs a bundle as the machine that made it did, and how fast."""

from __future__ import annotations

import importlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adray.runtime.archive import open_archive
from adray.runtime.golden import compare_golden, decode_golden, golden_images, other_pixels
from adray.runtime.model import Bundle

_TIMED = 20
"""Timed calls."""
_MOST_SECONDS = 10.0
"""No further call is timed after so long."""
_PACKAGES = ("numpy", "PIL")
"""Besides the backend."""


@dataclass(frozen=True)
class Checkup:
    """What was found on a machine."""

    problems: tuple[str, ...]
    """What is not as where the bundle was made, a sentence each; empty where all is well."""
    backend: str
    """Package that ran the graph."""
    precision: Mapping[str, Any]
    """What the network counts in, and what a lower precision gained, as the manifest says."""
    golden: int
    """Number of golden images that were judged."""
    largest_error: float
    """Largest difference of their scores, as a part of the largest."""
    load_seconds: float
    """Time to check and load the bundle."""
    first_milliseconds: float
    """Time of the first image."""
    milliseconds: float
    """Median time of one image after it, 0 where none is timed."""
    megabytes: float
    """Largest memory of this process so far."""
    versions: tuple[tuple[str, str, str], ...]
    """Package, version where the bundle was made, version here."""


def check_machine(path: str | Path, threads: int = 0, backend: str = "") -> Checkup:
    """Load a bundle, judge its golden images, and take the time.

    Args:
        path: of a bundle.
        threads: of the CPU; 0 for all.
        backend: see `adray.runtime.load`.

    Raises:
        BundleError: for a file that is no bundle, was changed, or cannot be run.
    """
    start = time.perf_counter()
    bundle = Bundle(open_archive(path), threads, backend)
    load_seconds = time.perf_counter() - start
    golden = golden_images(bundle)
    pictures = [decode_golden(bundle, image) for image in golden]

    # The first image takes longer: memory is asked for, code is loaded.
    start = time.perf_counter()
    for pixels in pictures[:1]:
        bundle.predict(pixels)
    first = time.perf_counter() - start

    error, others = compare_golden(bundle, golden, pictures)
    return Checkup(
        problems=(*other_pixels(golden, pictures), *others),
        backend=bundle.backend,
        precision=bundle.precision,
        golden=len(golden),
        largest_error=error,
        load_seconds=load_seconds,
        first_milliseconds=1000 * first,
        milliseconds=_median_milliseconds(bundle, pictures),
        megabytes=_peak_megabytes(),
        versions=tuple(_versions(bundle)),
    )


def _median_milliseconds(bundle: Bundle, pictures: Sequence[np.ndarray]) -> float:
    """Take the time of one image, again and again, without a map."""
    times: list[float] = []
    while pictures and len(times) < _TIMED and sum(times) < _MOST_SECONDS:
        start = time.perf_counter()
        bundle.predict(pictures[len(times) % len(pictures)], with_map=False)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) if times else 0.0


def _peak_megabytes() -> float:
    """Give the largest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _versions(bundle: Bundle) -> Iterator[tuple[str, str, str]]:
    """Give name, version then and version now of each package that decides a score."""
    made_by = bundle.manifest.get("versions")
    for name in (*_PACKAGES, bundle.backend):
        before = made_by.get(name, "?") if isinstance(made_by, dict) else "?"
        yield name, str(before), importlib.import_module(name).__version__
