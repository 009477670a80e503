"""Loss and gradient of one training step against the paper's loss in numpy and its numerical derivative.

The losses below are written from the papers' equations and know of the model only what its networks give. A step's
gradient along a random direction has to be the slope of that loss: what a trainer detaches, weighs or averages
otherwise than the paper shows here.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm
from torch import nn

from adray.config import TrainConfig
from adray.models.autoencoder import AutoencoderConfig, AutoencoderTrainer
from adray.models.cflow import CflowConfig, CflowTrainer
from adray.models.csflow import CsflowConfig, CsflowTrainer
from adray.models.fastflow import FastflowConfig, FastflowTrainer
from adray.models.fre import FreConfig, FreTrainer
from adray.models.stfpm import StfpmConfig, StfpmTrainer
from adray.models.uflow import UflowConfig, UflowTrainer
from adray.types import Batch

STEP = 1e-7
RESNET18 = ((64, 8, 8), (128, 4, 4), (256, 2, 2))
"""Shapes of the maps of an image of 32 pixels."""
LAYERS = ("layer1", "layer2", "layer3")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def maps_of(*shapes, count=2):
    return tuple(torch.randn(count, *shape, dtype=torch.float64) for shape in shapes)


def batch_of(features, side=32, image=None):
    count = 2 if features is None else len(features[0])
    image = torch.randn(count, 3, side, side, dtype=torch.float64) if image is None else image
    label = torch.zeros(count, dtype=torch.int64)
    return Batch(image, label, None, label, features)


def learnt(trainer):
    return [p for group in trainer.optimizer.param_groups for p in group["params"]]


@torch.no_grad()
def slope(parameters, directions, loss):
    """The central difference of a loss along a direction of all parameters."""
    values = []
    for sign in (1, -2):
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(sign * STEP * direction)
        values.append(loss())
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.add_(STEP * direction)
    return (values[0] - values[1]) / (2 * STEP)


def check_first_step(trainer, batch, loss, tolerance=1e-4):
    trainer.model.double().train()
    trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(10)
    trainer.optimizer = torch.optim.SGD(learnt(trainer), 0.0)  # keeps the gradients it was given
    trainer.optimize = lambda value, *_args: value.backward()
    trainer.on_train_start()
    given = float(trainer.train_step(batch)["loss"])
    with torch.no_grad():
        assert given == pytest.approx(loss(), rel=1e-5)

    parameters = [p for p in learnt(trainer) if p.grad is not None]
    directions = [torch.randn_like(p) / p.numel() ** 0.5 for p in parameters]
    expected = slope(parameters, directions, loss)
    along = sum(float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True))
    assert along == pytest.approx(expected, rel=tolerance, abs=tolerance * abs(given) * 1e-2)


def settings(side=32, **changes):
    return TrainConfig(img_size=side, batch_size=2, **changes)


def test_stfpm_lowers_the_squared_distance_of_unit_features():
    trainer = StfpmTrainer(StfpmConfig(weights="random"), settings())
    batch = batch_of(maps_of(*RESNET18))

    def loss():
        total = 0.0
        for teacher, student in zip(
            batch.features, trainer.model.student(batch.image), strict=True
        ):
            t, s = teacher.numpy(), student.numpy()
            t = t / np.linalg.norm(t, axis=1, keepdims=True)
            s = s / np.linalg.norm(s, axis=1, keepdims=True)
            total += ((t - s) ** 2).sum(1).mean()
        return total

    check_first_step(trainer, batch, loss)


def negative_log_likelihood(z, log_det):
    """Of each image, up to the constant of the normal density."""
    z = z.flatten(1).numpy()
    return -(norm.logpdf(z).sum(1) + log_det.numpy()) - 0.5 * np.log(2 * np.pi) * z.shape[1]


def test_fastflow_lowers_the_negative_log_likelihood_of_each_layer():
    config = FastflowConfig("resnet18", LAYERS, "random", flow_steps=2, hidden_ratio=0.1)
    trainer = FastflowTrainer(config, settings())
    batch = batch_of(maps_of(*RESNET18))

    def loss():
        latents = trainer.model.latents(batch.features)
        return sum(negative_log_likelihood(z, log_det).mean() for z, log_det in latents)

    check_first_step(trainer, batch, loss)


def test_uflow_lowers_the_negative_log_likelihood_of_all_scales_together():
    config = UflowConfig(("resnet18",), LAYERS, "random", flow_steps=1, hidden_ratio=0.1)
    trainer = UflowTrainer(config, settings())
    batch = batch_of(maps_of(*RESNET18))

    def loss():
        latents, log_det = trainer.model.latents(batch.features)
        joined = torch.cat([z.flatten(1) for z in latents], 1)
        return negative_log_likelihood(joined, log_det).mean()

    check_first_step(trainer, batch, loss)


def test_csflow_lowers_the_negative_log_likelihood_per_number():
    config = CsflowConfig("random", kernel_sizes=(3,), hidden_channels=4)
    trainer = CsflowTrainer(config, settings(128))
    for net in (trainer.model.steps[0].from_first, trainer.model.steps[0].from_second):
        nn.init.uniform_(net.gamma, 0.2, 0.5)
    batch = batch_of(maps_of((304, 4, 4), (304, 2, 2), (304, 1, 1)), 128)

    def loss():
        latents, log_det = trainer.model.latents(batch.features)
        joined = torch.cat([z.flatten(1) for z in latents], 1)
        return negative_log_likelihood(joined, log_det).mean() / joined.shape[1]

    check_first_step(trainer, batch, loss)


def test_cflow_lowers_minus_the_log_of_the_sigmoid_of_the_likelihood_per_dimension():
    config = CflowConfig("resnet18", ("layer3",), "random", flow_steps=2)
    trainer = CflowTrainer(config, settings())
    batch = batch_of(maps_of((256, 2, 2)))

    def loss():
        (flow,) = trainer.model.fiber_flows
        fibers = batch.features[0].permute(0, 2, 3, 1).reshape(8, 256)  # all in one group
        z, log_det = flow(fibers, [flow.code[torch.arange(4).repeat(2)]])
        likelihood = (norm.logpdf(z.numpy()).sum(1) + log_det.numpy()) / 256
        return -np.log(expit(likelihood)).mean()

    check_first_step(trainer, batch, loss)


def test_fre_lowers_the_squared_error_of_a_tied_linear_autoencoder():
    trainer = FreTrainer(FreConfig("resnet18", weights="random", latent_dim=3), settings(64))
    size = trainer.model.autoencoder.weight.shape[1]
    side = int((size / 256) ** 0.5)
    batch = batch_of(maps_of((256, side, side)), 64)

    def loss():
        net = trainer.model.autoencoder
        weight = net.weight.numpy()
        vectors = batch.features[0].flatten(1).numpy()
        latent = vectors @ weight.T + net.encoder_bias.numpy()
        return ((vectors - latent @ weight - net.decoder_bias.numpy()) ** 2).mean()

    check_first_step(trainer, batch, loss)


def test_the_autoencoder_lowers_the_squared_error():
    config = AutoencoderConfig(base_channels=4, latent_channels=4)
    trainer = AutoencoderTrainer(config, settings(64, normalize="none"))
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)

    def loss():
        return ((trainer.model.reconstruct(image).numpy() - image.numpy()) ** 2).mean()

    check_first_step(trainer, batch_of(None, 64, image), loss)
