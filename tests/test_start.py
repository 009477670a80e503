"""What commands, a plan and a trial of one pass load, by which the time of small things is decided."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
import yaml
from results.fake_store import fake_record, write_record

from adray.__main__ import COMMANDS as NAMES
from adray.components.feature_extractor import build_resnet
from adray.config_file import load_sweep
from adray.data.synthetic import write_synthetic
from adray.registry import ModelRegistry
from adray.sweep.preflight import prepare

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


check("torch", "ray", "pandas", "matplotlib", "sklearn", "jinja2")
"""
TRIALS = """
from adray.trial import run_job

compiler = ("torchvision", "timm", "torch._dynamo", "sympy")

for trial in plan.trials:
    folder = site / trial.job.configuration
    folder.mkdir()
    run_job(trial.job, folder)
check(*compiler, "ray", "sklearn", "jinja2")
"""


def write_sweep(folder, models, overrides):
    """Write a sweep of untrained models on small images, which are drawn too."""
    write_synthetic(folder / "datasets" / "parts", train=6, good=3, defects=3, size=32)
    sweep = {
        "name": "start",
        "weights": "random",
        "settings": {
            "dataset_dir": str(folder / "datasets"),
            "output_dir": str(folder / "outputs"),
            "cache_dir": str(folder / "cache"),
        },
        "grid": {"models": models, "datasets": {"parts": ["grain"]}},
        "overrides": overrides,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))


def test_one_pass_models_are_planned_without_torch_and_run_without_its_compiler(tmp_path):
    """torchvision loads it, and timm loads torchvision: ten CPU seconds in each worker."""
    models = ["padim", "patchcore-resnet18", "dfm-resnet18", "dfkde"]
    write_sweep(tmp_path, models, {"*": {"train": {"img_size": 64, "holdout": 0.0}}})
    subprocess.run([sys.executable, "-c", PLAN + TRIALS, str(tmp_path)], check=True)


@pytest.mark.parametrize("name", ModelRegistry.list_models())
def test_a_plan_knows_of_each_method_what_its_trainer_says(name):
    trainer = ModelRegistry.trainer_class(name)
    method = ModelRegistry.method(name)
    for field in fields(method):
        assert getattr(trainer, field.name) == getattr(method, field.name), field.name


def test_a_weight_file_that_was_found_sound_is_planned_without_torch_until_it_changes(tmp_path):
    write_sweep(tmp_path, ["padim", "dfkde"], {"*": {"train": {"img_size": 64}}})
    config = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    config["settings"]["backbone_dir"] = str(tmp_path / "backbones")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**config, "weights": "pretrained"}))
    weights = tmp_path / "backbones" / "resnet18.pth"
    weights.parent.mkdir()
    torch.save(build_resnet("resnet18", ["layer4"]).state_dict(), weights)

    sound = load_sweep(tmp_path / "sweep.yaml")
    assert not prepare(sound)[1].problems
    run_all([("check sweep.yaml", 0), ("sweep sweep.yaml --dry-run", 0)], tmp_path)

    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "truncated" in " ".join(prepare(sound)[1].problems)


def test_no_method_is_known_by_its_trainer_alone():
    """Else its plans would load torch."""
    code = """
import sys

from adray.registry import ModelRegistry

for name in ModelRegistry.list_models("core"):
    ModelRegistry.resolve(name)
    assert "torch" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


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


HEAVY = {"torch", "torchvision", "timm", "ray"}
COMMANDS = """
import contextlib, io, json, sys

from adray.__main__ import main

for case in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(case["words"])
        except SystemExit as ended:
            code = ended.code
    loaded = sorted({heavy} & set(sys.modules))
    assert not loaded, f"{case['words']} loads {loaded}"
    assert code == case["code"], f"{case['words']} ended with {code}"
"""


def run_all(cases, folder):
    """Run commands one after the other in a fresh process, which may load nothing heavy."""
    told = json.dumps([{"words": words.split(), "code": code} for words, code in cases])
    program = COMMANDS.replace("{heavy}", repr(HEAVY))
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=told,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def site(tmp_path):
    """A sweep of all models, its data set, and a store with some trials that never ran."""
    write_sweep(tmp_path, ["all"], {})
    for configuration in ("padim", "stfpm"):
        for seed in (1, 2):
            write_record(fake_record(tmp_path / "outputs", configuration, "bottle", seed))
    write_record(fake_record(tmp_path / "outputs", "padim", "wood", auroc=None))
    return tmp_path


def test_the_help_of_no_command_loads_torch_or_ray(tmp_path):
    run_all([(f"{name} --help", 0) for name in NAMES], tmp_path)


def test_what_looks_at_a_store_or_a_folder_loads_neither_torch_nor_ray(site):
    cases = [
        ("status outputs", 0),
        ("report outputs", 0),
        ("report outputs --format markdown", 0),
        ("diff outputs outputs", 0),
        ("clean outputs --caches", 0),
        ("data datasets/parts", 0),
        ("start datasets/parts --minutes 0", 0),
        ("models", 0),
        ("models fastflow", 0),
        ("sweep sweep.yaml --dry-run --skip-missing", 0),
        ("check sweep.yaml", 2),  # some models need images or packages that are not here
    ]
    run_all(cases, site)


def test_what_cannot_be_meant_is_refused_without_torch_or_ray(site):
    cases = [
        ("predict nowhere datasets --out found", 2),
        ("predict team.json datasets --out found", 2),
        ("predict outputs/mvtec datasets --out found", 2),
        ("audit nowhere datasets", 2),
        ("audit nowhere.adray log.jsonl", 2),
        ("export nowhere --out there", 2),
        ("bundle nowhere --out there.adray", 2),
        ("serve nowhere.adray", 2),
        ("serve nowhere --port 0", 2),
        ("serve nowhere.adray --host 0.0.0.0", 2),
        ("serve nowhere.adray --port 99999", 2),
        ("serve nowhere.adray --tls-cert nowhere", 2),
        ("watch nowhere --bundle nowhere.adray --out there", 2),
        ("watch datasets --bundle nowhere.adray --out datasets/there", 2),
        ("watch datasets --bundle nowhere.adray --out there --move", 2),
        ("watch datasets --bundle nowhere.adray --out there --webhook ftp://x/", 2),
        ("watch datasets --bundle nowhere.adray --out there --mqtt mqtt://x", 2),
        ("watch datasets --bundle nowhere.adray --out there --settle -1", 2),
        ("measure nowhere", 2),
        ("rerun ffffffff --local --store outputs", 2),
        ("ensemble nowhere", 2),
        ("diff outputs nowhere", 2),
        ("status nowhere", 2),
        ("sweep nowhere.yaml", 2),
        ("sweep sweep.yaml --set overrides.padim.model.sigma=-1", 2),
        ("sweep sweep.yaml --set overrides.stfpm.train.num_epoch=1", 2),
        ("sweep sweep.yaml --only nothing/at/all --dry-run", 2),
        ("train parts grain padim --set lr=1", 2),
        ("predict", 2),
        ("swep", 2),
        ("start nowhere", 2),
        ("start datasets/parts --minutes -1", 2),
    ]
    run_all(cases, site)
