"""A bundle gives the same verdicts by each backend, or the backend is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
from tiny_bundle import ANOMALOUS, NORMAL, picture, write_tiny

pytest.importorskip("onnxruntime")

from adray.runtime import load
from adray.runtime.backends import BACKENDS, OnnxRuntime, choose_backend, installed_backends
from adray.runtime.doctor import check_machine
from adray.runtime.errors import BundleError
from adray.runtime.judge import HeldBundle

OTHER = "json"
"""A package that is always there, in the place of a backend that a test makes up."""
FOUND = [name for name in BACKENDS if find_spec(name)]


class Brighter(OnnxRuntime):
    """Sees each pixel one level brighter, which a score of 50 shows."""

    def run(self, pixels, wanted):
        return super().run(pixels + 1, wanted)


@pytest.fixture
def path(tmp_path):
    write_tiny(tmp_path / "part.adray")
    return tmp_path / "part.adray"


@pytest.mark.parametrize("backend", FOUND)
def test_every_backend_gives_the_scores_verdicts_and_maps_of_numpy_in_several_threads(
    path, backend
):
    bundle = load(path, 1, backend)
    assert bundle.backend == backend
    generator = np.random.default_rng(0)
    pictures = []
    for height, width in ((7, 5), (64, 33), (1, 1), (40, 90)) * 5:
        pictures.append(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(bundle.predict, pictures))
    for pixels, result in zip(pictures, results, strict=True):
        assert result.pred_score == pytest.approx(pixels.mean(), rel=1e-5)
        assert result.verdict == ("anomalous" if pixels.mean() >= 100 else "normal")
        assert result.p_value == 0.5
        assert np.allclose(result.anomaly_map, pixels.mean(axis=2), rtol=1e-5)


@pytest.mark.parametrize("backend", FOUND)
def test_nothing_of_a_loaded_bundle_stays_in_the_temporary_folder(
    path, backend, tmp_path, monkeypatch
):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    bundle = load(path, 1, backend)
    assert list(folder.iterdir()) == []
    assert bundle.predict(np.full((4, 4, 3), 7, np.uint8)).pred_score == pytest.approx(7)


@pytest.mark.parametrize("backend", FOUND)
def test_doctor_names_the_backend_and_its_version_here(path, backend):
    checkup = check_machine(path, 1, backend)
    assert checkup.backend == backend
    assert not checkup.problems
    assert checkup.versions[-1][0] == backend


def test_a_backend_that_is_none_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(BundleError, match=r"backend 'tflite' is none; allowed: onnxruntime"):
        choose_backend("tflite")
    monkeypatch.setattr("adray.runtime.backends.installed_backends", lambda: ["openvino"])
    with pytest.raises(BundleError, match="pip install onnxruntime"):
        choose_backend("onnxruntime")
    assert choose_backend() == "openvino"
    monkeypatch.setattr("adray.runtime.backends.installed_backends", list)
    with pytest.raises(BundleError, match="none of the packages onnxruntime, openvino"):
        choose_backend()


def test_a_backend_that_judges_golden_images_otherwise_is_refused_unless_the_maker_tried_it(
    path, monkeypatch
):
    monkeypatch.setitem(BACKENDS, OTHER, Brighter)
    assert OTHER in installed_backends()
    for start in (load, HeldBundle):
        with pytest.raises(
            BundleError, match=r"judges other than where it was made: golden/0\.png"
        ):
            start(path, 1, OTHER)
    assert check_machine(path, 1, OTHER).problems

    figures = {"images": 9, "other_verdicts": 0, "largest_error": 1e-6}
    write_tiny(path, check={"backends": {"onnxruntime": figures, OTHER: figures}})
    assert load(path, 1, OTHER).predict(picture(NORMAL)).pred_score == NORMAL + 1


def test_a_backend_that_judged_otherwise_where_the_bundle_was_made_is_refused_with_the_figures(
    path, monkeypatch
):
    monkeypatch.setitem(BACKENDS, OTHER, OnnxRuntime)
    said = "2 of 70 images get another verdict than the trial's"
    write_tiny(path, check={"backends": {"onnxruntime": {}, OTHER: {"reason": said}}})
    assert load(path, 1).predict(picture(ANOMALOUS)).verdict == "anomalous"
    with pytest.raises(BundleError, match=said):
        load(path, 1, OTHER)
    write_tiny(path, check={"backends": [1]})
    with pytest.raises(BundleError, match=r"check\.backends is no list"):
        load(path)
