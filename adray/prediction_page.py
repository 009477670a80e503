"""The page of predictions: the worst images first, each with its region, map, score and verdict."""

from __future__ import annotations

import base64
import heapq
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from adray.files import atomic_path, readable_name
from adray.language.catalogue import Catalogue
from adray.prediction_files import UNREADABLE
from adray.prediction_table import PAGE
from adray.regions import outline
from adray.results.figures import overlay
from adray.types import Json

if TYPE_CHECKING:
    from adray.predictor import Outcome

_MOST_PICTURES = 150
"""Images that the page shows; all stand in the table."""
_SIDE = 384
"""Pixels of a picture's side at most."""
_MARKED = (255, 40, 40)
_BAR = 240
"""Pixels of the bar of a score."""


@dataclass(frozen=True)
class _Shown:
    """An image as the template has it."""

    name: str
    """Its path, as it can be shown."""
    picture: str
    """A JPEG in a data URI, empty for an image that could not be read."""
    verdict: str
    """In the reader's language."""
    kind: str
    """Verdict in English, by which it is coloured."""
    score: str
    """With its p-value, empty without one."""
    bar: int
    """Pixels of the score in the bar."""
    cut: int | None
    """Pixels of the threshold in the bar."""
    reason: str
    """Why it could not be judged."""


class Worst:
    """Keeps the pictures of the images with the highest scores, while predictions pass by.

    Args:
        region: value from which on a pixel of a map is outlined; None outlines nothing.
        map_range: of the model's maps, for their colours.
    """

    def __init__(self, region: float | None, map_range: tuple[float, float] | None) -> None:
        self._region = region
        self._map_range = map_range
        self._kept: list[tuple[float, int, str]] = []  # a heap of score, number and picture

    def gather(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """Pass outcomes on, and keep the pictures of the worst."""
        for number, outcome in enumerate(outcomes):
            score = outcome.pred_score
            if score is not None and outcome.image is not None and self._is_kept(score):
                item = (score, number, self._picture(outcome))
                if len(self._kept) < _MOST_PICTURES:
                    heapq.heappush(self._kept, item)
                else:
                    heapq.heapreplace(self._kept, item)
            yield outcome

    @property
    def pictures(self) -> dict[int, str]:
        """Give the pictures by the number of their image."""
        return {number: picture for _, number, picture in self._kept}

    def _is_kept(self, score: float) -> bool:
        """Tell whether an image is among the worst so far."""
        return len(self._kept) < _MOST_PICTURES or score > self._kept[0][0]

    def _picture(self, outcome: Outcome) -> str:
        """Draw the image with what the model marks, beside its map, as a JPEG in a data URI."""
        assert outcome.image is not None, "asked only where there are pixels"
        photo = np.moveaxis(outcome.image, 0, -1).copy()  # (S, S, 3)
        panels = [photo]
        heat = outcome.anomaly_map
        if heat is not None:
            if self._region is not None:
                photo[outline(heat >= self._region)] = _MARKED
            low, high = self._map_range or (float(heat.min()), float(heat.max()))
            panels.append(overlay(outcome.image, (heat - low) / max(high - low, 1e-12)))
        picture = Image.fromarray(np.concatenate(panels, axis=1))
        picture.thumbnail((_SIDE * len(panels), _SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_prediction_page(
    out: Path, rows: Sequence[Json], worst: Worst, remarks: Sequence[str], say: Catalogue
) -> Path:
    """Write the page beside the table of predictions.

    Args:
        out: folder of the predictions.
        rows: of the table, in the order of the images.
        worst: pictures of some of them.
        remarks: what must be known of them, a sentence each.
        say: the sentences of the reader's language.

    Returns:
        The page.
    """
    from jinja2 import Environment

    numbers = sorted(range(len(rows)), key=lambda number: _badness(rows[number]), reverse=True)
    pictures = worst.pictures
    unjudged = sum(row["pred_score"] is None for row in rows)
    shown = [
        _shown(rows[number], pictures.get(number, ""), rows, say)
        for number in numbers[: _MOST_PICTURES + unjudged]
    ]

    counts = Counter(row["verdict"] for row in rows)
    listed = [
        f"{_verdict_word(kind, say)} {number}" for kind, number in counts.most_common() if kind
    ]
    page = Environment(autoescape=True).from_string(_asset("predictions.html"))
    text = page.render(
        say=say,
        style=_asset("report.css"),
        title=say("predict title", images=len(rows)),
        counts=", ".join(listed),
        threshold=_threshold_text(rows, say),
        remarks=remarks,
        images=shown,
        hidden=len(rows) - len(shown),
    )
    with atomic_path(out / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return out / PAGE


def _badness(row: Json) -> tuple[bool, float]:
    """Order rows: what could not be judged first, as it is to be rejected, then by score."""
    score = row["pred_score"]
    return score is None, 0.0 if score is None else score


def _shown(row: Json, picture: str, rows: Sequence[Json], say: Catalogue) -> _Shown:
    """Give an image as the template has it."""
    score = row["pred_score"]
    scores = [one["pred_score"] for one in rows if one["pred_score"] is not None]
    low = min(scores, default=0.0)
    high = max(scores, default=1.0)
    limit = row["threshold"]
    ends = [low, high] if limit is None else [min(low, limit), max(high, limit)]

    text = ""
    if score is not None:
        text = f"{score:.4g}"
        if row["p_value"] is not None:
            text += f", p {row['p_value']:.3g}"
    return _Shown(
        name=readable_name(row["image"]),
        picture=picture,
        verdict=_verdict_word(row["verdict"], say),
        kind=row["verdict"],
        score=text,
        bar=0 if score is None else _place(score, ends),
        cut=None if limit is None else _place(limit, ends),
        reason=row["reason"],
    )


def _verdict_word(verdict: str, say: Catalogue) -> str:
    """Give a verdict in the reader's language."""
    return say.word("unreadable image") if verdict == UNREADABLE else say.word(verdict)


def _place(value: float, ends: Sequence[float]) -> int:
    """Give the pixels of a value in the bar between two ends."""
    return round(_BAR * (value - ends[0]) / max(ends[1] - ends[0], 1e-12))


def _threshold_text(rows: Sequence[Json], say: Catalogue) -> str:
    """Say at which score images are anomalous, empty where there is none."""
    limits = {row["threshold"] for row in rows} - {None}
    return say("predict threshold", threshold=f"{limits.pop():.6g}") if len(limits) == 1 else ""


def _asset(name: str) -> str:
    """Read a file of the page that comes with the package."""
    folder = resources.files("adray.results").joinpath("report_assets")
    return folder.joinpath(name).read_text(encoding="utf-8")
