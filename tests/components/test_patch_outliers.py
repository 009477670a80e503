"""SoftPatch's weights against scikit-learn's LOF, numpy's covariance and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import LocalOutlierFactor

from adray.components import patch_outliers
from adray.components.k_center_greedy import k_center_greedy
from adray.components.patch_outliers import outlier_factors, usual_coreset

IMAGES, PLACES, WIDTH = 20, 5, 12


@pytest.fixture
def patches():
    """Random patches of which one image's differ at one place."""
    drawn = torch.randn(IMAGES, PLACES, WIDTH, generator=torch.Generator().manual_seed(3))
    drawn[7, 2] += 9.0
    return drawn


@pytest.mark.parametrize("neighbors", [1, 6, 19])
def test_lof_is_scikit_learns_at_each_place(patches, neighbors):
    found = outlier_factors(patches, "lof", neighbors)
    for place in range(PLACES):
        search = LocalOutlierFactor(n_neighbors=neighbors, metric="l2")
        search.fit(patches[:, place].double().numpy())
        np.testing.assert_allclose(
            found[:, place].numpy(), -search.negative_outlier_factor_, rtol=1e-5
        )


def test_nearest_is_one_and_the_distance_to_the_nearest_other_image(patches):
    found = outlier_factors(patches, "nearest", 6)
    for place in range(PLACES):
        distance = cdist(patches[:, place], patches[:, place])
        np.fill_diagonal(distance, np.inf)
        np.testing.assert_allclose(found[:, place].numpy(), 1 + distance.min(1), rtol=1e-5)


@pytest.mark.parametrize("width", [4, 30])
def test_gaussian_is_numpys_mahalanobis_distance_also_with_fewer_images_than_numbers(width):
    drawn = torch.randn(IMAGES, 2, width, generator=torch.Generator().manual_seed(1))
    found = outlier_factors(drawn, "gaussian", 6)
    for place in range(2):
        vectors = drawn[:, place].double().numpy()
        covariance = np.cov(vectors, rowvar=False) + 0.01 * np.identity(width)
        centered = vectors - vectors.mean(0)
        squares = np.einsum("nd,de,ne->n", centered, np.linalg.inv(covariance), centered)
        np.testing.assert_allclose(found[:, place].numpy(), 1 + np.sqrt(squares), rtol=1e-4)


@pytest.mark.parametrize("name", ["lof", "nearest", "gaussian"])
def test_the_patch_that_differs_is_the_most_unlike_and_blocks_change_nothing(
    patches, name, monkeypatch
):
    found = outlier_factors(patches, name, 6)
    assert int(found.argmax()) == 7 * PLACES + 2
    monkeypatch.setattr(patch_outliers, "_BLOCK_NUMBERS", 1)
    torch.testing.assert_close(outlier_factors(patches, name, 6), found)


@pytest.mark.parametrize("name", ["lof", "nearest", "gaussian"])
def test_images_that_are_all_the_same_are_all_as_usual(name):
    same = torch.ones(8, 3, 4).cumsum(1)
    torch.testing.assert_close(outlier_factors(same, name, 6), torch.ones(8, 3))


def test_more_neighbors_than_images_are_all_the_others(patches):
    few = patches[:4]
    torch.testing.assert_close(outlier_factors(few, "lof", 6), outlier_factors(few, "lof", 3))


def test_the_bank_holds_none_of_the_most_unlike_patches_and_their_share_is_that_asked_for(patches):
    flat = patches.flatten(0, 1)
    factors = outlier_factors(patches, "lof", 6).flatten()
    bank, weights = usual_coreset(flat, factors, 0.15, 1000, torch.Generator())
    threshold = np.quantile(factors.numpy(), 0.85)
    assert len(bank) == int((factors.numpy() <= threshold).sum()) == 85
    assert float(weights.max()) <= threshold

    kept = flat[factors <= threshold]
    few, _ = usual_coreset(flat, factors, 0.15, 9, torch.Generator().manual_seed(4))
    picks = k_center_greedy(kept, 9, torch.Generator().manual_seed(4))
    assert torch.equal(few, kept[picks])


def test_with_nothing_removed_the_bank_is_the_plain_coreset(patches):
    flat = patches.flatten(0, 1)
    factors = torch.rand(len(flat))
    bank, weights = usual_coreset(flat, factors, 0.0, 30, torch.Generator().manual_seed(4))
    picks = k_center_greedy(flat, 30, torch.Generator().manual_seed(4))
    assert torch.equal(bank, flat[picks])
    assert torch.equal(weights, factors[picks])
