"""PCA against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import decomposition

from adray.components.pca import PCA
from adray.errors import InputError

SHAPES = [(12, 200), (200, 12), (30, 30)]


def values(count, size, seed=0):
    """Values with falling variances around means far from zero, float32."""
    random = np.random.default_rng(seed)
    spread = random.standard_normal((count, size)) * np.linspace(5, 0.2, size)
    mixed = spread @ np.linalg.qr(np.random.default_rng(9).standard_normal((size, size)))[0]
    return torch.from_numpy(mixed + 20).float()


def fitted(keep, data):
    ours, theirs = PCA(keep), decomposition.PCA(keep, svd_solver="full")
    ours.fit(data)
    return ours, theirs.fit(data.double().numpy())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [1, 5, 0.5, 0.97])
def test_components_variances_and_their_number_are_scikit_learns(shape, keep):
    ours, theirs = fitted(keep, values(*shape))
    assert len(ours.variance) == theirs.n_components_
    np.testing.assert_allclose(ours.variance.numpy(), theirs.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(ours.mean.numpy(), theirs.mean_, rtol=1e-6)
    signs = np.sign((ours.components.numpy() * theirs.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(signs * ours.components.numpy(), theirs.components_, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [3, 0.8])
def test_the_residual_is_what_scikit_learns_reconstruction_leaves(shape, keep):
    ours, theirs = fitted(keep, values(*shape))
    test = values(40, shape[1], seed=1).numpy().astype(float)
    expected = test - theirs.inverse_transform(theirs.transform(test))
    np.testing.assert_allclose(
        ours.residual(torch.from_numpy(test).float()).numpy(), expected, atol=1e-4
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_all_components_leave_no_residual_of_what_was_fitted_and_are_orthonormal(shape):
    data = values(*shape)
    pca = PCA(1.0)
    pca.fit(data)
    assert len(pca.variance) == min(shape[0] - 1, shape[1])
    assert float(pca.residual(data).abs().max()) < 1e-4
    torch.testing.assert_close(
        pca.components @ pca.components.T, torch.eye(len(pca.variance)), rtol=0, atol=1e-5
    )


def test_the_component_that_crosses_the_level_is_kept():
    data = (
        torch.diag(torch.tensor([3.0, 2.0, 1.0])).repeat(2, 1)
        * torch.tensor([1.0] * 3 + [-1.0] * 3)[:, None]
    )
    for level, expected in ((0.5, 1), (9.1 / 14, 2), (0.99, 3)):  # of the variance 9, 4 and 1 of 14
        pca = PCA(level)
        pca.fit(data)
        assert len(pca.variance) == expected


def test_more_components_than_the_rank_are_not_kept_and_coordinates_stay_finite():
    data = values(4, 50).repeat(3, 1)
    pca = PCA(40)
    pca.fit(data)
    assert len(pca.variance) == 3
    assert torch.isfinite(pca.transform(data) / pca.variance.sqrt()).all()


@pytest.mark.parametrize("shape", [(1, 5), (4, 3), (3, 4)])
def test_equal_values_have_no_components_and_the_residual_is_the_distance_to_them(shape):
    pca = PCA(0.97)
    pca.fit(torch.full(shape, 0.3))
    assert pca.components.shape == (0, shape[1])
    torch.testing.assert_close(
        pca.residual(torch.full((2, shape[1]), 1.3)), torch.ones(2, shape[1])
    )


def test_what_it_is_given_is_never_changed():
    data = values(12, 40)
    before = data.clone()
    pca = PCA(4)
    pca.fit(data)
    pca.transform(data)
    pca.residual(data)
    assert torch.equal(data, before)


def test_a_fresh_pca_loads_another_ones_state():
    data, fresh = values(12, 40), PCA(4)
    pca = PCA(4)
    pca.fit(data)
    fresh.load_state_dict(pca.state_dict())
    assert torch.equal(fresh.transform(data), pca.transform(data))


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5])
def test_nothing_and_more_than_everything_are_refused(keep):
    with pytest.raises(InputError, match="PCA keep is"):
        PCA(keep)
