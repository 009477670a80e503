"""What a frozen stage gave comes back by image, wherever it is kept."""

from __future__ import annotations

import pytest
import torch

from adray.components.feature_cache import FeatureCache


@pytest.mark.parametrize("memory_bytes", [1e9, 0])
def test_the_cache_gives_back_what_was_put_in_any_order(tmp_path, memory_bytes):
    cache = FeatureCache(6, torch.device("cpu"), memory_bytes, tmp_path / "features")
    features = (torch.randn(6, 4, 3), torch.randn(6, 2).half())
    for index in (torch.tensor([4, 0, 2]), torch.tensor([5, 1, 3])):
        assert cache.get(index) is None
        assert not cache.complete
        cache.put(index, tuple(f[index] for f in features))
    assert cache.complete
    order = torch.tensor([3, 3, 5, 0])
    for given, kept in zip(cache.get(order), features, strict=True):
        assert given.dtype == kept.dtype
        assert torch.equal(given, kept[order])


@pytest.mark.parametrize("memory_bytes", [1e9, 0])
def test_cached_features_lie_in_memory_as_they_came(tmp_path, memory_bytes):
    cache = FeatureCache(4, torch.device("cpu"), memory_bytes, tmp_path)
    maps = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    cache.put(torch.arange(4), (maps, maps.contiguous()))
    last, plain = cache.get(torch.tensor([2, 0]))
    assert torch.equal(last, maps[[2, 0]])
    assert torch.equal(plain, maps[[2, 0]])
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()


def test_the_cache_gives_nothing_while_one_image_of_the_batch_is_missing(tmp_path):
    cache = FeatureCache(4, torch.device("cpu"), 1e9, tmp_path)
    cache.put(torch.tensor([0, 1]), (torch.zeros(2, 3),))
    assert cache.get(torch.tensor([0, 1])) is not None
    assert cache.get(torch.tensor([1, 2])) is None
