"""Whether a machine runs a bundle as the machine that made it did, and how fast."""

from __future__ import annotations

import hashlib
import importlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adray.runtime.archive import open_archive
from adray.runtime.errors import BundleError
from adray.runtime.model import Bundle
from adray.runtime.picture import decode_picture

TOLERANCE = 1e-4
"""Largest difference of a golden image's score, as a part of the largest score among them."""
_TIMED = 20
"""Timed calls."""
_MOST_SECONDS = 10.0
"""No further call is timed after so long."""
_PACKAGES = ("numpy", "PIL", "onnxruntime")


@dataclass(frozen=True)
class Checkup:
    """What was found on a machine."""

    problems: tuple[str, ...]
    """What is not as where the bundle was made, a sentence each; empty where all is well."""
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


@dataclass(frozen=True)
class GoldenImage:
    """An image of the bundle, and what was said of it where the bundle was made."""

    file: str
    """Its member."""
    pixels_sha256: str
    """Of its decoded pixels."""
    pred_score: float
    """Higher is more anomalous."""
    verdict: str
    """``normal`` or ``anomalous``."""


def check_machine(path: str | Path, threads: int = 0) -> Checkup:
    """Load a bundle, judge its golden images, and take the time.

    Args:
        path: of a bundle.
        threads: of the CPU; 0 for all.

    Raises:
        BundleError: for a file that is no bundle, was changed, or cannot be run.
    """
    start = time.perf_counter()
    bundle = Bundle(open_archive(path), threads)
    load_seconds = time.perf_counter() - start
    golden = _golden(bundle)
    pictures = [_decoded(bundle, image) for image in golden]

    # The first image takes longer: memory is asked for, code is loaded.
    start = time.perf_counter()
    for pixels in pictures[:1]:
        bundle.predict(pixels)
    first = time.perf_counter() - start

    error, others = _judge(bundle, golden, pictures)
    return Checkup(
        problems=(*_other_pixels(golden, pictures), *others),
        golden=len(golden),
        largest_error=error,
        load_seconds=load_seconds,
        first_milliseconds=1000 * first,
        milliseconds=_median_milliseconds(bundle, pictures),
        megabytes=_peak_megabytes(),
        versions=tuple(_versions(bundle)),
    )


def judge_golden(bundle: Bundle) -> list[str]:
    """Say which golden images are judged other than where a bundle was made, a sentence each.

    Raises:
        BundleError: for a list of golden images that is none, or that cannot be decoded here.
    """
    golden = _golden(bundle)
    return _judge(bundle, golden, [_decoded(bundle, image) for image in golden])[1]


def _golden(bundle: Bundle) -> list[GoldenImage]:
    """List the golden images of the manifest.

    Raises:
        BundleError: for a list that is none.
    """
    try:
        golden = []
        for row in bundle.manifest["golden"]:
            score = float(row["pred_score"])
            golden.append(
                GoldenImage(str(row["file"]), row["pixels_sha256"], score, row["verdict"])
            )
        return golden
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.archive.path} has no proper list of golden images; make it again"
        ) from error


def _decoded(bundle: Bundle, image: GoldenImage) -> np.ndarray:
    """Decode a golden image.

    Raises:
        BundleError: where this machine cannot.
    """
    data = bundle.archive.read(image.file)
    try:
        return decode_picture(data, bundle.dtype)
    except Exception as error:  # Pillow fails in many ways
        raise BundleError(f"{image.file} cannot be decoded here ({error})") from error


def _other_pixels(golden: Sequence[GoldenImage], pictures: Sequence[np.ndarray]) -> list[str]:
    """Say which golden images are decoded to other pixels than where the bundle was made."""
    problems = []
    for image, pixels in zip(golden, pictures, strict=True):
        if hashlib.sha256(pixels.tobytes()).hexdigest() != image.pixels_sha256:
            problems.append(
                f"{image.file} is decoded to other pixels here; install the Pillow that made it"
            )
    return problems


def _judge(
    bundle: Bundle, golden: Sequence[GoldenImage], pictures: Sequence[np.ndarray]
) -> tuple[float, list[str]]:
    """Judge the golden images.

    Returns:
        The largest difference of scores as a part of the largest, and what is wrong.
    """
    largest = max([abs(image.pred_score) for image in golden], default=1.0)
    worst = 0.0
    problems = []
    for image, pixels in zip(golden, pictures, strict=True):
        # A verdict says more than a score, so it is looked at first.
        result = bundle.predict(pixels, with_map=False)
        if result.pred_score is None or result.verdict != image.verdict:
            problems.append(
                f"{image.file} is {result.verdict} here and {image.verdict} where the bundle was "
                f"made {result.reason}".rstrip()
            )
            continue

        error = abs(result.pred_score - image.pred_score) / max(largest, 1e-30)
        worst = max(worst, error)
        if not error <= TOLERANCE:
            problems.append(
                f"{image.file} has the score {result.pred_score:.9g} here and "
                f"{image.pred_score:.9g} where the bundle was made"
            )
    return worst, problems


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
    for name in _PACKAGES:
        before = made_by.get(name, "?") if isinstance(made_by, dict) else "?"
        yield name, str(before), importlib.import_module(name).__version__
