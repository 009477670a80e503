"""Reverse distillation: its loss and map against slow loops, its network against anomalib's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F
from unfolded_weights import redraw

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.reverse_distillation import (
    OneClassBottleneck,
    ReverseDistillationConfig,
    ReverseDistillationModel,
    ReverseDistillationTrainer,
    cosine_map,
    global_cosine_loss,
    whole_cosine,
)
from adray.types import Batch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def maps():
    """Teacher's and restored maps of two layers, a batch of 3."""
    shapes = ((3, 4, 6, 6), (3, 5, 3, 3))
    return tuple(torch.randn(s) for s in shapes), tuple(torch.randn(s) for s in shapes)


@pytest.fixture
def model():
    return new_model("resnet18", sigma=1.0)


def new_model(backbone, **changes):
    config = ReverseDistillationConfig(backbone, "random", **changes)
    return ReverseDistillationModel(config).eval()


def cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def slow_map(teacher, restored):
    """1 - cosine, position by position, in numpy: (B, h, w)."""
    t, r = teacher.double().numpy(), restored.double().numpy()
    batch, _, height, width = t.shape
    out = np.zeros((batch, height, width))
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                out[b, i, j] = 1 - cosine(t[b, :, i, j], r[b, :, i, j])
    return out


def slow_bilinear(image, size):
    """Enlarge (h, w) with its corner pixels on the corners, value by value."""
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * (image.shape[0] - 1) / (size - 1), j * (image.shape[1] - 1) / (size - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def batch_of(trainer, image):
    label = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, label, None, label, trainer.model.features(image))


def new_trainer(img_size=32, backbone="resnet18"):
    return ReverseDistillationTrainer(
        ReverseDistillationConfig(backbone, "random"), TrainConfig(img_size=img_size)
    )


def test_the_loss_takes_the_cosine_of_whole_flattened_maps(maps):
    teacher, restored = ([m.double().numpy().reshape(3, -1) for m in side] for side in maps)
    expected = sum(
        np.mean([1 - cosine(t[b], r[b]) for b in range(3)])
        for t, r in zip(teacher, restored, strict=True)
    )
    assert float(global_cosine_loss(*maps)) == pytest.approx(expected, rel=1e-6)


def test_the_cosine_is_torchs_whatever_the_memory_format(maps):
    a, b = maps[0][0], maps[1][0]
    expected = F.cosine_similarity(a.flatten(1), b.flatten(1))
    torch.testing.assert_close(whole_cosine(a, b), expected)
    torch.testing.assert_close(
        whole_cosine(a, b.contiguous(memory_format=torch.channels_last)), expected
    )


def test_the_loss_of_maps_that_differ_by_a_factor_only_is_zero_and_of_dead_ones_finite(maps):
    teacher, _ = maps
    assert float(global_cosine_loss(teacher, tuple(3 * t for t in teacher))) == pytest.approx(
        0.0, abs=1e-6
    )
    dead = tuple(torch.zeros_like(t, requires_grad=True) for t in teacher)
    global_cosine_loss(teacher, dead).backward()
    assert all(torch.isfinite(d.grad).all() for d in dead)


def test_the_map_is_the_sum_of_the_enlarged_cosine_distances(maps):
    layers = [slow_map(t, r) for t, r in zip(*maps, strict=True)]
    expected = np.stack(
        [slow_bilinear(a, 13) + slow_bilinear(b, 13) for a, b in zip(*layers, strict=True)]
    )
    np.testing.assert_allclose(
        cosine_map(*maps, (13, 13))[:, 0].numpy(), expected, rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_a_prediction_is_scipys_gaussian_of_that_map_and_its_maximum(model):
    image = torch.randn(2, 3, 32, 32)
    teacher = model.features(image)
    raw = cosine_map(teacher, model.restore(teacher), (32, 32))[:, 0].double().numpy()
    prediction = model(image)
    expected = np.stack([gaussian_filter(m, sigma=1.0, mode="mirror", truncate=4.0) for m in raw])
    np.testing.assert_allclose(prediction.anomaly_map[:, 0].numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prediction.pred_score.numpy(), expected.max((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(("backbone", "channels"), [("resnet18", 512), ("wide_resnet50_2", 2048)])
@torch.no_grad()
def test_the_embedding_is_a_32nd_of_the_image(backbone, channels):
    model = new_model(backbone)
    image = torch.randn(1, 3, 64, 96)
    assert model.bottleneck(model.features(image)).shape == (1, channels, 2, 3)


def test_the_wide_bottleneck_is_wide_too_as_published():
    assert OneClassBottleneck("wide_resnet50_2").stage[1].conv2.weight.shape == (1024, 1024, 3, 3)


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-6)


def test_training_moves_bottleneck_and_decoder_only_and_lowers_the_loss():
    trainer = new_trainer()
    trainer.optimizer, _ = trainer.configure_optimizer(12)
    trainer.model.train()
    batch = batch_of(trainer, torch.randn(4, 3, 32, 32))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(12)]
    assert losses[-1] < losses[0]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("teacher."), name


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    def loss(copies):
        trainer = new_trainer(img_size=64)
        trainer.optimizer, _ = trainer.configure_optimizer(10)
        image = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).repeat(
            copies, 1, 1, 1
        )
        return float(trainer.train_step(batch_of(trainer, image))["loss"])

    assert loss(3) == pytest.approx(loss(1), rel=1e-5)


@pytest.mark.parametrize(("size", "allowed"), [(100, "use 96 or 128"), (16, "use 32")])
def test_a_size_that_does_not_divide_names_those_that_do(size, allowed):
    with pytest.raises(InputError, match=f"input size {size} .* multiple of 32; {allowed}"):
        new_trainer(img_size=size)


def test_a_backbone_without_decoder_is_refused():
    with pytest.raises(InputError, match="'vgg16' has no decoder here"):
        ReverseDistillationConfig("vgg16")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "wide_resnet50_2"])
@torch.no_grad()
def test_maps_equal_anomalibs_with_the_same_weights(backbone):
    package = "anomalib.models.image.reverse_distillation"
    torch_model = pytest.importorskip(f"{package}.torch_model")
    parts = pytest.importorskip(f"{package}.components.bottleneck")
    theirs = torch_model.ReverseDistillationModel(
        backbone, (64, 64), ("layer1", "layer2", "layer3"), "add", False
    )
    if backbone.startswith("wide"):  # theirs is not wide, the reference's and ours is
        theirs.bottleneck = parts.OCBE(parts.Bottleneck, 3, width_per_group=128)
    ours = new_model(backbone)
    theirs.encoder.feature_extractor.load_state_dict(redraw(ours.teacher))
    stages = {k.replace("downsample", "upsample"): v for k, v in ours.decoder.state_dict().items()}
    theirs.decoder.load_state_dict(stages)
    names = {
        "stage.": "bn_layer.",
        "from_layer1.0.": "conv1.",
        "from_layer1.1.": "bn1.",
        "from_layer1.3.": "conv2.",
        "from_layer1.4.": "bn2.",
        "from_layer2.0.": "conv3.",
        "from_layer2.1.": "bn3.",
    }
    fused = {
        key.replace(old, new): value
        for key, value in ours.bottleneck.state_dict().items()
        for old, new in names.items()
        if key.startswith(old)
    }
    outcome = theirs.bottleneck.load_state_dict(fused, strict=False)
    assert all(
        key.startswith(("conv4.", "bn4.")) for key in outcome.missing_keys
    )  # theirs, and unused
    assert not outcome.unexpected_keys
    image = torch.randn(3, 3, 64, 64)
    expected, prediction = theirs.eval()(image), ours(image)
    torch.testing.assert_close(prediction.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        prediction.pred_score, expected.pred_score.flatten(), rtol=1e-4, atol=1e-4
    )
