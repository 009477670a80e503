"""`python -m adray` and its small commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_datasets import write_mvtec

from adray.__main__ import COMMANDS, main
from adray.config import SweepConfig, build
from adray.config_file import load_sweep
from adray.files import read_json
from adray.settings import absolute_settings, get_globals
from adray.sweep.assignment import assign
from adray.sweep.plan import make_plan
from adray.sweep.worker import run_assignment


@pytest.fixture
def store(tmp_path):
    """A store with one trial that is done and one that failed; returns their ids."""
    write_mvtec(
        tmp_path / "datasets" / "mvtec", categories=("bottle",), train=5, good=2, defects=3, size=32
    )
    here = get_globals()
    settings = {name: getattr(here, name) for name in ("dataset_dir", "output_dir", "cache_dir")}
    config = build(
        SweepConfig,
        {
            "name": "s",
            "settings": {**settings, "plugins": ["toy_plugin"]},
            "grid": {"models": ["toy-ok", "toy-raise"], "datasets": {"mvtec": "each"}},
        },
        "",
    )
    absolute = absolute_settings(config.settings)
    ids = {}
    for trial in make_plan(config, absolute).trials:
        run_assignment(assign(trial, absolute, limit_seconds=3600.0, save_maps=1), "cpu")
        ids[trial.job.configuration] = trial.id8
    return ids


def test_without_a_command_all_are_listed(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert main(["swep"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'swep'; did you mean 'sweep'?\n"


def test_the_module_and_the_console_script_are_the_same():
    python = Path(sys.executable)
    for command in ([str(python), "-m", "adray"], [str(python.with_name("adray"))]):
        if Path(command[0]).exists():
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "usage: python -m adray COMMAND" in out


def test_models_explains_what_can_be_set_of_one_with_its_range(capsys):
    assert main(["models", "padim"]) == 0
    printed = capsys.readouterr().out
    assert "model.sigma = 4.0 pixels  (0.1 to 100)" in printed
    assert "train.holdout = 0.1  (at least 0)" in printed
    assert main(["models", "padimm"]) == 2
    assert "did you mean 'padim'" in capsys.readouterr().err


def test_models_lists_families_and_tiers(capsys):
    assert main(["models", "--tier", "core"]) == 0
    printed = capsys.readouterr().out
    assert "memory:\n  padim " in printed
    assert "padim-wide-resnet50" not in printed


def test_status_says_what_is_done_and_why_others_failed(store, capsys):
    assert main(["status", get_globals().output_dir]) == 0
    printed = capsys.readouterr().out
    assert "1 done, 1 failed" in printed
    assert (
        f"{store['toy-raise']} mvtec/bottle/toy-raise seed 42  ValueError: toy went wrong"
        in printed
    )
    assert main(["status", "/no/such/store"]) == 2


def test_rerun_compares_a_done_trial_and_leaves_it_as_it_is(store, capsys):
    folder = next(Path(get_globals().output_dir).glob(f"mvtec/bottle/toy-ok/{store['toy-ok']}"))
    before = (folder / "result.json").stat().st_mtime_ns
    assert main(["rerun", store["toy-ok"][:5], "--local", "--store", get_globals().output_dir]) == 0
    auroc = read_json(folder / "result.json")["metrics"]["image_auroc"]
    printed = capsys.readouterr().out
    assert f"image_auroc      stored {auroc}  now {auroc}" in printed
    assert "scores: all 6 are equal bit for bit" in printed
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_rerun_tries_a_failed_trial_again_and_counts(store, capsys):
    assert main(["rerun", store["toy-raise"], "--local", "--store", get_globals().output_dir]) == 1
    assert "failed: ValueError: toy went wrong" in capsys.readouterr().out
    folder = next(Path(get_globals().output_dir).glob("mvtec/bottle/toy-raise/*"))
    assert read_json(folder / "failure.json")["attempts"] == 2


def test_rerun_of_an_unknown_id_says_where_ids_are(store, capsys):
    assert main(["rerun", "ffffffff", "--local", "--store", get_globals().output_dir]) == 2
    assert "see `python -m adray status STORE` for the ids" in capsys.readouterr().err


def test_data_says_what_a_folder_holds_and_writes_what_was_asked_for(tmp_path, capsys):
    root = write_mvtec(tmp_path / "parts", train=5, good=2, defects=3, size=32)
    sweep = tmp_path / "parts.yaml"
    page = tmp_path / "parts.html"
    command = ["data", str(root), "--write", str(sweep), "--page", str(page), "--language", "en"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{root}: the layout <category>/train/good")
    assert "parts/bottle: 10 images" in printed.out
    assert f"written: {sweep}" in printed.err
    assert load_sweep(sweep).grid.datasets == {"parts": "each"}
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_data_speaks_the_language_of_the_environment(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    assert main(["data", str(write_mvtec(tmp_path / "parts", size=32))]) == 0
    assert "parts/wood: 이미지 13장" in capsys.readouterr().out


def test_data_prints_json_alone(tmp_path, capsys):
    assert main(["data", str(write_mvtec(tmp_path / "parts", size=32)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [category["category"] for category in found["categories"]] == ["bottle", "wood"]


def test_data_ends_with_2_where_a_sweep_would_not_start(tmp_path, capsys):
    root = write_mvtec(tmp_path / "parts", size=32)
    (root / "wood" / "train" / "good" / "002.png").write_bytes(b"no image")
    assert main(["data", str(root), "--language", "en"]) == 2
    assert "STOPS A SWEEP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--write", "there.yaml"], "there.yaml exists already; give another name or remove it"),
        (["--page", "page.txt"], "page.txt does not end in .html"),
        (["--page", "none/page.html"], "the folder none does not exist"),
        (["--set", "acept=[shared_mask]"], "did you mean 'accept'"),
        (["--set", "accept=[shared_masks]"], "did you mean 'shared_mask'"),
    ],
)
def test_data_refuses_before_it_looks(options, sentence, tmp_path, capsys, monkeypatch):
    root = write_mvtec(tmp_path / "parts", size=32)
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text("mine", encoding="utf-8")
    assert main(["data", str(root), *options]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "images" not in printed.out
    assert Path("there.yaml").read_text(encoding="utf-8") == "mine"


def test_data_that_is_interrupted_ends_with_130_and_writes_nothing(tmp_path, capsys, monkeypatch):
    root = write_mvtec(tmp_path / "parts", size=32)
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("adray.data.survey_pictures.decode_image", interrupt)
    page = tmp_path / "page.html"
    assert main(["data", str(root), "--page", str(page), "--language", "en"]) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_any_command_that_is_interrupted_ends_with_130_and_one_word(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("adray.cli.status.view_store", interrupt)
    assert main(["status", str(tmp_path), "--lang", "en"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_data_draws_no_bar_where_nobody_watches(tmp_path):
    root = write_mvtec(tmp_path / "parts", size=32)
    command = [sys.executable, "-m", "adray", "data", str(root)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


def test_submit_refuses_a_store_without_the_categories_and_names_them(store, capsys):
    words = ["submit", get_globals().output_dir, store["toy-ok"], "--to", "AD2"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "is of bottle, which MVTec AD 2 does not have" in said
    assert "no trial of can, fabric, fruit_jelly, rice, sheet_metal, vial" in said


def test_rerun_says_that_the_images_are_no_longer_those_of_the_trial(store, capsys):
    words = ["rerun", store["toy-ok"], "--local", "--store", get_globals().output_dir]
    assert main(words) == 0
    assert "have changed" not in capsys.readouterr().out

    write_mvtec(Path(get_globals().dataset_dir) / "mvtec", ("bottle",), train=6, good=2, size=32)
    assert main(words) == 0
    assert (
        "the images of the data set, or how they are read, have changed" in capsys.readouterr().out
    )


def test_rerun_stops_at_what_would_silently_change_the_result(store, capsys):
    home = Path(get_globals().dataset_dir) / "mvtec" / "bottle"
    shutil.copy(next(home.glob("train/good/*")), home / "test/good/copy.png")
    words = ["rerun", store["toy-ok"], "--local", "--store", get_globals().output_dir]
    assert main(words) == 2
    assert "accept: [identical_pictures]" in capsys.readouterr().err
    assert main([*words, "--accept", "identical_pictures"]) == 0


def test_data_describes_a_published_set_that_is_not_here(capsys):
    assert main(["data", "mvtec_loco"]) == 0
    printed = capsys.readouterr().out
    assert "https://www.mvtec.com" in printed
    assert "licence" in printed
    assert main(["data", "mvtec_loko"]) == 2
    assert "did you mean 'mvtec_loco'" in capsys.readouterr().err


def test_data_looks_at_a_published_set_that_is_here(capsys):
    write_mvtec(Path(get_globals().dataset_dir) / "mvtec", size=32)
    assert main(["data", "mvtec", "--language", "en"]) == 0
    assert "mvtec/wood: 13 images" in capsys.readouterr().out
