"""What a finished trial left for later commands: its checkpoint, its scores and its test images."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adray.errors import InputError
from adray.files import read_json, readable_name
from adray.language.sentence import Sentence
from adray.types import Json

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow
    from numpy.typing import NDArray

SCORES_FILE = "scores.parquet"
CALIBRATION_SPLITS = ("holdout", "cross")
"""What the scores of calibration normals are marked by there: held out, or each scored by a fit
without it."""
RECALIBRATION = "recalibration_"
"""Beginning of the names of the records that `adray audit --recalibrate` writes beside a trial."""
FRESH_NORMALS = "fresh normals"
"""What such a record calls its calibration, and an export made of it."""
IMAGES_FILE = "images.json"
"""Names of the images that trained, were held out and tested, where a condition chose them."""
_CHECKPOINTS = ("model_*.pth", "model_*.safetensors", "model.safetensors")
"""Names of checkpoints in the folder of a trial or of an export, the first one found counts."""
_READ_COLUMNS = ["dataset", "category", "split", "path", "label", "pred_score"]
_SHARED_COLUMNS = ["group", "part", "picture"]


@dataclass(frozen=True)
class ScoreRow:
    """One image in `scores.parquet`, with its columns in their order."""

    dataset: str
    """Name of the data set."""
    category: str
    """Name of the product."""
    split: str
    """``test``, ``holdout``, ``cross`` for a training normal that a model without it scored, or
    ``synthetic`` for a defect that was drawn on a held-out image."""
    path: str
    """The image file, with ``#0`` and so on behind it for the defects drawn on it."""
    label: int
    """0 normal, 1 anomalous."""
    defect_type: str
    """Name of the defect's folder or kind, ``good`` for normal images."""
    pred_score: float
    """Higher is more anomalous."""
    explanation: str | None = None
    """The model's text; the column is left out where it writes none."""
    group: str = ""
    """What images have in common, such as a lot; the column is left out where none has any."""
    part: str = ""
    """The object on the image; the column is left out where none is named."""
    picture: str = ""
    """Hash of the pixels that the model sees, where another test image has the same; the column is
    left out where none has."""
    peak: float | None = None
    """Highest value of the anomaly map; the column is left out where the model gives no maps."""
    columns: tuple[tuple[str, str], ...] = ()
    """Further columns of the user's list, a column each; one that is called as another here gets
    ``list_`` before its name."""


@dataclass(frozen=True)
class JudgedImages:
    """What a trial says of the N images that judge it, and of its M calibration normals."""

    paths: tuple[str, ...]
    """The image files."""
    types: tuple[str, ...]
    """Defect type of each, ``good`` for normal ones; empty texts where the trial did not say."""
    positive: NDArray[np.bool_]
    """(N,) true for anomalous."""
    scores: NDArray[np.float64]
    """(N,) higher is more anomalous."""
    calibration: NDArray[np.float64]
    """(M,) scores of held-out normals."""


_LEFT_OUT_WHEN_EMPTY = ("explanation", *_SHARED_COLUMNS, "peak")


def write_scores(folder: str | Path, rows: Sequence[ScoreRow]) -> None:
    """Write the scores of a trial's images. Names that are not UTF-8 are written readably."""
    import pandas as pd

    table = pd.DataFrame([_cells(row) for row in rows])
    for name in _LEFT_OUT_WHEN_EMPTY:
        if all(getattr(row, name) in (None, "") for row in rows):
            del table[name]
    table.to_parquet(Path(folder) / SCORES_FILE, index=False)


def _cells(row: ScoreRow) -> dict[str, Any]:
    """Give the values of a row by the names of their columns."""
    cells = dict(vars(row))
    del cells["columns"]
    for name, value in row.columns:
        cells[f"list_{name}" if hasattr(row, name) else name] = value
    return {name: _readable(value) for name, value in cells.items()}


def _readable(value: Any) -> Any:
    """Write a text so that it can be stored. Other values stay."""
    return readable_name(value) if isinstance(value, str) else value


def read_scores(folder: str | Path) -> pd.DataFrame | None:
    """Read the scores of a trial's images.

    Returns:
        The columns dataset, category, split, path, label, pred_score, group, part and picture, and
        peak where the trial noted it, see `ScoreRow`, or None where the file is missing or damaged.
    """
    table = _read_columns(folder, [*_READ_COLUMNS, *_SHARED_COLUMNS, "peak"])
    if table is None:
        return None
    frame = table.to_pandas()
    for name in _SHARED_COLUMNS:
        if name not in frame:
            frame[name] = ""
    return frame


def read_score_table(folder: str | Path) -> pyarrow.Table | None:
    """Read the first six columns that `read_scores` gives, before they become a frame.

    That takes longer than this.
    """
    return _read_columns(folder, _READ_COLUMNS)


def read_judged_images(folder: str | Path, *, is_drawn: bool) -> JudgedImages | None:
    """Read what judges a trial, without a frame of it.

    Args:
        folder: of the trial.
        is_drawn: whether defects drawn on the held-out normals judge it.

    Returns:
        None where the file is missing or damaged, and where a score is no finite number.
    """
    table = _read_columns(folder, [*_READ_COLUMNS, "defect_type"])
    if table is None:
        return None
    split = np.array(table["split"].to_pylist(), dtype=object)
    # By lists, since `to_numpy` of pyarrow imports pandas.
    scores = np.array(table["pred_score"].to_pylist(), dtype=np.float64)
    held_out = split == "holdout"
    calibrating = np.isin(split, CALIBRATION_SPLITS)
    judging = (split == "synthetic") | held_out if is_drawn else split == "test"
    if not np.isfinite(scores[judging | calibrating]).all():
        return None

    paths = np.array(table["path"].to_pylist(), dtype=object)
    types = np.full(len(split), "", dtype=object)
    if "defect_type" in table.column_names:
        types = np.array(table["defect_type"].to_pylist(), dtype=object)
    return JudgedImages(
        paths=tuple(paths[judging]),
        types=tuple(types[judging]),
        positive=np.array(table["label"].to_pylist(), dtype=np.int64)[judging] == 1,
        scores=scores[judging],
        calibration=scores[calibrating],
    )


def read_test_groups(folder: str | Path) -> tuple[str, ...]:
    """Read the group of each test image, in the order of `read_judged_images`.

    Returns:
        Nothing where no image has one, and where the file is missing or damaged.
    """
    table = _read_columns(folder, [*_READ_COLUMNS, "group"])
    if table is None or "group" not in table.column_names:
        return ()
    rows = zip(table["split"].to_pylist(), table["group"].to_pylist(), strict=True)
    return tuple(group for split, group in rows if split == "test")


def _read_columns(folder: str | Path, names: Sequence[str]) -> pyarrow.Table | None:
    """Read some columns of a trial's scores, those that are always there first.

    Returns:
        None where the file is missing or damaged, or one of `_READ_COLUMNS` is not in it.
    """
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(Path(folder) / SCORES_FILE) as file:
            present = file.schema_arrow.names
            wanted = [name for name in names if name in present or name in _READ_COLUMNS]
            return file.read(wanted, use_threads=False).select(wanted)
    except (OSError, ValueError, KeyError):
        return None


def newest_recalibration(folder: Path) -> Json | None:
    """Read the newest calibration that an audit made of a trial, None where there is none.

    Raises:
        InputError: for a record that is damaged.
    """
    files = sorted(folder.glob(f"{RECALIBRATION}*.json"))
    if not files:
        return None
    record = read_json(files[-1])
    if record is None:
        raise InputError(Sentence.of("store calibration", files=str(files[-1])))
    return record


def find_checkpoint(folder: str | Path) -> Path | None:
    """Find the checkpoint in the folder of a trial or of an export, None where none was kept."""
    # The folder is listed once, since a store has ten thousand of them.
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError:
        return None
    for pattern in _CHECKPOINTS:
        found = fnmatch.filter(names, pattern)
        if found:
            return Path(folder, found[0])
    return None


def checkpoint_of(path: Path) -> Path:
    """Find the checkpoint in the folder of a trial or of an export. A file is one itself.

    Raises:
        InputError: for a folder without one, and for a path that does not exist.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(Sentence.of("checkpoint missing", path=str(path)))
    found = find_checkpoint(path)
    if found is None:
        raise InputError(Sentence.of("store kept none", path=str(path)))
    return found


def folder_to_deploy(ranked: Sequence[Path]) -> Path:
    """Choose among the seeds of one model: the median, or of those that can be run the nearest to it.

    Args:
        ranked: folders of the trials, the worst first, at least one.
    """
    # Of an even number the lower one of the middle, which promises less.
    middle = (len(ranked) - 1) // 2
    for place in sorted(range(len(ranked)), key=lambda place: abs(place - middle)):
        if find_checkpoint(ranked[place]) is not None:
            return ranked[place]
    return ranked[middle]


def image_names(paths: Iterable[str]) -> list[str]:
    """Cut the folder that all images are in off their paths, so that it matters not where they lie."""
    # Plain strings: there are many, and a `Path` of each takes far longer.
    paths = list(paths)
    root = os.path.commonpath(list(map(os.path.dirname, paths)))
    return [os.path.relpath(path, root) for path in paths]


def stored_test_images(folder: str | Path, count: int) -> list[Path]:
    """Find test images of a trial that still exist, from the lowest score to the highest.

    Args:
        folder: of the trial.
        count: at least 1. More images than that are thinned out evenly.
    """
    scores = read_scores(folder)
    if scores is None:
        return []

    ordered = scores[scores["split"] == "test"].sort_values("pred_score")["path"]
    paths = [path for path in map(Path, ordered) if path.is_file()]
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[place] for place in np.unique(places)]
