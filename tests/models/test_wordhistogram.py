"""The word histogram against scikit-learn's k-means and shrunk covariance, on grids with objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.cross import Refit
from adray.data.loaders import get_dataloaders
from adray.data.synthetic import write_synthetic
from adray.ensembles.calibration import calibrate
from adray.errors import InputError
from adray.methods.anomalydino import AnomalydinoConfig
from adray.methods.wordhistogram import WordhistogramConfig, fit_bytes
from adray.models.anomalydino import AnomalydinoModel
from adray.models.wordhistogram import WordhistogramModel
from adray.registry import ModelRegistry
from adray.settings import Settings, use_settings

SIDE = 12
WIDTH = 384
KINDS = 4
"""Background and three kinds of parts."""
SMALL = {"backbone": "dinov2_vits14", "layer": "blocks.1", "weights": "random"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def new_model(num_words=KINDS, side=SIDE):
    return WordhistogramModel(WordhistogramConfig(num_words=num_words, **SMALL), 14 * side).eval()


def grid_of(rng, parts=(1, 1, 2, 2, 3)):
    """Kinds (12, 12) of a background with a part of 2 x 2 patches, a little moved, in some cells."""
    grid = np.zeros((SIDE, SIDE), int)
    for number, kind in enumerate(parts):
        top, left = (4 * cell + rng.integers(0, 3) for cell in divmod(number, 3))
        grid[top : top + 2, left : left + 2] = kind
    return grid


def patches_of(grids, rng, noise=0.005):
    """Patches (N, P, D) of length 1 that look like their kind."""
    kinds = F.normalize(torch.eye(KINDS, WIDTH), dim=1)
    rows = kinds[torch.as_tensor(np.stack(grids)).flatten(1)]
    drawn = torch.from_numpy(rng.standard_normal(rows.shape)).float()
    return F.normalize(rows + noise * drawn, dim=2)


def fitted(grids, rng):
    """A model whose words and counts are of some grids."""
    model = new_model()
    patches = patches_of(grids, rng)
    model.learn_words(patches.flatten(0, 1), KINDS, 0)
    model.learn_counts(model.histogram(patches))
    return model


def test_words_are_the_kinds_of_patches():
    rng = np.random.default_rng(0)
    grids = [grid_of(rng) for _ in range(10)]
    model = fitted(grids, rng)
    patches = patches_of(grids, rng).flatten(0, 1)
    found = (patches @ model.words.T).argmax(1)
    assert adjusted_rand_score(np.stack(grids).ravel(), found) == 1.0
    torch.testing.assert_close(model.words.norm(dim=1), torch.ones(KINDS))


@torch.no_grad()
@pytest.mark.parametrize("side", [12, 7, 2])
def test_a_histogram_is_the_root_of_the_parts_of_patches_in_the_whole_and_each_quarter(side):
    rng = np.random.default_rng(1)
    kinds = rng.integers(0, KINDS, (3, side, side))
    model = new_model(side=side)
    model.words = torch.eye(KINDS, WIDTH)
    found = model.histogram(patches_of(kinds, rng, noise=0.001)).square().numpy()

    half = side // 2
    for number, grid in enumerate(kinds):
        quarters = [grid[:half, :half], grid[:half, half:], grid[half:, :half], grid[half:, half:]]
        expected = []
        for part in (grid, *quarters):
            expected.extend(np.bincount(part.ravel(), minlength=KINDS) / part.size)
        np.testing.assert_allclose(found[number], expected, atol=1e-6)


@torch.no_grad()
def test_a_patch_between_two_words_counts_for_both():
    model = new_model(side=2)
    model.words = torch.eye(KINDS, WIDTH)
    between = F.normalize(model.words[0] + model.words[1], dim=0)
    whole = model.histogram(between.expand(1, 4, WIDTH))[0, :KINDS].square()
    torch.testing.assert_close(whole, torch.tensor([0.5, 0.5, 0, 0]))


@torch.no_grad()
def test_moved_patches_leave_the_counts_of_the_whole_and_change_those_of_quarters():
    rng = np.random.default_rng(2)
    model = fitted([grid_of(rng) for _ in range(20)], rng)
    patches = patches_of([grid_of(rng)], rng)
    before = model.histogram(patches)
    after = model.histogram(patches[:, torch.randperm(SIDE**2)])
    torch.testing.assert_close(after[:, :KINDS], before[:, :KINDS])
    assert float((after - before)[:, KINDS:].abs().max()) > 0.1
    assert float(model.distance(after)) > 2 * float(model.distance(before))


@torch.no_grad()
@pytest.mark.parametrize(
    "parts", [(1, 1, 2, 2), (1, 1, 2, 2, 3, 3), (1, 1, 2, 3, 3), (1, 1, 2, 2, 0)]
)
def test_images_with_a_part_missing_or_too_many_or_of_another_kind_come_first(parts):
    rng = np.random.default_rng(3)
    model = fitted([grid_of(rng) for _ in range(40)], rng)
    grids = [grid_of(rng) for _ in range(20)] + [grid_of(rng, parts) for _ in range(5)]
    image = torch.empty(len(grids), 3, 14 * SIDE, 14 * SIDE)
    prediction = model(image, (patches_of(grids, rng),))
    assert prediction.anomaly_map is None
    assert float(prediction.pred_score[20:].min()) > float(prediction.pred_score[:20].max())


@torch.no_grad()
def test_with_a_method_of_patches_on_one_scale_by_held_out_normals_both_kinds_of_defects_are_found():
    rng = np.random.default_rng(6)
    grids = [grid_of(rng) for _ in range(40)]
    counts = fitted(grids, rng)
    bank = AnomalydinoModel(AnomalydinoConfig(**SMALL)).eval()
    bank.remember(patches_of(grids, rng).flatten(0, 1)[::7])

    normal = patches_of([grid_of(rng) for _ in range(40)], rng)
    missing = patches_of([grid_of(rng, (1, 1, 2, 2)) for _ in range(5)], rng)
    scratched = patches_of([grid_of(rng) for _ in range(5)], rng)
    scratched[:, 70] = F.normalize(scratched[:, 70] + 0.3 * torch.randn(5, WIDTH), dim=1)
    patches = torch.cat([normal, missing, scratched])
    image = torch.empty(len(patches), 3, 14 * SIDE, 14 * SIDE)
    found = [model(image, (patches,)).pred_score.numpy() for model in (counts, bank)]

    # Held out are the first twenty normals; new are the other twenty.
    is_found = []
    for scores in (*found, sum(calibrate(scores[:20])(scores) for scores in found)):
        highest = scores[20:40].max()
        is_found.append((scores[40:45].min() > highest, scores[45:].min() > highest))
    assert is_found == [(True, False), (False, True), (True, True)]


@torch.no_grad()
def test_distances_are_mahalanobis_by_the_shrunk_covariance_of_scikit_learn():
    rng = np.random.default_rng(4)
    model = new_model()
    model.words = torch.eye(KINDS, WIDTH)
    values = rng.random((30, 5 * KINDS))
    model.learn_counts(torch.from_numpy(values).float())
    found = model.distance(torch.from_numpy(values[:5]).float()).numpy()

    squares = []
    for part in (slice(0, KINDS), slice(KINDS, 5 * KINDS)):
        gaussian = LedoitWolf().fit(values[:, part])
        # One patch of all, or of a quarter, is added to what was seen.
        one = 0.5 * KINDS**0.5 / (SIDE**2 if part.start == 0 else SIDE**2 / 4)
        inverse = np.linalg.inv(gaussian.covariance_ + one**2 * np.eye(len(gaussian.location_)))
        center = gaussian.location_
        row = [mahalanobis(value, center, inverse) ** 2 for value in values[:5, part]]
        squares.append(np.array(row) / len(center))
    np.testing.assert_allclose(found, np.mean(squares, axis=0), rtol=1e-4)


def test_the_shrinkage_is_that_of_ledoit_and_wolf_written_out():
    """So that scikit-learn's is known to be the published one."""
    values = np.random.default_rng(5).random((25, 6))
    centered = values - values.mean(0)
    covariance = centered.T @ centered / len(values)
    target = np.trace(covariance) / 6 * np.eye(6)
    spread = ((covariance - target) ** 2).sum()
    noise = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in centered)
    share = min(1.0, noise / len(values) ** 2 / spread)
    expected = share * target + (1 - share) * covariance
    np.testing.assert_allclose(LedoitWolf().fit(values).covariance_, expected, rtol=1e-9)


class Nothing:
    """No images."""

    samples = ()

    def __len__(self):
        return 0

    def __iter__(self):
        return iter(())


def test_an_update_is_a_new_fit_with_the_same_words_on_all_images_and_back(
    tmp_path, own_settings, one_thread
):
    write_synthetic(tmp_path / "data" / "synthetic", train=12, good=3, defects=3, size=56)
    use_settings(Settings(dataset_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache")))
    trainer = ModelRegistry.get_trainer(
        "wordhistogram-small-448",
        train={"img_size": 56, "batch_size": 4, "holdout": 0.0},
        model={**SMALL, "num_words": 6},
        seed=1,
    )
    loaders = get_dataloaders("synthetic", "all", img_size=56, batch_size=4, holdout=0.0, seed=1)
    refit = Refit(trainer, loaders)
    everything, first, rest = np.arange(12), np.arange(7), np.arange(7, 12)
    refit.fit(first)
    before = trainer.predict(loaders.test).pred_score

    trainer.update(7, refit.images(rest), Nothing())
    updated = trainer.predict(loaders.test).pred_score
    patches = torch.cat([batch.features[0] for batch in refit.images(everything)])
    with torch.no_grad():
        trainer.model.learn_counts(trainer.model.histogram(patches))
    whole = trainer.predict(loaders.test).pred_score
    largest = whole.max()
    np.testing.assert_allclose(updated, whole, rtol=0, atol=1e-6 * largest)
    assert not np.allclose(before, updated, rtol=1e-3)

    trainer.update(12, Nothing(), refit.images(rest))
    back = trainer.predict(loaders.test).pred_score
    np.testing.assert_allclose(back, before, rtol=0, atol=1e-6 * largest)


def test_the_memory_of_a_fit_is_known_before_it():
    config = WordhistogramConfig(**SMALL)
    model = WordhistogramModel(config, 56)
    (patches,) = model.features(torch.randn(5, 3, 56, 56))
    assert fit_bytes(config, TrainConfig(img_size=56), 5) == patches.nbytes


@torch.no_grad()
def test_counts_that_never_varied_may_by_a_patch():
    model = new_model()
    model.words = torch.eye(KINDS, WIDTH)
    same = np.zeros((SIDE, SIDE), int)
    same[::2] = np.arange(SIDE) % KINDS
    rng = np.random.default_rng(7)
    model.learn_counts(model.histogram(patches_of([same] * 5, rng)))
    one, many = same.copy(), same.copy()
    one[1, 1] = 3
    many[1, 1:9] = 3
    distance = model.distance(model.histogram(patches_of([same, one, many], rng)))
    assert float(distance[0]) < 0.01
    assert 0.1 < float(distance[1]) < 1 < float(distance[2])


def test_fewer_patches_than_words_are_refused():
    with pytest.raises(InputError, match="num_words is 64, but the training images have 10"):
        new_model().learn_words(torch.randn(10, WIDTH), 64, 0)


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"layer": "blocks.12"}, {}, "must be some of blocks"),
        ({"num_words": 1}, {}, "num_words is 1"),
        ({"temperature": 0.0}, {}, "temperature is 0"),
        ({}, {"img_size": 60}, "input size 60 does not suit"),
        ({}, {"img_size": 14}, "no quarters of whole patches"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(changes, train, message):
    with pytest.raises(InputError, match=message):
        ModelRegistry.get_trainer(
            "wordhistogram-small-448", train={"img_size": 56, **train}, model={**SMALL, **changes}
        )
