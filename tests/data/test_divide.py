"""Which images a condition takes, against properties that hold for every draw."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from adray.conditions import PLAIN, Condition, ConditionConfig
from adray.config import build
from adray.data.base import Sample, split_of
from adray.data.conditions import divide, values_of
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


# Defects among the normal images

SHARES = (0.05, 0.1, 0.2, 0.4)


def dirty(share, **more):
    return Condition(contamination=share, **more)


@pytest.mark.parametrize("test_defects", ["no_overlap", "overlap"])
@pytest.mark.parametrize("seed", range(4))
def test_the_share_of_defects_is_that_of_the_training_set_after_adding(seed, test_defects):
    samples = data(train=60, defects=60)
    for share in SHARES:
        parts = divide(samples, 0.2, seed, dirty(share, test_defects=test_defects))
        for images, normals in ((parts.train, 48), (parts.held_out, 12)):
            added = [s for s in images if s in parts.made]
            assert len(images) == normals + len(added)
            # One defect more or less would be further from the share.
            errors = [abs(d / (normals + d) - share) for d in (len(added), *around(len(added)))]
            assert errors[0] == min(errors)


def around(count):
    return [count + 1, *([count - 1] if count else [])]


@pytest.mark.parametrize("seed", range(4))
def test_defects_look_normal_but_for_their_pixels_and_come_from_the_test(seed):
    samples = data()
    parts = divide(samples, 0.2, seed, dirty(0.2))
    assert all(s.label == 0 and not s.mask_paths for s in parts.train + parts.held_out)
    for changed, sample in parts.made.items():
        assert (changed.key, changed.path) == (sample.key, sample.path)
        assert (sample.label, sample.split) == (1, "test")
    plain = divide(samples, 0.2, seed)
    assert keys(parts.train) - keys(parts.made) == keys(plain.train)
    assert keys(parts.held_out) - keys(parts.made) == keys(plain.held_out)


@pytest.mark.parametrize("seed", range(4))
def test_without_overlap_no_image_trains_and_tests_and_with_it_the_test_is_whole(seed):
    samples = data()
    plain = divide(samples, 0.2, seed)
    apart = divide(samples, 0.2, seed, dirty(0.2))
    assert keys(apart.test) == keys(plain.test) - keys(apart.made)
    assert not keys(apart.test) & keys(apart.train + apart.held_out)
    shared = divide(samples, 0.2, seed, dirty(0.2, test_defects="overlap"))
    assert shared.test == plain.test
    assert keys(shared.train) == keys(apart.train)


@pytest.mark.parametrize("draw", [1, 2])
def test_a_larger_share_takes_what_a_smaller_one_took(draw):
    samples = data(train=60, defects=60)
    train, held_out = set(), set()
    for share in SHARES:
        parts = divide(samples, 0.2, 3, dirty(share, draw=draw))
        assert train <= keys(parts.train)
        assert held_out <= keys(parts.held_out)
        train, held_out = keys(parts.train), keys(parts.held_out)
        assert not train & held_out


def test_a_clean_hold_out_is_that_of_the_plain_case():
    parts = divide(data(), 0.2, 1, dirty(0.2, hold_out="clean"))
    assert parts.held_out == divide(data(), 0.2, 1).held_out
    assert keys(parts.train) == keys(divide(data(), 0.2, 1, dirty(0.2)).train)


def test_defects_of_one_category_do_not_depend_on_what_runs_beside_it():
    alone = divide(data("a"), 0.1, 7, dirty(0.2))
    beside = random.Random(0).sample(data("b") + data("a"), 160)
    together = divide(beside, 0.1, 7, dirty(0.2))
    assert keys(of("a", together.train)) == keys(alone.train)
    assert keys(of("a", together.test)) == keys(alone.test)


def test_few_images_may_be_dirty_too():
    parts = divide(data(), 0, 1, Condition(k_shot=8, contamination=0.2))
    assert Counter(s in parts.made for s in parts.train) == {False: 8, True: 2}
    with pytest.raises(InputError, match=r"0.05 of 8 training images is less than half a defect"):
        divide(data(), 0, 1, Condition(k_shot=8, contamination=0.05))


def test_images_of_a_group_with_a_defect_that_trains_leave_the_test():
    samples = make(40) + make(10, split="test")
    samples += [replace(s, part=f"p{i // 4}") for i, s in enumerate(make(32, 1, split="test"))]
    parts = divide(samples, 0, 1, dirty(0.2))
    used = {s.part for s in parts.made}
    assert len(parts.made) == 10
    assert len(used) == 3  # as few parts as ten images of four each can have
    assert {s.part for s in parts.test if s.label} == {f"p{i}" for i in range(8)} - used

    lots = [replace(s, group="one lot") if s.split == "test" else s for s in data()]
    with pytest.raises(InputError, match=r"no normal test image is left.*overlap"):
        divide(lots, 0, 1, dirty(0.1))
    assert divide(lots, 0, 1, dirty(0.1, test_defects="overlap")).made


@pytest.mark.parametrize("test_defects", ["no_overlap", "overlap"])
@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_the_share_that_a_refusal_names_is_possible_and_the_next_is_not(holdout, test_defects):
    samples = data(train=40, defects=12)
    with pytest.raises(InputError, match="the test has 12") as refused:
        divide(samples, holdout, 1, dirty(0.5, test_defects=test_defects))
    most = float(re.search(r"at most ([\d.]+)", str(refused.value))[1])
    assert divide(samples, holdout, 1, dirty(most, test_defects=test_defects)).made
    with pytest.raises(InputError):
        divide(samples, holdout, 1, dirty(most + 0.01, test_defects=test_defects))


def test_data_without_defects_cannot_be_contaminated():
    with pytest.raises(InputError, match=r"d/c: contamination 0.1 .* the test has none"):
        divide(data(defects=0), 0.1, 1, dirty(0.1))


# One group left out


def lots(n=5):
    """Normals in `n` lots, which a split keeps together: the last one tests. Defects are of two."""
    samples = [replace(s, group=f"lot{i % (n - 1)}") for i, s in enumerate(make(40))]
    samples += [replace(s, group=f"lot{n - 1}") for s in make(10, split="test")]
    samples += [replace(s, group=f"lot{i % 2}") for i, s in enumerate(make(8, 1, split="test"))]
    return samples + make(4, 1, split="test", kind="stain")


@pytest.mark.parametrize("lot", ["lot0", "lot1", "lot3", "lot4"])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_a_lot_that_is_left_out_tests_alone_and_the_others_train(lot, holdout):
    samples = lots()
    condition = Condition(leave_out="group", left_out=lot)
    parts = divide(samples, holdout, 1, condition)
    learnt = parts.train + parts.held_out
    assert bool(parts.held_out) == (holdout > 0)
    others = [s for s in samples if s.split == "train" and s.group != lot]
    assert keys(learnt) == keys(others)
    # Defects that are of no lot test every one.
    expected = [s for s in samples if s.group == lot or s.defect_type == "stain"]
    assert keys(parts.test) == keys(expected)
    assert {s.split for s in parts.test} == {"test"}
    assert all(s.label == 0 or not s.mask_paths for s in parts.test)


def test_a_column_of_a_list_is_left_out_as_a_group_is():
    samples = [replace(s, columns=(("camera", "ab"[i % 2]),)) for i, s in enumerate(data())]
    assert values_of(samples, "camera") == ["a", "b"]
    assert values_of(samples, "group") == []
    parts = divide(samples, 0.1, 1, Condition(leave_out="camera", left_out="a"))
    assert {dict(s.columns)["camera"] for s in parts.train + parts.held_out} == {"b"}
    assert {dict(s.columns)["camera"] for s in parts.test} == {"a"}


def test_values_stand_in_natural_order():
    samples = [replace(s, group=f"day {i}") for i, s in enumerate(make(12))]
    assert values_of(samples, "group") == [f"day {i}" for i in range(12)]


@pytest.mark.parametrize(
    ("samples", "lack"),
    [
        ([replace(s, group="lot") for s in data()], "no normal image trains"),
        ([s for s in lots() if s.group != "lot0" or s.label], "no normal image tests"),
        ([s for s in lots() if not s.label], "no defective image tests"),
    ],
)
def test_a_value_that_nothing_can_be_said_of_is_refused(samples, lack):
    name = "lot" if "trains" in lack else "lot0"
    with pytest.raises(InputError, match=f"leave_out group={name}: {lack}"):
        divide(samples, 0.1, 1, Condition(leave_out="group", left_out=name))


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
        ({"contamination": 0.7}, r"few.contamination is 0.7, but must be between 0 and 0.6"),
        ({"contamination": 0.1, "test_defects": "both"}, r"few.test_defects is 'both'.*overlap"),
        ({"leave_out": "group", "contamination": 0.1}, "do not go together"),
        ({"draws": 0, "k_shot": 1}, r"few.draws is 0, but must be between 1 and 1000"),
    ],
)
def test_what_cannot_be_meant_is_named_with_what_is_allowed(values, message):
    with pytest.raises(InputError, match=message):
        build(ConditionConfig, values, "few")
