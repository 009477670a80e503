"""Greedy k-centre selection: a small subset that leaves no point far from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_PICKS_PER_PASS = 128
"""Points that one pass over the data chooses at most."""
_POOL_PART = 32
"""One in so many points, the farthest, may be chosen in a pass."""
_SMALLEST_POOL = 256
"""Points that may be chosen in a pass at least."""
_CHUNK_ROWS = 16_384
"""Points that are compared at a time, so that they stay in the processor's cache."""


def k_center_greedy(
    features: Tensor, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Choose points one after the other, each the farthest from those chosen before.

    The order does not depend on how many are wanted: a smaller selection is the beginning of a
    larger one.

    Args:
        features: (N, D) float32.
        count: points to choose, in 1..N.
        generator: of the start point, on the CPU.

    Returns:
        (count,) int64 indices on the device of `features`.
    """
    return torch.cat(k_center_passes(features, count, generator))[:count]


@torch.no_grad()
def union_coreset(bank: Tensor, added: Tensor, count: int, seed: int) -> Tensor:
    """Choose a coreset of an old one and new points.

    Each point that the old coreset stood for lies at most as much farther from the new one as the
    old coreset's own points do (triangle inequality), which `k_center_greedy` keeps within twice the
    least possible.

    Args:
        bank: (M, D) float32, the old coreset.
        added: (N, D) float32.
        count: points to choose, all where there are no more.
        seed: of the start point.

    Returns:
        (min(count, M + N), D).
    """
    union = torch.cat([bank, added.to(bank)])
    if count >= len(union):
        return union
    generator = torch.Generator().manual_seed(seed)
    return union[k_center_greedy(union, count, generator)]


@torch.no_grad()
def k_center_passes(
    features: Tensor,
    count: int,
    generator: torch.Generator | None = None,
    earlier: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Choose as `k_center_greedy` does, pass by pass.

    Several points are picked per pass over the data without a change to the result. The farthest
    points form a pool, and picks inside it are exact among themselves. They are the true farthest
    ones as long as they lie farther than every point outside the pool did before the pass, whose
    distances can only have shrunk since.

    Args:
        features: (N, D) float32.
        count: points to choose at least, in 1..N. The last pass may bring more.
        generator: of the start point, on the CPU.
        earlier: the passes of an earlier call with the same features, to be continued. The result
            is bit for bit that of one call, since distances shrink pass by pass as they did there.

    Returns:
        Indices, each (n,) int64 on the device of `features`. The first is the start point alone.
    """
    points = features - features.mean(0)  # (N, D); squares of centred values cancel less in float32
    squares = _square_lengths(points)  # (N,)
    passes = list(earlier)
    if not passes:
        start = torch.randint(len(points), (1,), generator=generator)
        passes.append(start.to(points.device))

    nearest = _squared_distances(points, squares, passes[0]).squeeze(1)  # (N,)
    nearest[passes[0]] = -1.0  # below every distance, so that nothing is chosen twice
    for picks in passes[1:]:
        _shrink(nearest, points, squares, picks)

    total = sum(map(len, passes))
    while total < count:
        picks = _pick(points, squares, nearest)
        _shrink(nearest, points, squares, picks)
        passes.append(picks)
        total += len(picks)
    return passes


@dataclass(frozen=True)
class Selections:
    """Points chosen of all, and those chosen without a fold."""

    chosen: Tensor
    """(M,) int64, what `k_center_greedy` chooses of all points, in its order."""
    without: Iterator[Tensor]
    """(M,) int64 for each fold, or as many as lie outside it."""


@torch.no_grad()
def select_by_folds(
    features: Tensor, count: int, fold: Tensor, generator: torch.Generator
) -> Selections:
    """Choose points of all, and points without those of a fold, for one fold after the other.

    What was chosen of all stays, but for the fold's own. Then the farthest of the points outside the
    fold are added, as `k_center_greedy` adds them. So all folds together take about as long as one
    selection.

    Args:
        features: (N, D) float32.
        count: M, points to choose, in 1..N.
        fold: (N,) int64 of each point, from 0.
        generator: of the start point, on the CPU.
    """
    points = features - features.mean(0)  # (N, D)
    squares = _square_lengths(points)  # (N,)
    start = torch.randint(len(points), (1,), generator=generator).to(points.device)

    # Each point's squared distance to the nearest chosen one of each fold: (F, N)
    by_fold = squares.new_full((int(fold.max()) + 1, len(points)), torch.inf)
    by_fold[fold[start]] = _squared_distances(points, squares, start).T
    by_fold[:, start] = -1.0
    chosen = start
    while len(chosen) < count:
        picks = _pick(points, squares, by_fold.amin(0))[: count - len(chosen)]
        _shrink_by_fold(by_fold, points, squares, picks, fold)
        chosen = torch.cat([chosen, picks])
    without = _without_folds(points, squares, chosen, fold, by_fold)
    return Selections(chosen, without)


def _without_folds(
    points: Tensor, squares: Tensor, chosen: Tensor, fold: Tensor, by_fold: Tensor
) -> Iterator[Tensor]:
    """Yield the selection without each fold, see `select_by_folds`."""
    for number, members in enumerate(fold.bincount().tolist()):
        others = torch.arange(len(by_fold), device=by_fold.device) != number
        nearest = by_fold[others].amin(0)
        picks = [chosen[fold[chosen] != number]]
        nearest[fold == number] = -1.0
        total = len(picks[0])
        count = min(len(chosen), len(points) - members)
        while total < count:
            picks.append(_pick(points, squares, nearest))
            _shrink(nearest, points, squares, picks[-1])
            total += len(picks[-1])
        yield torch.cat(picks)[:count]


def _shrink_by_fold(
    by_fold: Tensor, points: Tensor, squares: Tensor, picks: Tensor, fold: Tensor
) -> None:
    """Lower each point's squared distance to the nearest chosen one of each fold, in place.

    Args:
        by_fold: (F, N), becomes -1 for the chosen points themselves.
        points: (N, D).
        squares: (N,), the points' squared lengths.
        picks: (n,), indices of the points chosen last.
        fold: (N,) of each point.
    """
    centers = points[picks].T.contiguous()  # (D, n)
    numbers = fold[picks]
    columns = [(number, (numbers == number).nonzero().squeeze(1)) for number in numbers.unique()]
    for first in range(0, len(points), _CHUNK_ROWS):
        rows = slice(first, first + _CHUNK_ROWS)
        # A row's own square is the same for all centres, and so is added after the minimum.
        product = torch.addmm(squares[picks], points[rows], centers, alpha=-2)
        for number, own in columns:
            closest = product[:, own].amin(1).add_(squares[rows]).clamp_(min=0)
            nearest = by_fold[number, rows]
            torch.minimum(nearest, closest, out=nearest)
    by_fold[:, picks] = -1.0


def _square_lengths(points: Tensor) -> Tensor:
    """Square the lengths of (N, D) points, (N,), without a copy of all of them."""
    return torch.cat([rows.square().sum(1) for rows in points.split(_CHUNK_ROWS)])


def _squared_distances(points: Tensor, squares: Tensor, centers: Tensor) -> Tensor:
    """Square the distances of all points to those at `centers` (K,): (N, K), at least 0."""
    products = points @ points[centers].T  # (N, K)
    return products.mul_(-2).add_(squares[:, None]).add_(squares[centers]).clamp_(min=0)


def _shrink(nearest: Tensor, points: Tensor, squares: Tensor, picks: Tensor) -> None:
    """Lower each point's squared distance to the nearest chosen one, in place.

    Args:
        nearest: (N,), becomes -1 for the chosen points themselves.
        points: (N, D).
        squares: (N,), the points' squared lengths.
        picks: (n,), indices of the points chosen last.
    """
    centers = points[picks].T.contiguous()  # (D, n)
    center_squares = squares[picks]
    chunks = zip(
        points.split(_CHUNK_ROWS),
        squares.split(_CHUNK_ROWS),
        nearest.split(_CHUNK_ROWS),
        strict=True,
    )

    for rows, row_squares, row_nearest in chunks:
        # A row's own square is the same for all centres, and so is added after the minimum.
        closest = torch.addmm(center_squares, rows, centers, alpha=-2).amin(1)
        closest.add_(row_squares).clamp_(min=0)
        torch.minimum(row_nearest, closest, out=row_nearest)
    nearest[picks] = -1.0


def _pick(points: Tensor, squares: Tensor, nearest: Tensor) -> Tensor:
    """Give the next farthest points, exactly as one at a time would give them, at least one.

    Args:
        points: (N, D).
        squares: (N,), the points' squared lengths.
        nearest: (N,), squared distances to the nearest chosen point.

    Returns:
        (n,) int64 indices.
    """
    size = min(len(points), max(len(points) // _POOL_PART, _SMALLEST_POOL))
    distance, pool = nearest.topk(size)
    outside = distance[-1].clone() if size < len(points) else distance.new_tensor(-1.0)
    members = points[pool]
    member_squares = squares[pool]

    # Only indices and values on the device: no step waits for the one before to reach the host.
    places = []
    values = []
    for _ in range(min(_PICKS_PER_PASS, size)):
        value, place = distance.max(0)
        places.append(place)
        values.append(value)
        to_pick = torch.mv(members, members[place])
        to_pick.mul_(-2).add_(member_squares).add_(member_squares[place]).clamp_(min=0)
        distance = torch.minimum(distance, to_pick)
        distance[place] = -1.0

    # The first pick is right in any case. Once a point outside might lie farther, none counts.
    farthest = torch.stack(values)
    valid = (farthest >= outside) & (farthest >= 0)
    valid[0] = True
    return pool[torch.stack(places)[valid.cumprod(0).bool()]]
