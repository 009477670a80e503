"""Greedy k-centre selection: a small subset that leaves no point far from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PICKS_PER_PASS = 128
_POOL_PART = 32
_CHUNK_ROWS = 16_384


def k_center_greedy(
    features: Tensor, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Choose points one after the other, each the farthest from those chosen before.

    The order does not depend on how many are wanted: a smaller selection is the beginning of a larger one.

    Args:
        features: (N, D) float32.
        count: points to choose, in 1..N.
        generator: of the start point, on the CPU.

    Returns:
        (count,) int64 indices on the device of `features`.
    """
    return torch.cat(k_center_passes(features, count, generator))[:count]


@torch.no_grad()
def k_center_passes(
    features: Tensor,
    count: int,
    generator: torch.Generator | None = None,
    begun: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Choose as `k_center_greedy` does, pass by pass.

    Several points are picked per pass over the data without a change to the result: the farthest points form a pool,
    picks inside it are exact among themselves, and they are the true farthest ones as long as they lie farther than
    every point outside the pool did before the pass, whose distances can only have shrunk since.

    Args:
        features: (N, D) float32.
        count: points to choose at least, in 1..N; the last pass may bring more.
        generator: of the start point, on the CPU.
        begun: the passes of an earlier call with the same features, to be continued; the result is bit for bit that of
            one call, since distances shrink pass by pass as they did there.

    Returns:
        Indices, each (n,) int64 on the device of `features`; the first is the start point alone.
    """
    points = features - features.mean(0)  # (N, D); squares of centred values cancel less in float32
    squares = points.square().sum(1)  # (N,)
    passes = list(begun) or [
        torch.randint(len(points), (1,), generator=generator).to(points.device)
    ]
    nearest = _squared_distances(points, squares, passes[0]).squeeze(1)
    nearest[passes[0]] = -1.0  # below every distance, so that nothing is chosen twice
    for picks in passes[1:]:
        _shrink(nearest, points, squares, picks)
    total = sum(map(len, passes))
    while total < count:
        passes.append(_pick(points, squares, nearest))
        _shrink(nearest, points, squares, passes[-1])
        total += len(passes[-1])
    return passes


def _squared_distances(points: Tensor, squares: Tensor, centers: Tensor) -> Tensor:
    """Squared distances of all points to the points at the indices `centers` (K,): (N, K), at least 0."""
    products = points @ points[centers].T  # (N, K)
    return products.mul_(-2).add_(squares[:, None]).add_(squares[centers]).clamp_(min=0)


def _shrink(nearest: Tensor, points: Tensor, squares: Tensor, picks: Tensor) -> None:
    """Lower each point's squared distance to the nearest chosen one, in place, to -1 for the chosen ones themselves.

    Chunks stay in the processor's cache.
    """
    centers, center_squares = points[picks].T.contiguous(), squares[picks]
    for rows, row_squares, row_nearest in zip(
        points.split(_CHUNK_ROWS),
        squares.split(_CHUNK_ROWS),
        nearest.split(_CHUNK_ROWS),
        strict=True,
    ):
        closest = torch.addmm(center_squares, rows, centers, alpha=-2).amin(1)  # (n,)
        torch.minimum(row_nearest, closest.add_(row_squares).clamp_(min=0), out=row_nearest)
    nearest[picks] = -1.0


def _pick(points: Tensor, squares: Tensor, nearest: Tensor) -> Tensor:
    """The next farthest points, exactly as one at a time would give them; at least one."""
    size = min(len(points), max(len(points) // _POOL_PART, 256))
    distance, pool = nearest.topk(size)
    outside = distance[-1].clone() if size < len(points) else distance.new_tensor(-1.0)
    members, member_squares = points[pool], squares[pool]
    picked, values = [], []
    for _ in range(min(_PICKS_PER_PASS, size)):
        value, place = distance.max(0)
        picked.append(place)
        values.append(value)
        # Only indices and values on the device: no step waits for the one before to reach the host.
        to_pick = (
            torch.mv(members, members[place])
            .mul_(-2)
            .add_(member_squares)
            .add_(member_squares[place])
        )
        distance = torch.minimum(distance, to_pick.clamp_(min=0))
        distance[place] = -1.0
    value = torch.stack(values)
    valid = (value >= outside) & (value >= 0)
    valid[0] = True
    return pool[torch.stack(picked)[valid.cumprod(0).bool()]]
