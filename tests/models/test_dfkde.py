"""DFKDE against scikit-learn's PCA with scipy's kernel density."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from sklearn.decomposition import PCA

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.dfkde import DfkdeConfig, DfkdeModel, DfkdeTrainer
from adray.types import Batch

SIZE = 64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def new_model(num_components=16, layers=("layer4",)):
    config = DfkdeConfig(layers=layers, weights="random", num_components=num_components)
    return DfkdeModel(config).eval()


def vectors(count, seed=0):
    """Correlated vectors of 30 values."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(30, 30, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, 30, generator=generator) @ mixing + 7


def expected_log_density(train, test, count):
    train, test = train.double().numpy(), test.double().numpy()
    pca = PCA(count, svd_solver="full").fit(train)
    return gaussian_kde(pca.transform(train).T).logpdf(pca.transform(test).T)


@pytest.mark.parametrize(("images", "components"), [(200, 16), (40, 5), (20, 1), (10, 9)])
def test_the_log_density_is_scipys_on_scikit_learns_components(images, components):
    model = new_model(components)
    model.fit(vectors(images))
    expected = expected_log_density(vectors(images), vectors(50, 1), components)
    np.testing.assert_allclose(
        model.log_density(vectors(50, 1)).numpy(), expected, rtol=1e-4, atol=1e-3
    )


def test_a_density_in_one_dimension_integrates_to_one():
    model = new_model(1)
    model.fit(vectors(20))
    steps = torch.linspace(-100, 100, 20001)
    line = model.pca.mean + steps[:, None] * model.pca.components[0]
    assert float(torch.trapezoid(model.log_density(line).exp(), steps)) == pytest.approx(
        1, abs=1e-4
    )


def test_far_outliers_keep_their_order():
    model = new_model()
    model.fit(vectors(50))
    far = model.pca.mean + torch.logspace(3, 6, 10)[:, None] * model.pca.components[0]
    density = model.log_density(far)
    assert torch.isfinite(density).all()
    assert (density.diff() < 0).all()


def test_the_features_are_averages_of_all_layers_joined_along_channels():
    model, image = new_model(layers=("layer3", "layer4")), torch.randn(2, 3, SIZE, SIZE)
    middle, deep = (m.numpy() for m in model.extractor(image))
    expected = np.concatenate((middle.mean((2, 3)), deep.mean((2, 3))), axis=1)
    np.testing.assert_allclose(model.features(image)[0].numpy(), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_score_is_minus_the_log_density_without_a_map_and_does_not_depend_on_the_batch():
    model, image = new_model(), torch.randn(8, 3, SIZE, SIZE)
    model.fit(model.features(torch.randn(30, 3, SIZE, SIZE))[0])
    prediction = model(image)
    assert prediction.anomaly_map is None
    torch.testing.assert_close(prediction.pred_score, -model.log_density(model.features(image)[0]))
    one = torch.cat([model(part[None]).pred_score for part in image])
    torch.testing.assert_close(prediction.pred_score, one, rtol=1e-5, atol=1e-4)


def fit(images):
    """Train on (N, 3, H, W) as the loop does."""
    trainer = DfkdeTrainer(DfkdeConfig(weights="random"), TrainConfig(img_size=SIZE))
    trainer.on_train_start()
    for part in images.split(4):
        index = torch.arange(len(part))
        trainer.train_step(
            Batch(part, torch.zeros_like(index), None, index, trainer.model.features(part))
        )
    trainer.on_train_end()
    return trainer.model


def test_fewer_images_than_components_give_a_model_with_fewer():
    model = fit(torch.randn(6, 3, SIZE, SIZE))
    assert model.centers.shape == (6, 5)
    assert torch.isfinite(model(torch.randn(3, 3, SIZE, SIZE)).pred_score).all()


@pytest.mark.parametrize("images", [torch.rand(1, 3, SIZE, SIZE), torch.ones(3, 3, SIZE, SIZE)])
def test_less_than_two_different_images_are_refused_with_the_remedy(images):
    with pytest.raises(
        InputError, match="at least 2 different training images; add some or lower holdout"
    ):
        fit(images)


def test_no_components_are_refused():
    with pytest.raises(InputError, match="num_components is 0, but must be between 1"):
        DfkdeConfig(num_components=0)


@pytest.mark.slow
def test_the_log_density_is_anomalibs_but_for_its_scaling():
    classifier_module = pytest.importorskip(
        "anomalib.models.components.classification.kde_classifier"
    )
    theirs, model = classifier_module.KDEClassifier(8), new_model(8)
    theirs.fit(vectors(60))
    model.fit(vectors(60))
    # Theirs divides all by one length, which multiplies a density of 8 values by its eighth power.
    expected = (
        theirs.compute_kde_scores(vectors(20), as_log_likelihood=True) - 8 * theirs.max_length.log()
    )
    torch.testing.assert_close(model.log_density(vectors(20)), expected, rtol=1e-3, atol=1e-3)
