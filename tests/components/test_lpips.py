"""LPIPS: its formula with random weights against a slow loop, and its weight files, which nobody has to have."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models import alexnet

from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.components.lpips import LPIPS_SMALLEST, find_lpips, load_lpips
from adray.errors import InputError
from adray.settings import set_globals

LAYERS = ((0, 4, 2, True), (3, 1, 2, True), (6, 1, 1, False), (8, 1, 1, False), (10, 1, 1, False))
"""Of AlexNet's convolutions: index, stride, padding, and whether 3x3 max pooling of stride 2 follows."""
CHANNELS = (64, 192, 384, 256, 256)


@pytest.fixture(scope="module")
def states():
    """Random tensors under the names of the two published files; the classifier is left small."""
    torch.manual_seed(0)
    features = {f"features.{k}": v for k, v in alexnet(num_classes=2).features.state_dict().items()}
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, channels, 1, 1)
        for i, channels in enumerate(CHANNELS)
    }
    return {**features, "classifier.6.bias": torch.zeros(1000)}, heads


@pytest.fixture
def folder(states, tmp_path, own_settings):
    (tmp_path / "lpips").mkdir()
    for name, state in zip(("lpips_alexnet", "lpips_alex"), states, strict=True):
        torch.save(state, tmp_path / BACKBONE_WEIGHT_FILES[name].paths[0])
    set_globals(backbone_dir=tmp_path)
    return tmp_path


def slow_features(state, image):
    """The five ReLU maps of AlexNet, written out from its paper's table."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x = (2 * image - 1 - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
    maps = []
    for index, stride, padding, pool in LAYERS:
        x = F.relu(
            F.conv2d(
                x,
                state[f"features.{index}.weight"],
                state[f"features.{index}.bias"],
                stride,
                padding,
            )
        )
        maps.append(x.numpy()[0])
        x = F.max_pool2d(x, 3, 2) if pool else x
    return maps


def slow_distance(states, a, b):
    alex, heads = states
    total = 0.0
    for i, (x, y) in enumerate(zip(slow_features(alex, a), slow_features(alex, b), strict=True)):
        weight, (_, h, w) = heads[f"lin{i}.model.1.weight"].flatten().numpy(), x.shape
        for r, c in np.ndindex(h, w):
            u, v = (m[:, r, c] / (np.sqrt((m[:, r, c] ** 2).sum()) + 1e-10) for m in (x, y))
            total += float((weight * (u - v) ** 2).sum()) / (h * w)
    return total


def test_it_equals_the_papers_sum_written_out(states, folder):
    torch.manual_seed(1)
    a, b = torch.rand(2, 3, 48, 40), torch.rand(2, 3, 48, 40)
    ours = find_lpips()(a, b)
    assert ours.shape == (2,)
    for k in range(2):
        assert float(ours[k]) == pytest.approx(
            slow_distance(states, a[k : k + 1], b[k : k + 1]), rel=1e-4
        )


def test_equal_images_have_distance_zero_and_the_order_does_not_matter(folder):
    net = find_lpips()
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    assert net(a, a).tolist() == [0.0, 0.0]
    torch.testing.assert_close(net(a, b), net(b, a))
    assert float(net(a, b).min()) > 0


def test_the_smallest_side_still_works(folder):
    image = torch.rand(1, 3, LPIPS_SMALLEST, LPIPS_SMALLEST)
    assert torch.isfinite(find_lpips()(image, 1 - image)).all()


def test_loading_draws_no_random_number_and_nothing_learns(folder):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    net = find_lpips()
    assert torch.equal(torch.rand(1), expected)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("name", ["lpips_alexnet", "lpips_alex"])
def test_without_one_of_the_files_there_is_none(folder, name):
    (folder / BACKBONE_WEIGHT_FILES[name].paths[0]).unlink()
    assert find_lpips() is None


def test_another_networks_files_are_refused_and_leave_the_figure_out(folder, caplog):
    paths = [
        folder / BACKBONE_WEIGHT_FILES[name].paths[0] for name in ("lpips_alexnet", "lpips_alex")
    ]
    with pytest.raises(InputError, match="not those of LPIPS with AlexNet"):
        load_lpips(*paths[::-1])
    paths[1].write_bytes(b"no weights")
    with caplog.at_level(logging.WARNING, "adray"):
        assert find_lpips() is None
    assert "LPIPS is left out" in caplog.text
