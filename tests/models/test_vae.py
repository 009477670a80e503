"""The variational autoencoder: its divergence against torch.distributions, its loss, and scores without sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.vae import VaeConfig, VaeModel, VaeTrainer, standard_divergence
from adray.types import Batch

SIZE = 32


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[0, 2], ids=["vae", "unet-vae"])
def model(request):
    config = VaeConfig(4, num_blocks=3, latent_channels=4, skips=request.param, sigma=2.0)
    return VaeModel(config).eval()


def new_trainer(**changes):
    config = VaeConfig(base_channels=8, num_blocks=3, latent_channels=8, **changes)
    trainer = VaeTrainer(config, TrainConfig(img_size=SIZE, normalize="none"))
    trainer.optimizer, _ = trainer.configure_optimizer(100)
    return trainer


def batch_of(image):
    label = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, label, None, label)


def test_the_divergence_is_that_of_torch_distributions():
    mu, logvar = torch.randn(5, 3, 4, 2), torch.randn(5, 3, 4, 2)
    expected = (
        kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    )
    torch.testing.assert_close(standard_divergence(mu, logvar), expected)
    assert float(standard_divergence(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 1, 1))) == 0.0


def test_duplicating_the_batch_leaves_the_divergence_unchanged():
    mu, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    thrice = standard_divergence(mu.repeat(3, 1, 1, 1), logvar.repeat(3, 1, 1, 1))
    torch.testing.assert_close(thrice, standard_divergence(mu, logvar))


def test_the_loss_is_the_negative_evidence_bound_of_a_gaussian_of_variance_one_half():
    trainer, image = new_trainer(), torch.rand(2, 3, SIZE, SIZE)
    trainer.model.eval()  # batch norm gives the same below
    torch.manual_seed(1)
    with torch.no_grad():
        rebuilt, mu, logvar = trainer.model.sample(image)
    torch.manual_seed(1)
    values = trainer.train_step(batch_of(image))
    likelihood = Normal(rebuilt, 0.5**0.5).log_prob(image).flatten(1).sum(1)
    constant = -0.5 * np.log(np.pi) * 3 * SIZE * SIZE
    divergence = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    bound = (likelihood - divergence).mean() - constant
    assert float(values["loss"]) == pytest.approx(float(-bound), rel=1e-4)
    mse = float(((rebuilt - image) ** 2).mean())
    assert float(values["psnr"]) == pytest.approx(-10 * np.log10(mse), rel=1e-5)


def test_beta_weighs_the_divergence():
    image, values = torch.rand(2, 3, SIZE, SIZE), []
    for beta in (0.0, 3.0):
        trainer = new_trainer(beta=beta)
        torch.manual_seed(1)
        values.append({k: float(v) for k, v in trainer.train_step(batch_of(image)).items()})
    assert values[0]["loss"] == pytest.approx(values[0]["squared_error"])
    assert values[1]["loss"] == pytest.approx(
        values[0]["loss"] + 3 * values[1]["divergence"], rel=1e-5
    )


def test_training_samples_while_scoring_draws_nothing(model):
    image = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert not torch.equal(model.sample(image)[0], model.sample(image)[0])
        torch.manual_seed(7)
        expected = torch.rand(1)
        torch.manual_seed(7)
        once = model(image)
        assert torch.equal(torch.rand(1), expected)
        assert torch.equal(model(image).pred_score, once.pred_score)


def test_log_variances_are_clamped(model):
    with torch.no_grad():
        model.encoder.head.bias.fill_(1e4)
        _, logvar, _ = model.encode(torch.rand(1, 3, SIZE, SIZE))
    assert float(logvar.min()) == float(logvar.max()) == 10.0


def test_the_map_is_scipys_gaussian_of_the_mean_squared_error(model):
    image = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        error = ((image - model.reconstruct(image)) ** 2).mean(1)[0].numpy()
        prediction = model(image)
    expected = gaussian_filter(error.astype(np.float64), sigma=2.0, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(prediction.anomaly_map[0, 0].numpy(), expected, rtol=1e-4)
    assert float(prediction.pred_score) == pytest.approx(float(expected.max()), rel=1e-4)


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.rand(8, 3, SIZE, SIZE)
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(8)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-7)


def test_training_learns_to_rebuild_one_picture_and_a_heavy_beta_keeps_it_from_it():
    image = F.interpolate(torch.rand(1, 3, 4, 4), (SIZE, SIZE), mode="bilinear").repeat(4, 1, 1, 1)
    last = []
    for beta in (0.1, 1e4):
        trainer = new_trainer(beta=beta)
        values = [trainer.train_step(batch_of(image)) for _ in range(80)]
        last.append(values[-1])
    assert float(last[0]["psnr"]) > 3 + float(last[1]["psnr"])
    assert float(last[1]["divergence"]) < float(last[0]["divergence"])


def test_sizes_and_normalizations_that_do_not_suit_are_refused():
    with pytest.raises(
        InputError, match="input size 100 does not suit the variational autoencoder"
    ):
        VaeTrainer(VaeConfig(), TrainConfig(img_size=100, normalize="none"))
    with pytest.raises(InputError, match="normalize 'imagenet' does not suit"):
        VaeTrainer(VaeConfig(), TrainConfig(img_size=64))


def test_the_plan_hears_that_plain_skip_connections_copy_defects():
    train_config = TrainConfig(img_size=64, normalize="none")
    assert "copy defects" in VaeTrainer.check_inputs(VaeConfig(skips=3), train_config)[0]
    assert VaeTrainer.check_inputs(VaeConfig(skips=3, corruption=1.0), train_config) == []
    assert VaeTrainer.check_inputs(VaeConfig(), train_config) == []
