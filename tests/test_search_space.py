"""Search spaces: what models declare, the examples made of it, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from adray.errors import InputError
from adray.model_specs import MODEL_SPECS
from adray.registry import ModelRegistry
from adray.search_space import Domain, SearchSpace, as_overrides, load_space, values_of

FOLDER = Path(__file__).parents[1] / "configs" / "search"
MODELS = Path(__file__).parents[1] / "adray" / "models"


def test_every_model_file_has_a_space_and_every_space_a_model():
    models = {path.stem for path in MODELS.glob("*.py") if path.stem != "__init__"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == models


@pytest.mark.parametrize("name", [spec.name for spec in MODEL_SPECS])
def test_the_space_of_its_model_fits_every_configuration(name):
    space = load_space("auto", name)
    assert 2 <= len(space.domains) <= 6
    rng = np.random.default_rng(0)
    for _ in range(5):
        changes = as_overrides(space.sample(rng))
        resolved = ModelRegistry.resolve(
            name, model=changes.get("model"), train=changes.get("train")
        )
        assert set(values_of(space, resolved)) == set(space.domains)


def test_samples_come_from_the_seed_alone_and_stay_in_range():
    space = load_space("auto", "fastflow")
    first, second = (
        [space.sample(rng) for _ in range(200)] for rng in map(np.random.default_rng, (3, 3))
    )
    assert first == second
    for name, domain in space.domains.items():
        values = [sample[name] for sample in first]
        assert all(
            v in domain.choices if domain.choices else domain.low <= v <= domain.high
            for v in values
        )
        assert not domain.choices or len({str(value) for value in values}) == len(domain.choices)
    rates = np.log([sample["model.lr"] for sample in first])
    low, high = np.log([space.domains["model.lr"].low, space.domains["model.lr"].high])
    quarters = np.histogram(rates, 4, (low, high))[0]
    assert quarters.min() > 25  # 50 in each on average, if the logarithm is even


def test_whole_numbers_are_drawn_evenly_to_both_ends():
    rng = np.random.default_rng(0)
    counts = np.bincount([Domain("int", 1, 4).sample(rng) for _ in range(4000)], minlength=6)
    assert (counts[[0, 5]] == 0).all()
    assert (np.abs(counts[1:5] - 1000) < 5 * np.sqrt(750)).all()


def test_a_grid_holds_all_combinations_with_both_ends():
    space = SearchSpace(
        {
            "model.lr": Domain("log_uniform", 1e-4, 1e-2),
            "model.k": Domain("choice", choices=(1, [2])),
        }
    )
    rates = [1e-4, 1e-3, 1e-2]
    assert space.grid(3) == [{"model.lr": rate, "model.k": k} for rate in rates for k in (1, [2])]
    assert Domain("int", 1, 3).grid(10) == [1, 2, 3]


def test_a_file_an_inline_mapping_and_auto_give_the_same_space(tmp_path):
    content = yaml.safe_load((FOLDER / "patchcore.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    spaces = [
        load_space(source, "patchcore")
        for source in ("auto", str(tmp_path / "mine.yaml"), content["space"])
    ]
    assert spaces[0] == spaces[1] == spaces[2]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "maps names to ranges"),
        ({"model.coreset_rate": {"uniform": [0.1, 0.2]}}, "did you mean 'model.coreset_ratio'"),
        ({"coreset_ratio": {"uniform": [0.1, 0.2]}}, "did you mean 'model.coreset_ratio'"),
        ({"train.img_sizes": {"choice": [256]}}, "did you mean 'train.img_size'"),
        ({"model.coreset_ratio": [0.1, 0.2]}, "one kind of range"),
        ({"model.coreset_ratio": {"uniform": [0.1, 0.2], "int": [1, 2]}}, "one kind of range"),
        ({"model.coreset_ratio": {"loguniform": [0.1, 0.2]}}, "did you mean 'log_uniform'"),
        ({"model.coreset_ratio": {"uniform": 0.1}}, "must be a list"),
        ({"model.coreset_ratio": {"uniform": [0.1]}}, "two numbers"),
        ({"model.coreset_ratio": {"uniform": [0.2, 0.1]}}, "less than the second"),
        ({"model.coreset_ratio": {"uniform": ["1e-3", 0.1]}}, "write 1.0e-3"),
        ({"model.coreset_ratio": {"log_uniform": [0.0, 0.1]}}, "more than 0"),
        ({"model.coreset_ratio": {"uniform": [0.5, 1.5]}}, "between 1e-06 and 1; narrow the range"),
        ({"model.coreset_ratio": {"int": [1, 2]}}, "cannot be int"),
        ({"model.num_neighbors": {"log_uniform": [1, 9]}}, "use int or log_int or choice"),
        ({"model.num_neighbors": {"choice": []}}, "is empty"),
        ({"model.num_neighbors": {"choice": [1, 1]}}, "twice"),
        ({"model.num_neighbors": {"choice": ["many"]}}, "whole number"),
        ({"model.weights": {"uniform": [0, 1]}}, "use choice"),
        ({"train.num_epochs": {"int": [1, 5]}}, "sees each image once"),
        ({"train.holdout": {"uniform": [0.1, 0.5]}}, "cannot be searched"),
        ({"train.crop_size": {"choice": [224, 320]}}, "larger than img_size"),
    ],
)
def test_a_wrong_space_is_refused_with_what_would_be_right(space, said):
    with pytest.raises(InputError, match=r"^search\.space") as caught:
        load_space(space, "patchcore")
    assert said in str(caught.value)


def test_ends_that_are_wrong_only_together_are_found():
    with pytest.raises(InputError, match=r"skipped 0\.3 must be less than min_strength 0\.25"):
        load_space(
            {
                "model.skipped": {"uniform": [0.0, 0.3]},
                "model.min_strength": {"uniform": [0.25, 0.5]},
            },
            "dsr",
        )


def test_a_file_without_the_key_or_with_another_names_the_file(tmp_path):
    for text, said in (("spaces: {}", "unknown key 'spaces'"), ("{}", "'space' is missing")):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(InputError, match=said) as caught:
            load_space(str(tmp_path / "s.yaml"), "padim")
        assert str(tmp_path / "s.yaml") in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        load_space(str(tmp_path / "none.yaml"), "padim")
