"""Pictures of a finished trial: score histogram and anomaly maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adray.files import atomic_path
from adray.thresholds import Threshold

_GAP = 4  # pixels between panels
_LINE = 16  # pixels of a line of text


@dataclass(frozen=True)
class Picture:
    """What one picture shows of one test image.

    Attributes:
        name: of the image, for the title.
        label: 0 normal, 1 anomalous.
        pred_score: its score.
        image: (3, H, W) uint8.
        anomaly_map: (H, W), or None for models without maps.
        mask: (H, W), positive where the defect is, or None.
    """

    name: str
    label: int
    pred_score: float
    image: np.ndarray
    anomaly_map: np.ndarray | None
    mask: np.ndarray | None


def draw_histogram(
    path: str | Path, pred_score: np.ndarray, label: np.ndarray, threshold: Threshold | None = None
) -> None:
    """Draw how scores of normal and anomalous test images are distributed, to a PNG.

    Args:
        path: the file.
        pred_score: (N,) image scores.
        label: (N,) 0 normal, 1 anomalous.
        threshold: drawn as a line, where it has a value.
    """
    from matplotlib.figure import Figure

    # Fixed margins and one outline per class: a layout that is sought and forty bars took most of a short trial's time.
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.77))
    edges = np.histogram_bin_edges(pred_score.astype(np.float64), bins=40)
    for value, name, hatch in ((0, "normal", None), (1, "anomalous", "//")):
        counts, _ = np.histogram(pred_score[label == value], bins=edges)
        axes.stairs(
            counts, edges, fill=True, alpha=0.6, label=f"{name} (n={counts.sum()})", hatch=hatch
        )
    if threshold is not None and threshold.value is not None:
        axes.axvline(
            threshold.value, color="black", linestyle="--", label=_threshold_words(threshold)
        )
    axes.set(xlabel="anomaly score", ylabel="images", title=Path(path).stem)
    axes.legend(loc="upper center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def score_histogram(pred_score: np.ndarray, label: np.ndarray, bins: int = 24) -> dict[str, Any]:
    """The numbers behind a histogram of scores, as plain values.

    Returns:
        ``low`` and ``high``, the ends of the equal bins, and the counts ``normal`` and ``anomalous``.
    """
    edges = np.histogram_bin_edges(pred_score.astype(np.float64), bins=bins)
    counts = {
        name: np.histogram(pred_score[label == value], edges)[0].tolist()
        for value, name in ((0, "normal"), (1, "anomalous"))
    }
    return {"low": float(edges[0]), "high": float(edges[-1]), **counts}


def telling_images(pred_score: np.ndarray, label: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The images that say most about a detector: what it comes closest to getting wrong, and what it is surest of.

    Args:
        pred_score: (N,) image scores.
        label: (N,) 0 normal, 1 anomalous.
        count: images per class; a quarter of them, rounded down, are the sure ones.

    Returns:
        Indices under ``normal``, from the highest score, and ``anomaly``, from the lowest; the sure ones come last.
    """
    chosen = {}
    for value, name, sign in ((0, "normal", -1), (1, "anomaly", 1)):
        members = np.flatnonzero(label == value)
        ranked = members[np.argsort(sign * pred_score[members], kind="stable")]
        count_sure = min(count // 4, max(len(ranked) - count, 0))
        chosen[name] = np.concatenate(
            [ranked[: count - count_sure], ranked[len(ranked) - count_sure :]]
        )
    return chosen


def draw_picture(
    path: str | Path,
    picture: Picture,
    scale: tuple[float, float] | None,
    threshold: Threshold | None,
) -> None:
    """Draw image, mask, map and overlay side by side under the verdict, to a PNG.

    Args:
        path: the file.
        picture: what to draw.
        scale: `map_range` of the whole test set, so that the colours of its pictures can be compared; None without
            maps.
        threshold: of the verdict, or None.
    """
    parts = [np.moveaxis(picture.image, 0, -1)]
    if picture.mask is not None:
        parts.append(np.repeat((picture.mask[..., None] > 0) * np.uint8(255), 3, axis=2))
    if picture.anomaly_map is not None and scale is not None:
        heat = (picture.anomaly_map - scale[0]) / max(scale[1] - scale[0], 1e-12)
        parts += [_colors(heat), overlay(picture.image, heat)]
    canvas = _in_a_row(parts, [_verdict_words(picture, threshold), picture.name])
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG", compress_level=1)


def verdict(label: int, pred_score: float, threshold: float | None) -> str:
    """``found``, ``miss``, ``passed`` or ``false alarm``; only the label's name where there is no threshold."""
    if threshold is None:
        return "anomalous" if label else "normal"
    reported = pred_score >= threshold
    if label:
        return "found" if reported else "miss"
    return "false alarm" if reported else "passed"


def map_range(anomaly_map: np.ndarray) -> tuple[float, float]:
    """The colour scale of maps (N, H, W): the smallest value and, against outliers, the 99.9th percentile."""
    return float(anomaly_map.min()), float(np.quantile(anomaly_map[:, ::4, ::4], 0.999))


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a coloured map over its image.

    Args:
        image: (3, H, W) uint8.
        heat: (H, W), 0 to 1 from cold to hot; values outside are clipped.

    Returns:
        (H, W, 3) uint8.
    """
    return (np.moveaxis(image, 0, -1) * 0.5 + _colors(heat) * 0.5).astype(np.uint8)


def _verdict_words(picture: Picture, threshold: Threshold | None) -> str:
    value = None if threshold is None else threshold.value
    words = f"{verdict(picture.label, picture.pred_score, value)}: score {picture.pred_score:.4g}"
    return (
        words if threshold is None or value is None else f"{words}, {_threshold_words(threshold)}"
    )


def _threshold_words(threshold: Threshold) -> str:
    chosen = " (by the test labels)" if threshold.oracle else ""
    return f"threshold {threshold.value:.4g} {threshold.name}{chosen}"


def _in_a_row(parts: Sequence[np.ndarray], lines: Sequence[str]) -> Image.Image:
    """Pictures (H, W, 3) beside one another under lines of text."""
    height, width = parts[0].shape[:2]
    canvas = Image.new(
        "RGB", (len(parts) * (width + _GAP) - _GAP, height + len(lines) * _LINE), "white"
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LINE - 4)
    for k, text in enumerate(lines):
        draw.text((2, k * _LINE), text, fill="black", font=font)
    for k, pixels in enumerate(parts):
        canvas.paste(Image.fromarray(pixels), (k * (width + _GAP), len(lines) * _LINE))
    return canvas


def _colors(heat: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps["inferno"](np.clip(heat, 0, 1))[..., :3] * 255).astype(np.uint8)
