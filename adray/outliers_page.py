"""The lists of `python -m adray outliers` as a table and as a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from einops import rearrange

from adray.data.decode import decode_file
from adray.data.drop import DROP_COLUMN
from adray.data.geometry import Geometry
from adray.data.survey_page import jpeg_uri, page_asset
from adray.data.survey_text import shown
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.catalogue import Catalogue
from adray.outliers import Outlier
from adray.prediction_table import write_table
from adray.types import PixelRule

TABLE = "outliers.csv"
"""Name of the table."""
PAGE = "index.html"
"""Name of the page."""
_SIDE = 176
"""Pixels of the longer side of a picture."""


@dataclass(frozen=True)
class CategoryList:
    """The list of one category."""

    dataset: str
    """Name of its data set."""
    category: str
    """Its name."""
    outliers: Sequence[Outlier]
    """Its training normals, the most unlike the others first."""
    pixels: PixelRule
    """How the numbers in the files become 8 bits."""

    @property
    def place(self) -> str:
        """Name data set and category."""
        return f"{self.dataset}/{self.category}"


@dataclass(frozen=True)
class _ShownPicture:
    """A picture as the template has it."""

    place: int
    """In the list."""
    name: str
    """Its path, as it can be shown."""
    ranks: str
    """Its places in the lists of the methods."""
    data: str
    """A JPEG in a data URI, empty for a picture that cannot be decoded."""
    width: int
    """On the page, in pixels."""
    height: int
    """On the page, in pixels."""


@dataclass(frozen=True)
class _ShownCategory:
    """A category as the template has it."""

    title: str
    """Its name and the number of its images."""
    pictures: list[_ShownPicture]
    """Its most unlike images."""
    more: int
    """Images that are in the table alone."""


def write_outlier_table(path: Path, lists: Sequence[CategoryList]) -> None:
    """Write all images of all categories, a row each, with an empty column to mark them in."""
    methods: dict[str, None] = {}
    rows = []
    for one in lists:
        for outlier in one.outliers:
            ranks = {name: f"{rank:g}" for name, rank in outlier.ranks.items()}
            methods.update(dict.fromkeys(ranks))
            known = {
                "dataset": one.dataset,
                "category": one.category,
                "place": outlier.place,
                "image": outlier.sample.key,
                "mean_rank": f"{outlier.mean_rank:.2f}",
            }
            rows.append(known | ranks)
    columns = ("dataset", "category", "place", "image", DROP_COLUMN, "mean_rank", *methods)
    write_table(path, rows, columns)


def write_outlier_page(
    path: Path,
    title: str,
    lines: Sequence[str],
    lists: Sequence[CategoryList],
    show: int,
    say: Catalogue,
) -> None:
    """Write the page in one step, so that nobody sees half of it.

    Args:
        path: of the file.
        title: of the page.
        lines: said at its top.
        lists: of the categories.
        show: pictures of each category at most.
        say: sentences of the reader's language.
    """
    from jinja2 import Environment

    categories = []
    for one in lists:
        pictures = [_picture(outlier, one.pixels, say) for outlier in one.outliers[:show]]
        count = len(one.outliers)
        heading = say("outliers category", place=shown(one.place), images=count)
        categories.append(_ShownCategory(heading, pictures, count - len(pictures)))

    template = Environment(autoescape=True).from_string(page_asset("outliers.html"))
    text = template.render(
        say=say,
        title=title,
        style=page_asset("survey.css"),
        lines=lines,
        categories=categories,
        table=TABLE,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _picture(outlier: Outlier, rule: PixelRule, say: Catalogue) -> _ShownPicture:
    """Decode a picture to its size on the page."""
    sample = outlier.sample
    name = shown(sample.key)
    ranks = ranks_text(outlier, say)
    try:
        decoded = decode_file(sample.path, Geometry(_SIDE), rule)
    except InputError:
        return _ShownPicture(outlier.place, name, ranks, "", _SIDE, _SIDE)

    height, width = decoded.size
    scale = _SIDE / max(height, width)
    return _ShownPicture(
        outlier.place,
        name,
        ranks,
        jpeg_uri(rearrange(decoded.pixels, "c h w -> h w c"), None),
        max(1, round(width * scale)),
        max(1, round(height * scale)),
    )


def ranks_text(outlier: Outlier, say: Catalogue) -> str:
    """Say where an image stands in the list of each method."""
    parts = [f"{name} {rank:g}" for name, rank in outlier.ranks.items()]
    return say("outliers ranks", ranks=", ".join(parts))
