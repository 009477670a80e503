"""Nearest neighbours in a memory bank, exactly, without a matrix of all distances.

`nearest` compares each vector with the whole bank. `NearestSearch` is prepared for one bank and looks
at some of it only, by bounds that hold for every vector. Both find the same distances. A model asks
its `BankSearch`, which takes the faster one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adray.components.device import makes_graph

SEARCH = "search: exact"
"""What a result says of it: no search of this program is approximate, on a CPU or elsewhere."""
_CHUNK_BYTES = 256 * 2**20
"""Of the distances between some vectors and the whole bank that are held at once."""
_SMALLEST_BANK = 2048
"""Vectors from which on a search by bounds is faster than the whole bank."""
_AXES = 191
"""Principal axes on which vectors are compared first."""
_MOST_CELLS = 512
_ROUNDS = 10
"""Of the grouping into cells."""
_CHUNK_VECTORS = 2048
"""Vectors whose neighbours are searched at once."""
_CHUNK_PAIRS = 8 * 2**20
"""Short distances that are held at once, but for those to a single cell."""
_ROUNDING = 2.0**-22
"""Relative error of each step of a product in float32, four times what it can be."""


def nearest(vectors: Tensor, bank: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbours of (Q, D) vectors in a bank, by comparing with all of it.

    Args:
        vectors: (Q, D) float32.
        bank: (M, D).
        center: (D,), the bank's mean, around which products cancel less.

    Returns:
        The Euclidean distance to each and its index in the bank, each (Q,).
    """
    return _nearest_of_all(vectors, _Centered.of(bank, center))


@dataclass(frozen=True)
class _Centered:
    """A bank and what products with it take."""

    bank: Tensor
    """(M, D)."""
    center: Tensor
    """(D,)."""
    vectors: Tensor
    """The bank less the center, (M, D)."""
    half_squares: Tensor
    """Half their squared lengths, (M,)."""

    @classmethod
    def of(cls, bank: Tensor, center: Tensor) -> _Centered:
        """Center a bank."""
        vectors = bank - center
        return cls(bank, center, vectors, 0.5 * vectors.square().sum(1))


def _nearest_of_all(vectors: Tensor, of: _Centered) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbours of (Q, D) vectors, see `nearest`.

    A neighbour is found by one matrix product. The distance to it is then computed from the
    difference, since the product's rounding depends on how many vectors came together.
    """
    distances = []
    neighbors = []
    for chunk in vectors.split(max(1, _CHUNK_BYTES // (4 * len(of.bank)))):
        # |p - m|^2 = |p|^2 - 2 pm + |m|^2, of which |p|^2 does not change the nearest m: (q, M)
        nearness = torch.addmm(of.half_squares, chunk - of.center, of.vectors.T, alpha=-1)
        neighbor = nearness.argmin(1)
        distances.append((chunk - of.bank[neighbor]).norm(dim=1))
        neighbors.append(neighbor)
    return torch.cat(distances), torch.cat(neighbors)


class BankSearch:
    """Looks for neighbours in a model's bank, prepared when it is first asked for a bank."""

    def __init__(self) -> None:
        self._centered: _Centered | None = None
        self._search: NearestSearch | None = None
        self._version = -1

    def nearest(self, vectors: Tensor, bank: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest neighbours of (Q, D) vectors, as `nearest` does."""
        if makes_graph():
            return nearest(vectors, bank, center)
        centered = self._prepared(bank, center)
        if bank.device.type != "cpu" or len(bank) < _SMALLEST_BANK:
            return _nearest_of_all(vectors, centered)
        if self._search is None:
            self._search = NearestSearch(bank)
        return self._search.find(vectors)

    def around(self, places: Tensor, count: int, bank: Tensor, center: Tensor) -> Tensor:
        """Find the vectors of a bank around some of its own, themselves the first.

        Args:
            places: in the bank, (B,).
            count: vectors around each, itself among them.
            bank: (M, D).
            center: (D,), the bank's mean.

        Returns:
            Their places, (B, count), the nearest first.
        """
        of = _Centered.of(bank, center) if makes_graph() else self._prepared(bank, center)
        nearness = torch.addmm(of.half_squares, of.vectors[places], of.vectors.T, alpha=-1)
        return nearness.topk(count, largest=False).indices

    def _prepared(self, bank: Tensor, center: Tensor) -> _Centered:
        """Center a bank, unless it is that of the last time."""
        known = self._centered
        # A checkpoint of the same size is read into the same tensor, which counts that.
        if known is None or known.bank is not bank or self._version != bank._version:
            self._search = None
            self._version = bank._version
            known = _Centered.of(bank, center)
            self._centered = known
        return known


@dataclass(frozen=True)
class _Cells:
    """A bank's short vectors in groups of near ones, called cells."""

    order: Tensor
    """(M,) int64: the place in the bank of each vector, cell by cell."""
    first: Tensor
    """(C,) int64: where each cell begins in `order`."""
    vectors: list[Tensor]
    """Of each cell, (K + 1, m), the last number of each 1."""
    half_squares: list[Tensor]
    """Half the squared lengths of each cell's vectors, (m,)."""
    centers: Tensor
    """(K, C)."""
    half_center_squares: Tensor
    """(C,)."""
    center_distances: Tensor
    """(C, C)."""
    gaps: Tensor
    """(C, C): the least by which the vectors of the second cell are nearer to its center than to
    that of the first, in half squares."""


class NearestSearch:
    """Finds nearest neighbours in one bank, as `nearest` does, but faster on a CPU.

    Vectors are shortened to their coordinates along the bank's first principal axes and the length
    of the rest. No two short vectors are farther apart than the vectors themselves. The bank's short
    vectors lie in cells around centers. A cell holds no nearest neighbour where, along the line from
    one center to its own, all its vectors are farther away than a neighbour that is known already
    (J. Uhlmann, 1991; S. Brin, 1995). Of the vectors in the other cells those count whose short
    distance is below the known neighbour's. Their true distances decide.

    Memory: the bank's short vectors, 768 bytes each, and what `_CHUNK_VECTORS` vectors are compared
    with at once, `_CHUNK_PAIRS` numbers.

    Args:
        bank: (M, D) float32 on a CPU.
    """

    def __init__(self, bank: Tensor) -> None:
        self.bank = bank
        self.center = bank.mean(0)
        centered = bank - self.center
        self.axes = _principal_axes(centered)
        short = self._shortened(centered)
        self.longest = float(short.norm(dim=1).max())
        self.cells = _cells_of(short)

    def find(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest neighbours of (Q, D) vectors.

        Returns:
            The Euclidean distance to each and its index in the bank, each (Q,).
        """
        distances = []
        neighbors = []
        for chunk in vectors.split(_CHUNK_VECTORS):
            distance, neighbor = self._find(chunk)
            distances.append(distance)
            neighbors.append(neighbor)
        return torch.cat(distances), torch.cat(neighbors)

    def _find(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        short = self._shortened(vectors - self.center)
        half_squares = 0.5 * short.square().sum(1)
        # Half the squared distance to each center, less the vector's own half square: (Q, C).
        nearness = torch.addmm(self.cells.half_center_squares, short, self.cells.centers, alpha=-1)
        own = nearness.argmin(1)
        # A cell takes one number more of each, which it takes away.
        short = torch.cat([short, torch.zeros_like(short[:, :1])], dim=1)

        # A neighbour that is near: the best of the vector's own cell.
        neighbor = self._best_of(short, own)
        distance = (vectors - self.bank.index_select(0, neighbor)).norm(dim=1)

        lengths = (2 * half_squares).sqrt() + self.longest
        rounding = _ROUNDING * short.shape[1] * lengths.square()
        row, cell = self._open_cells(nearness, own, distance, rounding)
        short[:, -1] = 0.5 * distance.square() - half_squares + rounding
        query, other = self._below(short, row, cell)
        return self._better(vectors, distance, neighbor, query, other)

    def _shortened(self, centered: Tensor) -> Tensor:
        """Shorten (N, D) vectors less the bank's mean, (N, K)."""
        if self.axes.shape[1] == centered.shape[1]:
            return centered
        along = centered @ self.axes
        rest = centered.square().sum(1) - along.square().sum(1)
        return torch.cat([along, rest.clamp_(min=0).sqrt_()[:, None]], dim=1)

    def _best_of(self, short: Tensor, cell: Tensor) -> Tensor:
        """Find the nearest vector of one cell to each of (Q, K + 1), as a place in the bank."""
        order = cell.argsort(stable=True)
        counts = torch.bincount(cell, minlength=len(self.cells.vectors)).tolist()
        places = []
        for number, some in enumerate(short.index_select(0, order).split(counts)):
            if len(some):
                nearest_one = self._compare(some, number).argmin(1)
                places.append(nearest_one + self.cells.first[number])

        best = torch.empty_like(order)
        best[order] = self.cells.order[torch.cat(places)]
        return best

    def _compare(self, short: Tensor, cell: int, out: Tensor | None = None) -> Tensor:
        """Give half squared distances to a cell's vectors, less half squares and the last number.

        Args:
            short: (q, K + 1).
            cell: its number.
            out: where they go, (q, m).
        """
        vectors = self.cells.vectors[cell]
        return torch.addmm(self.cells.half_squares[cell], short, vectors, alpha=-1, out=out)

    def _open_cells(
        self, nearness: Tensor, own: Tensor, distance: Tensor, rounding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """List the cells that may hold a nearer neighbour.

        Args:
            nearness: to the centers, (Q, C).
            own: the nearest center, (Q,).
            distance: to a known neighbour, (Q,).
            rounding: of a half square, (Q,).

        Returns:
            The query and the cell of each pair, by cell.
        """
        # No short distance to a nearer neighbour is longer, rounding included.
        longest = (distance.square() + 2 * rounding).sqrt()[:, None]

        # Along the line between two centers: how far the cell lies ahead, times their distance.
        ahead = nearness - nearness.gather(1, own[:, None])
        ahead += self.cells.gaps[own]
        reach = longest * self.cells.center_distances[own]
        cell, row = (ahead <= reach + 4 * rounding[:, None]).T.nonzero(as_tuple=True)
        return row, cell

    def _below(self, short: Tensor, row: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """List the vectors of the bank that come at least as near as a limit.

        Args:
            short: (Q, K + 1), the last number the limit of half a squared distance, less a half
                square.
            row: query of each pair, by cell.
            cell: cell of each pair, rising.

        Returns:
            The query and the place in the bank of each vector found.
        """
        if not len(row):  # of vectors that are no numbers
            return row, row
        counts = torch.bincount(cell, minlength=len(self.cells.vectors)).tolist()
        queries = []
        places = []
        last = 0
        for group in self._groups(counts):
            begin = last
            last = begin + sum(counts[number] for number in group)
            rows = row[begin:last]
            found, inside = self._below_in(short.index_select(0, rows), group, counts)
            queries.append(rows[found])
            places.append(self.cells.order[self.cells.first[cell[begin:last][found]] + inside])
        return torch.cat(queries), torch.cat(places)

    def _groups(self, counts: list[int]) -> list[list[int]]:
        """Group cells with queries, so that the distances of a group are few enough to be held."""
        groups: list[list[int]] = [[]]
        held = 0
        for number, count in enumerate(counts):
            more = count * self.cells.vectors[number].shape[1]
            if groups[-1] and held + more > _CHUNK_PAIRS:
                groups.append([])
                held = 0
            if count:
                groups[-1].append(number)
                held += more
        return groups

    def _below_in(
        self, short: Tensor, cells: list[int], counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Compare queries with cells, some queries with each.

        Args:
            short: (P, K + 1), by cell.
            cells: their numbers.
            counts: queries of each cell of the bank.

        Returns:
            For each vector found the place of its query among the P, and its own in the cell.
        """
        sizes = [self.cells.vectors[number].shape[1] for number in cells]
        queries = [counts[number] for number in cells]
        width = torch.tensor(sizes).repeat_interleave(torch.tensor(queries))  # (P,)
        end = width.cumsum(0)

        # The distances of all cells lie one after the other, rows of as many as a cell has vectors.
        nearness = torch.empty(int(end[-1]))
        place = 0
        for number, size, some in zip(cells, sizes, short.split(queries), strict=True):
            out = nearness[place : place + len(some) * size].view(len(some), size)
            self._compare(some, number, out)
            place += len(some) * size

        (hit,) = (nearness <= 0).nonzero(as_tuple=True)
        query = torch.searchsorted(end, hit, right=True)
        return query, hit - (end - width)[query]

    def _better(
        self, vectors: Tensor, distance: Tensor, neighbor: Tensor, query: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take other neighbours where they are nearer.

        Args:
            vectors: (Q, D).
            distance: to the known neighbours, (Q,).
            neighbor: their places in the bank, (Q,).
            query: of each other neighbour.
            other: its place in the bank.

        Returns:
            Distance and place of the nearest, each (Q,).
        """
        is_new = other != neighbor[query]
        query = query[is_new]
        other = other[is_new]
        difference = vectors.index_select(0, query) - self.bank.index_select(0, other)
        to_other = difference.norm(dim=1)

        nearest_of_all = distance.scatter_reduce(0, query, to_other, "amin")
        wins = (to_other == nearest_of_all[query]) & (to_other < distance[query])
        # The last one in the order of the bank wins where several are as near.
        neighbor = neighbor.clone()
        neighbor[query[wins]] = other[wins]
        return nearest_of_all, neighbor


def _principal_axes(centered: Tensor) -> Tensor:
    """Find the axes along which (M, D) vectors vary most, (D, K), or as many as there are."""
    width = centered.shape[1]
    if width <= _AXES + 1:
        return torch.eye(width)
    _, directions = torch.linalg.eigh((centered.T @ centered).double())
    return directions.flip(1)[:, :_AXES].float().contiguous()


def _cells_of(short: Tensor) -> _Cells:
    """Group (M, K) vectors around centers (S. Lloyd, 1957)."""
    count = min(_MOST_CELLS, max(1, round(len(short) ** 0.5)))
    generator = torch.Generator().manual_seed(0)
    centers = short[torch.randperm(len(short), generator=generator)[:count]]
    for _ in range(_ROUNDS):
        cell = _nearest_center(short, centers)
        sizes = torch.bincount(cell, minlength=count).clamp(min=1)
        centers = torch.zeros_like(centers).index_add_(0, cell, short) / sizes[:, None]

    # A center that nothing is near to has no cell.
    used = _nearest_center(short, centers).unique()
    centers = centers[used]
    cell = _nearest_center(short, centers)
    order = cell.argsort(stable=True)
    sizes = torch.bincount(cell, minlength=len(centers))
    vectors = short[order].split(sizes.tolist())
    half_center_squares = 0.5 * centers.square().sum(1)

    gaps = []
    for number, some in enumerate(vectors):
        nearness = torch.addmm(half_center_squares, some, centers.T, alpha=-1)  # (m, C)
        gaps.append((nearness - nearness[:, number : number + 1]).amin(0))
    return _Cells(
        order,
        sizes.cumsum(0) - sizes,
        [F.pad(some.T, (0, 0, 0, 1), value=1.0) for some in vectors],
        [0.5 * some.square().sum(1) for some in vectors],
        centers.T.contiguous(),
        half_center_squares,
        torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist"),
        torch.stack(gaps, dim=1),
    )


def _nearest_center(short: Tensor, centers: Tensor) -> Tensor:
    """Find the nearest of (C, K) centers to each of (M, K) vectors, (M,)."""
    half_squares = 0.5 * centers.square().sum(1)
    found = []
    for chunk in short.split(max(1, _CHUNK_PAIRS // len(centers))):
        nearness = torch.addmm(half_squares, chunk, centers.T, alpha=-1)
        found.append(nearness.argmin(1))
    return torch.cat(found)
