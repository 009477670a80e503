"""STFPM's loss and map against slow loops over positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.stfpm import (
    StfpmConfig,
    StfpmModel,
    StfpmTrainer,
    build_student,
    distance_map,
    stfpm_loss,
    unit_distance,
)
from adray.types import Batch

LAYERS = ("layer1", "layer2", "layer3")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def maps():
    """Teacher's and student's maps of two layers, a batch of 3."""
    shapes = ((3, 4, 6, 6), (3, 5, 3, 3))
    return tuple(torch.randn(s) for s in shapes), tuple(torch.randn(s) for s in shapes)


def slow_distance(teacher, student):
    """Squared distance of unit vectors, position by position, in numpy."""
    t, s = teacher.double().numpy(), student.double().numpy()
    batch, _, height, width = t.shape
    out = np.zeros((batch, height, width))
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                a, c = t[b, :, i, j], s[b, :, i, j]
                out[b, i, j] = sum((a / np.sqrt((a**2).sum()) - c / np.sqrt((c**2).sum())) ** 2)
    return out


def slow_bilinear(image, size):
    """Enlarge (h, w) with pixel centres aligned, value by value."""
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y = max((i + 0.5) * image.shape[0] / size - 0.5, 0)
            x = max((j + 0.5) * image.shape[1] / size - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def test_the_loss_is_the_mean_over_positions_and_images_summed_over_layers(maps):
    expected = sum(slow_distance(t, s).mean() for t, s in zip(*maps, strict=True))
    assert float(stfpm_loss(*maps)) == pytest.approx(expected, rel=1e-6)


def test_a_student_that_agrees_up_to_length_has_no_loss(maps):
    teacher, _ = maps
    assert float(stfpm_loss(teacher, tuple(3.0 * t for t in teacher))) == pytest.approx(
        0.0, abs=1e-10
    )


def test_the_map_is_the_product_of_the_enlarged_half_distances(maps):
    halves = [0.5 * slow_distance(t, s) for t, s in zip(*maps, strict=True)]
    expected = np.stack(
        [slow_bilinear(a, 12) * slow_bilinear(b, 12) for a, b in zip(*halves, strict=True)]
    )
    np.testing.assert_allclose(
        distance_map(*maps, (12, 12))[:, 0].numpy(), expected, rtol=1e-5, atol=1e-7
    )


def test_half_precision_features_do_not_underflow_in_the_map():
    teacher = tuple(torch.ones(1, 2, 2, 2) for _ in range(3))
    student = tuple(t + torch.tensor([0.0, 0.004]).view(1, 2, 1, 1) for t in teacher)
    half = distance_map(tuple(t.half() for t in teacher), tuple(s.half() for s in student), (4, 4))
    assert half.dtype == torch.float32
    assert (half > 0).all()
    assert (
        float(unit_distance(teacher[0].half(), student[0].half()).max()) < 2**-14
    )  # cubed, below half's range


def test_the_student_starts_as_torchvisions_untrained_network_does():
    student = build_student("resnet18", LAYERS)
    norms = [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
    variance = float(student.layer2[0].conv2.weight.detach().var())
    assert variance == pytest.approx(2 / (128 * 9), rel=0.05)  # He initialisation by fan-out


def test_student_and_untrained_teacher_differ():
    model = StfpmModel(StfpmConfig(weights="random"))
    assert not torch.equal(model.teacher.net.conv1.weight, model.student.conv1.weight)


def test_given_features_keep_the_teacher_from_running():
    model = StfpmModel(StfpmConfig(weights="random")).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, direct = model.features(image), model(image)
        model.teacher.net = None
        torch.testing.assert_close(model(image, features).anomaly_map, direct.anomaly_map)


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches():
    model = StfpmModel(StfpmConfig(weights="random")).eval()
    image = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-6)


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    def loss(copies):
        trainer = StfpmTrainer(StfpmConfig(weights="random"), TrainConfig(img_size=32))
        trainer.optimizer, _ = trainer.configure_optimizer(10)
        image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).repeat(
            copies, 1, 1, 1
        )
        label = torch.zeros(len(image), dtype=torch.int64)
        return float(
            trainer.train_step(Batch(image, label, None, label, trainer.model.features(image)))[
                "loss"
            ]
        )

    assert loss(3) == pytest.approx(loss(1), rel=1e-5)


def test_a_negative_learning_rate_is_refused():
    with pytest.raises(InputError, match=r"lr is -1, but must be between"):
        StfpmConfig(lr=-1)
