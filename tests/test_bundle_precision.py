"""A bundle in float16 or int8 is kept where it judges as the trial, and refused with figures elsewhere."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_datasets import write_mvtec
from sklearn.metrics import roc_auc_score

from adray.bundle import _check_numbers, write_bundle
from adray.bundle_check import Cut, JudgedImage, Wanted, compare
from adray.errors import InputError
from adray.runtime import load
from adray.runtime.doctor import check_machine
from adray.settings import set_globals
from adray.train import train

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx

from adray.bundle_precision import Gain, Lowered, in_float16, in_int8, refuse_worse

TINY = {"base_channels": 8, "latent_channels": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("precision")
    write_mvtec(
        root / "datasets" / "mvtec", categories=("bottle",), train=24, good=4, defects=4, size=48
    )
    return root


_made = {}


@pytest.fixture
def made(root, own_settings, one_thread):
    """A trial and a bundle of it in each precision, made once."""
    set_globals(
        dataset_dir=root / "datasets", output_dir=root / "outputs", cache_dir=root / "cache"
    )
    if not _made:
        sizes = {"img_size": 32, "num_epochs": 15, "batch_size": 4, "holdout": 0.4}
        made = train("mvtec", "bottle", "autoencoder", train=sizes, model=TINY)
        _made["trial"] = Path(made["folder"])
        threshold = clear_threshold(_made["trial"])
        for name in ("float32", "float16", "int8"):
            wanted = Wanted(threshold=threshold, precision=name)
            _made[name] = write_bundle(_made["trial"], root / f"{name}.adray", wanted)
    return _made


def clear_threshold(trial):
    """A quarter of the way into the widest gap between scores, which no precision crosses.

    In int8 the strongest defects score less, as their values leave the ranges that were found.
    """
    scores = np.sort(pd.read_parquet(trial / "scores.parquet").pred_score)
    place = np.argmax(np.diff(scores))
    return str(float(scores[place] + np.diff(scores)[place] / 4))


def graph_of(root, name):
    with zipfile.ZipFile(root / f"{name}.adray") as file:
        return onnx.load_from_string(file.read("model.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float16", "int8"])
def test_a_lower_precision_gives_the_verdicts_of_the_trial_and_says_what_it_gained(
    made, root, name, capsys
):
    from adray.__main__ import main

    exact, lower = load(root / "float32.adray", 1), load(root / f"{name}.adray", 1)
    paths = sorted((root / "datasets").rglob("test/*/*.png"))
    assert paths
    for path in paths:
        assert lower.predict(path).verdict == exact.predict(path).verdict
    facts = made[name]["precision"]
    assert facts["name"] == lower.precision["name"] == name
    assert facts["image_auroc"] == pytest.approx(facts["trial_image_auroc"], abs=1e-3)
    assert min(facts["milliseconds"], facts["float32_milliseconds"]) > 0
    assert made[name]["check"]["other_verdicts"] == 0
    assert made["float32"]["precision"] == {"name": "float32"}
    checkup = check_machine(root / f"{name}.adray", 1)
    assert not checkup.problems
    assert checkup.precision == facts
    assert main(["doctor", str(root / f"{name}.adray")]) == 0
    assert f"precision {name}: where it was made, an image took" in capsys.readouterr().out


@pytest.mark.slow
def test_the_weights_of_the_network_are_kept_in_the_precision_that_was_asked_for(made, root):
    """Half the bytes, and a quarter; what prepares and judges stays as it was."""
    sizes = {}
    for name in ("float32", "float16", "int8"):
        graph = graph_of(root, name).graph
        weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
        sizes[name] = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in weights)
        kinds = {node.op_type for node in graph.node}
        assert ("QuantizeLinear" in kinds) == (name == "int8")
    assert sizes["float16"] == sizes["float32"] / 2
    assert sizes["int8"] == sizes["float32"] / 4


@pytest.mark.slow
def test_the_calibration_normals_of_an_int8_bundle_are_scored_by_itself(made, root):
    bundle = load(root / "int8.adray", 1)
    about = json.loads(json.dumps(made["int8"]))
    exact = made["float32"]["calibration"]["scores"]
    own = about["calibration"]["scores"]
    assert own != exact
    assert np.allclose(own, exact, rtol=0.2)
    assert len(bundle.calibration) == len(exact)
    normals = []
    for path in (root / "datasets").rglob("train/good/*.png"):
        normals.append(bundle.predict(path).anomaly_map.max())
    assert min(normals) < about["regions"]["threshold"] < 2 * max(normals)


@pytest.mark.slow
def test_a_lower_precision_that_nothing_can_be_promised_of_is_refused(made, root, monkeypatch):
    out = root / "no.adray"
    monkeypatch.setattr("adray.bundle_precision.training_samples", lambda folder: None)
    with pytest.raises(InputError, match=r"training images of .* are out of reach"):
        write_bundle(made["trial"], out, Wanted(precision="int8"))
    monkeypatch.setattr("adray.bundle.newest_recalibration", lambda folder: {})
    with pytest.raises(InputError, match="--precision float16 gives scores of its own"):
        write_bundle(made["trial"], out, Wanted(precision="float16"))
    assert not out.exists()


def judged(by_trial, by_graph, defects):
    images = []
    for i, (a, b, is_defect) in enumerate(zip(by_trial, by_graph, defects, strict=True)):
        images.append(JudgedImage(Path(f"{i}.png"), "test", a, b, is_defect))
    return images


GAIN = Gain(2**20, 4 * 2**20, 5.0, 10.0)


def test_another_verdict_or_auroc_is_refused_with_the_figures_and_what_there_was_to_gain():
    defects = [False] * 30 + [True] * 30
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.normal(0, 1, 30), generator.normal(2, 1, 30)])
    other = scores + generator.normal(0, 0.3, 60)
    images = judged(scores, other, defects)
    cut = Cut("promise", 100.0, 100.0, None, ())
    lowered = Lowered("int8", compare(images, cut), GAIN)
    assert lowered.aurocs == pytest.approx(
        (roc_auc_score(defects, other), roc_auc_score(defects, scores))
    )
    with pytest.raises(
        InputError, match=r"in int8 AUROC is 0\.\d{4}, the trial's 0\.\d{4}; .* 5\.0 ms"
    ):
        refuse_worse(lowered)

    same = judged(scores, scores * 1.01, defects)
    refuse_worse(Lowered("int8", compare(same, cut), GAIN))
    near = replace(cut, of_trial=float(scores[3]), of_graph=float(scores[3]) + 1e-3)
    flips = judged(scores, scores, defects)
    with pytest.raises(InputError, match=r"1 of 60 images get another verdict, such as 3\.png"):
        refuse_worse(Lowered("int8", compare(flips, near), GAIN))


def test_scores_that_are_no_numbers_refuse_a_precision_with_the_remedy():
    with pytest.raises(
        InputError, match=r"in float16 2 of 3 scores are no numbers; make it with .* float32"
    ):
        _check_numbers(Wanted(precision="float16"), [np.nan, 1.0, np.inf])
    _check_numbers(Wanted(precision="float16"), [0.0, 1.0])


def test_a_converted_network_stays_near_and_has_no_operators_but_onnxs_own():
    """Beside the same sums in numpy."""
    generator = np.random.default_rng(0)
    weights = generator.normal(0, 0.1, (8, 3, 3, 3)).astype(np.float32)
    image = onnx.helper.make_tensor_value_info("image", 1, [1, 3, 16, 16])
    score = onnx.helper.make_tensor_value_info("pred_score", 1, [1, 8, 14, 14])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["image", "w"], ["pred_score"], name="layer")],
        "net",
        [image],
        [score],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    network = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    images = generator.normal(0, 1, (9, 1, 3, 16, 16)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(images[0, 0], (3, 3), axis=(1, 2))
    wanted = np.einsum("chwij,ocij->ohw", windows, weights)
    for made, error in (
        (in_float16(network), 2e-3),
        (in_int8(network, [{"image": one} for one in images]), 2e-2),
    ):
        assert {entry.domain for entry in made.opset_import} == {""}
        import onnxruntime

        run = onnxruntime.InferenceSession(made.SerializeToString()).run
        (found,) = run(None, {"image": images[0]})
        assert np.abs(found[0] - wanted).max() < error * np.abs(wanted).max()
        assert not np.array_equal(found[0], wanted)
