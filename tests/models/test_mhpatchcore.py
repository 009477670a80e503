"""MH-PatchCore against scikit-learn's PCA, and against its equations in numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from torch.nn import functional as F

from adray.components.architectures import CONVOLUTIONAL
from adray.components.moments import Moments
from adray.components.streamed_coreset import StreamedCoreset
from adray.config import TrainConfig
from adray.errors import InputError
from adray.methods.mhpatchcore import MhpatchcoreConfig, fit_bytes
from adray.models.mhpatchcore import MhpatchcoreModel, MhpatchcoreTrainer
from adray.types import EIGHT_BITS, Batch

SIZE = 64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class Images:
    """What the trainer needs of a loader."""

    def __init__(self, count):
        self.samples = list(range(count))
        self.passes = 0

    def __len__(self):
        return -(-len(self.samples) // 4)

    def __iter__(self):
        self.passes += 1
        for index in torch.tensor(self.samples).split(4):
            yield Batch(images(len(self.samples))[index], torch.zeros_like(index), None, index)

    def set_epoch(self, epoch):
        pass


class Loaders:
    valid = test = None
    pixels = EIGHT_BITS
    roi = None

    def __init__(self, count):
        self.train = Images(count)


def fit(count=12, **config):
    values = {"bank_size": 40, **config}
    trainer = MhpatchcoreTrainer(
        MhpatchcoreConfig("resnet18", weights="random", **values),
        TrainConfig(img_size=SIZE, batch_size=4),
    )
    trainer.fit(Loaders(count))
    return trainer


@torch.no_grad()
def patches_of(model, count=12):
    """Training patches as the trainer saw them, one (n, D) for each batch."""
    parts = images(count).split(4)
    return [model.embed(model.features(part)).flatten(0, 1) for part in parts]


def test_without_shrinkage_training_patches_have_the_covariance_of_noise():
    model = fit(shrinkage=0.0).model
    whitened = model.whiten(torch.cat(patches_of(model))).double().numpy()
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(whitened.shape[1]), atol=1e-3)


@pytest.mark.parametrize("variance", [0.8, 0.99])
@pytest.mark.parametrize("shrinkage", [0.0, 0.07, 1.0])
def test_distances_are_mahalanobis_in_the_space_of_scikit_learns_pca(variance, shrinkage):
    model = fit(variance=variance, shrinkage=shrinkage).model
    patches = torch.cat(patches_of(model))
    pca = PCA(variance, svd_solver="full").fit(patches.double().numpy())
    inside = pca.transform(patches[:30].double().numpy())
    assert model.whitening.shape == (384, inside.shape[1])

    shrunk = (1 - shrinkage) * np.diag(pca.explained_variance_)
    shrunk += shrinkage * pca.explained_variance_.mean() * np.eye(len(shrunk))
    expected = cdist(inside, inside, "mahalanobis", VI=np.linalg.inv(shrunk))
    whitened = model.whiten(patches[:30]).double().numpy()
    np.testing.assert_allclose(cdist(whitened, whitened), expected, rtol=1e-3, atol=1e-3)


def test_the_bank_is_chosen_batch_by_batch_in_a_second_look_at_the_images():
    trainer = fit()
    model = trainer.model
    assert trainer.loaders.train.passes == 2
    coreset = StreamedCoreset(40)
    for batch in patches_of(model):
        coreset.add(model.whiten(batch))
    torch.testing.assert_close(model.memory_bank, coreset.coreset(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "size", "expected"), [(4, 40, 40), (20, 40, 40), (2, 999, 128)])
def test_the_bank_has_its_size_whatever_the_number_of_images(count, size, expected):
    assert len(fit(count, bank_size=size).model.memory_bank) == expected


@pytest.mark.parametrize("neighbors", [1, 2, 9])
def test_map_and_score_are_those_of_the_equations(neighbors):
    model = fit(num_neighbors=neighbors).model.eval()
    bank = model.memory_bank.double().numpy()
    with torch.no_grad():
        prediction = model(images(3, 1))
        queries = model.whiten(model.embed(model.features(images(3, 1)))).double().numpy()

    for number, patches in enumerate(queries):
        to_bank = cdist(patches, bank, "sqeuclidean")
        largest = to_bank.min(1).max()
        worst = to_bank.min(1).argmax()
        around = np.argsort(cdist(bank[to_bank[worst].argmin()][None], bank)[0])[:neighbors]
        share = 1 / np.exp(to_bank[worst][around] - largest).sum()
        expected = largest * (1 - share) if neighbors > 1 else largest
        np.testing.assert_allclose(float(prediction.pred_score[number]), expected, rtol=1e-3)

        grown = F.interpolate(
            torch.from_numpy(to_bank.min(1)).view(1, 1, 8, 8), (SIZE, SIZE), mode="bilinear"
        )
        smooth = ndimage.gaussian_filter(grown[0, 0].numpy(), 4, mode="mirror")
        np.testing.assert_allclose(prediction.anomaly_map[number, 0].numpy(), smooth, rtol=1e-3)


def test_images_that_are_all_one_patch_are_refused():
    model = MhpatchcoreModel(MhpatchcoreConfig("resnet18", weights="random"), SIZE)
    with pytest.raises(InputError, match="patches of the training images are the same"):
        model.scale_by(Moments.of(torch.ones(20, 384)), 0.99, 0.07)


@torch.no_grad()
@pytest.mark.parametrize("backbone", CONVOLUTIONAL)
def test_the_memory_of_a_fit_is_known_before_it(backbone):
    config = MhpatchcoreConfig(backbone, weights="random", bank_size=30)
    model = MhpatchcoreModel(config, SIZE).eval()
    patches = model.embed(model.features(images(1)))
    _, places, width = patches.shape
    expected = 12 * 4 * places * width + 8 * 4 * width**2
    train_config = TrainConfig(img_size=SIZE, batch_size=4)
    # 13 batches have four binary digits; two summaries more are merged.
    assert fit_bytes(config, train_config, 50) == expected + 4 * (4 + 2) * 30 * width


def test_the_memory_of_a_fit_grows_as_the_logarithm_of_the_images():
    config = MhpatchcoreConfig("resnet18", weights="random")
    train_config = TrainConfig(img_size=256, batch_size=32)
    few, many = (fit_bytes(config, train_config, count) for count in (320, 320_000))
    assert many - few == 10 * 4 * 1000 * 384


@pytest.mark.parametrize("changes", [{"variance": 0.0}, {"shrinkage": 1.5}, {"bank_size": 0}])
def test_values_out_of_range_are_refused(changes):
    (name,) = changes
    with pytest.raises(InputError, match=f"{name} is"):
        MhpatchcoreConfig(**changes)
