"""The encoder and decoder: shapes, and which levels the decoder looks at."""

from __future__ import annotations

import pytest
import torch

from adray.components.encoder_decoder import Decoder, Encoder


def encoder_and_decoder(skips, num_blocks=4):
    torch.manual_seed(0)
    return Encoder(4, num_blocks, 6).eval(), Decoder(4, num_blocks, 6, skips).eval()


@pytest.mark.parametrize("skips", range(4))
def test_any_number_of_skip_connections_rebuilds_the_images_size(skips):
    encoder, decoder = encoder_and_decoder(skips)
    latent, levels = encoder(torch.rand(2, 3, 32, 48))
    assert latent.shape == (2, 6, 2, 3)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (4, 16, 24),
        (8, 8, 12),
        (16, 4, 6),
        (32, 2, 3),
    ]
    assert decoder(latent, levels).shape == (2, 3, 32, 48)


def test_a_single_block_works():
    encoder, decoder = encoder_and_decoder(0, num_blocks=1)
    assert decoder(*encoder(torch.rand(1, 3, 8, 8))).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("skips", range(4))
def test_skip_connections_are_taken_from_the_deepest_level_upwards(skips):
    encoder, decoder = encoder_and_decoder(skips)
    latent, levels = encoder(torch.rand(1, 3, 32, 32))
    leaves = [level.detach().requires_grad_() for level in levels]
    decoder(latent, leaves).sum().backward()
    # The deepest level is the latent map's own source, so the first skip is the one before it.
    assert [leaf.grad is not None for leaf in leaves] == [skips > 2, skips > 1, skips > 0, False]
