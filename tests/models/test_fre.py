"""FRE against its formula and scikit-learn's PCA, to which the trained autoencoder must come close."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F
from unfolded_weights import redraw

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.fre import FreConfig, FreModel, FreTrainer, TiedAutoencoder
from adray.types import EIGHT_BITS, Batch

SIZE = 64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def autoencoder():
    """Weights, biases and center away from their initial values."""
    autoencoder = TiedAutoencoder(40, 5)
    autoencoder.center = torch.randn(40)
    with torch.no_grad():
        autoencoder.encoder_bias.normal_()
        autoencoder.decoder_bias.normal_()
    return autoencoder


@pytest.fixture
def model(autoencoder):
    model = FreModel(FreConfig("resnet18", weights="random", latent_dim=5), SIZE).eval()
    model.autoencoder.center = 0.1 * torch.randn_like(model.autoencoder.center)
    return model


def papers_biases(autoencoder):
    """The biases b_e and b_d of an autoencoder that takes vectors as they are."""
    shifted = autoencoder.encoder_bias - autoencoder.weight @ autoencoder.center
    return shifted.detach().numpy(), (
        autoencoder.decoder_bias + autoencoder.center
    ).detach().numpy()


@torch.no_grad()
def test_the_mean_only_moves_the_biases_of_the_papers_autoencoder(autoencoder):
    vectors, weight = torch.randn(7, 40), autoencoder.weight.numpy()
    encoder_bias, decoder_bias = papers_biases(autoencoder)
    rebuilt = (vectors.numpy() @ weight.T + encoder_bias) @ weight + decoder_bias
    np.testing.assert_allclose(
        autoencoder.residual(vectors).numpy(), vectors.numpy() - rebuilt, atol=1e-5
    )


def test_trained_to_the_end_it_leaves_the_residual_of_the_principal_components():
    vectors = torch.randn(60, 40) * torch.linspace(3, 0.3, 40) + 10
    pca = PCA(5).fit(vectors.numpy())
    smallest = float(
        ((vectors.numpy() - pca.inverse_transform(pca.transform(vectors.numpy()))) ** 2).mean()
    )
    autoencoder = TiedAutoencoder(40, 5)
    autoencoder.center = vectors.mean(0)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 1e-2)
    for _ in range(1500):
        loss = autoencoder.residual(vectors).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert smallest * 0.999 < float(loss.detach()) < smallest * 1.01


@torch.no_grad()
def test_the_map_is_the_squared_error_summed_over_channels_and_the_score_its_sum(model):
    image = torch.randn(3, 3, SIZE, SIZE)
    (feature,) = model.features(image)
    error = model.autoencoder.residual(feature.flatten(1)).numpy().reshape(feature.shape) ** 2
    prediction = model(image)
    np.testing.assert_allclose(prediction.pred_score.numpy(), error.sum((1, 2, 3)), rtol=1e-5)
    by_position = torch.from_numpy(error.sum(1, keepdims=True))
    expected = F.interpolate(by_position, (SIZE, SIZE), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prediction.anomaly_map, expected)


@pytest.mark.parametrize(
    ("size", "pool", "expected"), [(64, 2, 1024), (64, 4, 256), (96, 4, 1024), (64, 1, 4096)]
)
def test_the_autoencoder_has_the_size_of_the_pooled_map(size, pool, expected):
    config = FreConfig("resnet18", weights="random", pool=pool, latent_dim=5)
    assert FreModel(config, size).autoencoder.weight.shape == (5, expected)


@torch.no_grad()
def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(model):
    image = torch.randn(8, 3, SIZE, SIZE)
    one = torch.cat([model(part[None]).pred_score for part in image])
    torch.testing.assert_close(model(image).pred_score, one, rtol=1e-5, atol=0)


class Images:
    """What the trainer needs of a loader: 10 images in batches of 4."""

    samples = tuple(range(10))

    def __init__(self):
        self.image = torch.rand(10, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return 3

    def __iter__(self):
        for index in torch.arange(10).split(4):
            yield Batch(self.image[index], torch.zeros_like(index), None, index)

    def set_epoch(self, epoch):
        pass


class Loaders:
    valid = test = None
    pixels = EIGHT_BITS
    roi = None

    def __init__(self):
        self.train = Images()


def test_fitting_takes_the_mean_of_all_training_images_and_lowers_the_loss():
    config = FreConfig("resnet18", weights="random", latent_dim=5)
    trainer = FreTrainer(config, TrainConfig(img_size=SIZE, batch_size=4, num_epochs=20))
    loaders = Loaders()
    history = trainer.fit(loaders)
    expected = trainer.model.features(loaders.train.image)[0].flatten(1).mean(0)
    torch.testing.assert_close(trainer.model.autoencoder.center, expected, rtol=1e-4, atol=1e-6)
    assert history[-1]["loss"] < history[0]["loss"]


def test_values_out_of_range_are_named():
    with pytest.raises(InputError, match="latent_dim is 0"):
        FreConfig(latent_dim=0)


@pytest.mark.slow
@torch.no_grad()
def test_score_and_map_are_anomalibs_with_the_same_weights(model):
    module = pytest.importorskip("anomalib.models.image.fre.torch_model")
    theirs = module.FREModel(
        "resnet18", "layer3", 1024, 5, pre_trained=False, pooling_kernel_size=2
    ).eval()
    theirs.feature_extractor.feature_extractor.load_state_dict(
        redraw(model.extractor), strict=False
    )
    theirs.fre_model.weight.copy_(model.autoencoder.weight)
    encoder_bias, decoder_bias = papers_biases(model.autoencoder)
    theirs.fre_model.encoder_bias.copy_(torch.from_numpy(encoder_bias))
    theirs.fre_model.decoder_bias.copy_(torch.from_numpy(decoder_bias))
    image = torch.randn(3, 3, SIZE, SIZE)
    expected, prediction = theirs(image), model(image)
    torch.testing.assert_close(prediction.pred_score, expected.pred_score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prediction.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)
