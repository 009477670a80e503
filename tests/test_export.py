"""An exported trial stands alone: safetensors without any weight file, and ONNX under another runtime."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_subject, write_site
from torch import nn

from adray.cli.export import main
from adray.errors import InputError
from adray.export import (
    OnnxError,
    Reference,
    export_trial,
    largest_error,
    reference_outputs,
    write_onnx,
)
from adray.export_formats import ONNX_SINGLE, ONNX_UNSUPPORTED, TOLERANCE
from adray.files import file_sha256
from adray.model_specs import MODEL_SPECS
from adray.predict import load_predictor
from adray.registry import ModelRegistry
from adray.results.trial_files import find_checkpoint
from adray.settings import get_globals, set_globals, use_settings
from adray.train import train
from adray.types import Prediction

NAMES = [spec.name for spec in MODEL_SPECS]
BOUND = {"vlm-ad": "a folder of a chat model with its own tokenizer"}
"""Configurations that do not stand alone, with the reason."""
QUICK = ("padim", "stfpm", "patchcore-resnet18", "fastflow-resnet18", "autoencoder")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A small data set and random weights under the real file names."""
    return write_site(tmp_path_factory.mktemp("export"))


_trained = {}


@pytest.fixture
def trial(site, own_settings, one_thread, request):
    """The folder of a trained trial of the configuration that the test names; each is trained once."""
    name = request.param
    use_settings(site)
    if name not in _trained:
        tiny = tiny_subject(name)
        sizes = {"batch_size": 4, "holdout": 0.2, **tiny.train}
        made = train(tiny.dataset, tiny.category, name, train=sizes, model=tiny.model)
        _trained[name] = made["folder"]
    return _trained[name]


def without_weights(site, tmp_path):
    use_settings(replace(site, backbone_dir=str(tmp_path / "empty")))


def stored_scores(folder):
    return pd.read_parquet(f"{folder}/scores.parquet").query("split == 'test'")


def close(a, b, tolerance):
    a, b = np.asarray(a), np.asarray(b)
    return np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("trial", QUICK, indirect=True)
def test_an_export_scores_as_its_trial_without_any_weight_file(trial, site, tmp_path):
    original = load_predictor(trial, "cpu")
    scores = stored_scores(trial)
    about = export_trial(trial, tmp_path / "out", "safetensors")
    without_weights(site, tmp_path)
    alone = load_predictor(tmp_path / "out", "cpu")
    outcomes = list(alone.predict(scores.path))
    assert close([o.pred_score for o in outcomes], scores.pred_score, 1e-5)
    assert alone.thresholds == original.thresholds
    assert about["threshold"]["rule"] == "promise"
    assert about["threshold"]["value"] == original.thresholds["promise"]
    assert 0 < about["threshold"]["promised"] <= 1
    assert list(about).index("threshold") < list(about).index("model")
    assert alone.map_range == original.map_range
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(
        original.trainer.model.state_dict()
    )
    assert about["model"] == json.loads((tmp_path / "out" / "export.json").read_text())["model"]


@pytest.mark.slow
@pytest.mark.parametrize("trial", [name for name in NAMES if name not in BOUND], indirect=True)
def test_every_configuration_stands_alone(trial, site, tmp_path):
    export_trial(trial, tmp_path / "out", "safetensors")
    scores = stored_scores(trial)
    without_weights(site, tmp_path)
    outcomes = list(load_predictor(tmp_path / "out", "cpu").predict(scores.path))
    assert close([o.pred_score for o in outcomes], scores.pred_score, 1e-5)


@pytest.mark.parametrize("trial", list(BOUND), indirect=True)
def test_what_is_bound_to_its_weight_files_is_refused(trial, tmp_path):
    with pytest.raises(
        InputError, match="reads its pretrained files at every start and cannot stand alone"
    ):
        export_trial(trial, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trial", ["patchcore"], indirect=True)
def test_another_program_needs_no_more_than_the_json_to_prepare_an_image(trial, tmp_path):
    about = export_trial(trial, tmp_path / "out", "safetensors")
    path = stored_scores(trial).path.iloc[0]
    how = about["preprocessing"]
    image = Image.open(path).convert("RGB").resize(how["resize"]["size"], Image.Resampling.BILINEAR)
    top, left, (height, width) = how["crop"]["top"], how["crop"]["left"], how["crop"]["size"]
    pixels = np.asarray(image)[top : top + height, left : left + width] * how["scale"]
    prepared = ((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1).astype(np.float32)
    predictor = load_predictor(tmp_path / "out", "cpu")
    (ours,) = reference_outputs(predictor.trainer, [path])[1:]
    assert list(ours.image.shape[1:]) == about["input"]["shape"][1:]
    assert np.allclose(prepared, ours.image[0].numpy(), atol=1e-5)
    assert list(about["outputs"]) == ["pred_score", "anomaly_map"]
    assert about["source"]["checkpoint"]["sha256"] == file_sha256(find_checkpoint(trial))
    assert about["source"]["backbones"]["extractor"]["file"] == "wide_resnet50_2.pth"
    assert about["files"]["model.safetensors"]["sha256"] == file_sha256(
        tmp_path / "out" / "model.safetensors"
    )


@pytest.mark.parametrize("trial", QUICK, indirect=True)
def test_the_onnx_graph_gives_the_scores_and_maps_of_torch(trial, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    about = export_trial(trial, tmp_path / "out", "onnx")
    assert about["onnx"]["exact"]
    assert about["onnx"]["largest_error"] <= TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    predictor = load_predictor(trial, "cpu")
    scores = stored_scores(trial)
    (reference,) = reference_outputs(predictor.trainer, list(scores.path))[1:]
    size = len(reference.image) if about["onnx"]["batch"] == "any" else 1
    parts = [
        session.run(["pred_score"], {"image": image.numpy()})[0]
        for image in reference.image.split(size)
    ]
    assert close(np.concatenate(parts), scores.pred_score, TOLERANCE)
    assert [output.name for output in session.get_outputs()] == list(about["outputs"])
    own = {value.name: value.shape for value in session.get_inputs()}
    said = about["onnx"]["inputs"]
    assert own.keys() == said.keys()
    for name, shape in own.items():
        assert [side for side in shape if isinstance(side, int)] == [
            side for side in said[name] if side != "batch"
        ]
    assert (said["image"][0] == "batch") == (about["onnx"]["batch"] == "any")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "trial", [name for name in NAMES if name not in ONNX_UNSUPPORTED], indirect=True
)
def test_every_configuration_becomes_onnx_but_those_that_are_known_not_to(trial, request, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    about = export_trial(trial, tmp_path / "out", "onnx")
    assert (about["onnx"]["batch"] == 1) == (about["source"]["configuration"] in ONNX_SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("trial", list(ONNX_UNSUPPORTED), indirect=True)
def test_what_is_known_not_to_become_onnx_is_still_refused(trial, tmp_path):
    with pytest.raises(InputError, match="no ONNX graph was written"):
        export_trial(trial, tmp_path / "out", "onnx")


class Moody(nn.Module):
    """Takes another way by the sign of its images' mean, which a traced graph does not, and has no map."""

    def forward(self, image, features=None):
        score = image.mean((1, 2, 3))
        return Prediction(score.exp() if bool((score > 0).all()) else score, None)


def test_a_graph_that_is_not_exact_is_refused_with_the_reason_and_leaves_nothing(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    set_globals(plugins=("toy_plugin",))
    trainer = ModelRegistry.get_trainer("toy-ok")
    trainer.model = Moody()
    (bright,) = reference_outputs(trainer, [])
    dark = Reference(-bright.image, (-bright.image.mean((1, 2, 3)),))
    with pytest.raises(
        OnnxError, match=r"trace, batch any: outputs differ by .* of the largest value"
    ):
        write_onnx(trainer, tmp_path / "model.onnx", [bright, dark])
    assert not list(tmp_path.iterdir())


def test_the_largest_error_is_relative_to_each_outputs_largest_value_and_keeps_nan():
    image = torch.zeros(4, 3, 2, 2)
    reference = Reference(
        image, (torch.tensor([1.0, 2.0, 4.0, 10.0]), torch.full((4, 1, 2, 2), 100.0))
    )

    def run(batch):
        first = {1: 1.001, 4: 1.0}[len(batch)]
        score = torch.tensor([1.0, 2.0, 4.0, 10.0])[: len(batch)] * first
        return score, torch.full((len(batch), 1, 2, 2), 101.0)

    assert largest_error([reference], run, 4) == pytest.approx(0.01)
    assert np.isnan(
        largest_error([reference], lambda b: (torch.full((4,), torch.nan), reference.outputs[1]), 4)
    )


@pytest.mark.parametrize("trial", ["stfpm"], indirect=True)
def test_a_folder_that_holds_something_is_left_alone_and_a_failure_leaves_none(
    trial, tmp_path, monkeypatch, capsys
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        export_trial(trial, tmp_path / "full")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"no ONNX graph was written: .* pip install 'adray\[onnx\]'"
    ):
        export_trial(trial, tmp_path / "new", "onnx")
    assert sorted(
        path.name for path in tmp_path.iterdir() if not path.name.startswith("datasets")
    ) == ["full"]
    assert (
        main([trial, "--out", str(tmp_path / "new"), "--backbone-dir", get_globals().backbone_dir])
        == 0
    )
    assert "no ONNX graph: the package onnx is not installed" in capsys.readouterr().out
    about = json.loads((tmp_path / "new" / "export.json").read_text())
    assert about["onnx"] == {
        "exact": False,
        "reason": "the package onnx is not installed; pip install 'adray[onnx]'",
    }
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "export.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("trial", ["padim", "patchcore-resnet18"], indirect=True)
def test_a_whole_checkpoint_needs_no_weight_file_and_stays_whole(trial, site, tmp_path):
    scores = stored_scores(trial)
    trainer = load_predictor(trial, "cpu").trainer
    trainer.save_model(tmp_path / "model_whole.pth", whole=True)
    without_weights(site, tmp_path)
    with pytest.raises(InputError, match="missing weights"):
        load_predictor(trial, "cpu")
    for ending in ("pth", "safetensors"):
        alone = load_predictor(tmp_path / "model_whole.pth", "cpu")
        outcomes = list(alone.predict(scores.path))
        assert close([o.pred_score for o in outcomes], scores.pred_score, 1e-5)
        alone.trainer.save_model(tmp_path / f"model_again.{ending}")
        again = load_predictor(tmp_path / f"model_again.{ending}", "cpu")
        assert close([o.pred_score for o in again.predict(scores.path)], scores.pred_score, 1e-5)


@pytest.mark.parametrize("trial", ["padim"], indirect=True)
def test_a_weight_file_of_the_same_name_and_another_content_is_refused_with_both_hashes(
    trial, site, tmp_path
):
    own = Path(site.backbone_dir) / "resnet18.pth"
    other = tmp_path / "resnet18.pth"
    state = torch.load(own, weights_only=True)
    torch.save({name: values + 1e-3 for name, values in state.items()}, other)
    use_settings(replace(site, backbone_dir=str(tmp_path)))
    for refused in (
        lambda: load_predictor(trial, "cpu"),
        lambda: export_trial(trial, tmp_path / "out", "safetensors"),
    ):
        with pytest.raises(InputError, match="--accept-other-weights") as said:
            refused()
        assert file_sha256(own) in str(said.value)
        assert file_sha256(other) in str(said.value)
    assert not (tmp_path / "out").exists()

    predictor = load_predictor(trial, "cpu", accept_other_weights=True)
    for outcome in predictor.predict(stored_scores(trial).path):
        assert file_sha256(other) in outcome.accepted


@pytest.mark.parametrize("trial", ["patchcore-resnet18"], indirect=True)
def test_a_memory_bank_of_other_shapes_is_refused_when_it_is_loaded(trial, tmp_path):
    copy = shutil.copytree(trial, tmp_path / "copy")
    path = find_checkpoint(copy)
    stored = torch.load(path, weights_only=True)
    stored["model"]["memory_bank"] = stored["model"]["memory_bank"][:, :-3].clone()
    torch.save(stored, path)
    with pytest.raises(InputError, match="does not fit"):
        load_predictor(copy, "cpu", accept_other_weights=True)
