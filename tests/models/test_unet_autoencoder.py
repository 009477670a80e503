"""The denoising U-Net: its map against scipy, its mending against copying, and its inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.unet_autoencoder import (
    UnetAutoencoderConfig,
    UnetAutoencoderModel,
    UnetAutoencoderTrainer,
)
from adray.types import Batch

SIZE = 32


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def stripes(count):
    """Smooth stripes that differ in their place from image to image."""
    across = torch.linspace(0, 4 * np.pi, SIZE)
    phase = 2 * np.pi * torch.rand(count, 1, 1, 1)
    return (0.5 + 0.3 * torch.sin(across + phase)).expand(count, 3, SIZE, SIZE).contiguous()


def fitted(corruption, steps=150):
    config = UnetAutoencoderConfig(
        8, num_blocks=3, latent_channels=8, skips=2, corruption=corruption
    )
    trainer = UnetAutoencoderTrainer(config, TrainConfig(img_size=SIZE, normalize="none"))
    trainer.optimizer, _ = trainer.configure_optimizer(steps)
    label = torch.zeros(8, dtype=torch.int64)
    for _ in range(steps):
        values = trainer.train_step(Batch(stripes(8), label, None, label))
    trainer.model.eval()
    return trainer, values


@pytest.fixture(scope="module")
def mending():
    torch.manual_seed(0)
    return fitted(1.0)[0]


@torch.no_grad()
def share_left(trainer):
    """How much of the damage of a dark square is still there after the reconstruction; 1 is a copy."""
    clean = stripes(16)
    damaged = clean.clone()
    damaged[:, :, 12:20, 12:20] = 0.0
    rebuilt = trainer.model.reconstruct(damaged)
    inside = (..., slice(12, 20), slice(12, 20))
    return float(
        F.mse_loss(rebuilt[inside], clean[inside]) / F.mse_loss(damaged[inside], clean[inside])
    )


def test_taught_on_damaged_images_it_mends_what_it_would_otherwise_copy(mending):
    copying, _ = fitted(0.0)
    assert share_left(mending) < 0.25
    assert share_left(mending) < 0.5 * share_left(copying)


def test_a_mended_defect_stands_out_in_the_map(mending):
    image = stripes(2)
    image[1, :, 12:20, 12:20] = 0.0
    with torch.no_grad():
        prediction = mending.model(image)
    assert float(prediction.pred_score[1]) > 2 * float(prediction.pred_score[0])
    row, column = divmod(int(prediction.anomaly_map[1].flatten().argmax()), SIZE)
    assert 8 <= row < 24
    assert 8 <= column < 24


def test_the_history_values_are_those_of_the_undamaged_image():
    _, values = fitted(1.0, steps=1)
    assert float(values["psnr"]) == pytest.approx(-10 * np.log10(float(values["loss"])), rel=1e-5)


def test_the_map_is_scipys_gaussian_of_the_mean_squared_error():
    config = UnetAutoencoderConfig(4, num_blocks=3, latent_channels=4, skips=2, sigma=2.0)
    model = UnetAutoencoderModel(config).eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        error = ((image - model.reconstruct(image)) ** 2).mean(1)[0].numpy()
        prediction = model(image)
    expected = gaussian_filter(error.astype(np.float64), sigma=2.0, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(prediction.anomaly_map[0, 0].numpy(), expected, rtol=1e-4)
    assert float(prediction.pred_score) == pytest.approx(float(expected.max()), rel=1e-4)


def test_without_noise_and_damage_duplicating_the_batch_leaves_the_loss_unchanged():
    image, losses = torch.rand(2, 3, SIZE, SIZE), []
    for copies in (1, 3):
        config = UnetAutoencoderConfig(4, num_blocks=3, skips=2, corruption=0.0)
        trainer = UnetAutoencoderTrainer(config, TrainConfig(img_size=SIZE, normalize="none"))
        trainer.optimizer, _ = trainer.configure_optimizer(1)
        label = torch.zeros(2 * copies, dtype=torch.int64)
        losses.append(
            trainer.train_step(Batch(image.repeat(copies, 1, 1, 1), label, None, label))["loss"]
        )
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


def test_sizes_and_normalizations_that_do_not_suit_are_refused():
    with pytest.raises(InputError, match="input size 100 does not suit the U-Net"):
        UnetAutoencoderTrainer(UnetAutoencoderConfig(), TrainConfig(img_size=100, normalize="none"))
    with pytest.raises(InputError, match="normalize 'imagenet' does not suit the U-Net"):
        UnetAutoencoderTrainer(UnetAutoencoderConfig(), TrainConfig(img_size=64))


def test_more_skip_connections_than_levels_are_refused():
    with pytest.raises(InputError, match="skips"):
        UnetAutoencoderConfig(num_blocks=3, skips=3)


def test_the_plan_hears_that_plain_skip_connections_copy_defects():
    train_config = TrainConfig(img_size=64, normalize="none")
    remarks = UnetAutoencoderTrainer.check_inputs(
        UnetAutoencoderConfig(corruption=0.0), train_config
    )
    assert len(remarks) == 1
    assert "copy defects" in remarks[0]
    assert UnetAutoencoderTrainer.check_inputs(UnetAutoencoderConfig(), train_config) == []
