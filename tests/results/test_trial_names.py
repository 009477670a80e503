"""Trials by the names that a person gives them."""

from __future__ import annotations

import pytest
from fake_parts import part_trial

from adray.__main__ import main
from adray.cli.options import model_path
from adray.decide import decide
from adray.errors import InputError
from adray.results.current import view_store
from adray.results.trial_names import named_trial


@pytest.fixture
def records(tmp_path):
    """Two parts of one data set, a model of several seeds in the first."""
    for seed, distance in enumerate((3.0, 1.0, 2.0)):
        part_trial(tmp_path, "padim", distance, seed, category="cup")
    part_trial(tmp_path, "stfpm", 1.0, category="cup")
    part_trial(tmp_path, "padim", 1.0, category="plate")
    return view_store(tmp_path).shown(everything=False)


@pytest.mark.parametrize("name", ["cup/padim", "mvtec/cup/padim"])
def test_of_several_seeds_a_name_means_the_one_that_decide_deploys(name, records):
    cup, _ = decide(records)
    (padim,) = [option for option in cup.options if option.name == "padim"]
    assert named_trial(records, name).folder == padim.place
    assert padim.seed == 2


def test_the_data_set_alone_is_enough_where_one_part_has_the_model(records):
    assert named_trial(records, "mvtec/stfpm").identity["configuration"] == "stfpm"


def test_a_name_of_several_parts_asks_for_the_whole_one(records):
    with pytest.raises(InputError, match="mvtec/cup/padim or mvtec/plate/padim"):
        named_trial(records, "mvtec/padim")


def test_a_path_that_is_there_is_no_name(records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_path("mvtec/cup", str(tmp_path)) == "mvtec/cup"
    assert model_path("cup/model.pth", str(tmp_path)) == "cup/model.pth"
    assert model_path("cup/padim", "nowhere") == "cup/padim"
    assert model_path("cup/stfpm", str(tmp_path)).startswith(str(tmp_path / "mvtec/cup/stfpm"))


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "cup/padimm", "image.png", "--out", "out"],
        ["audit", "cup/padimm", "image.png"],
        ["export", "cup/padimm", "--out", "out"],
        ["measure", "cup/padimm"],
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(words, records, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("outputs").symlink_to(tmp_path)
    assert main(words) == 2
    assert "did you mean 'mvtec/cup/padim'" in capsys.readouterr().err
    assert not tmp_path.joinpath("out").exists()
