"""A survey as one HTML file that loads nothing: what was counted, and pictures of it.

Jinja escapes every name, so that a folder called ``<script>`` is shown and not run.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from adray.data.decode import decode_pair
from adray.data.geometry import Geometry
from adray.data.survey import CategorySurvey, DataSurvey, Picture
from adray.data.survey_counts import DefectsAtSize
from adray.data.survey_pictures import Levels
from adray.data.survey_text import (
    as_yaml,
    category_lines,
    file_lines,
    finding_line,
    heading,
    mean_level,
    relative,
    shown,
)
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.catalogue import Catalogue
from adray.regions import outline
from adray.settings import DataOptions

_SIDE = 176
"""Pixels of the longer side of a picture on the page."""
_MOST_PICTURES = 900
"""Pictures on a page, some 7 MB."""
_BAR_HEIGHT = 64
_RED = (230, 20, 40)


@dataclass(frozen=True)
class _ShownPicture:
    """A picture as the template has it."""

    name: str
    """Its path, as it can be shown."""
    data: str
    """A JPEG in a data URI, empty for a picture that cannot be decoded."""
    width: int
    """On the page, in pixels."""
    height: int
    """On the page, in pixels."""


@dataclass(frozen=True)
class _Row:
    """Pictures of one kind."""

    title: str
    """The kind."""
    pictures: list[_ShownPicture]
    """Some pictures of it."""


@dataclass(frozen=True)
class _ShownLevels:
    """A histogram as the template has it."""

    name: str
    """Mode and bits."""
    mean: str
    """The mean grey level, in words."""
    bars: list[int]
    """Heights of the bars in pixels."""


@dataclass(frozen=True)
class _ShownSize:
    """A column of the table of input sizes."""

    img_size: int
    """Side of the input."""
    smallest: str
    """Area of the smallest defect."""
    below: int
    """Defects below one pixel."""


@dataclass(frozen=True)
class _ShownCategory:
    """A category as the template has it."""

    title: str
    """Its name and the number of its images."""
    lines: list[str]
    """What is known of it."""
    levels: list[_ShownLevels]
    """Its histograms."""
    sizes: list[_ShownSize]
    """Its defects at the sizes of inputs."""
    rows: list[_Row]
    """Its pictures."""


@dataclass(frozen=True)
class _ShownFinding:
    """A finding as the template has it."""

    text: str
    """What it says."""
    stops: bool
    """Whether a sweep would not start."""


def write_page(path: Path, survey: DataSurvey, say: Catalogue) -> None:
    """Write a survey's page in one step, so that nobody sees half of it."""
    with atomic_path(path) as temporary:
        temporary.write_text(render_page(survey, say), encoding="utf-8")


def render_page(survey: DataSurvey, say: Catalogue) -> str:
    """Make the HTML of a survey, with pictures of at most `_MOST_PICTURES` files."""
    from jinja2 import Environment

    room = _MOST_PICTURES
    not_shown = 0
    categories = []
    for category in survey.categories:
        pictures = category.pictures[:room]
        room -= len(pictures)
        not_shown += len(category.pictures) - len(pictures)
        categories.append(_shown_category(category, pictures, survey, say))

    findings = [_ShownFinding(finding_line(f, say), f.stops) for f in survey.findings]
    template = Environment(autoescape=True).from_string(page_asset("survey.html"))
    return template.render(
        say=say,
        title=shown(survey.root.name),
        style=page_asset("survey.css"),
        heading=heading(survey.root, survey.layouts, survey.why, say),
        findings=sorted(findings, key=lambda finding: not finding.stops),
        categories=categories,
        outlined=any(category.masks is not None for category in survey.categories),
        not_shown=not_shown,
        files=file_lines(survey, say),
        yaml=as_yaml(survey, say),
    )


def page_asset(name: str) -> str:
    """Read a file of the page that comes with the package."""
    folder = resources.files("adray.data").joinpath("survey_assets")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _shown_category(
    category: CategorySurvey, pictures: Sequence[Picture], survey: DataSurvey, say: Catalogue
) -> _ShownCategory:
    """Give a category as the template has it, its pictures decoded."""
    title, *lines = category_lines(category, survey.root, say)
    rows = []
    for kind, listed in groupby(pictures, key=lambda picture: picture.kind):
        title_of_kind = say(f"page {kind}") if kind in ("normal", "odd") else shown(kind)
        rows.append(
            _Row(
                title_of_kind, [_shown_picture(one, survey.root, survey.options) for one in listed]
            )
        )

    sizes = []
    if category.masks is not None:
        sizes = list(map(_shown_size, category.masks.at_sizes))
    levels = [_shown_levels(one, say) for one in category.levels]
    return _ShownCategory(title, lines, levels, sizes, rows)


def _shown_picture(picture: Picture, root: Path, options: DataOptions) -> _ShownPicture:
    """Decode a picture to its size on the page, its defects outlined."""
    sample = picture.sample
    scale = _SIDE / max(picture.width, picture.height, 1)
    width = max(1, round(picture.width * scale))
    height = max(1, round(picture.height * scale))
    try:
        decoded = decode_pair(
            sample.path,
            sample.mask_paths,
            Geometry(_SIDE, roi=picture.roi),
            picture.rule,
            options,
        )
    except InputError:
        data = ""
    else:
        data = jpeg_uri(rearrange(decoded.image, "c h w -> h w c"), decoded.defect)
    return _ShownPicture(relative(root, sample.path), data, width, height)


def jpeg_uri(pixels: np.ndarray, mask: np.ndarray | None) -> str:
    """Make a data URI of a picture (H, W, 3), with the edge of its mask (H, W) in red."""
    if mask is not None:
        pixels = pixels.copy()
        pixels[outline(mask)] = _RED
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shown_levels(levels: Levels, say: Catalogue) -> _ShownLevels:
    """Give a histogram as the template has it."""
    top = max(1, *levels.counts)
    heights = [round(count / top * _BAR_HEIGHT) for count in levels.counts]
    return _ShownLevels(levels.mode, say("mean", level=mean_level(levels)), heights)


def _shown_size(row: DefectsAtSize) -> _ShownSize:
    """Give a column of the table of input sizes."""
    return _ShownSize(row.img_size, f"{row.smallest:.3g}", row.below)
