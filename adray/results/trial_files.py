"""What a finished trial left behind that later commands start from: its checkpoint and its test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def find_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint in the folder of a trial or of an export, or None where none was kept."""
    patterns = ("model_*.pth", "model_*.safetensors", "model.safetensors")
    return next((file for pattern in patterns for file in sorted(Path(folder).glob(pattern))), None)


def stored_test_images(folder: str | Path, count: int) -> list[Path]:
    """Up to `count` of the test images of a trial that still exist, from the lowest score to the highest.

    Args:
        folder: of the trial.
        count: at least 1; more images than that are thinned out evenly.
    """
    import pandas as pd

    file = Path(folder) / "scores.parquet"
    if not file.is_file():
        return []
    scores = pd.read_parquet(file, columns=["split", "path", "pred_score"])
    ordered = scores[scores["split"] == "test"].sort_values("pred_score")["path"]
    paths = [path for path in map(Path, ordered) if path.is_file()]
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int))
    return [paths[i] for i in chosen]
