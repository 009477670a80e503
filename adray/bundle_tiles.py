"""The graph of a model that was trained on tiles: it cuts an image, judges each tile, and joins the maps.

It does what `adray.predictor` does with `adray.tiling`, in ONNX's own operators. The network runs in
a loop, one tile after the other, so that memory does not grow with their number but for their maps.

Functions under `script` do not run as Python, see `adray.bundle_graph`. Those of one graph have names
of their own.
"""

# ruff: noqa: ANN001, ANN202, RET504
# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper
from onnxscript import BOOL, FLOAT, INT64, UINT8, script
from onnxscript import opset18 as op

from adray.bundle_geometry import (
    constant,
    own_cells_function,
    resize_matrix,
    window_function,
)
from adray.bundle_graph import (
    Judge,
    add_parts,
    closed,
    eight_bits_function,
    image_type,
    model_of,
    normalized_function,
    pad_function,
    resize_function,
    verdict_graph,
)
from adray.config import TrainConfig
from adray.data.geometry import ROI_SIDE, Geometry, roi_cells
from adray.tiling import TINY_WEIGHT, Tiling
from adray.types import PixelRule, Roi

_GRID = {
    "size": "grid_size",
    "rows": "grid_rows",
    "columns": "grid_columns",
    "counts": "grid_counts",
}
"""Height and width of the scaled image (2,), the first row of each row of tiles (R,), the first column
of each column of them (C,), and of which tiles some pixel counts (R C,)."""


def tiled_graph(
    network: ModelProto,
    config: TrainConfig,
    pixels: PixelRule,
    judge: Judge,
    roi: Roi | None = None,
) -> ModelProto:
    """Build the graph from an image's own pixels to the verdict of its tiles, see `whole_graph`.

    Args:
        network: from a tile ``image`` (1, 3, S, S), prepared, and ``inside`` (1, 1, S, S), which
            pixels of it count, to ``pred_score`` (1,) and ``anomaly_map`` (1, 1, S, S).
        config: how images are prepared, with tiles.
        pixels: see `whole_graph`.
        judge: of the scores.
        roi: see `whole_graph`.
    """
    geometry = Geometry.of(config, roi)
    kind = image_type(pixels)
    graph = GraphProto(name="bundle")
    parts = {"scale": _scale_graph(geometry, pixels), "grid": _grid_graph(geometry)}
    links = {"scale_image": "image", "grid_size": "scale_size"}
    known = add_parts(graph, parts, links)
    graph.node.append(_loop(network, geometry, config.normalize))

    # From the tiles' scores and maps to those of the image.
    parts = {"score": _score_graph(config.tile_top), "after": verdict_graph(judge)}
    links = {
        "score_scores": "tile_scores",
        "after_score": "score_score",
        "after_numbers": "score_score",
    }
    outputs = {"pred_score": "after_pred_score", "verdict": "after_verdict"}
    if judge.calibration:
        outputs["p_value"] = "after_p_value"
    if len(network.graph.output) > 1:
        parts = {"map": _map_graph(geometry, kind)} | parts
        links |= {"map_image": "image", "map_maps": "tile_maps", "after_numbers": "map_joined"}
        links |= {f"map_{name}": value for name, value in _GRID.items()}
        outputs["anomaly_map"] = "map_whole"
    known |= add_parts(graph, parts, links)
    return closed(
        graph, known["scale_image"], {name: known[value] for name, value in outputs.items()}
    )


# Where the tiles lie


def _scale_graph(geometry: Geometry, pixels: PixelRule) -> ModelProto:
    """Build the graph from ``image`` (H, W, 3) to ``scaled`` (h, w, 3) uint8 and its ``size`` (2,).

    What is scaled reaches to the end of the first tile, where it is smaller than one. The size does
    not.
    """
    tiling = _tiling(geometry)
    to_bytes = eight_bits_function(pixels)
    painted = window_function(geometry)
    resize = resize_function()
    scale = constant(np.float64(tiling.scale))
    least = constant(np.array([1, 1], np.int64))
    tile = constant(np.array([tiling.tile] * 2, np.int64))
    none = constant(np.array([0], np.int64))
    pad = pad_function()

    @script(default_opset=op)
    def scaled_size(image):
        length = op.Cast(op.Shape(image, start=0, end=2), to=TensorProto.DOUBLE)
        rounded = op.Round(length * op.Constant(value=scale))
        return op.Max(op.Cast(rounded, to=TensorProto.INT64), op.Constant(value=least))

    @script(default_opset=op)
    def unscaled(image, size):
        return op.Identity(image)

    @script(default_opset=op)
    def resized(image, size):
        height, width = op.Split(size, num_outputs=2)
        return resize(image, height, width)

    to_size = unscaled if tiling.scale == 1 else resized

    @script(default_opset=op)
    def filled(small, size):
        # An image that is smaller than a tile lies in its upper left.
        zero = op.Constant(value=none)
        missing = op.Max(op.Constant(value=tile) - size, zero)
        is_smaller = op.ReduceMax(missing, keepdims=0) > 0
        if is_smaller:
            whole = pad(small, op.Concat(zero, zero, zero, missing, zero, axis=0))
        else:
            whole = op.Identity(small)
        return whole

    @script(default_opset=op)
    def prepare(image):
        size = scaled_size(image)
        scaled = filled(to_size(painted(to_bytes(image)), size), size)
        return scaled, size

    return model_of(prepare, [image_type(pixels)], [UINT8[None, None, 3], INT64[2]])


def _grid_graph(geometry: Geometry) -> ModelProto:
    """Build the graph from ``size`` (2,) to the values of `_GRID`.

    Of the tiles that count it also gives the ``numbers`` (N,) and the ``count``, a single number.
    """
    starts = _starts_function(_tiling(geometry))
    inside = _inside_function(geometry)

    @script(default_opset=op)
    def lay(size):
        height, width = op.Split(size, num_outputs=2)
        rows = starts(height)
        columns = starts(width)
        count = op.Squeeze(op.Shape(rows) * op.Shape(columns))
        numbers = op.Range(0, count, 1)
        counts = numbers >= 0
        return rows, columns, counts, numbers, count

    @script(default_opset=op)
    def lay_on_region(size):
        height, width = op.Split(size, num_outputs=2)
        rows = starts(height)
        columns = starts(width)
        all_tiles = op.Squeeze(op.Shape(rows) * op.Shape(columns))
        every = op.Range(0, all_tiles, 1)
        shown = every * 0
        for number in range(all_tiles):
            seen = op.ReduceMax(op.Cast(inside(size, rows, columns, number), to=TensorProto.INT64))
            shown = op.Where(every == number, op.Squeeze(seen), shown)
        counts = op.Cast(shown, to=TensorProto.BOOL)
        numbers = op.Compress(every, counts)
        count = op.Squeeze(op.Shape(numbers))
        return rows, columns, counts, numbers, count

    function = lay if geometry.roi is None else lay_on_region
    given = [INT64[None], INT64[None], BOOL[None], INT64[None], INT64]
    return model_of(function, [INT64[2]], given)


def _starts_function(tiling: Tiling) -> Any:
    """Give the function from a length (1,) to the first pixels of its tiles, as `tile_starts`."""
    tile = constant(np.array([tiling.tile], np.int64))
    stride = constant(np.float64(max(tiling.tile * (1 - tiling.overlap), 1)))
    one = constant(np.array([1], np.int64))

    @script(default_opset=op)
    def starts(length):
        rest = op.Max(length, op.Constant(value=tile)) - op.Constant(value=tile)
        wide = op.Cast(rest, to=TensorProto.DOUBLE)
        steps = op.Cast(op.Ceil(wide / op.Constant(value=stride)), to=TensorProto.INT64)
        number = op.Range(0, op.Squeeze(steps) + 1, 1)
        divisor = op.Max(steps, op.Constant(value=one))
        place = op.Cast(number * rest, to=TensorProto.DOUBLE)
        even = op.Round(place / op.Cast(divisor, to=TensorProto.DOUBLE))
        return op.Cast(even, to=TensorProto.INT64)

    return starts


def _corner_function() -> Any:
    """Give the function from the rows, the columns and a tile's number to its first pixel, (1,) each."""
    first = constant(np.array([-1], np.int64))

    @script(default_opset=op)
    def corner(rows, columns, number):
        across = op.Shape(columns)
        place = op.Reshape(number, op.Constant(value=first))
        down = place / across
        top = op.Gather(rows, down)
        left = op.Gather(columns, place - down * across)
        return top, left

    return corner


def _inside_function(geometry: Geometry) -> Any:
    """Give the function to which pixels of a tile's square count, (1, 1, S, S), as `tile_inside`.

    It takes the size of the scaled image (2,), the rows, the columns and the tile's number.
    """
    corner = _corner_function()
    side = geometry.side
    tile = _tiling(geometry).tile
    # Middles of the square's pixels and other lengths, in parts of a pixel that make them whole.
    middles = constant((2 * np.arange(side, dtype=np.int64) + 1) * tile)
    unit = constant(np.array([2 * side], np.int64))
    is_first = constant(np.arange(side) == 0)
    shape = constant(np.array([1, 1, side, side], np.int64))

    @script(default_opset=op)
    def on_image(size, rows, columns, number):
        top, left = corner(rows, columns, number)
        height, width = op.Split(size, num_outputs=2)
        row = op.Constant(value=middles) + top * op.Constant(value=unit)
        column = op.Constant(value=middles) + left * op.Constant(value=unit)
        # An image may be thinner than a pixel of the square.
        is_row = op.Or(row < height * op.Constant(value=unit), op.Constant(value=is_first))
        is_column = op.Or(column < width * op.Constant(value=unit), op.Constant(value=is_first))
        return op.And(op.Unsqueeze(is_row, [1]), op.Unsqueeze(is_column, [0]))

    if geometry.roi is None:

        @script(default_opset=op)
        def inside(size, rows, columns, number):
            return op.Reshape(on_image(size, rows, columns, number), op.Constant(value=shape))

        return inside

    cells = constant(roi_cells(geometry.roi))
    grid = constant(np.array([ROI_SIDE], np.int64))
    most = constant(np.array([ROI_SIDE - 1], np.int64))

    @script(default_opset=op)
    def inside_roi(size, rows, columns, number):
        top, left = corner(rows, columns, number)
        height, width = op.Split(size, num_outputs=2)
        row = op.Constant(value=middles) + top * op.Constant(value=unit)
        column = op.Constant(value=middles) + left * op.Constant(value=unit)
        down = row * op.Constant(value=grid) / (height * op.Constant(value=unit))
        across = column * op.Constant(value=grid) / (width * op.Constant(value=unit))
        by_row = op.Gather(op.Constant(value=cells), op.Min(down, op.Constant(value=most)))
        counts = op.Gather(by_row, op.Min(across, op.Constant(value=most)), axis=1)
        shown = op.And(on_image(size, rows, columns, number), counts)
        return op.Reshape(shown, op.Constant(value=shape))

    return inside_roi


# Tile by tile


def _loop(network: ModelProto, geometry: Geometry, normalize: str) -> onnx.NodeProto:
    """Make the loop that gives the scores (N, 1) and maps (N, 1, 1, S, S) of the tiles that count."""
    body = GraphProto(name="tile")
    body.input.append(helper.make_tensor_value_info("tile_step", TensorProto.INT64, []))
    body.input.append(helper.make_tensor_value_info("tile_goes_on", TensorProto.BOOL, []))
    body.node.append(helper.make_node("Identity", ["tile_goes_on"], ["tile_went_on"]))
    body.node.append(helper.make_node("Gather", ["grid_numbers", "tile_step"], ["tile_number"]))

    links = {
        "cut_scaled": "scale_scaled",
        "cut_size": "scale_size",
        "cut_rows": "grid_rows",
        "cut_columns": "grid_columns",
        "cut_number": "tile_number",
        "network_image": "cut_prepared",
        "network_inside": "cut_shown",
    }
    parts = {"cut": _cut_graph(geometry, normalize), "network": network}
    known = add_parts(body, parts, links)
    body.output.append(helper.make_tensor_value_info("tile_went_on", TensorProto.BOOL, []))
    results = ["network_pred_score", "network_anomaly_map"][: len(network.graph.output)]
    body.output.extend(known[name] for name in results)

    taken = ["tile_scores", "tile_maps"][: len(results)]
    return helper.make_node("Loop", ["grid_count", ""], taken, name="tiles", body=body)


def _cut_graph(geometry: Geometry, normalize: str) -> ModelProto:
    """Build the graph from the scaled image and a tile's number to ``prepared`` and ``shown``."""
    corner = _corner_function()
    inside = _inside_function(geometry)
    resize = resize_function()
    to_input = normalized_function(normalize)
    tile = constant(np.array([_tiling(geometry).tile] * 2, np.int64))
    side = constant(np.array([geometry.side], np.int64))

    @script(default_opset=op)
    def of_its_size(image):
        return op.Identity(image)

    @script(default_opset=op)
    def resized(image):
        return resize(image, op.Constant(value=side), op.Constant(value=side))

    to_square = of_its_size if _tiling(geometry).tile == geometry.side else resized

    @script(default_opset=op)
    def cut(scaled, size, rows, columns, number):
        top, left = corner(rows, columns, number)
        first = op.Concat(top, left, axis=0)
        piece = op.Slice(scaled, first, first + op.Constant(value=tile), [0, 1])
        prepared = to_input(to_square(piece))
        shown = inside(size, rows, columns, number)
        return prepared, shown

    square = geometry.side
    taken = [UINT8[None, None, 3], INT64[2], INT64[None], INT64[None], INT64]
    return model_of(cut, taken, [FLOAT[1, 3, square, square], BOOL[1, 1, square, square]])


# From the tiles to the image


def _score_graph(top: float) -> ModelProto:
    """Build the graph from ``scores`` (N, 1) to ``score`` (1,), as `adray.tiling.image_score`."""
    part = constant(np.float64(top))
    one = constant(np.array([1], np.int64))
    flat = constant(np.array([-1], np.int64))
    nothing = constant(np.float32(0))

    @script(default_opset=op)
    def join(scores):
        each = op.Reshape(scores, op.Constant(value=flat))
        number = op.Cast(op.Shape(each), to=TensorProto.DOUBLE)
        wanted = op.Cast(op.Round(number * op.Constant(value=part)), to=TensorProto.INT64)
        highest, _ = op.TopK(each, op.Max(wanted, op.Constant(value=one)))
        mean = op.ReduceMean(op.Cast(highest, to=TensorProto.DOUBLE), keepdims=1)
        # A tile whose score is no number leaves none for the image.
        strange = op.ReduceSum(each * op.Constant(value=nothing), keepdims=1)
        score = op.Cast(mean, to=TensorProto.FLOAT) + strange
        return score

    return model_of(join, [FLOAT[None, 1]], [FLOAT[1]])


def _map_graph(geometry: Geometry, kind: Any) -> ModelProto:
    """Build the graph from the tiles' ``maps`` to that of the image.

    It gives ``joined``, of the scaled image, and ``whole`` (H, W), as `MapJoiner` and the predictor.
    """
    join = _join_function(geometry)

    @script(default_opset=op)
    def lay(image, maps, size, rows, columns, counts):
        joined = join(maps, size, rows, columns, counts)
        whole = _linear(joined, op.Shape(image, start=0, end=2))
        return joined, whole

    function: Any = lay
    if geometry.roi is not None:
        own = own_cells_function(geometry)

        @script(default_opset=op)
        def lay_in_region(image, maps, size, rows, columns, counts):
            every = join(maps, size, rows, columns, counts)
            is_shown = own(every)
            highest = op.ReduceMax(every, keepdims=0)
            lowest = op.ReduceMin(op.Where(is_shown, every, highest), keepdims=0)
            joined = op.Where(is_shown, every, lowest)
            enlarged = _linear(joined, op.Shape(image, start=0, end=2))
            whole = op.Where(own(image), enlarged, op.ReduceMin(enlarged, keepdims=0))
            return joined, whole

        function = lay_in_region
    side = geometry.side
    grid = [INT64[2], INT64[None], INT64[None], BOOL[None]]
    taken = [kind, FLOAT[None, 1, 1, side, side], *grid]
    return model_of(function, taken, [FLOAT[None, None], FLOAT[None, None]])


@script(default_opset=op)
def _linear(small, size):
    """Resize (h, w) to a size (2,)."""
    resized = op.Resize(
        op.Unsqueeze(small, [0, 1]), None, None, op.Concat([1, 1], size, axis=0), mode="linear"
    )
    return op.Squeeze(resized, [0, 1])


def _join_function(geometry: Geometry) -> Any:
    """Give the function from the tiles' maps to that of the scaled image, as `MapJoiner`.

    Tiles are laid into bands, and these into the whole, which does not copy all of it for each tile.
    """
    tile = _tiling(geometry).tile
    weigh = _weights_function(tile)
    down = constant(resize_matrix(geometry.side, tile).astype(np.float32))
    across = constant(resize_matrix(geometry.side, tile).T.astype(np.float32))
    length = constant(np.array([tile], np.int64))
    none = constant(np.array([0], np.int64))
    one = constant(np.array([1], np.int64))
    tiny = constant(np.float32(1e-30))

    @script(default_opset=op)
    def of_a_tile(small):
        return op.Squeeze(small, [0, 1])

    @script(default_opset=op)
    def resized(small):
        plane = op.Squeeze(small, [0, 1])
        return op.MatMul(op.MatMul(op.Constant(value=down), plane), op.Constant(value=across))

    to_tile = of_a_tile if tile == geometry.side else resized

    @script(default_opset=op)
    def join(maps, size, rows, columns, counts):
        by_row = weigh(rows)
        by_column = weigh(columns)
        reach = op.Max(size, op.Constant(value=length))
        height, width = op.Split(reach, num_outputs=2)
        zero = op.Constant(value=none)
        zero_number = op.CastLike(op.Squeeze(zero), op.Constant(value=tiny))

        # Which of the maps is that of a tile. One that does not count has another's, and no weight.
        taken = op.CumSum(op.Cast(counts, to=TensorProto.INT64), op.Squeeze(zero))
        which = op.Max(taken - op.Constant(value=one), zero)

        whole = op.Expand(zero_number, reach)
        total = op.Expand(zero_number, reach)
        many_rows = op.Squeeze(op.Shape(rows))
        many_columns = op.Squeeze(op.Shape(columns))
        for row in range(many_rows):
            band = op.Expand(zero_number, op.Concat(op.Constant(value=length), width, axis=0))
            weights = op.Identity(band)
            for column in range(many_columns):
                number = row * many_columns + column
                one_map = to_tile(op.Gather(maps, op.Gather(which, number)))
                counted = op.Cast(op.Gather(counts, number), to=TensorProto.FLOAT)
                of_row = op.Unsqueeze(op.Gather(by_row, row) * counted, [1])
                weight = of_row * op.Unsqueeze(op.Gather(by_column, column), [0])

                left = op.Unsqueeze(op.Gather(columns, column), [0])
                right = width - left - op.Constant(value=length)
                sides = op.Concat(zero, left, zero, right, axis=0)
                band = band + op.Pad(one_map * weight, sides)
                weights = weights + op.Pad(weight, sides)
            top = op.Unsqueeze(op.Gather(rows, row), [0])
            ends = op.Concat(top, zero, height - top - op.Constant(value=length), zero, axis=0)
            whole = whole + op.Pad(band, ends)
            total = total + op.Pad(weights, ends)

        # What no tile was judged for has the lowest value of the others.
        known = total > zero_number
        mean = whole / op.Max(total, op.Constant(value=tiny))
        highest = op.ReduceMax(mean, keepdims=0)
        lowest = op.ReduceMin(op.Where(known, mean, highest), keepdims=0)
        joined = op.Where(known, mean, lowest)
        return op.Slice(joined, [0, 0], size, [0, 1])

    return join


def _weights_function(tile: int) -> Any:
    """Give the function from the tiles' first pixels (R,) to their weights (R, T), as `axis_weights`."""
    middles = np.arange(tile, dtype=np.float32) + np.float32(0.5)
    from_start = constant(middles[None])
    from_end = constant(middles[None, ::-1].copy())
    length = constant(np.array([tile], np.int64))
    none = constant(np.array([0], np.int64))
    one = constant(np.array([1], np.int64))
    least = constant(np.float32(TINY_WEIGHT))
    most = constant(np.float32(1))
    quarter = constant(np.float32(0.25))
    half = constant(np.float32(0.5))

    @script(default_opset=op)
    def rise(shared, places):
        pixels = op.Unsqueeze(
            op.Cast(op.Max(shared, op.Constant(value=one)), to=TensorProto.FLOAT), [1]
        )
        part = (places - pixels * op.Constant(value=quarter)) / (pixels * op.Constant(value=half))
        risen = op.Clip(part, op.Constant(value=least), op.Constant(value=most))
        shares = op.Unsqueeze(shared > op.Constant(value=none), [1])
        return op.Where(shares, risen, op.Constant(value=most))

    @script(default_opset=op)
    def weigh(starts):
        count = op.Shape(starts)
        number = op.Range(0, op.Squeeze(count), 1)
        nothing = op.Constant(value=none)
        before = op.Gather(starts, op.Max(number - op.Constant(value=one), nothing))
        after = op.Gather(
            starts, op.Min(number + op.Constant(value=one), count - op.Constant(value=one))
        )

        # The first tile shares nothing with one before it, the last nothing with one behind.
        is_first = number == nothing
        is_last = number == count - op.Constant(value=one)
        with_before = op.Where(is_first, nothing, before + op.Constant(value=length) - starts)
        with_after = op.Where(is_last, nothing, starts + op.Constant(value=length) - after)
        start = rise(with_before, op.Constant(value=from_start))
        end = rise(with_after, op.Constant(value=from_end))
        return op.Min(start, end)

    return weigh


def _tiling(geometry: Geometry) -> Tiling:
    """Give how images are cut."""
    assert geometry.tiling is not None, "asked only for models of tiles"
    return geometry.tiling
