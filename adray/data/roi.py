"""The region of interest of a trial: a rectangle, a polygon or a picture becomes a grid of cells.

It is said by data set, or by category, and kept with the model. Numbers up to 1 are parts of an
image's sides. Larger ones are its pixels, for which all images of a category must have one size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from adray.data.base import Sample, categories_of, normals_of, split_of
from adray.data.decode import decode_file
from adray.data.geometry import ROI_SIDE, Geometry, pack_cells
from adray.data.image_file import decode_bytes
from adray.data.inspect_files import inspect_files
from adray.data.masks import find_defect
from adray.data.pixel_rule import rule_of
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.settings import Settings, roi_of_category
from adray.types import PixelRule, Roi

AUTO = "auto"
"""Said of a region that the training normals show."""
_LOOKED_AT = 48
"""Training normals that are looked at for it, evenly over all."""
_LOOK_SIDE = 256
_LEAST_SHARE = 0.05
"""Of these images, which show the product at a place for it to count."""
_MARGIN = 0.02
"""Room around the product, as a part of the side."""

Point = tuple[float, float]
"""A corner, as parts of an image's width and height."""


def roi_of(samples: Sequence[Sample], settings: Settings) -> Roi | None:
    """Make the region of interest of a trial, None where all of its images count.

    Args:
        samples: of the trial.
        settings: what is said of its data sets.

    Raises:
        InputError: for merged categories with several regions, a picture that cannot be read, and a
            region that lies outside of the images or has no area.
    """
    found: dict[str, Roi | None] = {}
    for dataset, category in sorted(categories_of(samples)):
        said = roi_of_category(settings.options_of(dataset).roi, category)
        place = f"{dataset}/{category}"
        found[place] = None
        if said is not None:
            of_category = [sample for sample in samples if sample.category == category]
            members = [sample for sample in of_category if sample.dataset == dataset]
            found[place] = _make_roi(said, place, members, settings)

    different = set(found.values())
    if len(different) > 1:
        places = ", ".join(found)
        raise InputError(Sentence.of("roi differs", places=places))
    return different.pop() if different else None


def _make_roi(said: Any, place: str, samples: Sequence[Sample], settings: Settings) -> Roi:
    """Make the region of one category.

    Raises:
        InputError: see `roi_of`.
    """
    where = f"roi of {place}"
    if said == AUTO:
        cells = _learn_cells(samples, settings)
    elif isinstance(said, str):
        cells = _cells_of_picture(_picture_path(said, samples[0], settings), where)
    else:
        cells = fill_polygon(_corners(said, where, samples, settings))
    if not cells.any():
        raise InputError(Sentence.of("roi no_area", where=where))
    return pack_cells(cells)


# Learned from the training normals


def _learn_cells(samples: Sequence[Sample], settings: Settings) -> NDArray[np.bool_]:
    """Find the cells on which training normals show the product before an even background.

    All cells where there is none, as with textures.
    """
    normals = sorted(normals_of(split_of(samples, "train")), key=attrgetter("key"))
    places = np.linspace(0, len(normals) - 1, min(len(normals), _LOOKED_AT)).astype(int)
    paths = [normals[place].path for place in places]
    facts = inspect_files(paths, settings.cache_dir)
    files = tuple((path, facts[path].digest) for path in paths)
    return _product_cells(files, rule_of(samples, settings))


@functools.lru_cache(maxsize=32)
def _product_cells(files: tuple[tuple[Path, str], ...], rule: PixelRule) -> NDArray[np.bool_]:
    """Find the cells on which pictures show a product. Kept, since plan and training ask for it.

    Args:
        files: pictures, each with the digest of its bytes.
        rule: how their numbers become 8 bits.
    """
    from scipy import ndimage  # a plan without a learned region does not pay for it

    from adray.data.synthetic_defects import foreground

    shown = np.zeros((_LOOK_SIDE, _LOOK_SIDE), np.int64)
    for path, _ in files:
        pixels = decode_file(path, Geometry(_LOOK_SIDE), rule).pixels
        shown += foreground(rearrange(pixels, "c h w -> h w c").astype(np.float32))
    product = shown >= max(1, _LEAST_SHARE * len(files))
    product = ndimage.binary_dilation(product, iterations=round(_MARGIN * _LOOK_SIDE))
    cell = np.ones((ROI_SIDE // _LOOK_SIDE, ROI_SIDE // _LOOK_SIDE), bool)
    return np.kron(product, cell)


# Rectangles and polygons


def _corners(
    said: Sequence[Any], where: str, samples: Sequence[Sample], settings: Settings
) -> list[Point]:
    """Give the corners of a rectangle or a polygon, as parts of the sides.

    Raises:
        InputError: for pixels of images of several sizes, and a corner outside of the images.
    """
    points = said
    if not isinstance(said[0], list | tuple):
        left, top, right, bottom = said
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]

    width, height = 1, 1
    if max(map(max, points)) > 1:
        width, height = _common_size(where, samples, settings)
    corners = []
    for x, y in points:
        if x > width or y > height:
            problem = Sentence.of(
                "roi corner_outside",
                where=where,
                corner=f"[{x:g}, {y:g}]",
                size=f"{width} x {height}",
            )
            raise InputError(problem)
        corners.append((x / width, y / height))
    return corners


def _common_size(where: str, samples: Sequence[Sample], settings: Settings) -> tuple[int, int]:
    """Give width and height of all images of a category.

    Raises:
        InputError: where they differ.
    """
    facts = inspect_files([sample.path for sample in samples], settings.cache_dir)
    sizes: dict[tuple[int, int], Path] = {}
    for path, found in facts.items():
        if not found.problem:
            sizes.setdefault((found.width, found.height), path)
    if len(sizes) == 1:
        return next(iter(sizes))

    shown = ", ".join(f"{width} x {height} ({path})" for (width, height), path in sizes.items())
    raise InputError(Sentence.of("roi several_sizes", where=where, sizes=shown[:300]))


def fill_polygon(corners: Sequence[Point]) -> NDArray[np.bool_]:
    """Find the cells of the grid whose middle lies inside of a polygon.

    A line that crosses itself leaves out what it goes around twice.

    Args:
        corners: three or more, as parts of the sides.

    Returns:
        (`ROI_SIDE`, `ROI_SIDE`), rows first.
    """
    middles = (np.arange(ROI_SIDE) + 0.5) / ROI_SIDE
    crossings = np.zeros((ROI_SIDE, ROI_SIDE + 1), np.int64)
    following = [*corners[1:], corners[0]]
    for (x0, y0), (x1, y1) in zip(corners, following, strict=True):
        # Rows whose middle the edge passes, and where it does.
        passed = np.flatnonzero((middles >= min(y0, y1)) & (middles < max(y0, y1)))
        if not len(passed):
            continue
        at = x0 + (middles[passed] - y0) * (x1 - x0) / (y1 - y0)
        np.add.at(crossings, (passed, np.searchsorted(middles, at)), 1)
    # A cell lies inside where an odd number of edges lies to its left.
    return (np.cumsum(crossings, axis=1) % 2 == 1)[:, :ROI_SIDE]


# Pictures


def _picture_path(said: str, sample: Sample, settings: Settings) -> Path:
    """Give the file that is said, which may name the category."""
    named = said.replace("{category}", sample.category)
    return Path(settings.dataset_dir).expanduser() / Path(named).expanduser()


def _cells_of_picture(path: Path, where: str) -> NDArray[np.bool_]:
    """Read which cells of the grid count: those on which a picture is not black.

    Raises:
        InputError: for a file that is missing or cannot be decoded.
    """
    try:
        shown = find_defect(decode_bytes(path.read_bytes()), None).pixels
    except MemoryError:
        raise
    except FileNotFoundError as error:
        raise InputError(Sentence.of("roi no_picture", where=where, path=str(path))) from error
    except Exception as error:  # damaged files make the readers fail in many ways
        said = Sentence.of("roi damaged", where=where, path=str(path), error=str(error))
        raise InputError(said) from error
    height, width = shown.shape
    middles = 2 * np.arange(ROI_SIDE) + 1
    rows = middles * height // (2 * ROI_SIDE)
    columns = middles * width // (2 * ROI_SIDE)
    return shown[rows][:, columns]
