"""`configs/site_check.yaml`: ready once its one path is that of a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_datasets import write_folder

from adray.__main__ import main
from adray.conditions import KINDS
from adray.config_file import load_sweep
from adray.registry import ModelRegistry
from adray.settings import absolute_settings
from adray.sweep.plan import make_plan

FILE = str(Path(__file__).parents[1] / "configs" / "site_check.yaml")


def changed(tmp_path):
    """The one path, and folders of this test that a user has no need to name."""
    return [
        f"settings.folders.my_parts.path={tmp_path / '우리 부품'}",
        f"settings.output_dir={tmp_path / 'outputs'}",
        f"settings.cache_dir={tmp_path / 'cache'}",
    ]


def test_check_finds_it_ready_on_a_folder_of_ones_own(tmp_path, capsys):
    write_folder(tmp_path / "우리 부품", normal=50, defects=12, size=32)
    assert main(["check", FILE, "--set", *changed(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "ready: nothing is missing" in printed
    assert "4 trials are scored under 42 corruptions" in printed
    assert "k_shot=16" in printed
    assert "contamination=0.1" in printed


def test_it_asks_four_models_of_one_pass_for_few_pictures_dirty_ones_and_every_corruption(tmp_path):
    write_folder(tmp_path / "우리 부품", normal=50, defects=12, size=32)
    config = load_sweep(FILE, changed(tmp_path))
    plan = make_plan(config, absolute_settings(config.settings))
    models = {trial.job.configuration for trial in plan.trials}
    assert len(models) == 4
    assert all(ModelRegistry.trainer_class(name).single_pass for name in models)
    labels = {trial.job.condition.label for trial in plan.trials}
    assert {"plain", "k_shot=2", "contamination=0.05 no_overlap"} <= labels
    for trial in plan.trials:
        kinds = {corruption.kind for corruption in trial.lacking}
        assert kinds == (set(KINDS) if trial.job.condition.is_plain else set())


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["check", FILE, "--set", *changed(tmp_path)]) == 2
    assert "우리 부품" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ray
def test_it_runs_to_its_end_and_the_page_has_every_part(tmp_path):
    from adray.cli.sweep import main as sweep

    write_folder(tmp_path / "우리 부품", normal=50, defects=12, size=64)
    small = ["overrides.*.train.img_size=64", "overrides.*.train.holdout=0.2"]
    assert sweep([FILE, "--num-cpus", "2", "--set", *changed(tmp_path), *small]) == 0
    page = (tmp_path / "outputs" / "sweeps" / "site_check" / "report.html").read_text("utf-8")
    assert "contamination=0.1 no_overlap" in page
    assert "rotation 5" in page
    assert sweep([FILE, "--num-cpus", "2", "--set", *changed(tmp_path), *small]) == 0
