"""The script for TensorRT compares verdicts and scores, as far as that can be tried without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from tiny_bundle import ANOMALOUS, picture, write_tiny

onnxruntime = pytest.importorskip("onnxruntime")

from adray.runtime.golden import TOLERANCE  # noqa: E402

FILE = Path(__file__).parents[2] / "jobs" / "tensorrt_bundle.py"


@pytest.fixture(scope="module")
def job():
    spec = importlib.util.spec_from_file_location("tensorrt_bundle", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_without_tensorrt_it_says_what_is_missing(job, tmp_path, capsys):
    if job.TENSORRT in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    assert job.main([str(tmp_path / "no.adray")]) == 2
    assert "lacks CUDAExecutionProvider, TensorrtExecutionProvider" in capsys.readouterr().out


def test_another_verdict_or_score_is_a_problem_and_float16_may_move_scores(job):
    same = job.Judged("a", (2.0, "normal"), (2.0 * (1 + TOLERANCE / 2), "normal"))
    far = job.Judged("b", (1.0, "normal"), (1.01, "normal"))
    other = job.Judged("c", (1.0, "normal"), (1.0, "anomalous"))
    assert job.problems_of([same], half=False) == []
    assert len(job.problems_of([same, far, other], half=False)) == 2
    (line,) = job.problems_of([same, far, other], half=True)
    assert line.startswith("c: ")
    nan = job.Judged("d", (1.0, "normal"), (float("nan"), "unreadable"))
    assert job.problems_of([nan], half=True)


def test_golden_images_and_those_of_a_folder_are_judged_by_both(job, tmp_path, capsys):
    write_tiny(tmp_path / "part.adray")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture(ANOMALOUS))
    command = [str(tmp_path / "part.adray"), str(tmp_path / "images")]
    cache = ["--cache", str(tmp_path / "engines")]
    assert job.main([*command, *cache, "--providers", "CPUExecutionProvider"]) == 0
    printed = capsys.readouterr().out
    assert "2 images" in printed
    assert "each image gets the verdict of the CPU" in printed
