"""The pictures of a report: what the trial to deploy of each category missed, falsely reported, found."""

from __future__ import annotations

import base64
import io
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

from adray.results.figures import CAPTION_HEIGHT
from adray.results.leaderboard import TrialRow
from adray.results.store import TrialRecord

THUMBNAILS = 200
"""Pictures that go into the file; further ones are linked."""
PICTURE_BYTES = 6_000_000
"""What all of them take of the file at most."""
_HEIGHT = 320
"""Pixels of a picture at most; smaller ones stay as they are."""
_JPEG = "data:image/jpeg;base64,"


WRONG = ("miss", "false alarm")
"""Verdicts that are shown first."""
FOUND = "found"
"""Verdict on a defect that is reported."""


@dataclass(frozen=True)
class JudgedPicture:
    """A test image with its verdict, as it lies in the trial's pictures."""

    file: Path
    """The picture."""
    dataset: str
    """Data set of the trial."""
    category: str
    """Category of the trial."""
    configuration: str
    """Configuration of the trial, with its setting where there are several."""
    path: str
    """Of the test image, its last folders and its name."""
    pred_score: float
    """Score of the image."""
    verdict: str
    """One of `WRONG`, or `FOUND`."""


def judged_pictures(
    records: Sequence[TrialRecord], rows: Sequence[TrialRow], decided: Container[str] = ()
) -> list[JudgedPicture]:
    """Collect the verdicts of one trial of each cell: wrong ones, then found defects.

    Of either, one of each cell stands in turn.

    Args:
        records: the trials.
        rows: theirs, in the same order.
        decided: folders of the trials that were decided for, which are shown; in a cell without
            one the trial with the best image AUROC is.
    """
    shown = best_of_cells(rows, decided)
    turns: list[JudgedPicture] = []
    for verdicts in (WRONG, (FOUND,)):
        queues = [_pictures_of(records[i], rows[i], verdicts) for i in shown]
        for turn in zip_longest(*queues):
            turns += filter(None, turn)
    return turns


def best_of_cells(rows: Sequence[TrialRow], decided: Container[str] = ()) -> list[int]:
    """Find the finished trial of each cell that was decided for, else the one with the best AUROC.

    Of equal ones it is the last.
    """
    best: dict[tuple[str, str], tuple[bool, float, int]] = {}
    for i, row in enumerate(rows):
        if row.status == "done":
            cell = (row.dataset, row.category)
            score = -1.0 if row.image_auroc is None else row.image_auroc
            rank = (row.folder in decided, score, i)
            best[cell] = max(best.get(cell, (False, -2.0, -1)), rank)
    return [i for _, _, i in best.values()]


def _pictures_of(
    record: TrialRecord, row: TrialRow, verdicts: Container[str]
) -> list[JudgedPicture]:
    """Collect the pictures of a trial that have one of some verdicts, in their order."""
    found = []
    for picture in (record.result or {}).get("pictures", []):
        if picture.get("verdict") not in verdicts:
            continue

        judged = JudgedPicture(
            file=record.folder / picture["file"],
            dataset=row.dataset,
            category=row.category,
            configuration=row.name,
            path="/".join(Path(picture["path"]).parts[-3:]),
            pred_score=picture["pred_score"],
            verdict=picture["verdict"],
        )
        found.append(judged)
    return found


def thumbnail(path: Path) -> str | None:
    """Give a picture as a JPEG in a data URI, None for one that is missing or torn.

    The text at its top is cut off, since the page has it in the reader's language and letters.
    """
    if not path.is_file():
        return None
    return _thumbnail(path, path.stat().st_mtime_ns)


def embedded(path: Path) -> str | None:
    """Give a whole JPEG as a data URI, None for one that is missing or torn."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
    except (OSError, UnidentifiedImageError):
        return None
    return _JPEG + base64.b64encode(content).decode()


@lru_cache(maxsize=4 * THUMBNAILS)
def _thumbnail(path: Path, mtime_ns: int) -> str | None:
    """Shrink a picture, once for all the reports that a sweep writes while it runs."""
    from PIL import Image, UnidentifiedImageError

    # A picture that is being written, or was cut short, is linked and not shown.
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None

    if small.height > CAPTION_HEIGHT:
        small = small.crop((0, CAPTION_HEIGHT, small.width, small.height))
    small.thumbnail((small.width, _HEIGHT))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return _JPEG + base64.b64encode(buffer.getvalue()).decode()
