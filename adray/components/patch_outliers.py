"""How unlike the others each training patch is, of those at its place in the other images.

SoftPatch (X. Jiang et al., "SoftPatch: Unsupervised Anomaly Detection with Noisy Data", NeurIPS 2022,
https://arxiv.org/abs/2403.14233) weighs the patches of a memory bank so, and leaves the most unlike
out of it. Images are compared at the same place of the grid: where parts do not lie alike, a rare
pose is as unlike the others as a defect.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adray.components.k_center_greedy import k_center_greedy
from adray.components.soft_weights import SOFT_BLOCK
from adray.errors import InputError
from adray.language.sentence import Sentence

_BLOCK_NUMBERS = SOFT_BLOCK
"""Of patches and of the distances between them that are held at once, in double precision."""
_LEAST_REACH = 1e-10
"""Added to a mean distance, as scikit-learn does, since several images may be the same there."""
_RIDGE = 0.01
"""Added to the variances, as PaDiM does."""


@torch.no_grad()
def outlier_factors(patches: Tensor, discriminator: str, neighbors: int) -> Tensor:
    """Measure how unlike the other images each image is, place by place (section 3.2).

    Args:
        patches: (N, P, D) float32, of N images at P places.
        discriminator: ``lof``, ``nearest`` or ``gaussian``, of `DISCRIMINATORS`.
        neighbors: images that ``lof`` compares with, at most the N - 1 others.

    Returns:
        (N, P) float32, at least 0 and about 1 for what is usual; higher is less usual.

    Raises:
        InputError: for fewer than two images.
    """
    count, places, width = patches.shape
    if count < 2:
        raise InputError(Sentence.of("fit softpatch few"))
    measure = DISCRIMINATORS[discriminator]
    step = max(1, _BLOCK_NUMBERS // (count * (count + width)))

    factors = torch.empty(count, places)
    for start in range(0, places, step):
        # Double precision: squared distances are small differences of large products.
        block = patches[:, start : start + step].transpose(0, 1).double()  # (p, N, D)
        found = measure(block, min(neighbors, count - 1))  # (p, N)
        factors[:, start : start + step] = found.T.float().cpu()
    return factors.clamp_(min=0).to(patches.device)


def local_outlier_factors(vectors: Tensor, neighbors: int) -> Tensor:
    """Compare the density around each vector with that around its neighbours (M. Breunig et al., 2000).

    Args:
        vectors: (p, N, D), compared within each of p places.
        neighbors: k, at most N - 1.

    Returns:
        (p, N), about 1 inside of a cluster.
    """
    distance = _distances(vectors)
    nearest, index = distance.topk(neighbors, dim=2, largest=False)  # (p, N, k)
    to_last = nearest[:, :, -1]  # (p, N), the distance to the k-th neighbour

    # reach(a, b) = max(d(a, b), kd(b)), density(a) = k / sum of reach(a, b) over its neighbours b
    reach = torch.maximum(nearest, _taken(to_last, index))
    density = 1 / (reach.mean(2) + _LEAST_REACH)
    return _taken(density, index).mean(2) / density


def nearest_distances(vectors: Tensor, neighbors: int) -> Tensor:
    """Give one and the distance to the nearest of the other vectors, (p, N).

    Args:
        vectors: (p, N, D), compared within each of p places.
        neighbors: not used.
    """
    return 1 + _distances(vectors).amin(2)


def gaussian_distances(vectors: Tensor, neighbors: int) -> Tensor:
    """Give one and the Mahalanobis distance to the mean of all vectors at a place, (p, N).

    The covariance C of X (N, D) is never made: x (X'X / (N-1) + r I)^-1 x' is the diagonal of
    (N-1) G (G + (N-1) r I)^-1 with G = XX', which has N rows whatever D.

    Args:
        vectors: (p, N, D), compared within each of p places.
        neighbors: not used.
    """
    centered = vectors - vectors.mean(1, keepdim=True)
    gram = centered @ centered.transpose(1, 2)  # (p, N, N)
    freedom = vectors.shape[1] - 1
    ridge = freedom * _RIDGE * torch.eye(vectors.shape[1]).to(gram)
    squares = freedom * torch.linalg.solve(gram + ridge, gram).diagonal(dim1=1, dim2=2)
    return 1 + squares.clamp(min=0).sqrt()


DISCRIMINATORS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "lof": local_outlier_factors,
    "nearest": nearest_distances,
    "gaussian": gaussian_distances,
}
"""The authors' three measures by name."""


def _distances(vectors: Tensor) -> Tensor:
    """Give the distances between the vectors of each place, (p, N, N), infinite to themselves."""
    centered = vectors - vectors.mean(1, keepdim=True)
    squares = centered.square().sum(2)  # (p, N)
    products = centered @ centered.transpose(1, 2)
    distance = (squares[:, :, None] + squares[:, None] - 2 * products).clamp(min=0).sqrt()
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return distance


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Give the values (p, N) of each vector's neighbours at `index` (p, N, k), (p, N, k)."""
    place = torch.arange(len(values), device=values.device)[:, None, None]
    return values[place, index]


def usual_coreset(
    patches: Tensor, factors: Tensor, removed: float, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose a coreset of the patches that are not the most unlike the others (section 3.3).

    Args:
        patches: (M, D) float32, of all places and images.
        factors: (M,), of `outlier_factors`.
        removed: part of the patches that is left out, in [0, 1).
        count: patches wanted; fewer where fewer are left.
        generator: of the start point, on the CPU.

    Returns:
        The patches (n, D) and their factors (n,).
    """
    # In numpy: torch's quantile takes no more than 2^24 values.
    threshold = float(np.quantile(factors.cpu().numpy(), 1 - removed))
    kept = torch.nonzero(factors <= threshold).squeeze(1)
    usual = patches[kept]
    if count < len(usual):
        kept = kept[k_center_greedy(usual, count, generator)]
    return patches[kept], factors[kept]
