"""GANomaly: losses by hand, gradients that stay apart, the step of two optimisers, the layout's number of weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.ganomaly import (
    GanomalyConfig,
    GanomalyModel,
    GanomalyTrainer,
    discriminator_loss,
    generator_losses,
    init_weights,
    widths,
)
from adray.types import Batch

SIZE = 32
PARTS = ("adversarial", "contextual", "encoder")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def trainer():
    config = GanomalyConfig(latent_channels=6, base_channels=4, encoder_weight=3.0, lr=2e-3)
    trainer = GanomalyTrainer(config, TrainConfig(img_size=SIZE, normalize="minus1_1"), seed=1)
    trainer.optimizer, _ = trainer.configure_optimizer(10)
    trainer.model.train()
    return trainer


@pytest.fixture
def image():
    return torch.rand(4, 3, SIZE, SIZE) * 2 - 1


def batch_of(image):
    label = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, label, None, label)


# Losses


def test_the_generators_losses_are_those_by_hand():
    image, drawing = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    latent, again = torch.randn(2, 5, 1, 1), torch.randn(2, 5, 1, 1)
    real, fake = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    losses = generator_losses(image, (drawing, latent, again), (real, fake))
    assert float(losses["adversarial"]) == pytest.approx(np.mean((real - fake).numpy() ** 2))
    assert float(losses["contextual"]) == pytest.approx(np.mean(np.abs((image - drawing).numpy())))
    assert float(losses["encoder"]) == pytest.approx(np.mean((latent - again).numpy() ** 2))


def test_the_discriminators_loss_is_the_cross_entropy_by_hand():
    real, fake = torch.randn(6), torch.randn(6)
    p_real, p_fake = (1 / (1 + np.exp(-logits.double().numpy())) for logits in (real, fake))
    expected = 0.5 * (-np.log(p_real).mean() - np.log(1 - p_fake).mean())
    assert float(discriminator_loss(real, fake)) == pytest.approx(expected, rel=1e-5)


def test_a_discriminator_that_is_sure_has_a_finite_loss():
    assert float(
        discriminator_loss(torch.full((2,), 200.0), torch.full((2,), 200.0))
    ) == pytest.approx(100)


def test_neither_loss_reaches_the_other_networks_weights(trainer, image):
    generator, discriminator = trainer.model.generator, trainer.model.discriminator
    losses, discriminator_part = trainer.losses(image)
    assert set(losses) == set(PARTS)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in generator.parameters())
    assert all(p.grad is None for p in discriminator.parameters())
    generator.zero_grad(set_to_none=True)
    discriminator_part.backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_the_adversarial_loss_reaches_the_generator_through_the_discriminator(trainer, image):
    losses, _ = trainer.losses(image)
    losses["adversarial"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in trainer.model.generator.decoder.parameters())


def test_one_step_is_that_of_two_optimisers_one_after_the_other(trainer, image):
    config, two = trainer.config, copy.deepcopy(trainer.model)
    betas = (config.beta1, config.beta2)
    first, second = (
        torch.optim.Adam(p.parameters(), config.lr, betas)
        for p in (two.generator, two.discriminator)
    )
    trainer.train_step(batch_of(image))

    drawing, latent, again = two.generator(image)
    real_logits, fake_logits = two.discriminator(image)[0], two.discriminator(drawing.detach())[0]
    adversarial = F.mse_loss(two.discriminator(drawing)[1], two.discriminator(image)[1])
    (adversarial + 50 * F.l1_loss(drawing, image) + 3 * F.mse_loss(again, latent)).backward()
    first.step()
    second.zero_grad()
    ones, zeros = torch.ones(4), torch.zeros(4)
    bce = F.binary_cross_entropy
    (0.5 * (bce(real_logits.sigmoid(), ones) + bce(fake_logits.sigmoid(), zeros))).backward()
    second.step()
    for (name, p), expected in zip(trainer.model.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_duplicating_the_batch_leaves_every_loss_unchanged(trainer, image):
    once, once_discriminator = trainer.losses(image)
    thrice, thrice_discriminator = trainer.losses(image.repeat(3, 1, 1, 1))
    torch.testing.assert_close(
        [once[p] for p in PARTS], [thrice[p] for p in PARTS], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(once_discriminator, thrice_discriminator, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_error_of_the_drawing_and_reports_both_losses(trainer, image):
    plain = image[:, :, :1, :1].expand_as(image)
    rows = [trainer.train_step(batch_of(plain)) for _ in range(30)]
    assert set(rows[0]) == {"loss", "discriminator", *PARTS}
    assert float(rows[-1]["contextual"]) < 0.8 * float(rows[0]["contextual"])
    weighted = rows[0]["adversarial"] + 50 * rows[0]["contextual"] + 3 * rows[0]["encoder"]
    torch.testing.assert_close(rows[0]["loss"], weighted)


def test_a_collapsed_discriminator_is_drawn_anew_and_the_generator_kept(trainer, image):
    trainer.train_step(batch_of(image))
    before = copy.deepcopy(trainer.model)
    trainer.on_train_end()
    assert same(trainer.model.discriminator, before.discriminator)
    trainer._discriminator_loss = torch.tensor(9e-6)
    trainer.on_train_end()
    assert same(trainer.model.generator, before.generator)
    fresh = trainer.model.discriminator
    assert not any(
        torch.equal(a, b)
        for a, b in zip(fresh.parameters(), before.discriminator.parameters(), strict=True)
    )


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# Layout and scores


def test_weights_start_as_in_dcgan():
    model = GanomalyModel(GanomalyConfig(latent_channels=32, base_channels=16), 64)
    model.apply(init_weights)
    convolution, norm = model.generator.encoder[0][2][0].weight, model.generator.encoder[0][4][1]
    assert (float(convolution.mean()), float(convolution.std())) == pytest.approx(
        (0, 0.02), abs=1e-3
    )
    assert float(norm.weight.mean()) == pytest.approx(1, abs=0.01)
    assert not norm.bias.any()


def test_at_256_pixels_the_networks_have_the_reference_number_of_weights():
    with torch.device("meta"):
        model = GanomalyModel(GanomalyConfig(), 256)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(189, abs=0.5)


@pytest.mark.parametrize("size", [8, 16, 64])
def test_shapes_at_every_power_of_two(size):
    model = GanomalyModel(GanomalyConfig(latent_channels=5, base_channels=2), size)
    drawing, latent, again = model.generator(torch.randn(2, 3, size, size))
    assert (drawing.shape, latent.shape, again.shape) == (
        (2, 3, size, size),
        (2, 5, 1, 1),
        (2, 5, 1, 1),
    )
    logits, features = model.discriminator(drawing)
    assert (logits.shape, features.shape) == ((2,), (2, widths(size, 2)[-1], 4, 4))
    assert float(drawing.detach().abs().max()) <= 1


def test_the_score_is_the_mean_squared_difference_of_the_latent_vectors(trainer, image):
    trainer.train_step(batch_of(image))
    model = trainer.model.eval()
    with torch.no_grad():
        prediction = model(image)
        _, latent, again = model.generator(image)
    assert prediction.anomaly_map is None
    np.testing.assert_allclose(
        prediction.pred_score, ((latent - again).numpy() ** 2).mean((1, 2, 3)), rtol=1e-5
    )


def test_scores_of_a_batch_of_four_are_those_of_four_batches_and_leave_the_statistics_alone(
    trainer, image
):
    trainer.train_step(batch_of(image))
    model = trainer.model.eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        one = torch.cat([model(image[i : i + 1]).pred_score for i in range(4)])
        torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Inputs


@pytest.mark.parametrize(
    ("size", "near"), [(100, "64 or 128"), (96, "64 or 128"), (255, "128 or 256")]
)
def test_a_size_that_is_no_power_of_two_is_refused_with_the_nearest(size, near):
    with pytest.raises(InputError, match=f"input size {size} .*power of two; use {near}"):
        GanomalyTrainer.check_inputs(
            GanomalyConfig(), TrainConfig(img_size=size, normalize="minus1_1")
        )


@pytest.mark.parametrize("normalize", ["imagenet", "none"])
def test_images_that_are_not_in_the_range_of_the_drawings_are_refused(normalize):
    with pytest.raises(InputError, match=r"draws in \[-1, 1\]; use minus1_1"):
        GanomalyTrainer.check_inputs(
            GanomalyConfig(), TrainConfig(img_size=64, normalize=normalize)
        )


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 128])
def test_each_network_has_as_many_weights_as_anomalibs(size):
    pytest.importorskip("anomalib")
    from anomalib.models.image.ganomaly.torch_model import GanomalyModel as Theirs

    ours = GanomalyModel(GanomalyConfig(base_channels=16), size)
    theirs = Theirs((size, size), 3, 16, 100)
    pairs = [
        (ours.generator.encoder, theirs.generator.encoder1),
        (ours.generator.decoder, theirs.generator.decoder),
        (ours.generator.second_encoder, theirs.generator.encoder2),
        (ours.discriminator, theirs.discriminator),
    ]
    for mine, other in pairs:
        assert sorted(p.shape for p in mine.parameters()) == sorted(
            p.shape for p in other.parameters()
        )
