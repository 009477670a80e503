"""The part of a bundle's graph that knows where an image lies in the frame, as `Geometry` does.

Functions under `script` do not run as Python, see `adray.bundle_graph`.
"""

# What a script takes and gives is a tensor of onnxscript's, which has no type that says more.
# The name that a script returns is that of the graph's output.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxscript import opset18 as op
from onnxscript import script
from PIL import Image

from adray.data.geometry import ROI_SIDE, UNSEEN_COLOR, Geometry, roi_cells


def constant(value: Any) -> TensorProto:
    """Make a tensor of a number or an array."""
    return numpy_helper.from_array(np.asarray(value))


def resize_matrix(side: int, inner: int) -> NDArray[np.float64]:
    """Give Pillow's bilinear resize of one axis as a matrix, (inner, side)."""
    rows = Image.fromarray(np.eye(side, dtype=np.float32))  # mode F
    return np.asarray(rows.resize((side, inner), Image.Resampling.BILINEAR), dtype=np.float64)


def _one(value: int) -> TensorProto:
    """Make a tensor of one whole number, (1,)."""
    return constant(np.array([value], np.int64))


ROWS = _one(0)
"""The first axis of an image, for `axis_function`."""
COLUMNS = _one(1)
"""The second one."""


def axis_function(geometry: Geometry) -> Any:
    """Give the function that tells of an axis of an image (H, W, 3) what `Placement` does.

    It takes the image and the axis. It gives the first pixel and the length of the window, then
    those of the box, (1,) int64 each.
    """
    sizes = constant(np.array(geometry.uncropped, np.int64))
    margin = _one(geometry.margin)
    none = _one(0)
    least = _one(1)

    @script(default_opset=op)
    def squeezed(image, axis):
        length = op.Gather(op.Shape(image), axis)
        first = op.Constant(value=none)
        box_first = op.Neg(op.Constant(value=margin))
        box_length = op.Gather(op.Constant(value=sizes), axis)
        return first, length, box_first, box_length

    @script(default_opset=op)
    def cropped(image, axis):
        length = op.Gather(op.Shape(image), axis)
        other = op.Gather(op.Shape(image), 1 - axis)
        side = op.Gather(op.Constant(value=sizes), axis)
        other_side = op.Gather(op.Constant(value=sizes), 1 - axis)
        scaled = (2 * side * other + other_side) / (2 * other_side)
        taken = op.Min(length, op.Max(scaled, op.Constant(value=least)))
        first = (length - taken) / 2
        box_first = op.Neg(op.Constant(value=margin))
        return first, taken, box_first, side

    @script(default_opset=op)
    def padded(image, axis):
        length = op.Gather(op.Shape(image), axis)
        other = op.Gather(op.Shape(image), 1 - axis)
        side = op.Gather(op.Constant(value=sizes), axis)
        other_side = op.Gather(op.Constant(value=sizes), 1 - axis)
        first = op.Constant(value=none)
        scaled = (2 * length * other_side + other) / (2 * other)
        box_length = op.Min(side, op.Max(scaled, op.Constant(value=least)))
        box_first = (side - box_length) / 2 - op.Constant(value=margin)
        return first, length, box_first, box_length

    return {"squeeze": squeezed, "crop": cropped, "pad": padded}[geometry.fit]


def window_function(geometry: Geometry) -> Any:
    """Give the function from uint8 (H, W, 3) to what is taken of it, with what does not count painted."""
    place = axis_function(geometry)
    down = ROWS
    across = COLUMNS

    @script(default_opset=op)
    def as_it_is(image):
        return op.Identity(image)

    @script(default_opset=op)
    def middle(image):
        top, height, _, _ = place(image, op.Constant(value=down))
        left, width, _, _ = place(image, op.Constant(value=across))
        first = op.Concat(top, left, axis=0)
        last = op.Concat(top + height, left + width, axis=0)
        return op.Slice(image, first, last, [0, 1])

    taken = middle if geometry.fit == "crop" else as_it_is
    if geometry.roi is None:
        return taken

    own = own_cells_function(geometry)
    color = constant(np.array(UNSEEN_COLOR, np.uint8))

    @script(default_opset=op)
    def painted(image):
        counts = op.Unsqueeze(own(image), [2])
        return taken(op.Where(counts, image, op.Constant(value=color)))

    return painted


def own_cells_function(geometry: Geometry) -> Any:
    """Give the function from an image (H, W, 3) to which of its own pixels count, (H, W) bool."""
    assert geometry.roi is not None, "asked only where there is one"
    cells = constant(roi_cells(geometry.roi))
    grid = _one(ROI_SIDE)

    @script(default_opset=op)
    def own(image):
        height = op.Shape(image, start=0, end=1)
        width = op.Shape(image, start=1, end=2)
        rows = (2 * op.Range(0, op.Squeeze(height), 1) + 1) * op.Constant(value=grid)
        columns = (2 * op.Range(0, op.Squeeze(width), 1) + 1) * op.Constant(value=grid)
        by_row = op.Gather(op.Constant(value=cells), rows / (2 * height))
        return op.Gather(by_row, columns / (2 * width), axis=1)

    return own


def inside_function(geometry: Geometry) -> Any:
    """Give the function from an image to which pixels of the frame count, (1, 1, H, W) bool."""
    place = axis_function(geometry)
    down = ROWS
    across = COLUMNS
    high, wide = geometry.frame
    rows = constant(np.arange(high, dtype=np.int64))
    columns = constant(np.arange(wide, dtype=np.int64))
    shape = constant(np.array([1, 1, high, wide], np.int64))

    @script(default_opset=op)
    def on_image(image):
        _, _, top, height = place(image, op.Constant(value=down))
        _, _, left, width = place(image, op.Constant(value=across))
        row = op.Constant(value=rows) - top
        column = op.Constant(value=columns) - left
        is_row = op.And(row >= 0, row < height)
        is_column = op.And(column >= 0, column < width)
        return op.And(op.Unsqueeze(is_row, [1]), op.Unsqueeze(is_column, [0]))

    if geometry.roi is None:

        @script(default_opset=op)
        def inside(image):
            return op.Reshape(on_image(image), op.Constant(value=shape))

        return inside

    cells = constant(roi_cells(geometry.roi))
    grid = _one(ROI_SIDE)
    least = _one(0)
    most = _one(ROI_SIDE - 1)

    @script(default_opset=op)
    def inside_roi(image):
        top, height, box_top, box_height = place(image, op.Constant(value=down))
        left, width, box_left, box_width = place(image, op.Constant(value=across))
        whole_height = op.Shape(image, start=0, end=1)
        whole_width = op.Shape(image, start=1, end=2)

        # The cells on which the middles of the frame's pixels lie.
        row = (2 * (op.Constant(value=rows) - box_top) + 1) * height
        row = 2 * box_height * top + row
        row = row * op.Constant(value=grid) / (2 * box_height * whole_height)
        row = op.Max(op.Min(row, op.Constant(value=most)), op.Constant(value=least))
        column = (2 * (op.Constant(value=columns) - box_left) + 1) * width
        column = 2 * box_width * left + column
        column = column * op.Constant(value=grid) / (2 * box_width * whole_width)
        column = op.Max(op.Min(column, op.Constant(value=most)), op.Constant(value=least))
        counts = op.Gather(op.Gather(op.Constant(value=cells), row), column, axis=1)
        return op.Reshape(op.And(on_image(image), counts), op.Constant(value=shape))

    return inside_roi


def map_function(geometry: Geometry) -> Any:
    """Give the function from a map (1, 1, H, W) and an image to the map at its size, (H, W).

    What the frame does not show, or what does not count, has the lowest value of the map.
    """
    place = axis_function(geometry)
    down = ROWS
    across = COLUMNS
    high, wide = geometry.frame
    last_of_rows = _one(high)
    last_of_columns = _one(wide)
    none = _one(0)
    least = _one(1)

    @script(default_opset=op)
    def enlarged(small, image):
        top, height, box_top, box_height = place(image, op.Constant(value=down))
        left, width, box_left, box_width = place(image, op.Constant(value=across))

        # The part of the frame on which the image lies.
        first_row = op.Max(box_top, op.Constant(value=none))
        last_row = op.Min(box_top + box_height, op.Constant(value=last_of_rows))
        first_column = op.Max(box_left, op.Constant(value=none))
        last_column = op.Min(box_left + box_width, op.Constant(value=last_of_columns))
        first = op.Concat(first_row, first_column, axis=0)
        last = op.Concat(last_row, last_column, axis=0)
        shown = op.Slice(small, first, last, [2, 3])

        # The image's own pixels that it shows.
        scaled = op.Cast(op.Concat(box_height, box_width, axis=0), to=TensorProto.DOUBLE)
        part = op.Cast(last - first, to=TensorProto.DOUBLE) / scaled
        window = op.Concat(height, width, axis=0)
        length = op.Round(op.Cast(window, to=TensorProto.DOUBLE) * part)
        inner = op.Max(op.Cast(length, to=TensorProto.INT64), op.Constant(value=least))
        linear = op.Resize(shown, None, None, op.Concat([1, 1], inner, axis=0), mode="linear")
        middle = op.Squeeze(linear, [0, 1])

        before = op.Concat(top, left, axis=0) + (window - inner) / 2
        size = op.Shape(image, start=0, end=2)
        pads = op.Concat(before, size - inner - before, axis=0)
        return op.Pad(middle, pads, op.ReduceMin(small, keepdims=0))

    if geometry.roi is None:
        return enlarged

    own = own_cells_function(geometry)

    @script(default_opset=op)
    def enlarged_inside(small, image):
        lowest = op.ReduceMin(small, keepdims=0)
        return op.Where(own(image), enlarged(small, image), lowest)

    return enlarged_inside
