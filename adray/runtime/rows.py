"""What was found of an image as a row of a log: plain values that JSON and a table take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from adray.runtime.judge import NamedModel
from adray.runtime.model import Result

Row = dict[str, Any]
FULL_SCALE = 65535
"""Of a map as a picture."""


def row_of(result: Result, name: str, sha256: str, model: NamedModel) -> Row:
    """Give the row of an image.

    Args:
        result: what a model says of it.
        name: of the image.
        sha256: of its bytes.
        model: that judged it.
    """
    row: Row = {
        "time": now(),
        "image": name,
        "sha256": sha256,
        "verdict": result.verdict,
        "pred_score": short(result.pred_score),
        "p_value": result.p_value,
        "threshold": short(model.judge.threshold),
        "reason": result.reason,
        "model": model.sha256,
    }
    if result.regions is not None:
        row["regions"] = [_rounded(asdict(region)) for region in result.regions]
    return row


def short(value: float | None) -> float | None:
    """Give the fewest digits that say which float32 it is."""
    return None if value is None else float(str(np.float32(value)))


def now() -> str:
    """Give the time, as UTC with milliseconds."""
    moment = datetime.fromtimestamp(time.time(), timezone.utc)
    return moment.isoformat(timespec="milliseconds")


def map_picture(anomaly_map: np.ndarray) -> tuple[bytes, float, float]:
    """Give a map as a 16-bit PNG.

    Returns:
        The bytes, and the values of the map that are 0 and 65535 in it.
    """
    low = float(anomaly_map.min())
    high = float(anomaly_map.max())
    step = max(high - low, 1e-30) / FULL_SCALE
    levels = np.round((anomaly_map - low) / step).clip(0, FULL_SCALE).astype(np.uint16)
    buffer = BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue(), low, high


def _rounded(region: Mapping[str, float]) -> Row:
    """Give the figures of a region with the digits that they bear."""
    rounded = dict(region)
    rounded["peak"] = float(str(np.float32(region["peak"])))
    for name in ("centroid_x", "centroid_y"):
        rounded[name] = round(region[name], 2)
    return rounded
