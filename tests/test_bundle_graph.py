"""The graph of a bundle prepares, judges and enlarges as Pillow, numpy and torch do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper  # noqa: E402

from adray.bundle_graph import Judge, input_dtype, pixels_graph, whole_graph  # noqa: E402
from adray.bundle_team_graph import MemberGraph, team_graph  # noqa: E402
from adray.bundle_tiles import tiled_graph  # noqa: E402
from adray.config import TrainConfig  # noqa: E402
from adray.data.decode import array_pixels  # noqa: E402
from adray.data.geometry import Geometry, pack_cells  # noqa: E402
from adray.data.normalization import normalize_images  # noqa: E402
from adray.data.roi import fill_polygon  # noqa: E402
from adray.ensembles.team import (  # noqa: E402
    MapPart,
    Member,
    combine_maps,
    combine_scores,
    widest_part,
)
from adray.predictor import Outcome, TrialModel, map_of_image, own_map  # noqa: E402
from adray.thresholds import p_values  # noqa: E402
from adray.types import PixelRule, Prediction  # noqa: E402

EIGHT = PixelRule("eight")
TRIANGLE = pack_cells(fill_polygon([(0.1, 0.05), (0.95, 0.3), (0.4, 0.9)]))
SIZES = ((33, 70), (500, 389), (64, 64), (65, 63), (700, 90), (3, 900), (1, 1), (40, 300), (67, 65))
"""Height and width, among them tall ones, which Pillow resizes by their height first."""


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def picture(height, width, rule=EIGHT):
    generator = np.random.default_rng(height * 1000 + width)
    top = 256 if input_dtype(rule) == "uint8" else 5000
    return generator.integers(0, top, (height, width, 3)).astype(input_dtype(rule))


@pytest.mark.parametrize(
    ("geometry", "normalize", "rule"),
    [
        (Geometry(64), "imagenet", EIGHT),
        (Geometry(50, 41), "clip", PixelRule("eight", channels="gray")),
        (Geometry(40), "none", PixelRule("deep", 100.0, 3000.0)),
        (Geometry(40), "minus1_1", PixelRule("deep", 100.0, 3000.0, channels="gray")),
        (Geometry(64, fit="pad"), "imagenet", EIGHT),
        (Geometry(50, 41, fit="pad"), "clip", PixelRule("eight", channels="gray")),
        (Geometry(40, fit="crop"), "none", PixelRule("deep", 100.0, 3000.0)),
        (Geometry(50, 41, fit="crop", roi=TRIANGLE), "imagenet", EIGHT),
        (Geometry(41, fit="pad", roi=TRIANGLE), "imagenet", EIGHT),
        (Geometry(28, aspect=1.5), "imagenet", EIGHT),
        (Geometry(40, aspect=0.6, roi=TRIANGLE), "clip", PixelRule("eight", channels="gray")),
        (Geometry(28, fit="pad", aspect=1.5), "imagenet", EIGHT),
        (Geometry(28, fit="pad", aspect=0.4, roi=TRIANGLE), "imagenet", EIGHT),
        (Geometry(28, fit="crop", aspect=2.5), "none", PixelRule("deep", 100.0, 3000.0)),
        (Geometry(28, fit="crop", aspect=0.5, roi=TRIANGLE), "imagenet", EIGHT),
    ],
)
def test_the_network_gets_the_pixels_of_pillow_bit_for_bit(geometry, normalize, rule):
    run = session(pixels_graph(geometry, normalize, rule)).run
    for height, width in SIZES:
        pixels = picture(height, width, rule)
        small = torch.from_numpy(array_pixels(pixels, geometry, rule).pixels)
        (found,) = run(None, {"image": pixels})
        assert np.array_equal(found, normalize_images(small[None], normalize).numpy())


@pytest.mark.parametrize("roi", [None, TRIANGLE])
@pytest.mark.parametrize(
    ("fit", "crop_size", "aspect"),
    [
        *(("pad", None, 1), ("pad", 21, 1), ("crop", 25, 1), ("squeeze", 21, 1)),
        *(("pad", None, 1.7), ("crop", None, 1.7), ("squeeze", None, 1.7)),
        *(("pad", None, 0.6), ("crop", None, 0.6)),
    ],
)
def test_what_counts_and_the_map_of_an_image_are_those_of_its_trial(fit, crop_size, aspect, roi):
    config = TrainConfig(img_size=32, crop_size=crop_size, normalize="none", fit=fit, aspect=aspect)
    geometry = Geometry.of(config, roi)
    judge = Judge(0.5, ())
    graph = session(whole_graph(network(geometry.frame, True), config, EIGHT, judge, roi))
    for height, width in SIZES:
        pixels = picture(height, width)
        decoded = array_pixels(pixels, geometry, EIGHT)
        inside = geometry.inside(height, width)
        small = decoded.pixels[0].astype(np.float32) * np.float32(1 / 255)
        small = np.where(inside, small, 0)
        score, _, whole = graph.run(None, {"image": pixels})
        assert score == pytest.approx(small.max(), rel=1e-6)

        outcome = Outcome(
            "image 0",
            size=(height, width),
            anomaly_map=small,
            placement=geometry.place(height, width),
            roi=roi,
        )
        expected = own_map(outcome)
        assert whole.shape == expected.shape == (height, width)
        assert np.abs(whole - expected).max() < 1e-5


def network(frame, with_inside=False):
    """Score: the largest value of the first channel, which is the map, 0 where pixels do not count.

    It takes images of a height and a width, or squares of a side.
    """
    shape = [frame, frame] if isinstance(frame, int) else list(frame)
    nodes = [
        helper.make_node("Slice", ["image", "zero", "one", "axis"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "axes"], ["pred_score"], keepdims=0),
    ]
    numbers = {"zero": [0], "one": [1], "axis": [1], "axes": [1, 2, 3]}
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in numbers.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *shape])
    score = helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, [1])
    anomaly_map = helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, 1, *shape])
    inputs = [image]
    if with_inside:
        nodes[0].output[0] = "red"
        nodes[1:1] = [
            helper.make_node("Cast", ["inside"], ["counted"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["red", "counted"], ["anomaly_map"]),
        ]
        inputs.append(helper.make_tensor_value_info("inside", TensorProto.BOOL, [1, 1, *shape]))
    graph = helper.make_graph(nodes, "net", inputs, [score, anomaly_map], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class Red:
    """Scores tiles as `network` does."""

    tile_grid = None
    device = "cpu"

    def __init__(self, config, pixels, roi):
        self.train_config, self.pixels, self.roi = config, pixels, roi

    def predict_batch(self, batch):
        red = batch.image[:, :1]
        if batch.inside is not None:
            red = torch.where(batch.inside, red, 0)
        return Prediction(red.amax((1, 2, 3)), red)


TILED_SIZES = ((33, 70), (130, 97), (20, 200), (7, 9), (64, 64))


@pytest.mark.parametrize("roi", [None, TRIANGLE])
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"tile": 32}, EIGHT),
        ({"tile": 32, "overlap": 0.5, "tile_top": 0.3}, EIGHT),
        ({"tile": 64, "scale": 0.7, "overlap": 0.3}, EIGHT),
        ({"tile": 48, "scale": 1.5, "overlap": 0.0}, PixelRule("eight", channels="gray")),
        ({"tile": 40}, PixelRule("deep", 100.0, 3000.0)),
    ],
)
def test_tiles_are_cut_judged_and_laid_together_as_by_the_predictor(options, rule, roi):
    config = TrainConfig(img_size=32, normalize="none", **options)
    run = session(tiled_graph(network(32, True), config, rule, Judge(0.5, ()), roi)).run
    model = TrialModel(Red(config, rule, roi))
    judged = 0
    for height, width in TILED_SIZES:
        pixels = picture(height, width, rule)
        outcome = model.predict_tiles(pixels, 0)
        if outcome.pred_score is None:
            assert "no tile" in outcome.reason  # the region is in none
            continue
        score, _, whole = run(None, {"image": pixels})
        assert score == pytest.approx(outcome.pred_score, rel=1e-6)
        expected = own_map(outcome)
        assert whole.shape == expected.shape == (height, width)
        # Neighbours in the noise have nothing in common, so a place that is rounded otherwise shows.
        assert np.abs(whole - expected).max() < 1e-4
        judged += 1
    assert judged >= 4


def test_a_tile_whose_score_is_no_number_leaves_no_verdict_for_its_image():
    model = network(32, True)
    for node in model.graph.node:
        if node.op_type == "ReduceMax":
            node.output[0] = "largest"
    model.graph.node.append(helper.make_node("Log", ["largest"], ["pred_score"]))
    del model.graph.output[1]  # without maps
    config = TrainConfig(img_size=32, normalize="none", tile=32)
    graph = session(tiled_graph(model, config, EIGHT, Judge(0.0, ())))
    pixels = np.full((32, 100, 3), 255, np.uint8)
    assert graph.run(["verdict"], {"image": pixels})[0] == 1
    pixels[:, :32] = 0  # the logarithm is minus infinity
    assert graph.run(["verdict"], {"image": pixels})[0] == 2


@pytest.mark.parametrize("aspect", [1.0, 1.5, 0.6])
@pytest.mark.parametrize("fit", ["pad", "crop", "squeeze"])
def test_a_team_counts_what_its_members_count_wherever_the_image_lies(fit, aspect):
    """Beside the team's own sums on what Pillow shows each member."""
    rows = ((32, None, 0.3, 0.2, (0.0, 0.8)), (48, 40, 0.7, 0.4, (0.1, 1.0)))
    members, graphs = [], []
    for size, crop, weight, center, map_range in rows:
        if aspect != 1:
            crop = None  # a crop is a square
        config = TrainConfig(
            img_size=size, crop_size=crop, normalize="none", fit=fit, aspect=aspect
        )
        member = Member("a", "b", "toy", weight, center, 0.1, 9, map_range)
        net = network(config.input_shape, with_inside=True)
        graphs.append(MemberGraph(net, config, EIGHT, member, TRIANGLE))
        members.append(member)
    run = session(team_graph(graphs, Judge(0.5, ()))).run
    for height, width in SIZES:
        pixels = picture(height, width)
        scores, parts, outcomes = [], [], []
        for number, one in enumerate(graphs):
            geometry = one.geometry
            red = array_pixels(pixels, geometry, EIGHT).pixels[0].astype(np.float32)
            small = np.where(geometry.inside(height, width), red * np.float32(1 / 255), 0)
            view = one.config.input_size / one.config.img_size
            scores.append(float(small.max()))
            parts.append(MapPart(number, small, one.member.map_range, one.member.weight, view))
            place = geometry.place(height, width)
            outcomes.append(Outcome("a", size=(height, width), placement=place, roi=TRIANGLE))
        shown = outcomes[widest_part(parts).position]
        expected = own_map(replace(shown, anomaly_map=combine_maps(parts)))
        score, _, whole = run(None, {"image": pixels})
        assert score == pytest.approx(combine_scores(scores, members), abs=1e-5)
        assert np.abs(whole - expected).max() < 1e-5


@pytest.mark.parametrize(("crop_size", "tried"), [(None, 1), (21, 1), (None, 7)])
def test_score_p_value_verdict_and_map_are_those_of_numpy_and_torch(crop_size, tried):
    config = TrainConfig(img_size=32, crop_size=crop_size, normalize="none")
    geometry = Geometry(32, crop_size)
    calibration = (0.5, 0.75, 0.75, 0.97)
    judge = Judge(0.97, calibration, tried)
    graph = session(whole_graph(network(geometry.side), config, EIGHT, judge))
    names = [output.name for output in graph.get_outputs()]
    for height, width in SIZES:
        pixels = picture(height, width)
        small = array_pixels(pixels, geometry, EIGHT).pixels[0].astype(np.float32) * np.float32(
            1 / 255
        )
        found = dict(zip(names, graph.run(None, {"image": pixels}), strict=True))
        score = found["pred_score"]
        assert score == pytest.approx(small.max(), rel=1e-6)
        normals = np.array(calibration, np.float32)
        assert found["p_value"] == p_values(np.array([score]), normals, tried)[0]
        assert found["verdict"] == (score >= np.float32(judge.threshold))
        placed = geometry.place(height, width)
        whole = map_of_image(small, placed, width, height, float(small.min()))
        assert found["anomaly_map"].shape == (height, width)
        assert np.abs(found["anomaly_map"] - whole).max() < 1e-5


def test_a_score_that_is_no_number_is_no_verdict():
    model = network(32)
    for node in model.graph.node:
        if node.op_type == "ReduceMax":
            node.output[0] = "largest"
    model.graph.node.append(helper.make_node("Log", ["largest"], ["pred_score"]))
    config = TrainConfig(img_size=32, normalize="none")
    graph = session(whole_graph(model, config, EIGHT, Judge(0.0, ())))
    black = np.zeros((40, 50, 3), np.uint8)
    assert graph.run(["verdict"], {"image": black})[0] == 2  # the logarithm is minus infinity
    assert graph.run(["verdict"], {"image": black + np.uint8(255)})[0] == 1


def test_a_map_with_a_pixel_that_is_no_number_is_no_verdict():
    model = network(32)
    model.graph.node[0].output[0] = "plane"
    model.graph.node[1].input[0] = "plane"
    model.graph.node.append(helper.make_node("Log", ["plane"], ["anomaly_map"]))
    config = TrainConfig(img_size=32, normalize="none")
    graph = session(whole_graph(model, config, EIGHT, Judge(0.5, ())))
    pixels = np.full((32, 32, 3), 200, np.uint8)
    assert graph.run(["verdict"], {"image": pixels})[0] == 1
    pixels[5, 6] = 0
    assert graph.run(["verdict"], {"image": pixels})[0] == 2
