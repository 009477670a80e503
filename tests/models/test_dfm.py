"""DFM against scikit-learn's PCA and scipy's normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from torch.nn import functional as F
from unfolded_weights import redraw

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.dfm import DfmConfig, DfmModel, DfmTrainer, pool_map
from adray.types import Batch

SIZE = 64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def fitted(score_type="fre", pool=2):
    """A model fitted on 20 images, and scikit-learn's PCA of the same vectors."""
    config = DfmConfig("resnet18", weights="random", pool=pool, variance=0.9, score_type=score_type)
    model = DfmModel(config).eval()
    vectors = model.features(images(20))[0].flatten(1)
    model.pca.fit(vectors)
    return model, PCA(0.9, svd_solver="full").fit(vectors.double().numpy())


@torch.no_grad()
def test_score_and_map_are_scikit_learns_squared_reconstruction_error():
    model, pca = fitted()
    feature = model.features(images(4, 1))[0].double().numpy()  # (B, C, h, w)
    flat = feature.reshape(4, -1)
    error = ((flat - pca.inverse_transform(pca.transform(flat))) ** 2).reshape(feature.shape)
    prediction = model(images(4, 1))
    np.testing.assert_allclose(prediction.pred_score.numpy(), error.sum((1, 2, 3)), rtol=1e-4)
    by_position = torch.from_numpy(error.sum(1, keepdims=True))
    expected = F.interpolate(by_position, (SIZE, SIZE), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(prediction.anomaly_map.numpy(), expected.numpy(), rtol=1e-3)


@torch.no_grad()
def test_the_likelihood_is_scipys_in_scikit_learns_coordinates_and_has_no_map():
    model, pca = fitted("nll")
    coordinates = pca.transform(model.features(images(4, 1))[0].flatten(1).double().numpy())
    normal = multivariate_normal(np.zeros(pca.n_components_), np.diag(pca.explained_variance_))
    prediction = model(images(4, 1))
    assert prediction.anomaly_map is None
    np.testing.assert_allclose(
        prediction.pred_score.numpy(), -normal.logpdf(coordinates), rtol=1e-4, atol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("score_type", ["fre", "nll"])
def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(score_type):
    model, _ = fitted(score_type)
    one = torch.cat([model(image[None]).pred_score for image in images(8, 2)])
    torch.testing.assert_close(model(images(8, 2)).pred_score, one, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_predicting_and_fitting_leave_the_features_as_they_were():
    model, _ = fitted()
    features = model.features(images(4))
    before = features[0].clone()
    first, second = model(images(4), features), model(images(4), features)
    assert torch.equal(features[0], before)
    assert torch.equal(first.pred_score, second.pred_score)


def test_features_are_averages_of_pool_by_pool_positions():
    model, _ = fitted(pool=2)
    (whole,) = model.extractor(images(2))
    torch.testing.assert_close(model.features(images(2))[0], F.avg_pool2d(whole, 2))


@pytest.mark.parametrize(("pool", "side"), [(1, 7), (2, 4), (3, 3), (4, 2), (9, 1)])
def test_no_position_is_left_out_where_the_pool_does_not_divide_the_map(pool, side):
    feature = torch.zeros(1, 3, 7, 7, requires_grad=True)
    pooled = pool_map(feature, pool)
    assert pooled.shape == (1, 3, side, side)
    pooled.sum().backward()
    assert float(feature.grad.min()) > 0


def test_a_single_image_is_refused_with_the_remedy():
    trainer = DfmTrainer(DfmConfig("resnet18", weights="random"), TrainConfig(img_size=SIZE))
    index = torch.zeros(1, dtype=torch.int64)
    trainer.on_train_start()
    trainer.train_step(Batch(images(1), index, None, index, trainer.model.features(images(1))))
    with pytest.raises(
        InputError, match="at least 2 different training images; add some or lower holdout"
    ):
        trainer.on_train_end()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_type": "frre"}, "score_type 'frre' is not known; did you mean 'fre'"),
        ({"variance": 1.5}, "variance is 1.5, but must be between"),
        ({"pool": 0}, "pool is 0"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        DfmConfig(**changes)


@pytest.mark.slow
@torch.no_grad()
def test_score_and_map_are_anomalibs_with_the_same_components():
    module = pytest.importorskip("anomalib.models.image.dfm.torch_model")
    ours, _ = fitted()
    theirs = module.DFMModel("resnet18", "layer3", pre_trained=False, pooling_kernel_size=2).eval()
    theirs.feature_extractor.feature_extractor.load_state_dict(redraw(ours.extractor), strict=False)
    theirs.pca_model.singular_vectors, theirs.pca_model.mean = ours.pca.components.T, ours.pca.mean
    expected, prediction = theirs(images(4, 1)), ours(images(4, 1))
    torch.testing.assert_close(prediction.pred_score, expected.pred_score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prediction.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)
