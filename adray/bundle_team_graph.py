"""The graph of a team: its members' graphs side by side, and what `adray.ensembles.team` makes of them.

Student's t, by which a member's score is calibrated, is no operator of ONNX. So the calibrated score
is read off a table of `_KNOTS` values between which it is straight, to a millionth of the score.
"""

# See `adray.bundle_graph` on the types of scripts.
# ruff: noqa: ANN001, ANN202, RET504
# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnxscript import DOUBLE, FLOAT, script
from onnxscript import opset18 as op

from adray.bundle_geometry import constant, resize_matrix
from adray.bundle_graph import (
    Judge,
    image_type,
    inside_graph,
    joined,
    map_graph,
    model_of,
    pixels_graph,
    verdict_graph,
)
from adray.config import TrainConfig
from adray.data.geometry import Geometry
from adray.ensembles.team import MapPart, Member, place_in, widest_part
from adray.types import PixelRule, Roi

_KNOTS = 2**15
_FURTHEST = float(np.log1p(1e6))
"""Logarithm of one and the largest deviation in the table. Beyond it, it goes on straight."""


@dataclass(frozen=True)
class MemberGraph:
    """One model of a team."""

    network: ModelProto
    """From ``image`` (1, 3, H, W), prepared, to ``pred_score`` and ``anomaly_map``."""
    config: TrainConfig
    """How images are prepared for it."""
    pixels: PixelRule
    """How the numbers in an image become 8 bits for it."""
    member: Member
    """How its score and its map count."""
    roi: Roi | None = None
    """The part of an image that counts, None for all of it; the same for all members."""

    @property
    def geometry(self) -> Geometry:
        """Give what happens to an image before the model sees it."""
        return Geometry.of(self.config, self.roi)

    @property
    def takes_inside(self) -> bool:
        """Tell whether it asks which pixels count."""
        return any(value.name == "inside" for value in self.network.graph.input)

    @property
    def has_map(self) -> bool:
        """Tell whether its map counts."""
        return len(self.network.graph.output) > 1 and self.member.map_range is not None


def team_graph(members: Sequence[MemberGraph], judge: Judge) -> ModelProto:
    """Build the graph from an image's own pixels to a team's verdict, see `whole_graph`.

    Args:
        members: at least one, whose images have one type of pixels.
        judge: of the team's scores.
    """
    parts: dict[str, ModelProto] = {}
    links: dict[str, str] = {}
    total = ""

    # Each member reads the image in its own way, and its score is added to those before.
    for i, one in enumerate(members):
        parts[f"before{i}"] = pixels_graph(one.geometry, one.config.normalize, one.pixels)
        links[f"before{i}_image"] = "image"
        links[f"network{i}_image"] = f"before{i}_prepared"
        if one.takes_inside:
            parts[f"inside{i}"] = inside_graph(one.geometry, image_type(one.pixels))
            links |= {f"inside{i}_image": "image", f"network{i}_inside": f"inside{i}_inside"}
        parts[f"network{i}"] = one.network
        parts[f"score{i}"] = _score_graph(one.member, is_first=not total)
        links[f"score{i}_score"] = f"network{i}_pred_score"
        if total:
            links[f"score{i}_before"] = total
        total = f"score{i}_total"

    parts["team"] = _last_graph(FLOAT[1], DOUBLE[1])
    links |= {"team_value": total, "after_score": "team_last", "after_numbers": "team_last"}
    outputs = {"pred_score": "after_pred_score", "verdict": "after_verdict"}
    if any(one.has_map for one in members):
        _add_map(members, parts, links)
        outputs["anomaly_map"] = "map_whole"

    # A part comes behind those whose values it takes.
    parts["after"] = verdict_graph(judge)
    if judge.calibration:
        outputs["p_value"] = "after_p_value"
    return joined(parts, links, outputs)


# Scores


def _score_graph(member: Member, is_first: bool) -> ModelProto:
    """Build the graph from a member's ``score`` (1,) and the ``before`` (1,) to their ``total``."""
    calibrated = _calibrated(member)
    weight = constant(np.float64(member.weight))

    @script(default_opset=op)
    def first(score):
        total = calibrated(score) * op.Constant(value=weight)
        return total

    @script(default_opset=op)
    def further(score, before):
        total = before + calibrated(score) * op.Constant(value=weight)
        return total

    if is_first:
        return model_of(first, [FLOAT[1]], [DOUBLE[1]])
    return model_of(further, [FLOAT[1], DOUBLE[1]], [DOUBLE[1]])


def _calibrated(member: Member) -> Any:
    """Give the function from a member's score (1,) to its calibrated one, float64."""
    center = constant(np.float64(member.center))
    scale = constant(np.float64(member.scale))
    one = constant(np.float64(1))
    table = constant(calibration_table(member))
    furthest = constant(np.float64(_FURTHEST))
    per_knot = constant(np.float64((_KNOTS - 1) / (2 * _FURTHEST)))
    lowest = constant(np.int64(0))
    highest = constant(np.int64(_KNOTS - 2))
    next_knot = constant(np.int64(1))

    @script(default_opset=op)
    def calibrate(score):
        wide = op.Cast(score, to=TensorProto.DOUBLE)
        deviation = (wide - op.Constant(value=center)) / op.Constant(value=scale)
        far = op.Sign(deviation) * op.Log(op.Abs(deviation) + op.Constant(value=one))

        # Between which knots it lies. What is no number stays none, by the part between them.
        place = (far + op.Constant(value=furthest)) * op.Constant(value=per_knot)
        floor = op.Cast(op.Floor(place), to=TensorProto.INT64)
        above = op.Max(floor, op.Constant(value=lowest))
        knot = op.Min(above, op.Constant(value=highest))
        part = place - op.Cast(knot, to=TensorProto.DOUBLE)

        values = op.Constant(value=table)
        before = op.Gather(values, knot)
        after = op.Gather(values, knot + op.Constant(value=next_knot))
        return before + part * (after - before)

    return calibrate


def calibration_table(member: Member) -> NDArray[np.float64]:
    """Give a member's calibrated scores at deviations whose logarithms are evenly spaced, (K,)."""
    far = np.linspace(-_FURTHEST, _FURTHEST, _KNOTS)
    deviation = np.sign(far) * np.expm1(np.abs(far))
    return np.asarray(member.calibration(member.center + member.scale * deviation))


def _last_graph(given: Any, taken: Any) -> ModelProto:
    """Build the graph from a ``value`` of float64 to the ``last``, of float32.

    Args:
        given: type and shape of the last.
        taken: of the value.
    """

    @script(default_opset=op)
    def narrow(value):
        last = op.Cast(value, to=TensorProto.FLOAT)
        return last

    return model_of(narrow, [taken], [given])


# Maps


def _add_map(
    members: Sequence[MemberGraph], parts: dict[str, ModelProto], links: dict[str, str]
) -> None:
    """Add the graph of the combined map, at the size of the image."""
    with_map = [(i, one) for i, one in enumerate(members) if one.has_map]
    shapes = []
    for i, one in with_map:
        empty = np.empty(one.geometry.frame, np.float32)
        low, high = one.member.map_range or (0.0, 1.0)
        view = one.config.input_size / one.config.img_size
        shapes.append(MapPart(i, empty, (low, high), one.member.weight, view))
    widest = widest_part(shapes)
    seen = np.zeros_like(widest.values, dtype=np.float64)
    for shape in shapes:
        seen[place_in(widest, shape.view)] += shape.weight

    total = ""
    for shape in shapes:
        name = f"share{shape.position}"
        parts[name] = _share_graph(shape, widest, seen, is_first=not total)
        links[f"{name}_small"] = f"network{shape.position}_anomaly_map"
        if total:
            links[f"{name}_before"] = total
        total = f"{name}_total"

    height, width = widest.values.shape
    parts["small"] = _last_graph(FLOAT[1, 1, height, width], DOUBLE[1, 1, height, width])
    first = members[widest.position]
    parts["map"] = map_graph(first.geometry, image_type(first.pixels))
    links |= {"small_value": total, "map_small": "small_last", "map_image": "image"}
    links["after_numbers"] = "small_last"


def _share_graph(
    shape: MapPart, widest: MapPart, seen: NDArray[np.float64], is_first: bool
) -> ModelProto:
    """Build the graph from a member's ``small`` map and the ``before`` to their ``total``.

    Args:
        shape: of the member's map.
        widest: of the combined map.
        seen: (H, W), weight of all members that see a pixel.
        is_first: there is nothing before.
    """
    rows, columns = place_in(widest, shape.view)
    height, width = widest.values.shape
    own_height, own_width = shape.values.shape
    low, high = shape.map_range
    lowest = constant(np.float64(low))
    step = constant(np.float64(max(high - low, 1e-30)))
    down = constant(resize_matrix(own_height, rows.stop - rows.start))
    across = constant(resize_matrix(own_width, columns.stop - columns.start).T)
    before = [0, 0, rows.start, columns.start]
    after = [0, 0, height - rows.stop, width - columns.stop]
    pads = constant(np.array(before + after))
    share = constant(shape.weight / seen)

    @script(default_opset=op)
    def share_of(small):
        values = (op.Cast(small, to=TensorProto.DOUBLE) - op.Constant(value=lowest)) / op.Constant(
            value=step
        )
        resized = op.MatMul(op.MatMul(op.Constant(value=down), values), op.Constant(value=across))
        return op.Pad(resized, op.Constant(value=pads)) * op.Constant(value=share)

    @script(default_opset=op)
    def first(small):
        total = share_of(small)
        return total

    @script(default_opset=op)
    def further(small, before):
        total = before + share_of(small)
        return total

    small: Any = FLOAT[1, 1, own_height, own_width]
    total_type: Any = DOUBLE[1, 1, height, width]
    if is_first:
        return model_of(first, [small], [total_type])
    return model_of(further, [small, total_type], [total_type])
