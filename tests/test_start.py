"""What a plan and a trial of one pass load, by which a small sweep's time is mostly decided."""

from __future__ import annotations

import subprocess
import sys

import yaml

from adray.data.synthetic import write_synthetic

PLAN = """
import sys
from pathlib import Path

from adray.config_file import load_sweep
from adray.sweep.preflight import prepare

site = Path(sys.argv[1])
settings, plan = prepare(load_sweep(site / "sweep.yaml"))
assert len(plan.of("new")) == 4, plan.problems


def check(*names):
    loaded = sorted(set(names) & set(sys.modules))
    assert not loaded, f"loaded: {loaded}"


compiler = ("torchvision", "timm", "torch._dynamo", "sympy")
check(*compiler, "ray", "pandas", "matplotlib", "sklearn", "jinja2")
"""
TRIALS = """
from adray.job import run_job

for trial in plan.trials:
    folder = site / trial.job.configuration
    folder.mkdir()
    run_job(trial.job, folder)
check(*compiler, "ray", "sklearn", "jinja2")
"""


def test_one_pass_models_are_planned_and_run_without_torchs_compiler(tmp_path):
    """torchvision loads it, and timm loads torchvision: ten CPU seconds in each worker."""
    write_synthetic(tmp_path / "datasets" / "parts", train=6, good=3, defects=3, size=32)
    sweep = {
        "name": "start",
        "weights": "random",
        "settings": {
            "dataset_dir": str(tmp_path / "datasets"),
            "output_dir": str(tmp_path / "outputs"),
            "cache_dir": str(tmp_path / "cache"),
        },
        "grid": {
            "models": ["padim", "patchcore-resnet18", "dfm-resnet18", "dfkde"],
            "datasets": {"parts": ["grain"]},
        },
        "overrides": {"*": {"train": {"img_size": 64, "holdout": 0.0}}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    subprocess.run([sys.executable, "-c", PLAN + TRIALS, str(tmp_path)], check=True)


def test_no_model_file_loads_torchs_compiler_when_it_is_imported():
    code = """
import importlib, pkgutil, sys

from adray import models

for module in pkgutil.iter_modules(models.__path__):
    importlib.import_module(f"adray.models.{module.name}")
    loaded = {"torchvision", "timm", "torch._dynamo", "sympy"} & set(sys.modules)
    assert not loaded, f"{module.name} loads {loaded}"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
