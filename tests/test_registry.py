from __future__ import annotations

import json

import pytest

from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.config import build, to_plain
from adray.errors import InputError
from adray.model_specs import FAMILIES, MODEL_SPECS, TIERS, ModelSpec
from adray.registry import ModelRegistry
from adray.settings import set_globals


def test_the_specifications_methods_exist():
    names = "register get is_registered list_models list_by_category get_train_config get_model_config get_trainer"
    assert all(
        callable(getattr(ModelRegistry, name)) for name in [*names.split(), "register_all_models"]
    )


def test_names_and_aliases_are_unique_and_rows_are_of_known_kinds():
    names = [name for spec in MODEL_SPECS for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))
    assert {spec.family for spec in MODEL_SPECS} <= set(FAMILIES)
    assert {spec.tier for spec in MODEL_SPECS} <= set(TIERS)


@pytest.mark.parametrize("name", [spec.name for spec in MODEL_SPECS])
@pytest.mark.parametrize("budget", ["paper", "quick"])
def test_every_row_resolves_and_its_configs_survive_json(name, budget):
    resolved = ModelRegistry.resolve(name, budget=budget)
    for config in (resolved.config, resolved.train_config):
        assert build(type(config), json.loads(json.dumps(to_plain(config))), "") == config
    assert set(resolved.weight_files) <= set(BACKBONE_WEIGHT_FILES)


def test_budgets_are_those_of_the_paper_and_of_the_specification():
    epochs = {b: ModelRegistry.get_train_config("stfpm", b).num_epochs for b in ("paper", "quick")}
    assert epochs == {"paper": 100, "quick": 50}
    assert ModelRegistry.get_train_config("fastflow-resnet50").num_epochs == 500
    assert ModelRegistry.get_train_config("patchcore").input_size == 224


def test_what_the_user_gives_wins_and_num_epochs_replaces_a_step_budget():
    ModelRegistry.register(
        ModelSpec(
            "steps",
            "steps",
            "memory",
            "adray.models.stfpm.StfpmTrainer",
            paper={"max_steps": 70_000},
        )
    )
    assert ModelRegistry.resolve("steps").train_config.max_steps == 70_000
    changed = ModelRegistry.resolve("steps", train={"num_epochs": 3}, model={"lr": 0.1})
    assert (changed.train_config.max_steps, changed.train_config.num_epochs, changed.config.lr) == (
        None,
        3,
        0.1,
    )


def test_random_weights_reach_only_models_with_a_backbone():
    assert ModelRegistry.resolve("padim", weights="random").weight_files == ()
    assert ModelRegistry.resolve("padim").weight_files == ("resnet18",)
    assert ModelRegistry.resolve("autoencoder", weights="random").weight_files == ()


def test_a_single_pass_model_has_one_epoch_whatever_is_asked():
    assert ModelRegistry.resolve("padim", train={"num_epochs": 9}).train_config.num_epochs == 1


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=r"unknown model 'patchcor'; did you mean 'patchcore'\?"):
        ModelRegistry.get("patchcor")
    with pytest.raises(InputError, match=r"unknown family 'flows'; did you mean 'flow'\?"):
        ModelRegistry.list_by_category("flows")
    with pytest.raises(InputError, match=r"unknown key 'stfpm.model.lrr'; did you mean 'lr'\?"):
        ModelRegistry.resolve("stfpm", model={"lrr": 1})


def test_an_alias_finds_its_row():
    assert ModelRegistry.get("fastflow").name == "fastflow-wide-resnet50"


def test_families_hold_only_core_rows():
    counts = {
        "memory": 3,
        "flow": 9,
        "distillation": 6,
        "reconstruction": 4,
        "adaptation": 2,
        "foundation": 12,
    }
    assert {
        family: len(names) for family, names in ModelRegistry.list_by_category().items()
    } == counts
    assert ModelRegistry.list_by_category("memory") == ["padim", "patchcore", "dfkde"]
    assert set(ModelRegistry.list_by_category()) == set(FAMILIES)


def test_register_takes_the_specifications_four_arguments():
    ModelRegistry.register(
        "mine", "adray.models.stfpm.StfpmTrainer", {"lr": 0.2}, {"num_epochs": 7}
    )
    assert ModelRegistry.is_registered("mine")
    assert ModelRegistry.get_train_config("mine").num_epochs == 7
    assert ModelRegistry.get_model_config("mine").lr == 0.2
    with pytest.raises(InputError, match="configuration name 'padim' is taken"):
        ModelRegistry.register("padim", "some.Where", {}, {})


def test_a_trainer_that_is_not_there_is_named():
    ModelRegistry.register("nowhere", "adray.models.nowhere.Trainer", {}, {})
    with pytest.raises(InputError, match=r"module 'adray.models.nowhere' cannot be imported"):
        ModelRegistry.resolve("nowhere")


def use_plugin(folder, monkeypatch, name, text):
    """Write a module of the user's own, and name it in the settings."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    set_globals(plugins=(name,))


REGISTER = "from adray.registry import ModelRegistry as R\n"


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ("padim", r"own_taken: configuration name 'padim' is taken by adray\.models\.padim"),
        ("dinomaly", "configuration name 'dinomaly' is taken"),  # an alias
    ],
)
def test_a_plug_in_that_takes_a_name_is_refused_each_time_and_leaves_nothing(
    tmp_path, monkeypatch, taken, words
):
    lines = f"R.register('fresh', 'x.Y', {{}}, {{}})\nR.register('{taken}', 'x.Y', {{}}, {{}})\n"
    use_plugin(tmp_path, monkeypatch, "own_taken", REGISTER + lines)
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            ModelRegistry.list_models()
    set_globals(plugins=())
    assert "fresh" not in ModelRegistry.list_models()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\nsys.exit(3)\n", "own_plug ends the program when it is imported"),
        ("import no_such_thing\n", "own_plug needs the module 'no_such_thing', which cannot"),
    ],
)
def test_a_plug_in_that_ends_the_program_or_lacks_a_module_is_named(
    tmp_path, monkeypatch, text, words
):
    use_plugin(tmp_path, monkeypatch, "own_plug", text)
    with pytest.raises(InputError, match=words):
        ModelRegistry.list_models()


@pytest.mark.parametrize("text", ["x = 1 +\n", "raise KeyError('x')\n", "import json.nowhere\n"])
def test_a_plug_in_that_fails_gets_one_sentence(tmp_path, monkeypatch, text):
    use_plugin(tmp_path, monkeypatch, "own_failing", text)
    with pytest.raises(InputError, match=r"settings\.plugins: ") as refused:
        ModelRegistry.list_models()
    assert "\n" not in str(refused.value)


def test_a_configuration_whose_name_has_brackets_is_meant_by_its_own_name():
    ModelRegistry.register("own[1]", "adray.models.stfpm.StfpmTrainer", {}, {})
    assert ModelRegistry.matches("own[1]", "own[1]")
