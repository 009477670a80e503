"""Sums of vectors that come in parts, beside numpy on all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adray.components.moments import Moments


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 6, generator=generator) + 100 for size in (1, 5, 40)]


def test_parts_joined_have_the_mean_and_covariance_of_all(parts):
    whole = Moments.of(parts[0]).joined(Moments.of(parts[1])).joined(Moments.of(parts[2]))
    values = torch.cat(parts).double().numpy()
    assert whole.count == 46
    np.testing.assert_allclose(whole.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.scatter / 45, np.cov(values.T), rtol=1e-9, atol=1e-12)


def test_what_is_taken_away_leaves_the_moments_of_the_rest(parts):
    whole = Moments.of(torch.cat(parts))
    left = whole.without(Moments.of(parts[1]))
    rest = Moments.of(torch.cat([parts[0], parts[2]]))
    assert left.count == rest.count
    torch.testing.assert_close(left.mean, rest.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(left.scatter, rest.scatter, rtol=1e-9, atol=1e-9)


def test_not_all_vectors_can_be_taken_away(parts):
    whole = Moments.of(parts[1])
    with pytest.raises(ValueError, match="5 vectors cannot be taken from 5"):
        whole.without(whole)
