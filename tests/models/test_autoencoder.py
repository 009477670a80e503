"""The autoencoder: sizes, ranges, and its map against scipy's Gaussian filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.autoencoder import AutoencoderConfig, AutoencoderModel, AutoencoderTrainer
from adray.types import Batch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    config = AutoencoderConfig(base_channels=4, num_blocks=3, latent_channels=4, sigma=2.0)
    return AutoencoderModel(config).eval()


def new_trainer(img_size=64, normalize="none"):
    config = AutoencoderConfig(base_channels=4, latent_channels=4)
    return AutoencoderTrainer(config, TrainConfig(img_size=img_size, normalize=normalize))


def one_step(copies):
    trainer = new_trainer()
    trainer.optimizer, _ = trainer.configure_optimizer(10)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).repeat(
        copies, 1, 1, 1
    )
    label = torch.zeros(len(image), dtype=torch.int64)
    return trainer.train_step(Batch(image, label, None, label)), trainer


@pytest.mark.parametrize("size", [(8, 8), (64, 24)])
def test_the_reconstruction_has_the_images_size_and_range(model, size):
    rebuilt = model.reconstruct(torch.rand(2, 3, *size))
    assert rebuilt.shape == (2, 3, *size)
    assert 0 <= float(rebuilt.detach().min()) <= float(rebuilt.detach().max()) <= 1


def test_the_default_latent_map_holds_two_per_cent_of_the_images_values():
    model = AutoencoderModel(AutoencoderConfig())
    image = torch.rand(1, 3, 256, 256)
    latent, _ = model.encoder(image)
    assert latent.shape == (1, 64, 8, 8)
    assert latent.numel() / image.numel() == pytest.approx(0.02, abs=0.001)


def test_the_map_is_scipys_gaussian_of_the_mean_squared_error(model):
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        error = ((image - model.reconstruct(image)) ** 2).mean(1)[0].numpy()
        prediction = model(image)
    expected = gaussian_filter(error.astype(np.float64), sigma=2.0, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(prediction.anomaly_map[0, 0].numpy(), expected, rtol=1e-4)
    assert float(prediction.pred_score) == pytest.approx(float(expected.max()), rel=1e-4)


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-7)


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    once, thrice = one_step(1)[0], one_step(3)[0]
    assert float(once["loss"]) == pytest.approx(float(thrice["loss"]), rel=1e-5)


def test_training_learns_to_rebuild_one_picture():
    config = AutoencoderConfig(base_channels=8, num_blocks=3, latent_channels=8)
    trainer = AutoencoderTrainer(config, TrainConfig(img_size=32, normalize="none"))
    trainer.optimizer, _ = trainer.configure_optimizer(80)
    image = F.interpolate(torch.rand(1, 3, 4, 4), (32, 32), mode="bilinear").repeat(4, 1, 1, 1)
    label = torch.zeros(4, dtype=torch.int64)
    psnr = [float(trainer.train_step(Batch(image, label, None, label))["psnr"]) for _ in range(80)]
    assert psnr[-1] > psnr[0] + 5


@pytest.mark.parametrize(("size", "allowed"), [(100, "use 96 or 128"), (20, "use 32")])
def test_a_size_that_does_not_divide_names_those_that_do(size, allowed):
    with pytest.raises(InputError, match=f"input size {size} .* multiple of 32; {allowed}"):
        new_trainer(img_size=size)


def test_another_normalization_than_none_is_refused():
    with pytest.raises(InputError, match="normalize 'imagenet' does not suit"):
        new_trainer(normalize="imagenet")
