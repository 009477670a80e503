"""Damaged images: how much, how often, and by which random numbers."""

from __future__ import annotations

import torch

from adray.components.corruption import corrupt


def grey(count=64, size=64):
    return torch.full((count, 3, size, size), 0.5)


def test_damaged_images_stay_in_range_and_a_tenth_to_a_quarter_of_them_is_covered():
    torch.manual_seed(0)
    image = grey(200)
    damaged = corrupt(image, share=1.0, noise_std=0.0)
    assert 0 <= float(damaged.min()) <= float(damaged.max()) <= 1
    covered = float((damaged != image).any(1).float().mean())
    assert 0.1 < covered < 0.25


def test_noise_lies_everywhere_with_its_standard_deviation():
    torch.manual_seed(0)
    noise = corrupt(grey(200), share=1.0, noise_std=0.05) - grey(200)
    untouched = noise.abs() < 0.2  # patches are further off
    assert float(noise[untouched].std()) > 0.045
    assert float(noise.abs().median()) < 0.05  # of a Gaussian: 0.034


def test_the_share_of_images_is_damaged_and_the_others_are_returned_as_they_are():
    torch.manual_seed(0)
    image = grey(400, 16)
    changed = (corrupt(image, share=0.3, noise_std=0.05) != image).flatten(1).any(1)
    assert 0.2 < float(changed.float().mean()) < 0.4
    assert torch.equal(corrupt(image, share=0.0, noise_std=0.05), image)


def test_the_seed_decides_and_the_input_is_left_alone():
    image = torch.rand(4, 3, 32, 32)
    before = image.clone()
    outcomes = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outcomes.append(corrupt(image, 1.0, 0.05))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])
    assert torch.equal(image, before)
