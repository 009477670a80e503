"""Installed from its wheel, in an empty folder and without the checkout, every command works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty folder, and the environment of a process that has only the installed wheel."""
    root = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", root, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = root.glob("adray-*.whl")
    site = root / "site"
    install = [*pip, "install", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    empty = root / "empty"
    empty.mkdir()
    return empty, {**os.environ, "PYTHONPATH": str(site)}


def run(place, *arguments: str) -> str:
    folder, environment = place
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(place, name: str, **more: object) -> str:
    folder, _ = place
    config = {
        "name": name,
        "settings": {"cache_dir": str(folder / "cache")},
        "grid": {"models": ["padim"], "datasets": {"parts": "each"}},
        "generate": {"parts": {"train": 16, "good": 4, "defects": 4, "size": 64}},
        "weights": "random",
        "overrides": {"padim": {"train": {"img_size": 64, "holdout": 0.3}}},
        **more,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


def test_the_wheel_is_what_runs(place):
    folder, environment = place
    code = "import adray; print(adray.__file__, adray.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    file, version = done.stdout.split()
    assert file.startswith(environment["PYTHONPATH"])
    assert version in next(Path(environment["PYTHONPATH"]).glob("adray-*.dist-info")).name


def test_every_step_of_a_sweep_works_without_the_checkout(place):
    folder, _ = place
    file = write(place, "first")
    assert "ready" in run(place, "adray", "check", file)
    run(place, "adray.sweep", file)
    assert (folder / "outputs" / "sweeps" / "first" / "report.html").is_file()
    assert "done" in run(place, "adray", "status", "outputs")
    run(place, "adray", "report", "outputs")

    (trial, *_) = folder.glob("outputs/parts/*/padim/*/result.json")
    images = str(next(folder.glob("datasets/parts/*/test/good")))
    run(place, "adray", "predict", str(trial.parent), images, "--out", "found")
    assert (folder / "found" / "predictions.csv").is_file()
    run(place, "adray", "export", str(trial.parent), "--out", "exported")
    assert any((folder / "exported").iterdir())


def test_a_search_finds_the_space_that_its_model_declares(place):
    folder, _ = place
    file = write(place, "tune", search={"space": "auto", "num_samples": 2})
    run(place, "adray.sweep", file)
    assert (folder / "outputs" / "sweeps" / "tune" / "best_padim.yaml").is_file()
