"""What a finished trial left behind that later commands start from: its checkpoint, its scores and its test images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

_SCORE_COLUMNS = ["dataset", "category", "split", "path", "label", "pred_score"]


def find_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint in the folder of a trial or of an export, or None where none was kept."""
    patterns = ("model_*.pth", "model_*.safetensors", "model.safetensors")
    return next((file for pattern in patterns for file in sorted(Path(folder).glob(pattern))), None)


def read_scores(folder: str | Path) -> pd.DataFrame | None:
    """The scores of a trial's test and held-out images, or None where the file is missing or damaged.

    Returns:
        Columns dataset, category, split (``test`` or ``holdout``; ``synthetic`` for the drawn defects of a search),
        path, label and pred_score.
    """
    table = read_score_table(folder)
    return None if table is None else table.to_pandas()


def read_score_table(folder: str | Path) -> pyarrow.Table | None:
    """What `read_scores` gives before it becomes a frame, which takes longer than to read it."""
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(Path(folder) / "scores.parquet") as file:
            return file.read(_SCORE_COLUMNS).select(_SCORE_COLUMNS)
    except (OSError, ValueError, KeyError):
        return None


def image_names(paths: Iterable[str]) -> list[str]:
    """Paths from the folder that all of them are in, which is the same wherever the data lie."""
    paths = list(paths)
    root = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120  many plain strings
    return [os.path.relpath(path, root) for path in paths]


def stored_test_images(folder: str | Path, count: int) -> list[Path]:
    """Up to `count` of the test images of a trial that still exist, from the lowest score to the highest.

    Args:
        folder: of the trial.
        count: at least 1; more images than that are thinned out evenly.
    """
    scores = read_scores(folder)
    if scores is None:
        return []
    ordered = scores[scores["split"] == "test"].sort_values("pred_score")["path"]
    paths = [path for path in map(Path, ordered) if path.is_file()]
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int))
    return [paths[i] for i in chosen]
