"""What the numbers of a mask mean, and how a mask is made small without losing a defect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from adray.data.image_file import RawImage
from adray.errors import InputError
from adray.language.sentence import Sentence

NOT_ZERO = "not zero"
ABOVE_HALF = "above half"
ABOVE_THRESHOLD = "above the threshold"

_MOST_KINDS = 15
"""Values from 1 to this are kinds of defects."""
_LEAST_STEP = 1 / 32
"""Part of the largest value by which kinds of defects are apart."""
_TOUCHING = np.ones((3, 3), bool)
"""Pixels that share a corner belong to one region."""

Region = tuple[int, int, int, int, int]
"""Area, left, top, right and bottom of a region in pixels; right and bottom lie outside of it."""


@dataclass(frozen=True)
class Defect:
    """The defect that a mask shows."""

    pixels: np.ndarray
    """(H, W) bool."""
    levels: str
    """The rule that found it: `NOT_ZERO`, `ABOVE_HALF` or `ABOVE_THRESHOLD`."""


def find_defect(mask: Image.Image | RawImage, threshold: float | None) -> Defect:
    """Find the defect in a decoded mask.

    Of colors the largest channel counts, what is transparent is black. Where all colors are black,
    the opacity counts. Pixels that are not zero are a defect where a mask has at most two values,
    only values from 0 to 15, or a few that lie far apart and of which each fills an area. With
    others the edges are soft or the file is lossy: then pixels above half of the largest value are.

    Args:
        mask: decoded.
        threshold: values above it are a defect, None to tell by the values.

    Raises:
        ValueError: for colors that have no RGB form, and numbers that are not finite.
    """
    values = _values(mask)
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    if threshold is not None:
        return Defect(values > threshold, ABOVE_THRESHOLD)
    if _has_few_colors(mask) or _has_few_levels(values) or _has_areas(values):
        return Defect(values != 0, NOT_ZERO)
    return Defect(values > values.max() / 2, ABOVE_HALF)


def _values(mask: Image.Image | RawImage) -> np.ndarray:
    """Give one number per pixel, (H, W)."""
    if isinstance(mask, RawImage):
        values = mask.colors.max(axis=2)
        if not mask.header.alpha:
            return values
        opacity = mask.pixels[..., -1]
        return np.where(opacity > 0, values, 0) if values.any() else _drawn_in_black(opacity)

    if mask.has_transparency_data:
        drawn = mask.convert("RGBA")
        black = Image.new("RGBA", mask.size, (0, 0, 0, 255))
        mask = Image.alpha_composite(black, drawn).convert("RGB")
        if not np.asarray(mask).any():
            return _drawn_in_black(np.asarray(drawn.getchannel("A")))
    if mask.mode not in ("1", "L", "I", "F"):
        mask = mask if mask.mode.startswith("I;16") else mask.convert("RGB")
    pixels = np.asarray(mask)
    return pixels.max(axis=2) if pixels.ndim == 3 else pixels


def _drawn_in_black(opacity: np.ndarray) -> np.ndarray:
    """Give the values of a mask that is black all over: what is drawn is opaque.

    Where nothing is transparent, nothing was drawn.
    """
    return np.zeros_like(opacity) if opacity.all() else opacity


def _has_few_colors(mask: Image.Image | RawImage) -> bool:
    """Tell whether a mask is a picture of few colors, each of which is a kind of defect."""
    if isinstance(mask, RawImage) or mask.mode != "P":
        return False
    return mask.getcolors(_MOST_KINDS + 1) is not None


def _has_few_levels(values: np.ndarray) -> bool:
    """Tell whether values are two, or kinds of defects from 1 to 15 and zero."""
    low = values.min()
    high = values.max()
    if ((values == low) | (values == high)).all():
        return True
    if low < 0 or high > _MOST_KINDS:
        return False
    return values.dtype.kind in "bui" or bool((values == np.rint(values)).all())


def _has_areas(values: np.ndarray) -> bool:
    """Tell whether values (H, W) are kinds of defects: a few that lie apart, each with an area.

    Those along a soft edge fill no square of 3 x 3 pixels, and those of a lossy file are close.
    """
    levels = _levels_of(values)
    if levels[0] < 0 or len(levels) > _MOST_KINDS + 1:
        return False
    if np.diff(levels).min() < _LEAST_STEP * levels[-1]:
        return False

    # Pixels whose eight neighbours have their value, without those of the border.
    middle = values[1:-1, 1:-1]
    is_inside = np.ones(middle.shape, bool)
    for down in range(3):
        for across in range(3):
            neighbours = values[down : down + len(middle), across : across + middle.shape[1]]
            is_inside &= neighbours == middle
    return set(levels[levels > 0]) <= set(_levels_of(middle[is_inside]))


def _levels_of(values: np.ndarray) -> np.ndarray:
    """List the values that occur, rising."""
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    return np.unique(values)


def find_regions(defect: np.ndarray, most: int) -> tuple[Region, ...]:
    """Find the connected regions of a defect (H, W), the smallest first and at most so many."""
    from scipy import ndimage  # see adray.pixel_curves

    labels, _ = ndimage.label(defect, _TOUCHING)
    areas = np.bincount(labels.ravel())[1:]
    places = ndimage.find_objects(labels)

    regions: list[Region] = []
    for number in np.argsort(areas, kind="stable")[:most]:
        rows, columns = places[number]
        area = int(areas[number])
        regions.append((area, columns.start, rows.start, columns.stop, rows.stop))
    return tuple(regions)


def fit_to_image(
    defect: np.ndarray, size: tuple[int, int], fit: str, names: tuple[str, str]
) -> np.ndarray:
    """Give a defect (H, W) the size of its image.

    Args:
        defect: of a mask.
        size: width and height of the image.
        fit: ``refuse`` or ``resize``, which takes the nearest pixel.
        names: of the mask and the image, for the error.

    Raises:
        InputError: for another size that shall be refused.
    """
    height, width = defect.shape
    if (width, height) == size:
        return defect
    if fit == "refuse":
        said = Sentence.of(
            "decode mask_of_other_size",
            mask=names[0],
            mask_size=f"{width}x{height}",
            image=names[1],
            image_size=f"{size[0]}x{size[1]}",
        )
        raise InputError(said)
    rows = (np.arange(size[1]) + 0.5) * height / size[1]
    columns = (np.arange(size[0]) + 0.5) * width / size[0]
    return defect[rows.astype(int)][:, columns.astype(int)]


def resize_defect(defect: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bring a defect to another size by area.

    A pixel of the result is set where at least half of its area is defect. A region that would have
    no pixel keeps the one that it covers most.

    Args:
        defect: (H, W) bool.
        rows: h, of the result.
        columns: w, of the result.

    Returns:
        (h, w) uint8 with 1 on the defect.
    """
    height, width = defect.shape
    small = np.zeros((rows, columns), np.uint8)
    if (height, width) == small.shape:
        small[defect] = 1
        return small
    marked = np.flatnonzero(defect.any(axis=1))
    if not len(marked):
        return small

    # All that follows is done within the defect's box, which is small as a rule.
    across = np.flatnonzero(defect[marked[0] : marked[-1] + 1].any(axis=0))
    box = (slice(marked[0], marked[-1] + 1), slice(across[0], across[-1] + 1))
    place, areas = _areas(defect, box, small.shape)
    is_set = 2 * areas >= height * width
    small[place] = is_set
    if (is_set | (areas == 0)).all():
        return small

    _keep_lost_regions(small, defect, box)
    return small


def _areas(
    defect: np.ndarray, box: tuple[slice, slice], shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Measure how much of each pixel of the result is defect, for the pixels that a box touches.

    Args:
        defect: (H, W) bool.
        box: rows and columns that are looked at.
        shape: h, w of the result.

    Returns:
        Rows and columns of the result, and the areas there in units in which a pixel of the result
        has H x W, so that they are whole numbers.
    """
    rows, by_row = _strips(defect[box], box[0], defect.shape[0], shape[0])
    columns, by_column = _strips(by_row.T, box[1], defect.shape[1], shape[1])
    return (rows, columns), by_column.T


def _strips(values: np.ndarray, inside: slice, length: int, side: int) -> tuple[slice, np.ndarray]:
    """Add up the rows that fall into each strip of the square, split rows by their part.

    Args:
        values: (n, W), the rows at `inside`.
        inside: where these rows lie in the picture.
        length: H, rows of the picture.
        side: S, strips of the square.

    Returns:
        The strips that the rows touch, and their sums (strips, W) in units of 1 / S row.
    """
    first = inside.start * side // length
    stop = -(-inside.stop * side // length)

    # The picture is H x S units high: a row has S units and a strip H, so that edges are whole.
    edges = np.arange(first, stop + 1) * length
    edges = edges.clip(inside.start * side, inside.stop * side) - inside.start * side
    whole, part = np.divmod(edges, side)
    sums = np.zeros((len(values) + 1, values.shape[1]), np.int64)
    np.cumsum(values, axis=0, out=sums[1:])
    below = values[np.minimum(whole, len(values) - 1)] * part[:, None]
    up_to = sums[whole] * side + below
    return slice(first, stop), np.diff(up_to, axis=0)


def _keep_lost_regions(small: np.ndarray, defect: np.ndarray, box: tuple[slice, slice]) -> None:
    """Set a pixel of the square for each region that has none.

    Args:
        small: (h, w) uint8, changed.
        defect: (H, W) bool.
        box: rows and columns that hold all of it.
    """
    from scipy import ndimage

    labels, count = ndimage.label(defect[box], _TOUCHING)
    rows, columns = np.nonzero(labels)
    touches = np.zeros(len(rows), bool)
    across = _pixels_touched(columns + box[1].start, defect.shape[1], small.shape[1])
    for of_row in _pixels_touched(rows + box[0].start, defect.shape[0], small.shape[0]):
        for of_column in across:
            touches |= small[of_row, of_column] == 1

    has_pixel = np.zeros(count + 1, bool)
    has_pixel[labels[rows, columns][touches]] = True
    for number, (inner_rows, inner_columns) in enumerate(ndimage.find_objects(labels), start=1):
        if has_pixel[number]:
            continue
        alone = labels[inner_rows, inner_columns] == number
        top = box[0].start + inner_rows.start
        left = box[1].start + inner_columns.start
        _set_most_covered(small, alone, (top, left), defect.shape)


def _pixels_touched(places: np.ndarray, length: int, side: int) -> tuple[np.ndarray, ...]:
    """Give the first, the middle and the last pixel of the square that a row or column touches.

    One in between is as good as the middle: a row that covers it whole does so too.
    """
    first = places * side // length
    last = ((places + 1) * side - 1) // length
    return first, (first + last) // 2, last


def _set_most_covered(
    small: np.ndarray, region: np.ndarray, corner: tuple[int, int], shape: tuple[int, ...]
) -> None:
    """Set the pixel of the square that a region covers most.

    Args:
        small: (h, w) uint8, changed.
        region: (h, w) bool.
        corner: row and column of its corner in the picture.
        shape: H, W of the picture.
    """
    down = slice(corner[0], corner[0] + len(region))
    rows, by_row = _strips(region, down, shape[0], small.shape[0])
    across = slice(corner[1], corner[1] + region.shape[1])
    columns, areas = _strips(by_row.T, across, shape[1], small.shape[1])
    column, row = np.unravel_index(areas.argmax(), areas.shape)
    small[rows.start + row, columns.start + column] = 1
