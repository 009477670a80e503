from __future__ import annotations

import itertools

import pytest
import torch

from adray.components.tiler import tile, tile_starts, untile
from adray.errors import InputError


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("shape", [(32, 32), (33, 70), (100, 40)])
def test_tiles_of_an_image_put_together_are_the_image(shape, overlap):
    image = torch.rand(3, *shape, dtype=torch.float64)
    tiles = tile(image, 32, overlap)
    assert tiles.shape[1:] == (3, 32, 32)
    assert torch.allclose(untile(tiles, *shape, overlap), image)


@pytest.mark.parametrize("length", range(32, 140, 7))
def test_tiles_cover_every_pixel_and_share_at_least_what_was_asked(length):
    starts = tile_starts(length, 32, 0.25)
    assert starts[0] == 0
    assert starts[-1] == length - 32
    assert all(b - a <= 24 for a, b in itertools.pairwise(starts))
    assert len(starts) == 1 or (length - 32) / 24 > len(starts) - 2  # no more tiles than needed


def test_where_tiles_differ_the_nearer_middle_counts_more():
    tiles = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    seam = untile(tiles, 8, 12, 0.5)[0, 4]
    assert seam[:4].eq(0).all()
    assert seam[8:].eq(1).all()
    assert (seam.diff() >= 0).all()


@pytest.mark.parametrize(("size", "overlap"), [(64, 0.25), (0, 0.25), (16, 1.0), (16, -0.1)])
def test_tiles_that_do_not_fit_are_refused(size, overlap):
    with pytest.raises(InputError):
        tile(torch.rand(3, 32, 40), size, overlap)
