"""Images of a bundle with their scores, by which a machine checks whether it judges as the maker's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adray.runtime.errors import BundleError
from adray.runtime.model import Bundle
from adray.runtime.picture import decode_picture

TOLERANCE = 1e-4
"""Largest difference of a golden image's score, as a part of the largest score among them."""


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


def golden_images(bundle: Bundle) -> list[GoldenImage]:
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


def decode_golden(bundle: Bundle, image: GoldenImage) -> np.ndarray:
    """Decode a golden image.

    Raises:
        BundleError: where this machine cannot.
    """
    data = bundle.archive.read(image.file)
    try:
        return decode_picture(data, bundle.dtype)
    except Exception as error:  # Pillow fails in many ways
        raise BundleError(f"{image.file} cannot be decoded here ({error})") from error


def other_pixels(golden: Sequence[GoldenImage], pictures: Sequence[np.ndarray]) -> list[str]:
    """Say which golden images are decoded to other pixels than where the bundle was made."""
    problems = []
    for image, pixels in zip(golden, pictures, strict=True):
        if hashlib.sha256(pixels.tobytes()).hexdigest() != image.pixels_sha256:
            problems.append(
                f"{image.file} is decoded to other pixels here; install the Pillow that made it"
            )
    return problems


def judge_golden(bundle: Bundle) -> list[str]:
    """Say which golden images are judged other than where a bundle was made, a sentence each.

    Raises:
        BundleError: for a list of golden images that is none, or that cannot be decoded here.
    """
    golden = golden_images(bundle)
    return compare_golden(bundle, golden, [decode_golden(bundle, image) for image in golden])[1]


def compare_golden(
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
