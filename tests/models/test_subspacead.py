"""SubspaceAD against scikit-learn's PCA and scipy's filter, and its sums against a new fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_datasets import write_mvtec
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from adray.components.feature_extractor import TimmFeatureExtractor
from adray.config import TrainConfig
from adray.data.loaders import get_dataloaders
from adray.data.normalization import normalize_images
from adray.errors import InputError
from adray.models.subspacead import (
    Subspace,
    SubspaceadConfig,
    SubspaceadModel,
    turned,
    view_angles,
)
from adray.registry import ModelRegistry
from adray.settings import Settings, set_globals, use_settings
from adray.types import Sharing

SIZE = 56
TWO = ("blocks.0", "blocks.1")
SMALL = {"backbone": "dinov2_vits14", "layers": TWO}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def correlated(count, seed=0, size=12):
    """Vectors whose variance falls from direction to direction, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -3, size, dtype=torch.float64)
    mixed = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    values = torch.randn(count, size, generator=generator, dtype=torch.float64) * scale
    return (values @ mixed + 100).float()


def fitted(*parts, variance=0.99):
    subspace = Subspace()
    for part in parts:
        subspace.add(part)
    subspace.fit(variance)
    return subspace


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 0.9999])
def test_the_subspace_is_scikit_learns_and_so_are_the_residuals(variance):
    vectors, new = correlated(500), correlated(50, 1)
    subspace = fitted(*vectors.split(64), variance=variance)
    pca = PCA(variance, svd_solver="full").fit(vectors.double().numpy())
    assert subspace.components.shape[1] == pca.n_components_

    ours = subspace.components.double() @ subspace.components.double().T
    np.testing.assert_allclose(ours.numpy(), pca.components_.T @ pca.components_, atol=1e-6)
    exact = new.double().numpy()
    expected = ((exact - pca.inverse_transform(pca.transform(exact))) ** 2).sum(1)
    np.testing.assert_allclose(subspace.residual(new).numpy(), expected, rtol=1e-3, atol=1e-8)

    # What is stored is float32. The sums themselves give the residuals far closer.
    _, directions = torch.linalg.eigh(subspace.scatter)
    kept = directions.flip(1)[:, : pca.n_components_]
    centered = new.double() - subspace.mean
    found = (centered - centered @ kept @ kept.T).square().sum(1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_the_order_and_the_division_of_the_vectors_do_not_matter():
    vectors, new = correlated(300), correlated(50, 1)
    whole = fitted(vectors)
    for parts in (vectors.split(7), reversed(vectors.split(100)), (vectors[1:], vectors[:1])):
        other = fitted(*parts)
        torch.testing.assert_close(other.scatter, whole.scatter, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.residual(new), whole.residual(new), rtol=1e-5, atol=1e-9)


def test_what_is_added_and_taken_away_leaves_what_was_there():
    vectors, more, new = correlated(300), correlated(40, 2), correlated(50, 1)
    subspace = fitted(vectors, more)
    subspace.remove(more)
    subspace.fit(0.99)
    expected = fitted(vectors)
    assert int(subspace.count) == 300
    torch.testing.assert_close(subspace.scatter, expected.scatter, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(subspace.residual(new), expected.residual(new), rtol=1e-5, atol=1e-9)


def test_more_than_there_is_cannot_be_taken_away():
    subspace = fitted(correlated(30))
    with pytest.raises(ValueError, match="30 vectors cannot be taken from 30"):
        subspace.remove(correlated(30))


def test_vectors_in_the_subspace_have_no_residual_and_a_scale_scales_it_by_its_square():
    subspace = fitted(correlated(300), variance=0.9)
    inside = subspace.center + torch.randn(20, subspace.components.shape[1]) @ subspace.components.T
    assert float(subspace.residual(inside).max()) < 1e-6
    scaled = fitted(3 * correlated(300), variance=0.9)
    new = correlated(50, 1)
    torch.testing.assert_close(
        scaled.residual(3 * new), 9 * subspace.residual(new), rtol=1e-2, atol=1e-5
    )


def test_a_constant_that_is_added_to_all_features_changes_nothing():
    vectors, new = correlated(300) - 100, correlated(50, 1) - 100
    plain = fitted(vectors, variance=0.9)
    moved = fitted(
        vectors + 4, variance=0.9
    )  # a power of two, which float32 adds without much loss
    assert moved.components.shape == plain.components.shape
    torch.testing.assert_close(moved.residual(new + 4), plain.residual(new), rtol=1e-4, atol=1e-6)


def test_one_vector_and_equal_vectors_measure_the_distance_to_them():
    for vectors in (torch.ones(1, 4), torch.ones(9, 4)):
        assert fitted(vectors).residual(torch.zeros(1, 4)).tolist() == [4.0]


def test_features_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="hold NaN or infinity"):
        fitted(torch.full((5, 3), torch.nan))


@torch.no_grad()
def model_and_images(**changes):
    """A model fitted on ten random images, and four others."""
    model = SubspaceadModel(SubspaceadConfig(**SMALL, weights="random", **changes)).eval()
    for part in torch.randn(10, 3, SIZE, SIZE).split(3):
        model.subspace.add(model.features(part)[0].flatten(0, 1))
    model.subspace.fit(0.9)
    return model, torch.randn(4, 3, SIZE, 2 * SIZE)


@torch.no_grad()
@pytest.mark.parametrize("image_score", ["top", "max"])
def test_map_and_score_are_those_of_scipys_filter(image_score):
    model, image = model_and_images(image_score=image_score)
    patches = model.features(image)[0]
    assert patches.shape == (4, 4 * 8, 384)
    small = model.subspace.residual(patches).reshape(4, 1, 4, 8)
    enlarged = torch.nn.functional.interpolate(small, (SIZE, 2 * SIZE), mode="bilinear")
    prediction = model(image)
    for number, raw in enumerate(enlarged[:, 0].double().numpy()):
        smooth = gaussian_filter(raw, 4.0, mode="mirror", truncate=0.25)  # 3 x 3
        np.testing.assert_allclose(prediction.anomaly_map[number, 0].numpy(), smooth, rtol=1e-4)
        largest = np.sort(smooth.ravel())[-62:]
        score = largest.mean() if image_score == "top" else largest[-1]
        assert float(prediction.pred_score[number]) == pytest.approx(score, rel=1e-4)


@torch.no_grad()
def test_features_are_means_of_the_raw_patches_without_class_token_and_registers():
    model, image = model_and_images()
    first, second = model.extractor(image)
    expected = (first[:, 1:].double() + second[:, 1:].double()) / 2
    torch.testing.assert_close(model.features(image)[0].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_angles_follow_from_the_name_and_fewer_are_the_first_of_more():
    angles = view_angles(42, "양품.png", 30)
    assert torch.equal(view_angles(42, "양품.png", 4), angles[:4])
    assert float(angles.min()) >= 0
    assert float(angles.max()) <= 345
    assert not torch.equal(view_angles(42, "other.png", 30), angles)
    assert not torch.equal(view_angles(43, "양품.png", 30), angles)


def test_turned_images_have_black_corners():
    white = torch.ones(1, 3, 29, 29)
    corner = turned(white, torch.tensor([45.0]))[:, :, :1, :1]
    torch.testing.assert_close(corner, normalize_images(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)))
    torch.testing.assert_close(turned(white, torch.tensor([0.0])), white)


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"variance": 1.5}, {}, "variance is 1.5"),
        ({"layers": ("blocks.12",)}, {}, "must be some of blocks"),
        ({}, {"img_size": 60}, "input size 60 does not suit"),
        ({"rotations": 2}, {"calibration": "cross"}, "set rotations: 0, or calibration: holdout"),
        ({"rotations": 2}, {"normalize": "none"}, "set normalize: imagenet"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(changes, train, message):
    with pytest.raises(InputError, match=message):
        ModelRegistry.get_trainer(
            "subspacead-small-448",
            train={"img_size": SIZE, **train},
            model={**SMALL, "weights": "random", **changes},
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small data set and a cache of its own."""
    root = tmp_path_factory.mktemp("subspacead")
    write_mvtec(root / "mvtec", categories=("bottle",), train=10, good=4, defects=6, size=SIZE)
    return Settings(dataset_dir=str(root), cache_dir=str(root / "cache"))


def trained(site, sharing=None, **model):
    """A trainer fitted on small images, and its loaders."""
    use_settings(site)
    trainer = ModelRegistry.get_trainer(
        "subspacead-small-448",
        train={"img_size": SIZE, "batch_size": 4, "holdout": 0.2},
        model={**SMALL, "weights": "random", **model},
        seed=1,
    )
    trainer.sharing = sharing
    loaders = get_dataloaders("mvtec", "bottle", img_size=SIZE, batch_size=4, holdout=0.2, seed=1)
    trainer.fit(loaders)
    return trainer, loaders


def test_turned_views_are_learnt_beside_each_image_and_change_the_scores(site):
    plain, loaders = trained(site)
    with_views, _ = trained(site, rotations=3)
    assert int(with_views.model.subspace.count) == 4 * int(plain.model.subspace.count)
    assert with_views.notes()[0].startswith("subspace of ")
    again, _ = trained(site, rotations=3)
    first, second = (t.predict(loaders.test).pred_score for t in (with_views, again))
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert not np.allclose(first, plain.predict(loaders.test).pred_score, rtol=1e-2)


def test_turned_views_are_the_same_with_features_from_a_file(site, tmp_path):
    alone, loaders = trained(site, rotations=2)
    elsewhere = replace(site, cache_dir=str(tmp_path))
    shared, _ = trained(elsewhere, Sharing(TWO), rotations=2)
    assert shared.shared_work
    np.testing.assert_allclose(
        shared.predict(loaders.test).pred_score, alone.predict(loaders.test).pred_score, rtol=1e-5
    )


@pytest.mark.slow
def test_the_subspace_of_real_features_finds_real_defects(shared):
    """Layers 2 and 3 of ResNet-18 in the place of a transformer's blocks: it is the statistics that are tested."""
    set_globals(dataset_dir=shared / "datasets", backbone_dir=shared / "backbones")
    extractor = TimmFeatureExtractor("resnet18", ("layer2", "layer3"))

    def patches(batch):
        first, second = extractor(batch.image)
        second = torch.nn.functional.interpolate(second, first.shape[2:], mode="bilinear")
        return torch.cat([first, second], 1).flatten(2).transpose(1, 2)  # (B, P, 384)

    for category, floor in (("hazelnut", 0.99), ("grid", 0.75)):
        loaders = get_dataloaders("mvtec", category, img_size=224, batch_size=8, holdout=0.0)
        subspace = fitted(*(patches(batch).flatten(0, 1) for batch in loaders.train))
        scores, labels = [], []
        for batch in loaders.test:
            scores += subspace.residual(patches(batch)).amax(1).tolist()
            labels += batch.label.tolist()
        assert roc_auc_score(labels, scores) >= floor, category


def test_sizes_that_are_no_whole_patches_are_refused_by_the_plan():
    with pytest.raises(InputError, match="multiple of 14"):
        ModelRegistry.method("subspacead-small-448").check_inputs(
            SubspaceadConfig(), TrainConfig(img_size=256)
        )
