"""The search in a bank against scikit-learn's brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from adray.components import nearest as module
from adray.components.nearest import BankSearch, NearestSearch, nearest


def clustered(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Vectors in some groups of falling variance, as patches are."""
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(12, width, generator=generator)
    group = torch.randint(12, (count,), generator=generator)
    scale = torch.linspace(1, 0.02, width)
    return (centers[group] + torch.randn(count, width, generator=generator)) * scale


def brute_force(vectors: torch.Tensor, bank: torch.Tensor) -> np.ndarray:
    """Distances by scikit-learn, in float64."""
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank.double().numpy())
    return search.kneighbors(vectors.double().numpy())[0][:, 0]


BANKS = {
    "clustered": clustered(3000, 40),
    "wider than the axes": clustered(2100, 230),
    "without structure": torch.randn(2500, 24, generator=torch.Generator().manual_seed(1)),
    "far from the origin": clustered(2500, 30) + 500,
    "of length one": torch.nn.functional.normalize(clustered(2500, 210), dim=1),
    "ten vectors again and again": clustered(10, 20).repeat(250, 1),
    "all the same": torch.ones(2200, 8),
    "in two dimensions": clustered(2300, 2),
}


@pytest.mark.parametrize("name", BANKS)
def test_the_search_finds_scikit_learns_distances_and_names_a_neighbour_that_has_them(name):
    bank = BANKS[name]
    generator = torch.Generator().manual_seed(2)
    spread = bank.std() + 0.1
    around = bank[torch.randint(len(bank), (150,), generator=generator)]
    near = around + 0.3 * spread * torch.randn(around.shape, generator=generator)
    vectors = torch.cat([near, bank[:50], 20 * spread + near[:20]])
    distance, neighbor = NearestSearch(bank).find(vectors)
    expected = brute_force(vectors, bank)
    largest = float(vectors.abs().max())
    np.testing.assert_allclose(distance.numpy(), expected, rtol=2e-6, atol=1e-6 * largest)
    torch.testing.assert_close(distance, (vectors - bank[neighbor]).norm(dim=1))
    assert float(distance[150:200].max()) == 0.0


def test_few_vectors_are_compared_where_they_lie_in_groups(monkeypatch):
    bank = BANKS["clustered"]
    noise = torch.randn(200, 40, generator=torch.Generator().manual_seed(3))
    vectors = bank[::15] + 0.02 * noise
    compared = []
    compare = NearestSearch._compare

    def counted(self, *arguments):
        result = compare(self, *arguments)
        compared.append(result.numel())
        return result

    monkeypatch.setattr(NearestSearch, "_compare", counted)
    distance, _ = NearestSearch(bank).find(vectors)
    assert sum(compared) < 0.3 * len(bank) * len(vectors)
    np.testing.assert_allclose(distance.numpy(), brute_force(vectors, bank), rtol=2e-6)


def test_parts_of_any_size_give_the_same_neighbours(monkeypatch):
    bank = BANKS["clustered"]
    vectors = clustered(300, 40, seed=4)
    whole = NearestSearch(bank).find(vectors)
    monkeypatch.setattr(module, "_CHUNK_PAIRS", 1000)
    monkeypatch.setattr(module, "_CHUNK_VECTORS", 37)
    for found, expected in zip(NearestSearch(bank).find(vectors), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_vector_has_the_same_distance_whatever_comes_with_it():
    search = NearestSearch(BANKS["wider than the axes"])
    vectors = clustered(64, 230, seed=5)
    alone = torch.cat([search.find(vector[None])[0] for vector in vectors])
    torch.testing.assert_close(search.find(vectors)[0], alone, rtol=1e-6, atol=0)


def test_a_bank_that_was_read_anew_into_the_same_tensor_is_searched_anew():
    search = BankSearch()
    bank = BANKS["clustered"].clone()
    vectors = clustered(20, 40, seed=6)
    search.nearest(vectors, bank, bank.mean(0))
    bank.copy_(bank.flip(0) + 1)
    found, neighbor = search.nearest(vectors, bank, bank.mean(0))
    np.testing.assert_allclose(found.numpy(), brute_force(vectors, bank), rtol=2e-6)
    around = search.around(neighbor[:3], 4, bank, bank.mean(0))
    expected = NearestNeighbors(n_neighbors=4).fit(bank.numpy())
    np.testing.assert_array_equal(
        around.numpy(), expected.kneighbors(bank[neighbor[:3]].numpy())[1]
    )


class Searching(torch.nn.Module):
    """A model that is nothing but a search."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", BANKS["clustered"])
        self.search = BankSearch()

    def forward(self, vectors):
        distance, neighbor = self.search.nearest(vectors, self.bank, self.bank.mean(0))
        return distance, self.search.around(neighbor, 3, self.bank, self.bank.mean(0))


def test_a_graph_of_it_compares_with_the_whole_bank():
    model = Searching()
    vectors = clustered(5, 40, seed=7)
    expected = model(vectors)
    graph = torch.export.export(model, (vectors,)).module()
    torch.testing.assert_close(graph(vectors), expected, rtol=1e-5, atol=1e-6)
    traced = torch.jit.trace(model, vectors)
    torch.testing.assert_close(traced(vectors), expected, rtol=1e-5, atol=1e-6)


def test_a_vector_that_is_no_number_has_no_distance_and_leaves_the_others_alone():
    search = NearestSearch(BANKS["clustered"])
    vectors = clustered(4, 40, seed=9)
    expected, _ = search.find(vectors)
    vectors[2] = torch.nan
    distance, _ = search.find(vectors)
    assert distance.isnan().tolist() == [False, False, True, False]
    torch.testing.assert_close(distance[[0, 1, 3]], expected[[0, 1, 3]])
    assert bool(search.find(vectors[2:3])[0].isnan().all())


def test_small_banks_are_compared_whole_to_the_bit():
    bank = clustered(500, 40)
    vectors = clustered(50, 40, seed=8)
    expected = nearest(vectors, bank, bank.mean(0))
    for found, whole in zip(
        BankSearch().nearest(vectors, bank, bank.mean(0)), expected, strict=True
    ):
        assert torch.equal(found, whole)
