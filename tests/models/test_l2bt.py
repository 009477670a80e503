"""L2BT's mathematics against numpy and scipy, and its plumbing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.l2bt import L2btConfig, L2btModel, L2btTrainer, l2bt_loss, smoothed
from adray.types import Batch

TWO = ("blocks.0", "blocks.1")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return L2btModel(L2btConfig("dinov2_vits14", TWO, "random")).eval()


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@torch.no_grad()
def test_the_map_is_the_smoothed_product_of_both_distances_in_numpy(model):
    features = (torch.randn(2, 36, 384), torch.randn(2, 36, 384))
    found = model(torch.zeros(2, 3, 84, 84), features)
    earlier, later = (one.double().numpy() for one in features)
    backward = model.backward_student(features[1]).double().numpy()
    forward = model.forward_student(features[0]).double().numpy()
    first = np.linalg.norm(unit(backward) - unit(earlier), axis=2)
    second = np.linalg.norm(unit(forward) - unit(later), axis=2)
    small = torch.from_numpy(first * second).view(2, 1, 6, 6)
    enlarged = F.interpolate(small, (84, 84), mode="bilinear")[:, 0].numpy()
    for image in range(2):
        expected = enlarged[image]
        for side in (5, 5, 5, 5, 5, 7, 7, 7):
            expected = uniform_filter(expected, side, mode="constant")
        np.testing.assert_allclose(found.anomaly_map[image, 0].numpy(), expected, rtol=1e-4)
        highest = np.sort(expected.ravel())[-7:]  # a thousandth of 7,056
        assert float(found.pred_score[image]) == pytest.approx(highest.mean(), rel=1e-4)


def test_smoothing_spreads_a_pixel_over_its_neighbours_and_keeps_the_sum():
    plane = torch.zeros(1, 1, 101, 101)
    plane[0, 0, 50, 50] = 1.0
    found = smoothed(plane)
    assert float(found.sum()) == pytest.approx(1.0, rel=1e-5)
    reach = (found[0, 0, 50] > 0).sum()
    assert int(reach) == 1 + 5 * 4 + 3 * 6


def test_the_loss_is_one_less_the_mean_cosine_of_both_directions_in_numpy():
    features = (torch.randn(2, 9, 5), torch.randn(2, 9, 5))
    predicted = (torch.randn(2, 9, 5), torch.randn(2, 9, 5))
    expected = 0.0
    for given, guess in zip(features, predicted, strict=True):
        expected += 1 - (unit(given.numpy()) * unit(guess.numpy())).sum(2).mean()
    assert float(l2bt_loss(features, predicted)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_with_students_and_blocks_exchanged_the_map_is_the_same(model):
    earlier, later = torch.randn(1, 16, 384), torch.randn(1, 16, 384)
    image = torch.zeros(1, 3, 56, 56)
    before = model(image, (earlier, later))
    forward, backward = model.forward_student, model.backward_student
    model.forward_student, model.backward_student = backward, forward
    after = model(image, (later, earlier))
    model.forward_student, model.backward_student = forward, backward
    torch.testing.assert_close(after.anomaly_map, before.anomaly_map)


@torch.no_grad()
def test_features_are_the_normed_patches_of_both_blocks(model):
    image = torch.randn(1, 3, 28, 42)
    tokens = model.extractor(image)
    for one, found in zip(tokens, model.features(image), strict=True):
        torch.testing.assert_close(found, F.layer_norm(one[:, 1:].float(), (384,), eps=1e-6))


def test_training_moves_both_students_alone_and_lowers_the_loss():
    config = L2btConfig("dinov2_vits14", TWO, "random", lr=1e-3)
    trainer = L2btTrainer(config, TrainConfig(img_size=28))
    trainer.optimizer, _ = trainer.configure_optimizer(10)
    image = torch.randn(2, 3, 28, 28)
    label = torch.zeros(2, dtype=torch.int64)
    batch = Batch(image, label, None, label, trainer.model.features(image))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]) != ("student" in name), name


def test_it_takes_two_blocks():
    with pytest.raises(InputError, match="must be two blocks"):
        L2btConfig("dinov2_vits14", (*TWO, "blocks.2"))
