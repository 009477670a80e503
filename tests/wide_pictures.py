"""What tests of trials on wide pictures have in common: the pictures, the settings, the scores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from fake_datasets import write_mvtec
from PIL import Image

from adray.settings import set_globals

HEIGHT = 50
WIDTH = 91


def write_wide_pictures(root: Path, defects: int) -> Path:
    """Write a category of wide pictures below `root`, and give that back."""
    write_mvtec(
        root / "datasets" / "mvtec",
        categories=("bottle",),
        train=16,
        good=4,
        defects=defects,
        size=64,
    )
    for path in root.rglob("*.png"):
        Image.open(path).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(path)
    return root


def use_pictures(root: Path, site: Path) -> None:
    """Make the pictures those of this process, with results and cache below `site`."""
    set_globals(
        dataset_dir=root / "datasets",
        output_dir=site / "outputs",
        cache_dir=site / "cache",
        plugins=("toy_plugin",),
    )


def scores_of(folder: Path) -> pd.DataFrame:
    """Read the scores of a trial."""
    return pd.read_parquet(folder / "scores.parquet")
