"""A model's graph from raw pixels to a verdict: resize, normalisation, network, p-value, map.

The resize is Pillow's to the bit, in whole numbers and ONNX's own operators, so that every runtime
sees the pixels that the model was trained on. ONNX's `Resize` is not: under onnxruntime 1.32 it is
up to 17 grey levels off at the borders of an image.

Functions under `script` do not run as Python. onnxscript reads them and makes nodes of them.
"""

# What a script takes and gives is a tensor of onnxscript's, which has no type that says more.
# The name that a script returns is that of the graph's output.
# ruff: noqa: ANN001, ANN202, RET504
# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, compose, helper, inliner
from onnxscript import BOOL, DOUBLE, FLOAT, UINT8, UINT16, optimizer, script
from onnxscript import opset18 as op
from PIL import Image

from adray.bundle_geometry import (
    COLUMNS,
    ROWS,
    axis_function,
    constant,
    inside_function,
    map_function,
    window_function,
)
from adray.config import TrainConfig
from adray.data.geometry import UNSEEN_COLOR, Geometry
from adray.data.preprocessing import NORMALIZATIONS
from adray.thresholds import p_values
from adray.types import PixelRule, Roi

for _name in ("onnxscript", "onnx_ir"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # they tell each step that they take
logging.getLogger("onnx_ir.passes").setLevel(logging.ERROR)  # what they skip costs a few bytes

OPSET = 18
_IR_VERSION = 10

_WHOLE = 2**22
"""A weight of one in the whole numbers that Pillow's resize counts in (8-bit images)."""
_HALF = 2**21
_WHOLE_STEPS = 2**31 - 2**22
"""The bits of a sum that are whole grey levels."""
_LUMINANCE = (19595, 38470, 7471)
"""Weights of red, green and blue in Pillow's luminance, of 2^16."""


@dataclass(frozen=True)
class Judge:
    """What a score is judged by."""

    threshold: float
    """Scores at or above it are anomalous."""
    calibration: tuple[float, ...]
    """Scores of the calibration normals; empty where there are none."""
    tried: int = 1
    """Number of trials of which this one was chosen by them, see `adray.thresholds.p_values`."""


def whole_graph(
    network: ModelProto,
    config: TrainConfig,
    pixels: PixelRule,
    judge: Judge,
    roi: Roi | None = None,
) -> ModelProto:
    """Build the graph from an image's own pixels to its verdict.

    Its input is ``image`` (H, W, 3), uint8, or uint16 where the model was trained on deep images.
    Its outputs are ``pred_score``, a single number, ``verdict``, which is 0 for normal, 1 for
    anomalous and 2 for a score or a map that is no number, ``p_value``, a single number, where there are
    calibration normals, and ``anomaly_map`` (H, W) where the model has maps.

    Args:
        network: from ``image`` (1, 3, H, W), prepared, to ``pred_score`` and ``anomaly_map``. It may
            also take ``inside`` (1, 1, H, W), which pixels of it count.
        config: how images are prepared.
        pixels: how the numbers in an image become 8 bits, of depth ``eight`` or ``deep``.
        judge: of the scores.
        roi: the part of an image that counts, None for all of it.
    """
    geometry = Geometry.of(config, roi)
    before = pixels_graph(geometry, config.normalize, pixels)
    parts = {"before": before, "network": network, "after": verdict_graph(judge)}
    links = {
        "before_image": "image",
        "network_image": "before_prepared",
        "after_score": "network_pred_score",
        "after_numbers": "network_pred_score",
    }
    if "inside" in {value.name for value in network.graph.input}:
        parts = {"inside": inside_graph(geometry, image_type(pixels))} | parts
        links |= {"inside_image": "image", "network_inside": "inside_inside"}
    outputs = {"pred_score": "after_pred_score", "verdict": "after_verdict"}
    if judge.calibration:
        outputs["p_value"] = "after_p_value"
    if len(network.graph.output) > 1:
        parts["map"] = map_graph(geometry, image_type(pixels))
        links |= {"map_small": "network_anomaly_map", "map_image": "image"}
        links["after_numbers"] = "network_anomaly_map"
        outputs["anomaly_map"] = "map_whole"
    return joined(parts, links, outputs)


# From an image's own pixels to the network's input


def pixels_graph(geometry: Geometry, normalize: str, pixels: PixelRule) -> ModelProto:
    """Build the graph from ``image`` (H, W, 3) to ``prepared`` (1, 3, H, W) float32."""
    to_bytes = eight_bits_function(pixels)
    to_frame = _framed(geometry)
    to_input = normalized_function(normalize)

    @script(default_opset=op)
    def prepare(image):
        prepared = to_input(to_frame(to_bytes(image)))
        return prepared

    height, width = geometry.frame
    return model_of(prepare, [image_type(pixels)], [FLOAT[1, 3, height, width]])


def input_dtype(pixels: PixelRule) -> str:
    """Give the type of the pixels that a graph takes: ``uint8`` or ``uint16``."""
    return "uint16" if pixels.depth == "deep" else "uint8"


def image_type(pixels: PixelRule) -> Any:
    """Give type and shape of a graph's input."""
    kind = UINT16 if input_dtype(pixels) == "uint16" else UINT8
    return kind[None, None, 3]


def eight_bits_function(pixels: PixelRule) -> Any:
    """Give the function from an image's numbers (H, W, 3) to uint8, by a model's rule."""
    low = constant(np.float64(pixels.low or 0.0))
    scale = constant(np.float64(255.0 / ((pixels.high or 255.0) - (pixels.low or 0.0))))
    black = constant(np.float64(0.0))
    white = constant(np.float64(255.0))
    weights = constant(np.array(_LUMINANCE, np.int32))
    rounding = constant(np.int32(2**15))
    whole = constant(np.int32(2**16))
    levels = constant(np.int32(255 * 2**16))
    three = constant(np.array([1, 1, 3], np.int64))
    of_red = constant(np.array([0], np.int64))
    of_green = constant(np.array([1], np.int64))
    of_blue = constant(np.array([2], np.int64))

    @script(default_opset=op)
    def as_they_are(image):
        return op.Identity(image)

    @script(default_opset=op)
    def scaled(image):
        numbers = op.Cast(image, to=TensorProto.DOUBLE)
        levels = (numbers - op.Constant(value=low)) * op.Constant(value=scale)
        rounded = op.Clip(op.Round(levels), op.Constant(value=black), op.Constant(value=white))
        return op.Cast(rounded, to=TensorProto.UINT8)

    ranged = scaled if pixels.depth == "deep" else as_they_are
    if pixels.channels != "gray":
        return ranged

    # Color by color, for OpenVINO 2026.4 loses rows where it sums over the colors of tall images.
    @script(default_opset=op)
    def luminance(image):
        colors = op.Cast(ranged(image), to=TensorProto.INT32) * op.Constant(value=weights)
        red = op.Gather(colors, op.Constant(value=of_red), axis=2)
        green = op.Gather(colors, op.Constant(value=of_green), axis=2)
        blue = op.Gather(colors, op.Constant(value=of_blue), axis=2)
        total = red + green + blue + op.Constant(value=rounding)
        steps = op.BitwiseAnd(total, op.Constant(value=levels))
        level = op.Cast(steps / op.Constant(value=whole), to=TensorProto.UINT8)
        return op.Expand(level, op.Constant(value=three))

    return luminance


def _framed(geometry: Geometry) -> Any:
    """Give the function from uint8 images to the frame: Pillow's bilinear resize, and the crop."""
    taken = window_function(geometry)
    place = axis_function(geometry)
    resize = resize_function()
    down = ROWS
    across = COLUMNS
    sizes = constant(np.array(geometry.uncropped, np.int64))
    corner = np.array([geometry.margin] * 2, np.int64)
    first = constant(corner)
    last = constant(corner + np.array(geometry.frame))

    @script(default_opset=op)
    def resize_window(whole):
        _, _, _, rows_wanted = place(whole, op.Constant(value=down))
        _, _, _, columns_wanted = place(whole, op.Constant(value=across))
        return resize(taken(whole), rows_wanted, columns_wanted)

    fitted: Any = resize_window
    if geometry.fit == "pad":
        pad = pad_function()
        none = constant(np.array([0], np.int64))

        @script(default_opset=op)
        def resize_and_pad(image):
            small = resize_window(image)
            lengths = op.Shape(small, start=0, end=2)
            missing = op.Constant(value=sizes) - lengths
            before = missing / 2
            zero = op.Constant(value=none)
            return pad(small, op.Concat(before, zero, missing - before, zero, axis=0))

        fitted = resize_and_pad
    if geometry.crop_size is None:
        return fitted

    @script(default_opset=op)
    def resize_and_crop(image):
        return op.Slice(fitted(image), op.Constant(value=first), op.Constant(value=last), [0, 1])

    return resize_and_crop


def pad_function() -> Any:
    """Give the function that lays the color of what does not count around uint8 (H, W, 3).

    It takes the image and ONNX's pads (6,).
    """
    color = constant(np.array(UNSEEN_COLOR, np.uint8))

    @script(default_opset=op)
    def pad(small, pads):
        # One more than a grey level is one that no pixel has: there the color goes.
        marked = op.Pad(op.Cast(small, to=TensorProto.INT32) + 1, pads)
        levels = op.Cast(op.Max(marked - 1, 0), to=TensorProto.UINT8)
        return op.Where(marked > 0, levels, op.Constant(value=color))

    return pad


def resize_function() -> Any:
    """Give the function from uint8 (H, W, 3) to (h, w, 3), Pillow's bilinear resize.

    It takes the image, h and w, (1,) int64 each.
    """
    three = constant(np.array([3], np.int64))
    knows_tall = constant(np.array(takes_tall_images_by_height()))

    @script(default_opset=op)
    def resize(image, rows_wanted, columns_wanted):
        height = op.Shape(image, start=0, end=1)
        width = op.Shape(image, start=1, end=2)

        # The order of the passes matters, since each is rounded.
        shrinks = height > rows_wanted
        is_tall = op.And(shrinks, height - rows_wanted > 2 * (width - columns_wanted))
        by_height = op.Squeeze(op.And(is_tall, op.Constant(value=knows_tall)))
        if by_height:
            turned = op.Transpose(image, perm=[1, 0, 2])
            first_wanted = op.Identity(rows_wanted)
            second_wanted = op.Identity(columns_wanted)
        else:
            turned = op.Identity(image)
            first_wanted = op.Identity(columns_wanted)
            second_wanted = op.Identity(rows_wanted)

        # (H, W, 3) -> (W, 3 H): a row holds a column of the image. Two axes turn fastest.
        rows = op.Shape(turned, start=0, end=1)
        columns = op.Shape(turned, start=1, end=2)
        flat = op.Transpose(op.Reshape(turned, [0, -1]), perm=[1, 0])
        narrow = _resize_rows(op.Reshape(flat, op.Concat(columns, [-1], axis=0)), first_wanted)

        # (w, 3 H) -> (H, 3 w)
        upright = op.Transpose(op.Reshape(narrow, op.Concat([-1], rows, axis=0)), perm=[1, 0])
        shape = op.Concat(second_wanted, first_wanted, op.Constant(value=three), axis=0)
        small = op.Reshape(_resize_rows(upright, second_wanted), shape)
        if by_height:
            square = op.Transpose(small, perm=[1, 0, 2])
        else:
            square = op.Identity(small)
        return square

    return resize


@script(default_opset=op)
def _resize_rows(pixels, side):
    """Resize the first axis of (L, M) uint8 to (side, M), by a tent of the width of a step.

    All is counted in whole numbers, which no runtime rounds otherwise. The unit of a length is half
    of the part of a row that 1 / side is.
    """
    length = op.Shape(pixels, start=0, end=1)
    longer = op.Max(length, side)

    # Where each of the (side,) results lies among the rows, and which rows it is made of.
    number = op.Range(0, op.Squeeze(side), 1)
    center = (2 * number + 1) * length
    first = op.Max((center - 2 * longer + side) / (2 * side), 0)
    end = op.Min((center + 2 * longer + side) / (2 * side), length)

    # The weight of the k-th row of each result, (K, side).
    count = op.Squeeze(2 * ((longer + side - 1) / side) + 1)
    place = first + op.Unsqueeze(op.Range(0, count, 1), [1])
    distance = op.Abs(2 * side * place + side - center)
    tent = op.Max(2 * longer - distance, 0)
    weight = op.Where(place < end, tent, 0)

    # As a part of all weights, in parts of 2^22: a long division by 7, 7 and 8 bits, so that no
    # number needs more than 32, and the last of it rounded.
    total = op.ReduceSum(weight, [0], keepdims=1)
    high = weight * 128 / total
    rest = weight * 128 - high * total
    middle = rest * 128 / total
    smaller = rest * 128 - middle * total
    low = (smaller * 256 + total / 2) / total
    factor = op.Cast((high * 128 + middle) * 256 + low, to=TensorProto.INT32)

    row = op.Min(place, length - 1)
    shape = op.Concat(side, op.Shape(pixels, start=1, end=2), axis=0)
    rounding = op.Cast(op.Constant(value_int=_HALF), to=TensorProto.INT32)
    sums = op.Expand(rounding, shape)
    each = op.Unsqueeze(factor, [2])
    for i in range(count):
        some = op.Cast(op.Gather(pixels, op.Gather(row, i)), to=TensorProto.INT32)
        sums = sums + some * op.Gather(each, i)

    # Divided without a rest, for some runtimes divide whole numbers in float32.
    steps = op.Cast(op.Constant(value_int=_WHOLE_STEPS), to=TensorProto.INT32)
    whole = op.Cast(op.Constant(value_int=_WHOLE), to=TensorProto.INT32)
    level = op.BitwiseAnd(sums, steps) / whole
    white = op.Cast(op.Constant(value_int=255), to=TensorProto.INT32)
    return op.Cast(op.Min(level, white), to=TensorProto.UINT8)


def takes_tall_images_by_height() -> bool:
    """Tell whether this Pillow resizes tall images by their height first, as newer ones do."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 12), dtype=np.uint8)
    image = Image.fromarray(pixels)
    bilinear = Image.Resampling.BILINEAR
    by_height = image.resize((12, 16), bilinear).resize((16, 16), bilinear)
    return np.array_equal(np.asarray(image.resize((16, 16), bilinear)), np.asarray(by_height))


def normalized_function(normalize: str) -> Any:
    """Give the function from uint8 (H, W, 3) to float32 (1, 3, H, W), as `normalize_images` does."""
    mean, std = np.array(NORMALIZATIONS[normalize])[..., None, None]
    scale = constant((1 / (255 * std)).astype(np.float32))
    shift = constant((-mean / std).astype(np.float32))

    @script(default_opset=op)
    def normalized(small):
        planes = op.Cast(op.Transpose(small, perm=[2, 0, 1]), to=TensorProto.FLOAT)
        values = planes * op.Constant(value=scale) + op.Constant(value=shift)
        return op.Unsqueeze(values, [0])

    return normalized


# From the network's outputs to a verdict


def verdict_graph(judge: Judge) -> ModelProto:
    """Build the graph from a score to ``pred_score``, ``p_value`` and ``verdict``.

    Its inputs are ``score`` (1,) and ``numbers``, a map or the score itself, all of which have to
    be finite for a verdict.
    """
    limit = constant(np.float32(judge.threshold))
    normals = constant(np.array(judge.calibration, np.float32))
    by_count = constant(_p_value_by_count(len(judge.calibration), judge.tried))

    @script(default_opset=op)
    def judge_score(score, numbers):
        pred_score = op.Squeeze(score)

        # How many normals score as high says how rare such a score is.
        reached = op.Cast(op.Constant(value=normals) >= pred_score, to=TensorProto.INT64)
        count = op.ReduceSum(reached, [0], keepdims=0)
        p_value = op.Gather(op.Constant(value=by_count), count)

        anomalous = op.Cast(pred_score >= op.Constant(value=limit), to=TensorProto.UINT8)
        strange = op.Cast(op.Or(op.IsNaN(numbers), op.IsInf(numbers)), to=TensorProto.FLOAT)
        count_strange = op.ReduceSum(strange, keepdims=0)
        is_odd = op.Or(op.IsNaN(pred_score), op.IsInf(pred_score))
        is_strange = op.Or(is_odd, count_strange > 0.5)
        none = op.Cast(op.Constant(value_int=2), to=TensorProto.UINT8)
        verdict = op.Where(is_strange, none, anomalous)
        return pred_score, p_value, verdict

    return model_of(judge_score, [FLOAT[1], FLOAT[...]], [FLOAT, DOUBLE, UINT8])


def _p_value_by_count(normals: int, tried: int) -> NDArray[np.float64]:
    """Give the p-value of a score with 0 to `normals` calibration scores above it, (normals + 1,)."""
    ranks = np.arange(normals)
    between = np.arange(normals, -1, -1) - 0.5
    return p_values(between, ranks, tried)


def map_graph(geometry: Geometry, image_type: Any) -> ModelProto:
    """Build the graph from ``small`` (1, 1, H, W) and ``image`` to ``whole`` (H, W)."""
    function = map_function(geometry)

    @script(default_opset=op)
    def enlarge(small, image):
        whole = function(small, image)
        return whole

    height, width = geometry.frame
    return model_of(enlarge, [FLOAT[1, 1, height, width], image_type], [FLOAT[None, None]])


def inside_graph(geometry: Geometry, image_type: Any) -> ModelProto:
    """Build the graph from ``image`` to ``inside`` (1, 1, H, W)."""
    function = inside_function(geometry)

    @script(default_opset=op)
    def look(image):
        inside = function(image)
        return inside

    height, width = geometry.frame
    return model_of(look, [image_type], [BOOL[1, 1, height, width]])


# Graphs as values


def model_of(function: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> ModelProto:
    """Make a graph of a script, without functions of its own.

    Args:
        function: the script.
        inputs: type and shape of each.
        outputs: likewise.
    """
    made = function.to_model_proto(input_types=inputs, output_types=outputs, opset_version=OPSET)
    return optimizer.optimize(inliner.inline_local_functions(made))


def joined(
    parts: Mapping[str, ModelProto], links: Mapping[str, str], outputs: Mapping[str, str]
) -> ModelProto:
    """Join graphs into one, whose inputs are ``image`` (H, W, 3).

    Args:
        parts: graphs in the order in which they run, by the prefix that their names get.
        links: name of a part's input to the name of the value that it takes.
        outputs: name of an output to the name of its value.

    Raises:
        ValueError: for a graph with operators of another version.
    """
    graph = GraphProto(name="bundle")
    known = add_parts(graph, parts, links)
    takers = [name for name, value_name in links.items() if value_name == "image"]
    return closed(graph, known[takers[0]], {name: known[value] for name, value in outputs.items()})


Values = dict[str, onnx.ValueInfoProto]
"""Name of a value to its type and shape."""


def add_parts(
    graph: GraphProto, parts: Mapping[str, ModelProto], links: Mapping[str, str]
) -> Values:
    """Add parts to a graph, each with names of its own, and its inputs by nodes that hand on a value.

    Args:
        graph: is changed.
        parts: see `joined`.
        links: likewise.

    Returns:
        The inputs and outputs of the parts.

    Raises:
        ValueError: for a part with operators of another version.
    """
    known: Values = {}
    for name, part in parts.items():
        _check_operators(part)
        # Loops and branches also take constants from around them, of which `compose` thinks too late.
        constants = {tensor.name: f"{name}_{tensor.name}" for tensor in part.graph.initializer}
        renamed = compose.add_prefix_graph(part.graph, f"{name}_", name_map=constants)
        known |= {value.name: value for value in (*renamed.input, *renamed.output)}
        for value in renamed.input:
            graph.node.append(helper.make_node("Identity", [links[value.name]], [value.name]))
        graph.node.extend(renamed.node)
        graph.initializer.extend(renamed.initializer)
    return known


def closed(graph: GraphProto, image: onnx.ValueInfoProto, outputs: Values) -> ModelProto:
    """Give a graph its input and its outputs, and check it.

    Args:
        graph: is changed.
        image: the type of its input, ``image``.
        outputs: the name of each to the value that it is.
    """
    graph.input.append(_renamed(image, "image"))
    for name, value in outputs.items():
        graph.node.append(helper.make_node("Identity", [value.name], [name]))
        graph.output.append(_renamed(value, name))
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _check_operators(part: ModelProto) -> None:
    """Refuse a graph whose operators are not those of ONNX's own set of `OPSET`.

    Raises:
        ValueError: with the sets that it has.
    """
    versions = {entry.domain: entry.version for entry in part.opset_import}
    domains = {node.domain for node in part.graph.node}
    if versions.get("") != OPSET or domains - {""} or part.functions:
        raise ValueError(f"its operators are of {versions}, not of ONNX's own set {OPSET} alone")


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """Give a value another name."""
    renamed = onnx.ValueInfoProto()
    renamed.CopyFrom(value)
    renamed.name = name
    return renamed
