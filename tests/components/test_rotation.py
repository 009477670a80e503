"""Turned images against scipy, Pillow and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from adray.components.rotation import rotate, turned_views


def picture(height=24, width=24):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [24, 25])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(("mode", "border"), [("nearest", "zeros"), ("bilinear", "reflection")])
def test_quarter_turns_exchange_the_pixels(size, turns, mode, border):
    image = picture(size, size)
    found = rotate(image, torch.tensor([90.0 * turns]), mode, border)
    expected = torch.rot90(image, turns, (2, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("degrees", [17.0, 45.0, 135.0, 300.0])
@pytest.mark.parametrize(("height", "width"), [(24, 24), (25, 19), (12, 31)])
@pytest.mark.parametrize(
    ("mode", "border", "order", "scipys"),
    [("bilinear", "reflection", 1, "mirror"), ("nearest", "zeros", 0, "grid-constant")],
)
def test_any_angle_is_scipys(degrees, height, width, mode, border, order, scipys):
    image = picture(height, width)
    found = rotate(image, torch.tensor([degrees]), mode, border)[0].numpy()
    angle = np.deg2rad(degrees)
    # Rows run downward, so that this matrix turns counter-clockwise as it is seen.
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    for ours, channel in zip(found, image[0].numpy(), strict=True):
        expected = affine_transform(
            channel, matrix, middle - matrix @ middle, order=order, mode=scipys
        )
        wrong = np.abs(ours - expected) > 1e-3
        # Which of two pixels is nearest that are equally near is a matter of rounding.
        assert wrong.mean() <= (0.03 if order == 0 else 0)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("shape", [(28, 42), (56, 28), (14, 70)])
def test_a_rectangle_is_turned_in_its_own_frame_and_mirrored_beyond_it(shape, turns):
    """As the reference does it, whose border is mirrored without the edge pixel."""
    image = picture(*shape)
    views = list(turned_views(image, 4))
    assert views[turns - 1].shape == image.shape
    middle = (np.array(shape) - 1) / 2
    sine, cosine = np.sin(turns * np.pi / 2), np.cos(turns * np.pi / 2)
    matrix = np.array([[cosine, sine], [-sine, cosine]]).round()
    for found, channel in zip(views[turns - 1][0].numpy(), image[0].numpy(), strict=True):
        expected = affine_transform(
            channel, matrix, middle - matrix @ middle, order=1, mode="mirror"
        )
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_each_image_of_a_batch_has_its_own_angle():
    image = torch.cat([picture(), picture()])
    found = rotate(image, torch.tensor([0.0, 90.0]), "nearest", "zeros")
    torch.testing.assert_close(found[0], image[0])
    torch.testing.assert_close(found[1], torch.rot90(image[1], 1, (1, 2)))
