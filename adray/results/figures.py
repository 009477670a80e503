"""Pictures of a finished trial: score histogram and anomaly maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adray.files import atomic_path
from adray.regions import outline
from adray.results.fonts import drawable, font_for
from adray.scores import Scores
from adray.thresholds import Threshold
from adray.types import Json

if TYPE_CHECKING:
    from adray.data.loader import Loader
    from adray.data.tiled_loader import TiledLoader

_GAP = 4  # pixels between panels
_LINE = 16  # pixels of a line of text
CAPTION_HEIGHT = 2 * _LINE
"""Pixels at the top of a picture that hold its lines of text."""
_MARKED = (255, 40, 40)
"""Colour of the outline of what a model marks."""


# ---- the distribution of scores ----


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
    from matplotlib.ticker import MaxNLocator

    # Fixed margins and one outline per class: a layout that is sought and forty bars took most of a
    # short trial's time.
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.77))
    edges = np.histogram_bin_edges(pred_score.astype(np.float64), bins=40)
    for value, name, hatch in ((0, "normal", None), (1, "anomalous", "//")):
        counts, _ = np.histogram(pred_score[label == value], bins=edges)
        legend = f"{name} (n={counts.sum()})"
        axes.stairs(counts, edges, fill=True, alpha=0.6, label=legend, hatch=hatch)

    if threshold is not None and threshold.value is not None:
        legend = _threshold_words(threshold)
        axes.axvline(threshold.value, color="black", linestyle="--", label=legend)
    axes.set(xlabel="anomaly score", ylabel="images")
    title = drawable(Path(path).stem)
    axes.set_title(title, font=font_for(title), fontsize="large")
    # There is no half an image.
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.legend(loc="upper center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def score_histogram(pred_score: np.ndarray, label: np.ndarray, bins: int = 24) -> Json:
    """Count the scores of each class in equal bins.

    Returns:
        Plain values: ``low`` and ``high``, the ends of the bins, and the counts ``normal`` and
        ``anomalous``.
    """
    edges = np.histogram_bin_edges(pred_score.astype(np.float64), bins=bins)
    normal, _ = np.histogram(pred_score[label == 0], edges)
    anomalous, _ = np.histogram(pred_score[label == 1], edges)
    return {
        "low": float(edges[0]),
        "high": float(edges[-1]),
        "normal": normal.tolist(),
        "anomalous": anomalous.tolist(),
    }


# ---- the most telling images ----


@dataclass(frozen=True)
class Picture:
    """What one picture shows of one test image."""

    name: str
    """Name of the image, for the title."""
    label: int
    """0 normal, 1 anomalous."""
    pred_score: float
    """Its score."""
    image: np.ndarray
    """(3, H, W) uint8."""
    anomaly_map: np.ndarray | None
    """(H, W), or None for models without maps."""
    mask: np.ndarray | None
    """(H, W), positive where the defect is, or None."""
    region: float | None = None
    """Value from which on a pixel of the map is marked; None marks nothing."""


def draw_pictures(
    prefix: str | Path,
    scores: Scores,
    loader: Loader | TiledLoader,
    count: int,
    scale: tuple[float, float] | None,
    threshold: Threshold | None,
    region: float | None = None,
) -> list[Json]:
    """Draw the most telling normal and anomalous images to ``<prefix>_normal_0001.png`` and so on.

    Args:
        prefix: beginning of the files' names.
        scores: of `loader`'s images.
        loader: where the images come from.
        count: pictures per class, see `telling_images`.
        scale: `map_range` of all maps, None without maps.
        threshold: of the verdicts in the titles, or None.
        region: value from which on a pixel of a map is outlined, None for an overlay of the map.

    Returns:
        For each picture its ``file`` name, the ``path`` of the image, ``label``, ``pred_score`` and
        ``verdict``.
    """
    value = None if threshold is None else threshold.value

    drawn = []
    for kind, chosen in telling_images(scores.pred_score, scores.label, count).items():
        for number, i in enumerate(chosen.tolist(), start=1):
            file = Path(f"{prefix}_{kind}_{number:04d}.png")
            picture = replace(_picture_of(scores, loader, i), region=region)
            draw_picture(file, picture, scale, threshold)

            about = {
                "file": file.name,
                "path": str(loader.samples[i].path),
                "label": picture.label,
                "pred_score": picture.pred_score,
                "verdict": verdict(picture.label, picture.pred_score, value),
            }
            drawn.append(about)
    return drawn


def _picture_of(scores: Scores, loader: Loader | TiledLoader, i: int) -> Picture:
    anomaly_map = None if scores.anomaly_map is None else scores.anomaly_map[i]
    mask = scores.mask[i] if scores.mask is not None and scores.has_mask[i] else None
    image = loader.images(i)
    if scores.inside is not None:
        shown = _bounding_box(scores.inside[i])
        image = image[:, shown[0], shown[1]]
        anomaly_map = None if anomaly_map is None else anomaly_map[shown]
        mask = None if mask is None else mask[shown]
    return Picture(
        "/".join(loader.samples[i].path.parts[-3:]),
        int(scores.label[i]),
        float(scores.pred_score[i]),
        image,
        anomaly_map,
        mask,
    )


def _bounding_box(inside: np.ndarray) -> tuple[slice, slice]:
    """Give the rows and columns between the first and the last pixel that counts, (H, W) bool."""
    rows = np.flatnonzero(inside.any(axis=1))
    columns = np.flatnonzero(inside.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def telling_images(pred_score: np.ndarray, label: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Choose the images that a detector comes closest to getting wrong, and some that are sure.

    Args:
        pred_score: (N,) image scores.
        label: (N,) 0 normal, 1 anomalous.
        count: images per class. A quarter of them, rounded down, are the sure ones.

    Returns:
        Indices under ``normal``, from the highest score, and ``anomaly``, from the lowest. The sure
        ones come last.
    """
    chosen = {}
    for value, name, sign in ((0, "normal", -1), (1, "anomaly", 1)):
        members = np.flatnonzero(label == value)
        ranked = members[np.argsort(sign * pred_score[members], kind="stable")]

        # Where a class has few images, all of them are shown and none twice.
        count_sure = min(count // 4, max(len(ranked) - count, 0))
        doubtful = ranked[: count - count_sure]
        sure = ranked[len(ranked) - count_sure :]
        chosen[name] = np.concatenate([doubtful, sure])
    return chosen


def draw_picture(
    path: str | Path,
    picture: Picture,
    scale: tuple[float, float] | None,
    threshold: Threshold | None,
) -> None:
    """Draw image, mask, map and the image with the marked region side by side, to a PNG.

    What the map marks is outlined on the last one. Where no threshold of maps is known, the map
    lies over it instead. The verdict stands above.

    Args:
        path: the file.
        picture: what to draw.
        scale: `map_range` of the whole test set, so that the colours of its pictures can be
            compared, or None without maps.
        threshold: of the verdict, or None.
    """
    # Each part is (H, W, 3) uint8.
    parts = [np.moveaxis(picture.image, 0, -1)]
    if picture.mask is not None:
        white = (picture.mask[..., None] > 0) * np.uint8(255)  # (H, W, 1)
        parts.append(np.repeat(white, 3, axis=2))
    if picture.anomaly_map is not None and scale is not None:
        low, high = scale
        heat = (picture.anomaly_map - low) / max(high - low, 1e-12)
        parts += [_colors(heat), _marked(picture, heat)]

    canvas = _in_a_row(parts, [_verdict_words(picture, threshold), picture.name])
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG", compress_level=1)


def _marked(picture: Picture, heat: np.ndarray) -> np.ndarray:
    """Outline on the image what the map marks; lay the map over it where no threshold is known."""
    if picture.region is None or picture.anomaly_map is None:
        return overlay(picture.image, heat)
    pixels = np.moveaxis(picture.image, 0, -1).copy()
    pixels[outline(picture.anomaly_map >= picture.region)] = _MARKED
    return pixels


def verdict(label: int, pred_score: float, threshold: float | None) -> str:
    """Give ``found``, ``miss``, ``passed`` or ``false alarm``, or without a threshold the label."""
    if threshold is None:
        return "anomalous" if label else "normal"
    reported = pred_score >= threshold
    if label:
        return "found" if reported else "miss"
    return "false alarm" if reported else "passed"


def map_range(scores: Scores) -> tuple[float, float] | None:
    """Choose the colour scale of maps: the smallest value and the 99.9th percentile of what counts.

    None without maps.
    """
    maps = scores.anomaly_map
    if maps is None:
        return None
    # Not the largest value, which may be an outlier. Of every fourth pixel, since it takes a sort.
    some = maps[:, ::4, ::4]
    if scores.inside is not None:
        some = some[scores.inside[:, ::4, ::4]]
        if not some.size:
            some = maps[scores.inside]
    return float(maps.min()), float(np.quantile(some, 0.999))


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a coloured map over its image.

    Args:
        image: (3, H, W) uint8.
        heat: (H, W), 0 to 1 from cold to hot, outside of which values are clipped.

    Returns:
        (H, W, 3) uint8.
    """
    # 16 bits hold the sum of two bytes, and a large image twice as often as 64.
    both = np.moveaxis(image, 0, -1).astype(np.uint16) + _colors(heat)
    return (both // 2).astype(np.uint8)


def _verdict_words(picture: Picture, threshold: Threshold | None) -> str:
    value = None if threshold is None else threshold.value
    words = f"{verdict(picture.label, picture.pred_score, value)}: score {picture.pred_score:.4g}"
    if threshold is None or value is None:
        return words
    return f"{words}, {_threshold_words(threshold)}"


def _threshold_words(threshold: Threshold) -> str:
    chosen = " (by the test labels)" if threshold.oracle else ""
    return f"threshold {threshold.value:.4g} {threshold.name}{chosen}"


def _in_a_row(parts: Sequence[np.ndarray], lines: Sequence[str]) -> Image.Image:
    """Put pictures (H, W, 3) beside one another under lines of text."""
    height, width = parts[0].shape[:2]
    text_height = len(lines) * _LINE
    size = (len(parts) * (width + _GAP) - _GAP, height + text_height)
    canvas = Image.new("RGB", size, "white")

    draw = ImageDraw.Draw(canvas)
    for k, line in enumerate(lines):
        text = drawable(line)
        draw.text((2, k * _LINE), text, fill="black", font=_font(text))
    for k, pixels in enumerate(parts):
        canvas.paste(Image.fromarray(pixels), (k * (width + _GAP), text_height))
    return canvas


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Choose the font of a line."""
    file = font_for(text)
    size = _LINE - 4
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


def _colors(heat: np.ndarray) -> np.ndarray:
    """Colour a map (H, W) in 0 to 1 from cold to hot, (H, W, 3) uint8."""
    from matplotlib import colormaps

    table = (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)  # (256, 3)
    place = np.clip(heat * 256, 0, 255).astype(np.uint8)
    return table[place]
