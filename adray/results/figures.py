"""Pictures of a finished trial: score histogram and anomaly maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from adray.files import atomic_path


def draw_histogram(path: str | Path, pred_score: np.ndarray, label: np.ndarray) -> None:
    """Draw how scores of normal and anomalous test images are distributed, to a PNG.

    Args:
        path: the file.
        pred_score: (N,) image scores.
        label: (N,) 0 normal, 1 anomalous.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(pred_score.astype(np.float64), bins=40)
    for value, name, hatch in ((0, "normal", None), (1, "anomalous", "//")):
        chosen = pred_score[label == value]
        axes.hist(chosen, bins=edges.tolist(), alpha=0.6, label=f"{name} (n={len(chosen)})", hatch=hatch)
    axes.set(xlabel="anomaly score", ylabel="images", title=Path(path).stem)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def draw_maps(
    prefix: str | Path,
    anomaly_map: np.ndarray,
    label: np.ndarray,
    mask: np.ndarray | None,
    images: Callable[[int], np.ndarray],
    count: int,
) -> list[Path]:
    """Draw image, map, overlay and mask side by side for the first `count` images of each class.

    All maps of a trial share one colour scale, from the smallest to the 99.9th percentile value, so that pictures can
    be compared.

    Args:
        prefix: path without the ending ``_normal_0001.png``.
        anomaly_map: (N, H, W).
        label: (N,) 0 normal, 1 anomalous.
        mask: (N, H, W) or None.
        images: gives image i as (3, H, W) uint8.
        count: pictures per class.

    Returns:
        The files written.
    """
    low, high = map_range(anomaly_map)
    written = []
    for value, name in ((0, "normal"), (1, "anomaly")):
        for number, i in enumerate(np.flatnonzero(label == value)[:count], start=1):
            panel = _panel(
                np.asarray(images(int(i))),
                (anomaly_map[i] - low) / max(high - low, 1e-12),
                None if mask is None else mask[i],
            )
            path = Path(f"{prefix}_{name}_{number:04d}.png")
            with atomic_path(path) as temporary:
                panel.save(temporary)
            written.append(path)
    return written


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


def _panel(image: np.ndarray, heat: np.ndarray, mask: np.ndarray | None) -> Image.Image:
    """An image (3, H, W), its map, overlay and mask in one row, with a title above each."""
    parts = [("image", np.moveaxis(image, 0, -1)), ("anomaly map", _colors(heat)), ("overlay", overlay(image, heat))]
    if mask is not None:
        parts.append(("mask", np.repeat((mask[..., None] > 0) * np.uint8(255), 3, axis=2)))
    height, width = heat.shape
    canvas = Image.new("RGB", (len(parts) * (width + 4), height + 16), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (title, pixels) in enumerate(parts):
        canvas.paste(Image.fromarray(pixels), (k * (width + 4), 16))
        draw.text((k * (width + 4) + 2, 2), title, fill="black")
    return canvas


def _colors(heat: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps["inferno"](np.clip(heat, 0, 1))[..., :3] * 255).astype(np.uint8)
