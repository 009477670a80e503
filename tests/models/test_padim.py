"""PaDiM against its method section written out in numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.models.padim import PadimConfig, PadimModel, PadimTrainer

LAYERS = ("layer1", "layer2", "layer3")
SIZE = 64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(**changes):
    return PadimModel(PadimConfig(weights="random", **changes), SIZE)


def images(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def fitted():
    """A model fitted on 24 images, fewer than its 30 channels."""
    model = build(num_features=30).eval()
    with torch.no_grad():
        for part in images(24).split(5):
            model.gaussian.update(model.embed(model.features(part)))
    model.gaussian.fit()
    return model


def slow_embedding(model, image):
    """All channels repeated onto the first grid, then the kept ones: (B, d, h, w)."""
    maps = [feature.numpy() for feature in model.features(image)]
    side = maps[0].shape[-1]
    grown = [
        m.repeat(side // m.shape[-1], axis=2).repeat(side // m.shape[-1], axis=3) for m in maps
    ]
    return np.concatenate(grown, axis=1)[:, model.channels.numpy()]


def test_the_embedding_is_the_kept_channels_repeated_onto_the_first_grid(fitted):
    expected = slow_embedding(fitted, images(2, 1))  # (B, d, h, w)
    ours = fitted.embed(fitted.features(images(2, 1))).numpy()
    np.testing.assert_array_equal(ours, expected.reshape(2, 30, -1).transpose(0, 2, 1))


def test_map_and_score_are_those_of_the_method_section(fitted):
    train, test = (
        slow_embedding(fitted, images(24)).astype(float),
        slow_embedding(fitted, images(3, 1)).astype(float),
    )
    distance = np.zeros((3, *fitted.grid))
    for i, j in np.ndindex(*fitted.grid):
        inverse = np.linalg.inv(np.cov(train[:, :, i, j], rowvar=False) + 0.01 * np.eye(30))
        difference = test[:, :, i, j] - train[:, :, i, j].mean(0)
        distance[:, i, j] = np.sqrt(np.einsum("bd,de,be->b", difference, inverse, difference))
    grown = F.interpolate(
        torch.from_numpy(distance)[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False
    )
    expected = ndimage.gaussian_filter(grown[:, 0].numpy(), (0, 4, 4), mode="mirror")
    with torch.no_grad():
        prediction = fitted(images(3, 1))
    np.testing.assert_allclose(prediction.anomaly_map[:, 0].numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(prediction.pred_score.numpy(), expected.max((1, 2)), rtol=1e-4)


def test_training_images_lie_closer_than_images_of_another_brightness(fitted):
    with torch.no_grad():
        assert fitted(images(24)).pred_score.max() < fitted(images(24) + 3.0).pred_score.min()


def test_the_kept_channels_are_distinct_differ_by_seed_and_are_stored(fitted):
    torch.manual_seed(1)
    other = build(num_features=30)
    assert len(fitted.channels.unique()) == 30
    assert not torch.equal(fitted.channels, other.channels)
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(fitted.channels, other.channels)


def test_channels_may_all_be_of_one_layer():
    model = build(num_features=3)
    model.channels = torch.tensor([200, 300, 447])
    assert model.embed(model.features(images(1))).shape == (1, 256, 3)


def test_scores_of_a_batch_of_eight_are_those_of_eight_batches(fitted):
    with torch.no_grad():
        one = torch.cat([fitted(image[None]).pred_score for image in images(8, 2)])
        torch.testing.assert_close(fitted(images(8, 2)).pred_score, one, rtol=1e-5, atol=0)


def test_more_features_than_channels_are_refused():
    with pytest.raises(InputError, match=r"num_features 449 is more than the 448 channels"):
        build(num_features=449)


def test_a_single_training_image_is_refused_with_the_remedy():
    trainer = PadimTrainer(
        PadimConfig(weights="random", num_features=5), TrainConfig(img_size=SIZE)
    )

    class Loaders:
        class train:  # noqa: N801
            samples = (object(),)

    trainer.loaders = Loaders
    with pytest.raises(InputError, match="at least 2 training images"):
        trainer.on_train_end()


def test_no_features_at_all_are_refused():
    with pytest.raises(InputError, match="num_features is 0, but must be at least 1"):
        PadimConfig(num_features=0)
