"""DRAEM: synthetic defects, the loss by hand, the networks against anomalib's, the schedule and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_datasets import save, write_mvtec
from scipy.ndimage import uniform_filter
from torch import nn
from torch.nn import functional as F

from adray.components.textures import noise_textures
from adray.config import TrainConfig
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.models import draem
from adray.models.draem import DraemConfig, DraemModel, DraemTrainer, draem_losses, paint
from adray.settings import Settings, use_settings
from adray.types import Batch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    return DraemModel(DraemConfig(reconstructive_width=4, discriminative_width=4)).eval()


def new_trainer(img_size=64, normalize="none", **changes):
    config = DraemConfig(**{"reconstructive_width": 4, "discriminative_width": 4, **changes})
    return DraemTrainer(config, TrainConfig(img_size=img_size, normalize=normalize))


def logits_of(probability):
    """Logits of normal and anomalous for an anomaly's probability, (B, 2, H, W)."""
    return torch.stack([torch.log1p(-probability), torch.log(probability)], 1)[:, :, 0]


def test_the_network_has_the_references_number_of_weights():
    with torch.device("meta"):
        model = DraemModel(DraemConfig())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(97.4, abs=0.05)


def test_initial_weights_are_drawn_as_the_reference_does(model):
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    weights = torch.cat([m.weight.detach().flatten() for m in convolutions])
    scales = torch.cat(
        [m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    )
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02)
    assert (float(scales.mean()), float(scales.std())) == pytest.approx((1.0, 0.02), abs=0.005)


def test_the_loss_of_constant_images_is_that_computed_by_hand():
    image, rebuilt, p = torch.full((2, 3, 32, 32), 0.5), torch.full((2, 3, 32, 32), 0.3), 0.2
    mask = torch.zeros(2, 1, 32, 32)
    mask[0] = 1.0
    losses = draem_losses(rebuilt, logits_of(torch.full_like(mask, p)), image, mask)
    assert float(losses["l2"]) == pytest.approx(0.2**2)
    assert float(losses["ssim"]) == pytest.approx(
        1 - (2 * 0.5 * 0.3 + 1e-4) / (0.5**2 + 0.3**2 + 1e-4), abs=1e-4
    )
    wrong, right = -((1 - p) ** 2) * math.log(p), -(p**2) * math.log(1 - p)
    assert float(losses["focal"]) == pytest.approx((wrong + right) / 2, rel=1e-5)


def test_a_false_alarm_costs_as_much_as_a_miss():
    image, sure = torch.rand(1, 3, 32, 32), torch.full((1, 1, 32, 32), 0.999)
    false_alarm = draem_losses(image, logits_of(sure), image, torch.zeros_like(sure))["focal"]
    miss = draem_losses(image, logits_of(1 - sure), image, torch.ones_like(sure))["focal"]
    torch.testing.assert_close(false_alarm, miss, rtol=1e-3, atol=0)
    assert false_alarm > 6


def test_duplicating_the_batch_leaves_the_loss_unchanged(model):
    image, mask = torch.rand(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) > 0.8).float()
    model.train()

    def loss(copies):
        inputs = image.repeat(copies, 1, 1, 1)
        rebuilt, logits, _ = model.compare(inputs)
        return sum(draem_losses(rebuilt, logits, inputs, mask.repeat(copies, 1, 1, 1)).values())

    torch.testing.assert_close(loss(1), loss(3), rtol=1e-5, atol=0)


def test_the_texture_replaces_the_image_under_the_mask_only():
    image, texture = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    mask, beta = (torch.rand(2, 1, 16, 16) > 0.5).float(), torch.tensor([0.0, 0.7]).view(2, 1, 1, 1)
    expected = (1 - mask) * image + mask * ((1 - beta) * texture + beta * image)
    torch.testing.assert_close(paint(image, texture, mask, beta), expected)


def test_half_of_the_images_are_painted_and_the_rest_is_untouched():
    trainer, image = new_trainer(), torch.rand(300, 3, 32, 32)
    painted, mask = trainer.add_defects(image)
    chosen = mask.amax((1, 2, 3)) > 0
    assert 0.4 < chosen.float().mean() < 0.55
    assert torch.equal(painted[~chosen], image[~chosen])
    changed = (painted != image).any(1, keepdim=True)
    assert not changed[mask == 0].any()
    assert changed[mask > 0].float().mean() > 0.95
    assert painted.min() >= 0
    assert painted.max() <= 1


def test_no_image_is_painted_or_turned_where_nothing_was_asked_for():
    trainer, image = new_trainer(anomaly_probability=0.0), torch.rand(8, 3, 64, 64)
    painted, mask = trainer.add_defects(image)
    assert torch.equal(painted, image)
    assert not mask.any()
    assert torch.equal(draem.turn_some(image, 0.0), image)


def test_some_images_are_turned_and_the_batch_itself_is_left_alone():
    image = torch.rand(300, 3, 32, 32)
    kept = image.clone()
    turned = draem.turn_some(image, 0.3)
    assert torch.equal(image, kept)
    assert 0.2 < (turned != image).flatten(1).any(1).float().mean() < 0.4


def test_textures_keep_their_shape_and_type_and_change():
    texture = (30 + 180 * torch.rand(3, 32, 32)).byte()
    for augmenter in draem._AUGMENTERS:
        results = [augmenter(texture) for _ in range(20)]
        assert all(
            result.shape == texture.shape and result.dtype == torch.uint8 for result in results
        )
        assert any(not torch.equal(result, texture) for result in results), augmenter
    assert len(set(draem._AUGMENTERS)) == 10


def test_noise_textures_differ_and_span_the_range():
    noise = noise_textures(16, 64, torch.device("cpu")).float()
    assert noise.shape == (16, 3, 64, 64)
    assert noise.min() < 40
    assert noise.max() > 215
    assert float(noise.mean()) == pytest.approx(127.5, abs=10)
    assert (noise[0] - noise[1]).abs().mean() > 10


@pytest.fixture
def site(tmp_path, own_settings):
    write_mvtec(tmp_path / "mvtec", categories=("bottle",), train=4, good=1, defects=1)
    use_settings(Settings(dataset_dir=str(tmp_path), cache_dir=str(tmp_path / "cache")))
    return tmp_path


def trainer_at(site, **changes):
    trainer = new_trainer(**changes)
    trainer.loaders = get_dataloaders(
        "mvtec", "bottle", img_size=64, batch_size=2, normalize="none"
    )
    trainer.on_fit_start()
    return trainer


def test_textures_come_from_the_folder_and_from_noise_where_it_is_missing(site):
    assert trainer_at(site).textures is None
    for i in range(3):
        save(site / "dtd" / "images" / "banded" / f"{i}.png", 50 + i, size=80)
    trainer = trainer_at(site)
    assert len(trainer.textures) == 3
    drawn = trainer._draw_textures(5, 64)
    assert drawn.shape == (5, 3, 64, 64)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


def test_the_map_is_a_probability_and_the_score_the_maximum_of_its_mean_over_21_pixels(model):
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        prediction, logits = model(image), model.compare(image)[1].numpy().astype(np.float64)
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    np.testing.assert_allclose(prediction.anomaly_map[:, 0].numpy(), expected, rtol=1e-5)
    smooth = np.stack([uniform_filter(m, 21, mode="constant") for m in expected])
    np.testing.assert_allclose(prediction.pred_score.numpy(), smooth.max((1, 2)), rtol=1e-5)


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.rand(8, 3, 64, 64)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-6)


def as_batch(image):
    label = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, label, None, label)


@pytest.mark.parametrize("sspcab", [False, True])
def test_training_moves_every_weight_and_lowers_the_loss(sspcab):
    trainer = new_trainer(sspcab=sspcab, lr=3e-3, reconstructive_width=8)
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(100)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    image = F.interpolate(torch.rand(2, 3, 4, 4), (64, 64), mode="bilinear")
    losses = [float(trainer.train_step(as_batch(image))["loss"]) for _ in range(12)]
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])
    assert all(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_the_sspcab_block_adds_its_own_loss():
    widths = {"reconstructive_width": 4, "discriminative_width": 4}
    plain = DraemModel(DraemConfig(**widths))
    block = DraemModel(DraemConfig(**widths, sspcab=True))
    image = torch.rand(2, 3, 64, 64)
    assert plain.compare(image)[2].item() == 0
    code = block.reconstructive.encoder(image)
    expected = (block.reconstructive.bottleneck(code) - code).square().mean()
    torch.testing.assert_close(block.eval().compare(image)[2], block.compare(image)[2])
    block.train()
    torch.testing.assert_close(block.compare(image)[2], expected, rtol=1e-4, atol=0)


def test_the_learning_rate_falls_to_a_fifth_at_80_and_90_per_cent_of_the_steps():
    trainer = new_trainer()
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(50)
    rates = []
    for _ in range(50):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimize(next(trainer.model.parameters()).sum())
    np.testing.assert_allclose(rates, [1e-4] * 40 + [2e-5] * 5 + [4e-6] * 5)


def test_the_seed_decides_what_is_painted():
    trainer, image = new_trainer(), torch.rand(6, 3, 64, 64)

    def painted(seed):
        torch.manual_seed(seed)
        return trainer.add_defects(draem.turn_some(image, 0.3))[0]

    assert torch.equal(painted(1), painted(1))
    assert not torch.equal(painted(1), painted(2))


@pytest.mark.parametrize(("size", "allowed"), [(100, "use 96 or 128"), (32, "use 64")])
def test_a_size_that_does_not_divide_names_those_that_do(size, allowed):
    with pytest.raises(
        InputError, match=f"input size {size} .* multiple of 32 from 64 on; {allowed}"
    ):
        new_trainer(img_size=size)


def test_another_normalization_than_none_is_refused():
    with pytest.raises(InputError, match="normalize 'imagenet' does not suit"):
        new_trainer(normalize="imagenet")


def layers(*networks):
    """Everything with weights, in order."""
    return [
        m
        for network in networks
        for m in network.modules()
        if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))
    ]


@pytest.mark.slow
def test_both_networks_equal_anomalibs_with_the_same_weights():
    """anomalib stacks image and reconstruction in the other order, and takes the maximum without a mean."""
    pytest.importorskip("anomalib")
    from anomalib.models.image.draem.torch_model import DraemModel as Theirs

    ours, theirs = DraemModel(DraemConfig()), Theirs()
    for convolution in layers(ours):
        if isinstance(convolution, nn.Conv2d):
            nn.init.kaiming_normal_(
                convolution.weight
            )  # the initial weights of the reference give a flat map
    ours.train()
    with torch.no_grad():
        for _ in range(2):  # running statistics away from their initial values
            ours.compare(torch.rand(2, 3, 64, 64))
    stages = [
        part
        for pair in zip(ours.discriminative.up, ours.discriminative.merge, strict=True)
        for part in pair
    ]
    in_order = layers(
        ours.reconstructive, ours.discriminative.down, *stages, ours.discriminative.head
    )
    for mine, other in zip(in_order, layers(theirs), strict=True):
        other.load_state_dict(mine.state_dict())
    first = theirs.discriminative_subnetwork.encoder_segment.block1[0].weight.data
    first.copy_(first.roll(3, 1))
    image = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        expected, prediction = theirs.eval()(image), ours.eval()(image)
        rebuilt = theirs.reconstructive_subnetwork(image)
    torch.testing.assert_close(ours.compare(image)[0], rebuilt, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        prediction.anomaly_map[:, 0], expected.anomaly_map, rtol=1e-4, atol=1e-4
    )
    assert expected.anomaly_map.std() > 0.05
