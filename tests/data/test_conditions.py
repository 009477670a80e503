"""Which images a condition takes, against properties that hold for every draw."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from adray.conditions import PLAIN, Condition, ConditionConfig
from adray.config import build
from adray.data.base import Sample, split_of
from adray.data.conditions import divide
from adray.data.splits import holdout
from adray.errors import InputError


def make(n, label=0, category="c", split="train", kind="", home="/x", **more):
    kind = kind or ("dent" if label else "good")
    names = [f"{category}/{split}/{kind}/{i}.png" for i in range(n)]
    return [Sample(Path(home) / m, (), label, kind, "d", category, split, m, **more) for m in names]


def data(category="c", train=40, good=10, defects=30, home="/x"):
    normals = make(train, 0, category, home=home)
    test = make(good, 0, category, "test", home=home) + make(
        defects, 1, category, "test", home=home
    )
    return normals + test


def keys(samples):
    return {(s.category, s.key) for s in samples}


def of(category, samples):
    return [s for s in samples if s.category == category]


def test_the_plain_case_is_the_hold_out_and_the_test_that_readers_give():
    samples = data()
    parts = divide(samples, 0.2, 3)
    assert (parts.train, parts.held_out) == holdout(samples, 0.2, 3)
    assert parts.test == split_of(samples, "test")
    assert not parts.made


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("draw", [1, 2])
def test_k_shot_is_nested_and_leaves_hold_out_and_test_alone(seed, draw):
    samples = data()
    plain = divide(samples, 0.2, seed)
    smaller = set()
    for k in (1, 2, 4, 8, 16, 32):
        parts = divide(samples, 0.2, seed, Condition(k_shot=k, draw=draw))
        assert len(parts.train) == k
        assert smaller <= keys(parts.train) <= keys(plain.train)
        assert (parts.held_out, parts.test) == (plain.held_out, plain.test)
        smaller = keys(parts.train)
    assert smaller == keys(plain.train)


def test_a_fraction_is_the_beginning_of_the_same_draw_as_k_shot():
    samples = data()
    half = divide(samples, 0.2, 1, Condition(train_fraction=0.5, draw=2)).train
    assert keys(half) == keys(divide(samples, 0.2, 1, Condition(k_shot=16, draw=2)).train)
    assert len(divide(samples, 0.2, 1, Condition(train_fraction=0.001)).train) == 1
    assert Condition(train_fraction=1).is_plain


def test_draws_depend_on_seed_and_draw_and_every_image_has_its_turn():
    seen = Counter()
    for seed in range(60):
        for draw in (1, 2, 3):
            seen.update(keys(divide(data(train=20), 0, seed, Condition(k_shot=5, draw=draw)).train))
    assert len(seen) == 20
    # 180 draws of a quarter: each image about 45 times, five standard deviations are 29
    assert all(abs(count - 45) < 29 for count in seen.values())


def test_a_draw_of_one_category_is_the_same_whatever_runs_beside_it_and_however_files_lie():
    condition = Condition(k_shot=4)
    alone = divide(data("a"), 0.1, 7, condition)
    beside = data("b", train=30) + data("a", home="/elsewhere") + data("c")
    shuffled = random.Random(0).sample(beside, len(beside))
    together = divide(shuffled, 0.1, 7, condition)
    assert keys(of("a", together.train)) == keys(alone.train)
    assert Counter(s.category for s in together.train) == {"a": 4, "b": 4, "c": 4}


def test_labelled_defects_of_the_training_split_stay():
    samples = data() + make(6, 1)
    train = divide(samples, 0.2, 1, Condition(k_shot=3)).train
    assert Counter(s.label for s in train) == {0: 3, 1: 6}


def test_more_images_than_there_are_is_one_sentence_with_both_numbers():
    with pytest.raises(InputError, match="d/c: k_shot 33 is more than the 32 normal training"):
        divide(data(), 0.2, 1, Condition(k_shot=33))


def test_no_image_of_the_split_trains_and_tests_with_groups():
    samples = [replace(s, group=f"lot{i % 5}") for i, s in enumerate(make(40))]
    samples += [replace(s, group="lot9") for s in make(9, 1, split="test")]
    for k in (1, 5, 20):
        parts = divide(samples, 0.2, 1, Condition(k_shot=k))
        groups = {s.group for s in parts.train}
        assert not groups & {s.group for s in parts.held_out + parts.test}


# What is asked


def test_lists_are_multiplied_out_with_their_draws():
    config = build(ConditionConfig, {"k_shot": [1, 4], "draws": 3}, "few")
    assert [(c.k_shot, c.draw) for c in config.expand()] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (4, 1),
        (4, 2),
        (4, 3),
    ]
    assert build(ConditionConfig, {"k_shot": 4}, "few").expand() == [Condition(k_shot=4)]
    assert build(ConditionConfig, {}, "plain").expand() == [PLAIN]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k_shot": 0}, r"few.k_shot is 0, but must be at least 1"),
        ({"k_shot": [1, 1]}, r"few.k_shot \[1, 1\] names a value twice"),
        ({"k_shot": 2.5}, r"few.k_shot must be a whole number"),
        ({"k_shots": [1]}, r"unknown key 'few.k_shots'.*k_shot"),
        ({"k_shot": 2, "train_fraction": 0.5}, "give one of them"),
        ({"train_fraction": 1.5}, r"few.train_fraction is 1.5, but must be between 0.0001 and 1"),
        ({"draws": 3}, r"few.draws is 3, but nothing is drawn"),
        ({"draws": 0, "k_shot": 1}, r"few.draws is 0, but must be between 1 and 1000"),
    ],
)
def test_what_cannot_be_meant_is_named_with_what_is_allowed(values, message):
    with pytest.raises(InputError, match=message):
        build(ConditionConfig, values, "few")
