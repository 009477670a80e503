"""Which model wins on test images, against brute force and the ranking of the report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from adray.results.contest import Judged, RankFigure, RateFigure, hold_contest
from adray.results.ranking import ranking_on_images

LABEL = np.repeat([False, True], [12, 15])
NAMES = tuple(f"{number}.png" for number in range(len(LABEL)))


def scores(seed, distance=1.0):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=len(LABEL)) + distance * LABEL, 1)


def judged(values, images=NAMES):
    places = [NAMES.index(name) for name in images]
    return Judged(images, RankFigure(LABEL[places], values[places]))


def drawn(rng):
    """Images drawn with replacement within their class."""
    normal = np.flatnonzero(~LABEL)
    anomalous = np.flatnonzero(LABEL)
    return np.concatenate([rng.choice(normal, len(normal)), rng.choice(anomalous, len(anomalous))])


def test_wins_are_those_of_a_bootstrap_by_brute_force():
    models = [scores(0, 1.2), scores(1, 1.3), scores(2, 0.9)]
    found = hold_contest([[judged(values)] for values in models], draws=4000)

    rng = np.random.default_rng(7)
    wins = np.zeros(3)
    draws = 1500
    for _ in range(draws):
        images = drawn(rng)
        aurocs = np.array([roc_auc_score(LABEL[images], values[images]) for values in models])
        best = np.isclose(aurocs, aurocs.max(), atol=1e-9)
        wins += best / best.sum()
    assert found.wins == pytest.approx(wins / draws, abs=0.05)
    assert found.wins.sum() == pytest.approx(1)
    assert found.values == pytest.approx([roc_auc_score(LABEL, values) for values in models])


def test_a_model_is_the_mean_of_its_seeds_also_where_each_seed_tests_other_images():
    first = NAMES[:9] + NAMES[12:24]
    second = NAMES[3:12] + NAMES[15:]
    one = scores(0, 1.2)
    other = scores(1, 1.4)
    models = [[judged(one, first), judged(one, second)], [judged(other, first)]]
    found = hold_contest(models, draws=4000)

    def auroc(values, images, of):
        kept = [i for i in images if NAMES[i] in of]
        return roc_auc_score(LABEL[kept], values[kept])

    everything = range(len(NAMES))
    mean = (auroc(one, everything, first) + auroc(one, everything, second)) / 2
    assert found.values == pytest.approx([mean, auroc(other, everything, first)])

    rng = np.random.default_rng(3)
    wins = []
    for _ in range(1500):
        images = drawn(rng)
        mine = (auroc(one, images, first) + auroc(one, images, second)) / 2
        theirs = auroc(other, images, first)
        wins.append(0.5 if abs(mine - theirs) < 1e-9 else float(mine > theirs))
    assert found.wins[0] == pytest.approx(np.mean(wins), abs=0.05)


def test_who_can_be_told_apart_is_what_the_ranking_of_one_category_says():
    models = {"good": scores(0, 4.0), "near": scores(5, 3.5), "poor": scores(2, 0.0)}
    found = hold_contest([[judged(values)] for values in models.values()])
    rows = []
    for name, values in models.items():
        for image, label, score in zip(NAMES, LABEL, values, strict=True):
            rows.append(("d", "c", name, 0, image, int(label), score))
    columns = ["dataset", "category", "configuration", "seed", "path", "label", "pred_score"]
    table = ranking_on_images(pd.DataFrame(rows, columns=columns)).table
    groups = dict(zip(table["configuration"], table["group"], strict=True))
    letter = groups[list(models)[found.leader]]
    assert found.is_tied.tolist() == [bool(set(groups[name]) & set(letter)) for name in models]
    assert found.is_tied.tolist() == [True, True, False]


def test_equal_models_share_the_wins_and_are_not_told_apart():
    same = scores(0)
    found = hold_contest([[judged(same)], [judged(same)]])
    assert found.wins.tolist() == [0.5, 0.5]
    assert found.is_tied.all()
    assert np.isnan(found.images_factor).all()


def test_rates_are_compared_as_mcnemar_compares_them_and_won_as_by_brute_force():
    rng = np.random.default_rng(0)
    hits = [rng.random(len(LABEL)) < part for part in (0.7, 0.5)]
    models = [[Judged(NAMES, RateFigure(LABEL, hit, 1.0, -0.5))] for hit in hits]
    found = hold_contest(models, draws=4000)

    def value(hit, images):
        inside = LABEL[images]
        return hit[images][inside].mean() - 0.5 * hit[images][~inside].mean()

    assert found.values == pytest.approx([value(hit, np.arange(len(LABEL))) for hit in hits])
    wins = []
    for _ in range(2000):
        images = drawn(rng)
        difference = value(hits[0], images) - value(hits[1], images)
        wins.append(0.5 if abs(difference) < 1e-9 else float(difference > 0))
    assert found.wins[0] == pytest.approx(np.mean(wins), abs=0.05)

    # The standard error is that of the mean of differences of each class.
    difference = hits[0].astype(float) - hits[1]
    variance = difference[LABEL].var(ddof=1) / LABEL.sum()
    variance += 0.25 * difference[~LABEL].var(ddof=1) / (~LABEL).sum()
    ratio = 4 * variance / (found.values[0] - found.values[1]) ** 2
    assert found.images_factor[1 - found.leader] == pytest.approx(ratio)


def test_one_image_of_a_class_tells_nothing_apart():
    few = NAMES[:12] + NAMES[12:13]
    found = hold_contest([[judged(scores(0, 3.0), few)], [judged(scores(1, 0.0), few)]])
    assert np.isnan(found.wins).all()
    assert found.is_tied.all()
