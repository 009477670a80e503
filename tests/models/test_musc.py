"""MuSc against its equations written out as loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from adray.components.feature_extractor import TimmFeatureExtractor
from adray.components.input_checks import all_patches_bytes
from adray.config import TrainConfig
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.methods.musc import MuscConfig
from adray.models.musc import MuscModel, averaged, least_distances, mean_of_nearest
from adray.registry import ModelRegistry
from adray.settings import set_globals

TWO = ("blocks.0", "blocks.1")
SMALL = {"backbone": "dinov2_vits14", "layers": TWO, "weights": "random"}
GRID = (4, 5)
SIZE = (14 * GRID[0], 14 * GRID[1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@torch.no_grad()
def model_and_images(count: int = 7, **changes):
    """A model that has the patches of some random images, and these images."""
    model = MuscModel(MuscConfig(**{**SMALL, **changes})).eval()
    image = torch.randn(count, 3, *SIZE)
    model.memory_bank = torch.stack(model.features(image))
    return model, image


def mutual_loops(layers, kernel_sizes, part: float) -> np.ndarray:
    """Scores (N, h, w) of images among themselves, one patch of one image after the other.

    `layers` are (N, h, w, D) in float64, before the average over squares.
    """
    count, height, width, _ = layers[0].shape
    total = np.zeros((count, height, width))
    for layer in layers:
        for side in kernel_sizes:
            reach = side // 2
            mean = np.zeros_like(layer)
            for i, j in np.ndindex(height, width):
                rows = slice(max(0, i - reach), i + reach + 1)
                columns = slice(max(0, j - reach), j + reach + 1)
                mean[:, i, j] = layer[:, rows, columns].mean((1, 2))
            mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
            flat = mean.reshape(count, height * width, -1)

            for own in range(count):
                others = [flat[n] for n in range(count) if n != own]
                least = np.stack([cdist(flat[own], other).min(1) for other in others])
                taken = max(1, int(part * len(others)))
                score = np.sort(least, axis=0)[:taken].mean(0)
                total[own] += score.reshape(height, width)
    return total / (len(layers) * len(kernel_sizes))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kernel_sizes", "part"), [((1,), 0.3), ((3,), 1.0), ((1, 3, 5), 0.5), ((1, 3), 0.05)]
)
def test_images_of_the_batch_score_each_other_as_loops_in_numpy_say(kernel_sizes, part):
    model, image = model_and_images(kernel_sizes=kernel_sizes, nearest_part=part)
    layers = [one.double().numpy().reshape(7, *GRID, -1) for one in model.memory_bank]
    expected = torch.from_numpy(mutual_loops(layers, kernel_sizes, part))
    enlarged = F.interpolate(expected[:, None], SIZE, mode="bilinear", align_corners=True)

    prediction = model(image)
    torch.testing.assert_close(prediction.anomaly_map.double(), enlarged, rtol=1e-4, atol=1e-5)
    highest = enlarged.flatten(1).amax(1)
    torch.testing.assert_close(prediction.pred_score.double(), highest, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_new_image_is_compared_with_all_of_the_batch():
    model, image = model_and_images(count=8)
    alone, _ = model_and_images(count=8)
    alone.load_state_dict(model.state_dict())
    alone.memory_bank = model.memory_bank[:, :7]
    as_new = alone(image[7:])
    torch.testing.assert_close(as_new.pred_score, model(image[7:]).pred_score)


@torch.no_grad()
def test_numbers_of_an_image_have_mean_0_and_variance_1_before_patches_are_averaged():
    model, _ = model_and_images()
    bank = model.memory_bank.double().flatten(2)
    torch.testing.assert_close(bank.mean(2), torch.zeros(2, 7).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(bank.var(2), torch.ones(2, 7).double(), rtol=1e-3, atol=0)


def test_of_ten_others_three_tenths_are_three_and_of_few_one():
    distance = torch.rand(6, 10) + 0.1
    expected = np.sort(distance.numpy(), axis=1)
    found = mean_of_nearest(distance, 0.3)
    np.testing.assert_allclose(found, expected[:, :3].mean(1), rtol=1e-6)
    np.testing.assert_allclose(mean_of_nearest(distance, 0.01), expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(mean_of_nearest(distance, 1.0), expected.mean(1), rtol=1e-6)


def test_the_same_image_is_left_out_each_time_it_is_there_unless_there_is_no_other():
    distance = torch.rand(6, 4) + 0.1
    same = torch.full((6, 2), 1e-4)
    expected = mean_of_nearest(distance, 0.5)
    torch.testing.assert_close(mean_of_nearest(torch.cat([same, distance], 1), 0.5), expected)
    assert float(mean_of_nearest(same, 0.5).max()) == pytest.approx(1e-4)


def test_a_defect_in_some_images_is_found_and_what_half_of_them_have_is_not():
    usual = F.normalize(torch.randn(12, 20, 16), dim=2) * 0.3 + torch.randn(1, 20, 16)
    batch = usual.clone()
    batch[:2, 7] = torch.randn(2, 16)  # a defect, another one in each of two
    batch[:6, 3] = torch.randn(16)  # what is there in half of the images
    for number in range(2):
        score = mean_of_nearest(least_distances(batch[number], batch, GRID, 1), 0.3)
        assert int(score.argmax()) == 7
        assert float(score[7]) > 2 * float(score[3])


@torch.no_grad()
def test_parts_of_the_batch_of_any_size_find_the_same(monkeypatch):
    patches, stored = torch.randn(20, 8), torch.randn(6, 20, 8)
    whole = least_distances(patches, stored, GRID, 3)
    monkeypatch.setattr("adray.models.musc._CHUNK_NUMBERS", 1)
    torch.testing.assert_close(least_distances(patches, stored, GRID, 3), whole)


def test_averages_beside_the_border_are_of_fewer_patches():
    patches = torch.randn(2, 20, 8)
    plane = patches.numpy().reshape(2, *GRID, 8)
    corner = plane[:, :2, :2].mean((1, 2))
    expected = corner / np.linalg.norm(corner, axis=1, keepdims=True)
    np.testing.assert_allclose(averaged(patches, GRID, 3)[:, 0], expected, rtol=1e-5)


@torch.no_grad()
def test_the_memory_of_a_fit_is_known_before_it():
    model, _ = model_and_images()
    stored = torch.stack(model.features(torch.randn(5, 3, 70, 70)))
    assert all_patches_bytes(MuscConfig(**SMALL), TrainConfig(img_size=70), 5) == stored.nbytes


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"layers": ("blocks.12",)}, {}, "must be some of blocks"),
        ({"kernel_sizes": (2,)}, {}, r"kernel_sizes \[2\] must be odd"),
        ({"nearest_part": 0.0}, {}, "nearest_part is 0"),
        ({}, {"img_size": 60}, "input size 60 does not suit"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(changes, train, message):
    with pytest.raises(InputError, match=message):
        ModelRegistry.get_trainer(
            "musc-small-448", train={"img_size": 56, **train}, model={**SMALL, **changes}
        )


@pytest.mark.slow
@torch.no_grad()
def test_mutual_scores_of_real_features_find_defects_in_a_batch_without_labels(shared):
    """Layer 3 of ResNet-18 in the place of a transformer's blocks: it is the scoring that is tested.

    The batch is the test images, which for *hazelnut* are mostly defective, with the normals of the
    training beside them.
    """
    set_globals(dataset_dir=shared / "datasets", backbone_dir=shared / "backbones")
    extractor = TimmFeatureExtractor("resnet18", ("layer3",))
    for category, floor in (("hazelnut", 0.95), ("grid", 0.7)):
        loaders = get_dataloaders("mvtec", category, img_size=224, batch_size=8, holdout=0.0)
        parts, labels = [], []
        for loader in (loaders.train, loaders.test):
            for batch in loader:
                (features,) = extractor(batch.image)
                parts.append(features.flatten(2).transpose(1, 2))  # (B, 196, 256)
                labels += batch.label.tolist()

        unlabelled = torch.cat(parts)
        scores = []
        for patches in unlabelled:
            distance = least_distances(patches, unlabelled, (14, 14), 3)
            scores.append(float(mean_of_nearest(distance, 0.3).max()))
        assert roc_auc_score(labels, scores) >= floor, category
