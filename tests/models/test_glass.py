"""GLASS's mathematics against numpy, autograd and slow loops; its rule of the spectrum on planted images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.glass import (
    Discriminator,
    GlassConfig,
    GlassModel,
    GlassTrainer,
    ascended,
    augment_texture,
    draw_masks,
    hardest_focal_loss,
    on_shell,
    paint,
    suits_hypersphere,
)

SMALL = {"backbone": "resnet18", "weights": "random", "width": 24, "hidden": 16}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def new_trainer(size=64, **changes):
    config = GlassConfig(**{**SMALL, **changes})
    return GlassTrainer(config, TrainConfig(img_size=size, batch_size=4))


@torch.no_grad()
def test_a_patch_is_the_mean_of_runs_of_its_window_in_a_loop():
    model = GlassModel(GlassConfig(**SMALL), 64)
    features = (torch.randn(1, 8, 8, 8), torch.randn(1, 16, 8, 8))
    parts = []
    for feature in features:
        padded = F.pad(feature[0], (1, 1, 1, 1)).numpy()
        grid = np.zeros((8, 8, 24))
        for y, x in np.ndindex(8, 8):
            numbers = padded[:, y : y + 3, x : x + 3].ravel()  # channel by channel
            grid[y, x] = numbers.reshape(24, -1).mean(1)
        parts.append(grid)
    expected = np.concatenate(parts, 2).reshape(64, 24, 2).mean(2)
    np.testing.assert_allclose(model.embed(features)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_mean_patch_is_the_patch_of_the_mean_map():
    model = GlassModel(GlassConfig(**SMALL), 64)
    features = model.features(torch.randn(5, 3, 64, 64))
    means = tuple(feature.mean(0, keepdim=True) for feature in features)
    torch.testing.assert_close(
        model.adapt(means)[0], model.adapt(features).mean(0), rtol=1e-4, atol=1e-5
    )


def test_projected_points_lie_in_the_shell_on_their_own_line():
    center = torch.randn(200, 5)
    points = center + torch.randn(200, 5) * torch.rand(200, 1) * 3
    found = on_shell(points, center, 0.5)
    before = (points - center).norm(dim=1)
    after = (found - center).norm(dim=1)
    torch.testing.assert_close(after, before.clamp(0.5, 1.0))
    torch.testing.assert_close(
        F.cosine_similarity(found - center, points - center), torch.ones(200)
    )


def test_each_step_of_the_ascent_is_as_long_as_asked_and_raises_what_is_missed():
    discriminator = Discriminator(6, 32)
    normal = torch.randn(40, 6, requires_grad=True)
    noisy = normal + 0.1 * torch.randn(40, 6)

    def missed(points):
        logits = discriminator(torch.cat([normal, points]))[40:]
        return float(F.binary_cross_entropy_with_logits(logits, torch.ones(40)).detach())

    moved = ascended(discriminator, normal, noisy, 1, 0.05, lambda points: points)
    torch.testing.assert_close((moved - noisy).norm(dim=1), torch.full((40,), 0.05))
    further = ascended(discriminator, normal, noisy, 4, 0.05, lambda points: points)
    assert missed(noisy) < missed(moved) < missed(further)


def test_after_each_fifth_step_patches_are_brought_back():
    calls = []

    def project(points):
        calls.append(len(points))
        return points

    normal = torch.randn(8, 6, requires_grad=True)
    discriminator = Discriminator(6, 4)
    ascended(discriminator, normal, normal + 0.1 * torch.randn(8, 6), 12, 1e-3, project)
    assert calls == [8, 8]


@pytest.mark.parametrize("hypothesis", ["manifold", "hypersphere"])
def test_synthetic_patches_end_where_the_hypothesis_says(hypothesis, monkeypatch):
    trainer = new_trainer(hypothesis=hypothesis, ascent_steps=5)
    trainer.is_sphere = hypothesis == "hypersphere"
    trainer.center = torch.randn(64, 24)
    normal = torch.randn(128, 24, requires_grad=True)
    local = torch.randn(128, 24)
    mask = (torch.rand(128) > 0.5).float()
    seen = []
    discriminator = trainer.model.discriminator
    discriminator.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    trainer.losses(normal, local, mask, 0.01 * torch.randn(128, 24))

    center = trainer.center.repeat(2, 1)
    noisy = seen[-2][128:]
    radius = trainer.radius(normal, local[mask == 0], center, center[mask == 0])
    if trainer.is_sphere:
        distance = (noisy - center).norm(dim=1) / radius
        painted = (seen[-1] - center).norm(dim=1)[mask == 1] / radius
        assert 2 - 1e-4 <= float(painted.min()) <= float(painted.max()) <= 4 + 1e-4
    else:
        distance = (noisy - normal).norm(dim=1) / 0.5
        torch.testing.assert_close(seen[-1], local)
    assert 1 - 1e-4 <= float(distance.min()) <= float(distance.max()) <= 2 + 1e-4
    torch.testing.assert_close(seen[-1][mask == 0], local[mask == 0])


def test_the_radius_holds_three_quarters_of_all_normal_patches_in_numpy():
    trainer = new_trainer()
    normal, left = torch.randn(60, 24), torch.randn(13, 24)
    center, left_center = torch.randn(60, 24), torch.randn(13, 24)
    distances = [np.linalg.norm(a - b) for a, b in zip(normal.numpy(), center.numpy(), strict=True)]
    distances += [
        np.linalg.norm(a - b) for a, b in zip(left.numpy(), left_center.numpy(), strict=True)
    ]
    found = trainer.radius(normal, left, center, left_center)
    assert float(found) == pytest.approx(np.quantile(distances, 0.75), rel=1e-5)


def test_the_focal_loss_is_that_of_the_worst_half_in_a_loop():
    logits = torch.randn(41)
    target = (torch.rand(41) > 0.6).float()
    values = []
    for logit, truth in zip(logits.double().numpy(), target.numpy(), strict=True):
        p = 1 / (1 + np.exp(-logit))
        wrongness = (p - truth) ** 2
        right = p if truth else 1 - p
        right = right * (1 - 1e-5) + (1 - right) * 1e-5 + 1e-5
        values.append((wrongness, -((1 - right) ** 2) * np.log(right)))
    worst = sorted(values)[20:]  # 21 of 41 lie at the median or above
    expected = np.mean([value for _, value in worst])
    assert float(hardest_focal_loss(logits, target, 0.5)) == pytest.approx(expected, rel=1e-4)


def test_painting_mixes_texture_and_image_inside_the_mask_only():
    image, texture = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    mask = (torch.rand(2, 1, 8, 8) > 0.5).float()
    opacity = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1)
    expected = torch.where(mask > 0, torch.lerp(texture, image, opacity), image)
    torch.testing.assert_close(paint(image, texture, mask, opacity), expected)


def test_no_mask_is_empty_and_a_grid_cell_is_anomalous_with_one_painted_pixel():
    masks = draw_masks(40, 64, torch.device("cpu"))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert bool((masks.amax((1, 2, 3)) == 1).all())

    trainer = new_trainer()
    painted, small = trainer.add_defects(torch.randn(6, 3, 64, 64))
    assert painted.shape == (6, 3, 64, 64)
    assert small.shape == (6, 1, 8, 8)
    assert set(small.unique().tolist()) <= {0.0, 1.0}


def test_nine_changes_of_a_texture_keep_its_shape_and_type():
    texture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    for _ in range(30):
        changed = augment_texture(texture)
        assert changed.shape == texture.shape
        assert changed.dtype == torch.uint8


def test_a_lone_bright_object_makes_a_sphere_and_fine_stripes_do_not():
    x = torch.arange(256).float()
    stripes = (0.5 + 0.5 * torch.sin(x * torch.pi)).expand(3, 256, 256)
    assert not suits_hypersphere(stripes)
    assert not suits_hypersphere(torch.zeros(3, 64, 64))

    distance = torch.hypot(x[:, None] - 128, x[None] - 128)
    lone = (distance < 60).float().expand(3, 256, 256)
    assert suits_hypersphere(lone)


def test_the_optimiser_decays_the_adaptor_by_its_gradient_and_the_discriminator_apart():
    trainer = new_trainer()
    optimizer, _ = trainer.configure_optimizer(10)
    weights = [trainer.model.adaptor.weight, trainer.model.discriminator.linear.weight]
    expected = []
    reference = []
    for kind, weight, lr, decay in zip(
        (torch.optim.Adam, torch.optim.AdamW), weights, (1e-4, 2e-4), (1e-5, 1e-2), strict=True
    ):
        copy = torch.nn.Parameter(weight.detach().clone())
        expected.append(copy)
        reference.append(kind([copy], lr, weight_decay=decay))
    for _ in range(3):
        for weight, copy in zip(weights, expected, strict=True):
            weight.grad = torch.randn_like(weight)
            copy.grad = weight.grad.clone()
        optimizer.step()
        for one in reference:
            one.step()
    for weight, copy in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, copy)


def test_another_normalisation_is_refused():
    with pytest.raises(InputError, match="use imagenet"):
        GlassTrainer.check_inputs(GlassConfig(**SMALL), TrainConfig(normalize="none"))
