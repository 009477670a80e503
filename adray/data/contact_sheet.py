"""One picture under every corruption and severity, side by side, for people to judge by eye."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from adray.conditions import SEVERITIES, Corruption, Kind
from adray.data.corruptions import MOVING, corrupt

_SIDE = 128
"""Longest side of a picture on the sheet, in pixels."""
_GAP = 4
_LABEL_WIDTH = 96
_LABEL_HEIGHT = 16
_OUTLINE = (255, 0, 0)


def draw_contact_sheet(
    pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None, name: str, kinds: Sequence[Kind]
) -> Image.Image:
    """Draw an image under some corruptions: a row for each kind, a column for each severity.

    The first column is the image as it is. Where pixels move, a red line goes around the defect.

    Args:
        pixels: (3, H, W).
        mask: (H, W) with 1 on the defect, or None.
        name: of the image, by which directions and places are drawn.
        kinds: what happens to it.
    """
    columns = 1 + len(SEVERITIES)
    width = _LABEL_WIDTH + columns * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, _LABEL_HEIGHT + len(kinds) * (_SIDE + _GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for column in range(columns):
        pen.text((_place(column), 2), str(column), fill="black")

    for row, kind in enumerate(kinds):
        top = _LABEL_HEIGHT + row * (_SIDE + _GAP)
        pen.text((2, top + _SIDE // 2), kind, fill="black")
        sheet.paste(_thumbnail(pixels, mask if kind in MOVING else None), (_place(0), top))
        for severity in SEVERITIES:
            found = corrupt(pixels, mask, Corruption(kind, severity), name)
            moved = found.mask if kind in MOVING else None
            sheet.paste(_thumbnail(found.pixels, moved), (_place(severity), top))
    return sheet


def _place(column: int) -> int:
    """Give the left edge of a column."""
    return _LABEL_WIDTH + column * (_SIDE + _GAP)


def _thumbnail(pixels: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> Image.Image:
    """Shrink an image, with a line around its defect where there is a mask."""
    image = Image.fromarray(np.ascontiguousarray(rearrange(pixels, "c h w -> h w c")))
    if mask is not None:
        inside = Image.fromarray(mask * np.uint8(255))
        around = np.asarray(inside.filter(ImageFilter.MaxFilter(5)))
        line = Image.fromarray(around - np.asarray(inside))
        image.paste(Image.new("RGB", image.size, _OUTLINE), mask=line)
    image.thumbnail((_SIDE, _SIDE))
    return image
