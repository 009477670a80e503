from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from adray.cli.options import add_set
from adray.config import SweepConfig, TrainConfig, build, to_plain
from adray.config_file import describe_changes, load_sweep, parse_changes, parse_yaml, read_value
from adray.errors import InputError
from adray.settings import DataOptions, Settings

ROOT = Path(__file__).parents[1]


def test_a_config_survives_json():
    config = TrainConfig(num_epochs=3, crop_size=64, img_size=128, normalize="none")
    assert build(TrainConfig, json.loads(json.dumps(to_plain(config))), "train") == config


@pytest.mark.parametrize(
    ("given", "meant"),
    [(True, "imagenet"), (False, "none"), ("minus1_1", "minus1_1"), ("clip", "clip")],
)
def test_normalize_takes_the_specifications_booleans(given, meant):
    assert build(TrainConfig, {"normalize": given}, "train").normalize == meant


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_loads_and_says_how_to_run_it(path):
    config = load_sweep(str(path))
    assert path.read_text().startswith(f"# python -m adray.sweep configs/{path.name}\n")
    assert config.name == path.stem


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("full_*.yaml")), ids=lambda p: p.name
)
def test_full_configurations_plan_every_category_that_is_there(path, tmp_path):
    from fake_datasets import write_btad, write_mvtec, write_visa

    from adray.registry import ModelRegistry
    from adray.settings import absolute_settings
    from adray.sweep.plan import make_plan

    kind = path.stem.removeprefix("full_")
    {"mvtec": write_mvtec, "visa": write_visa, "btad": write_btad}[kind](tmp_path / kind)
    places = [
        f"settings.{name}={tmp_path}"
        for name in ("dataset_dir", "output_dir", "cache_dir", "backbone_dir")
    ]
    config = load_sweep(str(path), places)
    plan = make_plan(config, absolute_settings(config.settings))
    cells = {trial.job.names[1] for trial in plan.trials}
    models = set(ModelRegistry.list_models()) - {
        "supersimplenet-supervised"
    }  # no labelled defects train there
    assert {t.job.configuration for t in plan.trials} == models
    assert len(plan.trials) == len(cells) * len(models)
    free = {
        "autoencoder",
        "unet-autoencoder",
        "vae",
        "unet-vae",
        "ganomaly",
        "draem",
    }  # of weight files
    installed = {name for name in models if name.endswith("efficientnet-lite0")}
    assert {t.job.configuration for t in plan.of("new")} == free | installed
    held_out = {t.job.configuration for t in plan.trials if t.job.resolved.train_config.holdout}
    assert held_out == {"efficientad-small", "efficientad-medium"}


def test_set_changes_nested_values_and_reads_them_as_yaml():
    changes = parse_changes(
        ["train.num_epochs=5", "train.normalize=false", "model.layers=[layer1, layer2]"]
    )
    assert changes == {
        "train": {"num_epochs": 5, "normalize": False},
        "model": {"layers": ["layer1", "layer2"]},
    }


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/data/x #1",
            "010",
            "0o17",
            "0x1F",
            "1:30",
            "1:30:00",
            "1_000",
            "2026-01-02",
            "no",
            "on",
        ),
        *(
            "*",
            "&a",
            "a: b",
            "[1, 2",
            "[d].png",
            "'x' #y",
            "[a] # x]",
            "- a",
            "!!int 5",
            ".inf",
            "nan",
        ),
    ],
)
def test_set_takes_a_text_as_it_stands(text):
    assert read_value(text, "--set") == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("5", 5), ("-5", -5), ("0", 0), ("1e-3", 1e-3), ("1.5", 1.5), (" 5 ", 5), ("true", True)),
        *(("", None), ("~", None), ("null", None), ('"01"', "01"), ("'a #b'", "a #b"), ("[]", [])),
        ("[1, 010, 1:30, 'q', no]", [1, "010", "1:30", "q", "no"]),
        ("{a: [b], c: 1}", {"a": ["b"], "c": 1}),
    ],
)
def test_set_reads_what_is_plainly_a_scalar_a_list_or_a_map(text, value):
    found = read_value(text, "--set")
    assert found == value
    assert type(found) is type(value)


def test_brackets_around_what_is_no_list_get_a_sentence():
    with pytest.raises(InputError, match=r"begins and ends like a list .* in quotes"):
        parse_changes(["grid.models=[*-resnet18]"])


@pytest.mark.parametrize("above", ["train=5", "train={lr: 1}", "train={}"])
def test_a_pair_that_would_take_others_back_is_refused(above):
    with pytest.raises(InputError, match=r"take back .* \(train\.num_epochs\)"):
        parse_changes(["train.num_epochs=5", above])


def test_each_pair_of_set_is_said_with_texts_in_quotes():
    assert describe_changes(["a.b=/data/x #1", "c=[1, 01]", "d=부품"]) == [
        'set a.b = "/data/x #1"',
        'set c = [1, "01"]',
        'set d = "부품"',
    ]


def test_pairs_of_several_set_options_all_count():
    parser = argparse.ArgumentParser()
    add_set(parser, "example")
    assert parser.parse_args(["--set", "a=1", "--set", "b=2", "c=3"]).set == ["a=1", "b=2", "c=3"]
    assert parser.parse_args([]).set == []


def test_anchors_that_stay_small_are_allowed():
    assert parse_yaml("a: &x [1, 2]\nb: *x\n", "file") == {"a": [1, 2], "b": [1, 2]}


def test_an_alias_bomb_is_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(InputError, match="expands to more than"):
        parse_yaml("\n".join(lines), "bomb.yaml")


def test_numbers_in_scientific_notation_without_a_dot_get_a_hint():
    with pytest.raises(InputError, match=r"write 1.0e-3 rather than 1e-3"):
        build(
            SweepConfig,
            {"name": "x", "grid": {"datasets": {"a": "each"}}, "trial_hours": "1e3"},
            "",
        )


def test_what_is_said_of_a_data_set_is_a_word_or_a_list():
    settings = build(
        Settings, {"data": {"line3": {"range": [0, 4095], "channels": "gray"}, "b": {}}}, "settings"
    )
    assert settings.options_of("line3").range == (0.0, 4095.0)
    assert settings.options_of("line3").channels == "gray"
    assert settings.options_of("b") == settings.options_of("elsewhere") == DataOptions()
