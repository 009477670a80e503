"""Distances against numpy's covariance and inverse in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from adray.components.multi_variate_gaussian import MultiVariateGaussian


def correlated(count, positions, size, seed=0, shift=0.0):
    """(count, positions, size) float32 with a covariance of its own at each position."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(positions, size, size, generator=generator) / size**0.5
    return (
        torch.einsum(
            "npd,pde->npe", torch.randn(count, positions, size, generator=generator), mixing
        )
        + shift
    )


def fitted(values, batch=16, regularization=0.01):
    gaussian = MultiVariateGaussian(regularization)
    for part in values.split(batch):
        gaussian.update(part)
    gaussian.fit()
    return gaussian


def slow_distance(train, test, regularization=0.01):
    """(B, P), position by position."""
    train, test = train.double().numpy(), test.double().numpy()
    out = np.zeros(test.shape[:2])
    for p in range(train.shape[1]):
        mean = train[:, p].mean(0)
        inverse = np.linalg.inv(
            np.cov(train[:, p], rowvar=False) + regularization * np.eye(train.shape[2])
        )
        out[:, p] = [mahalanobis(x, mean, inverse) for x in test[:, p]]
    return out


@pytest.mark.parametrize(("count", "size"), [(200, 20), (12, 20), (60, 100), (2, 5)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_distances_are_numpys_with_more_and_with_fewer_samples_than_values(count, size, shift):
    train = correlated(count, 6, size, shift=shift)
    test = torch.cat((train[:2], correlated(5, 6, size, seed=1, shift=shift)))
    np.testing.assert_allclose(
        fitted(train).distance(test).numpy(), slow_distance(train, test), rtol=1e-4, atol=1e-4
    )


def test_a_drift_after_the_first_batch_does_not_spoil_the_covariance():
    train = correlated(64, 3, 10)
    train[8:] += 5.0
    test = correlated(5, 3, 10, seed=1, shift=3.0)
    np.testing.assert_allclose(
        fitted(train, 8).distance(test).numpy(), slow_distance(train, test), rtol=1e-4
    )


def test_the_batches_do_not_matter():
    train, test = correlated(50, 4, 8), correlated(5, 4, 8, seed=1)
    one, many = fitted(train, 50).distance(test), fitted(train, 7).distance(test)
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)


def test_many_chunks_fit_as_one(monkeypatch):
    train, test = correlated(30, 11, 6), correlated(5, 11, 6, seed=1)
    whole = fitted(train).distance(test)
    monkeypatch.setattr("adray.components.multi_variate_gaussian._CHUNK_BYTES", 4 * 8 * 36)
    assert torch.equal(fitted(train).distance(test), whole)


def test_the_mean_squared_distance_of_gaussian_samples_is_their_number_of_values():
    samples = correlated(4000, 3, 10)
    squared = fitted(samples, regularization=1e-9).distance(samples).square().mean(0)
    torch.testing.assert_close(squared, torch.full((3,), 10.0), rtol=1e-3, atol=0)


def test_values_that_never_vary_have_finite_distances_and_none_to_themselves():
    distance = fitted(torch.ones(10, 4, 3)).distance(torch.ones(2, 4, 3))
    assert float(distance.abs().max()) == pytest.approx(0.0, abs=1e-5)


def test_a_single_sample_is_refused():
    gaussian = MultiVariateGaussian()
    gaussian.update(torch.ones(1, 4, 3))
    with pytest.raises(ValueError, match="at least 2 samples"):
        gaussian.fit()


def test_a_fresh_one_loads_what_was_stored():
    train, test = correlated(20, 4, 5), correlated(3, 4, 5, seed=1)
    gaussian, fresh = fitted(train), MultiVariateGaussian()
    fresh.load_state_dict(gaussian.state_dict())
    assert torch.equal(fresh.distance(test), gaussian.distance(test))


def test_a_new_stream_forgets_the_old_one():
    gaussian, train, test = (
        MultiVariateGaussian(),
        correlated(20, 4, 5),
        correlated(3, 4, 5, seed=1),
    )
    gaussian.update(torch.full((5, 4, 5), 9.0))
    gaussian.reset()
    gaussian.update(train)
    gaussian.fit()
    torch.testing.assert_close(gaussian.distance(test), fitted(train, 20).distance(test))


@pytest.mark.parametrize(("count", "size"), [(60, 8), (12, 20)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 3, 4), (2, 7)])
def test_without_a_fold_distances_are_numpys_of_the_other_samples(count, size, sizes):
    train = correlated(count, 5, size, shift=3.0)
    gaussian = MultiVariateGaussian(0.01)
    for part in train.split(16):
        gaussian.update(part)

    # The last fold is what is left over, so that all samples are in one.
    folds = train.split([*sizes, count - sum(sizes)])[:-1]
    first = 0
    for fold, _ in zip(folds, gaussian.leave_out(folds), strict=True):
        others = torch.cat([train[:first], train[first + len(fold) :]])
        first += len(fold)
        np.testing.assert_allclose(
            gaussian.distance(fold).numpy(), slow_distance(others, fold), rtol=2e-4
        )


def test_a_fold_that_leaves_one_sample_is_refused():
    train = correlated(3, 2, 4)
    gaussian = MultiVariateGaussian()
    gaussian.update(train)
    with pytest.raises(ValueError, match="at least 2 samples, but 1 are left"):
        next(gaussian.leave_out([train[:2]]))
