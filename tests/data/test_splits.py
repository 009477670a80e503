from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from adray.data.base import Sample
from adray.data.splits import check_training_defects, holdout, split_normals, training_defects
from adray.errors import InputError


def make(n, label=0, category="c", dataset="d", split="train", kind=None, home="/x"):
    kind = kind or ("dent" if label else "good")
    names = [f"{category}/{kind}/{i}.png" for i in range(n)]
    return [Sample(Path(home) / m, (), label, kind, dataset, category, split, m) for m in names]


def keys(samples):
    return [(s.dataset, s.key) for s in samples]


def test_holdout_divides_the_training_normals_and_leaves_the_test_out():
    samples = make(40) + make(5, label=1) + make(9, split="test", kind="other")
    train, held = holdout(samples, 0.1, seed=1)
    assert len(held) == 4
    assert {s.label for s in held} == {0}
    assert sorted(keys(train + held)) == sorted(keys(samples[:45]))
    assert Counter(s.label for s in train) == {0: 36, 1: 5}


def test_holdout_does_not_depend_on_the_order_or_the_place():
    samples = make(50)
    shuffled = random.Random(0).sample(make(50, home="/elsewhere"), 50)
    assert set(keys(holdout(samples, 0.2, 3)[1])) == set(keys(holdout(shuffled, 0.2, 3)[1]))


def test_holdout_keeps_the_order_of_the_list():
    train, held = holdout(make(50), 0.2, 3)
    order = {key: i for i, key in enumerate(keys(make(50)))}
    for part in (train, held):
        assert [order[key] for key in keys(part)] == sorted(order[key] for key in keys(part))


def test_holdout_changes_with_the_seed_and_every_image_has_its_turn():
    seen = Counter(key for seed in range(200) for key in keys(holdout(make(20), 0.25, seed)[1]))
    assert len(seen) == 20
    # 200 draws of a quarter: each image about 50 times, five standard deviations are 31
    assert all(abs(count - 50) < 31 for count in seen.values())


def test_holdout_is_per_category_and_data_set():
    samples = (
        make(20, category="a") + make(10, category="b") + make(10, category="a", dataset="other")
    )
    held = holdout(samples, 0.1, 0)[1]
    assert Counter((s.dataset, s.category) for s in held) == {
        ("d", "a"): 2,
        ("d", "b"): 1,
        ("other", "a"): 1,
    }
    alone = holdout(make(20, category="a"), 0.1, 0)[1]
    assert [s for s in held if (s.dataset, s.category) == ("d", "a")] == alone


@pytest.mark.parametrize(
    ("n", "fraction", "expected"),
    [(10, 0, 0), (1, 0.5, 0), (2, 0.9, 0), (3, 0.01, 1), (3, 0.9, 1), (100, 0.9, 90)],
)
def test_holdout_takes_at_least_one_and_leaves_two(n, fraction, expected):
    train, held = holdout(make(n), fraction, 0)
    assert (len(train), len(held)) == (n - expected, expected)


@pytest.mark.parametrize(("n", "count"), [(3, 1), (10, 8), (26, 24), (1000, 333)])
def test_a_hold_out_may_be_a_number_of_images_of_each_category(n, count):
    samples = make(n, category="a") + make(2 * n, category="b")
    _, held = holdout(samples, count, 0)
    assert Counter(sample.category for sample in held) == {"a": count, "b": count}


@pytest.mark.parametrize(("n", "count", "most"), [(1, 1, 0), (2, 1, 0), (3, 2, 1), (25, 24, 23)])
def test_a_number_that_leaves_less_than_two_images_is_refused_with_the_most_that_can_be(
    n, count, most
):
    with pytest.raises(InputError, match=rf"holdout is {count}, .* of {n} .* at most {most} can"):
        holdout(make(n), count, 0)


def test_where_the_data_bring_validation_images_no_number_of_others_is_held_out():
    samples = [*make(4), *[replace(sample, split="validation") for sample in make(7)[4:]]]
    assert {sample.split for sample in holdout(samples, 4, 0)[1]} == {"validation"}


@pytest.mark.parametrize("fraction", [1.0, 24.0, 0.95])
def test_a_hold_out_of_all_images_or_of_a_broken_number_of_them_is_refused(fraction):
    with pytest.raises(InputError, match=r"holdout is .*, but must be a fraction"):
        holdout(make(40), fraction, 0)


@pytest.mark.parametrize("fraction", [-0.1, 0.91, 1.0, float("nan"), "0.1", None, True])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(
        InputError, match=r"holdout is .*, but must be a fraction in \[0, 0.9\] .*; 0 turns it off"
    ):
        holdout(make(4), fraction, 0)
    with pytest.raises(InputError, match="test_fraction: "):
        split_normals(make(4), fraction)
    with pytest.raises(InputError, match="train_defects: "):
        split_normals(make(4), train_defects=fraction)


def test_split_sends_a_fifth_of_the_normals_and_all_defects_to_the_test():
    parts = Counter((s.split, s.label) for s in split_normals(make(50) + make(7, label=1)))
    assert parts == {("train", 0): 40, ("test", 0): 10, ("test", 1): 7}


def test_split_keeps_the_order_of_the_list_and_does_not_depend_on_it():
    samples = make(30) + make(8, label=1)
    shuffled = random.Random(1).sample(samples, len(samples))
    one, two = split_normals(samples, train_defects=0.3), split_normals(shuffled, train_defects=0.3)
    assert keys(one) == keys(samples)
    assert keys(two) == keys(shuffled)
    assert {s.key: s.split for s in one} == {s.key: s.split for s in two}


def test_split_keeps_groups_whole_for_every_seed():
    def group(sample):
        return str(int(sample.path.stem) // 4)

    for seed in range(20):
        sides = defaultdict(set)
        samples = split_normals(make(48), seed=seed, group=group)
        for s in samples:
            sides[group(s)].add(s.split)
        assert all(len(side) == 1 for side in sides.values())
        assert 4 <= sum(s.split == "test" for s in samples) <= 10


def test_images_of_one_part_are_held_out_together_also_without_a_group():
    for seed in range(10):
        samples = [replace(s, part=str(int(s.path.stem) // 3)) for s in make(30)]
        train, held_out = holdout(samples, 0.2, seed)
        assert {s.part for s in train}.isdisjoint(s.part for s in held_out)
        assert len(held_out) == 6


def test_split_leaves_training_images_however_uneven_the_groups():
    for seed in range(10):
        samples = split_normals(
            make(20), seed=seed, group=lambda s: "large" if int(s.path.stem) < 18 else "small"
        )
        assert sum(s.split == "test" for s in samples) == 2


def test_one_group_for_all_is_split_image_by_image_and_said(caplog):
    samples = split_normals(make(10), group=lambda s: "same")
    assert Counter(s.split for s in samples) == {"train": 8, "test": 2}
    assert "share one group" in caplog.text


def test_split_takes_training_defects_from_each_type():
    samples = make(10) + make(4, label=1, kind="dent") + make(8, label=1, kind="stain")
    trained = Counter(
        s.defect_type
        for s in split_normals(samples, train_defects=0.5)
        if s.label and s.split == "train"
    )
    assert trained == {"dent": 2, "stain": 4}


def test_training_defects_are_those_of_the_training_split():
    samples = make(3) + make(2, label=1) + make(4, label=1, split="test", kind="stain")
    assert keys(training_defects(samples)) == keys(samples[3:5])


def test_supervised_training_without_labelled_defects_is_refused_with_a_remedy():
    with pytest.raises(
        InputError, match=r"^d/c: the training split has no labelled defects.*2cls_highshot.*0\.5"
    ):
        check_training_defects(make(3) + make(4, label=1, split="test"))


def test_labelled_defects_without_a_mask_are_refused_with_their_number():
    samples = make(3) + make(4, label=1)
    masked = [replace(s, mask_paths=(s.path,)) if s.label else s for s in samples]
    check_training_defects(masked)
    with pytest.raises(
        InputError, match=r"^d/c: 1 of 4 labelled training defects have no mask, such as 3\.png"
    ):
        check_training_defects([*masked[:-1], samples[-1]])


def test_split_of_a_merged_list_is_that_of_its_parts():
    a, b = make(20, category="a"), make(30, category="b")
    assert split_normals(a + b) == split_normals(a) + split_normals(b)


def test_split_ignores_what_the_samples_said_before():
    samples = make(20)
    assert split_normals(samples) == split_normals([replace(s, split="test") for s in samples])


def lots(seed):
    """Normals and three types of defects of random lots, half of which have defects."""
    draw = random.Random(seed)
    names = [f"lot{i}" for i in range(12)]
    samples = [replace(s, group=draw.choice(names)) for s in make(60)]
    for kind in ("dent", "hole", "scratch"):
        samples += [replace(s, group=draw.choice(names[:5])) for s in make(20, 1, kind=kind)]
    return samples


@pytest.mark.parametrize("train_defects", [0.0, 0.3, 0.5])
def test_no_lot_trains_and_tests_whatever_it_holds_or_it_is_said(train_defects, caplog):
    said = 0
    for seed in range(30):
        caplog.clear()
        split = split_normals(lots(seed), seed=seed, train_defects=train_defects)
        if caplog.records:
            said += 1
            continue
        sides = defaultdict(set)
        for sample in split:
            sides[sample.group].add(sample.split)
        assert all(len(side) == 1 for side in sides.values()), seed
        assert {(s.split, s.label) for s in split} >= {("train", 0), ("test", 0), ("test", 1)}
        assert any(s.split == "train" and s.label for s in split) == (train_defects > 0)
    assert said < 10


def test_types_of_defects_of_which_each_is_one_lot_are_parted_and_that_is_said(caplog):
    samples = make(20)
    for kind in ("dent", "hole"):
        samples += [replace(s, group=f"lot {kind}") for s in make(10, 1, kind=kind)]
    split = split_normals(samples, train_defects=0.5)
    assert Counter((s.defect_type, s.split) for s in split if s.label)["dent", "train"] == 5
    assert "share one group; they are split one by one" in caplog.text
