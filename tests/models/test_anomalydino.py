"""AnomalyDINO against scikit-learn's neighbours and PCA, and scipy's morphology and filter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_datasets import write_mvtec
from scipy import ndimage
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from adray.components.rotation import rotate
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.models.anomalydino import (
    AnomalydinoConfig,
    AnomalydinoModel,
    distance_to_others,
    first_component,
    foreground,
)
from adray.registry import ModelRegistry
from adray.settings import Settings, use_settings
from adray.types import Sharing

SIZE = 56
TWO = ("blocks.0", "blocks.1")
SMALL = {"backbone": "dinov2_vits14", "layer": "blocks.1"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@torch.no_grad()
def model_and_images(**changes):
    """A model that remembers three random images, and four others."""
    model = AnomalydinoModel(AnomalydinoConfig(**SMALL, weights="random", **changes)).eval()
    patches = model.features(torch.randn(3, 3, SIZE, SIZE))[0]
    model.remember(F.normalize(patches.flatten(0, 1), dim=1))
    return model, torch.randn(4, 3, SIZE, 2 * SIZE)


@torch.no_grad()
def test_distances_are_scikit_learns_cosine_distances_to_the_nearest_patch():
    model, image = model_and_images()
    (patches,) = model.features(image)
    search = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute")
    search.fit(model.memory_bank.double().numpy())
    expected, _ = search.kneighbors(patches.flatten(0, 1).double().numpy())
    found = model.distance(patches)
    assert found.shape == (4, 4 * 8)
    np.testing.assert_allclose(found.flatten().numpy(), expected[:, 0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_remembered_image_has_no_distance():
    model, image = model_and_images()
    (patches,) = model.features(image)
    model.remember(F.normalize(patches.flatten(0, 1), dim=1))
    assert float(model(image).pred_score.max()) < 1e-6


@torch.no_grad()
def test_the_score_is_the_mean_of_the_grids_worst_hundredth_and_the_map_scipys():
    model, _ = model_and_images()
    image = torch.randn(2, 3, 14 * 15, 14 * 15)
    distance = model.distance(model.features(image)[0])  # (2, 225): int(2.25) values count
    prediction = model(image)
    expected = distance.sort(1).values[:, -2:].mean(1)
    torch.testing.assert_close(prediction.pred_score, expected, rtol=1e-5, atol=1e-7)

    small = distance.reshape(2, 1, 15, 15)
    enlarged = F.interpolate(small, image.shape[2:], mode="bilinear")[:, 0].double().numpy()
    for found, raw in zip(prediction.anomaly_map[:, 0].numpy(), enlarged, strict=True):
        smooth = ndimage.gaussian_filter(raw, 4.0, mode="mirror", truncate=4.0)
        np.testing.assert_allclose(found, smooth, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_the_score_of_fewer_than_a_hundred_patches_is_the_largest():
    model, image = model_and_images()
    distance = model.distance(model.features(image)[0])
    torch.testing.assert_close(model(image).pred_score, distance.amax(1))


def batch_loops(queries: np.ndarray, images: np.ndarray, part: float) -> np.ndarray:
    """Distances of (P, D) patches to those of (N, P, D) images, one patch after the other."""
    others = np.concatenate(images)
    rank = int(part * len(others))
    found = []
    for patch in queries:
        rising = np.sort(1 - others @ patch)
        below = rising[rising < rising[rank - 1]] if rank else rising[:0]
        found.append(below.mean() if len(below) else rising[0])
    return np.array(found)


@torch.no_grad()
@pytest.mark.parametrize("part", [0.001, 0.02, 0.2, 0.5])
def test_images_of_a_batch_are_compared_with_the_others_as_loops_in_numpy_say(part):
    images = F.normalize(torch.randn(6, 20, 32, dtype=torch.float64), dim=2)
    for own in range(6):
        others = np.stack([images[n].numpy() for n in range(6) if n != own])
        expected = batch_loops(images[own].numpy(), others, part)
        found = distance_to_others(images[own], images.flatten(0, 1), part)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("part", [0.001, 0.1])
def test_an_image_that_is_not_in_the_batch_is_compared_with_all_of_it(part):
    images = F.normalize(torch.randn(6, 20, 32, dtype=torch.float64), dim=2)
    new = F.normalize(torch.randn(20, 32, dtype=torch.float64), dim=1)
    expected = batch_loops(new.numpy(), images.numpy(), part)
    found = distance_to_others(new, images.flatten(0, 1), part)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


@torch.no_grad()
def test_a_batch_of_one_image_twice_compares_it_with_itself_and_gives_numbers():
    image = F.normalize(torch.randn(20, 32), dim=1)
    found = distance_to_others(image, image.repeat(2, 1), 0.5)
    assert bool(torch.isfinite(found).all())


@torch.no_grad()
def test_an_odd_image_of_a_batch_without_labels_scores_highest():
    config = AnomalydinoConfig(**SMALL, weights="random", batched=True, batched_part=0.02)
    model = AnomalydinoModel(config).eval()
    image = torch.randn(1, 3, SIZE, SIZE) + 0.3 * torch.randn(8, 3, SIZE, SIZE)
    image[5, :, 14:42, 14:42] = 3.0
    patches = model.features(image)[0]
    model.remember(F.normalize(patches.flatten(0, 1), dim=1))
    assert int(model(image).pred_score.argmax()) == 5


def test_features_are_the_normalised_patches_without_class_token_and_registers():
    model, image = model_and_images()
    (tokens,) = model.extractor(image)
    patches = tokens[:, 1:].double()
    mean, deviation = patches.mean(2, keepdim=True), patches.var(2, correction=0, keepdim=True)
    expected = (patches - mean) / (deviation + 1e-6).sqrt()
    torch.testing.assert_close(model.features(image)[0].double(), expected, rtol=1e-4, atol=1e-4)


def blob_patches(center=True, height=12, width=10, seed=0):
    """Patches of which an object, in the centre or around it, differs along one direction."""
    generator = torch.Generator().manual_seed(seed)
    is_object = torch.zeros(height, width, dtype=torch.bool)
    is_object[3:9, 3:8] = True
    if not center:
        is_object = ~is_object
    patches = torch.randn(height * width, 16, generator=generator)
    patches[:, 5] += 60.0 * is_object.flatten()
    return patches[None], is_object


def test_the_first_component_is_scikit_learns():
    patches, _ = blob_patches()
    expected = PCA(1, svd_solver="full").fit_transform(patches[0].double().numpy())[:, 0]
    np.testing.assert_allclose(first_component(patches)[0].numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("along_raster", [False, True])
def test_the_object_in_the_centre_is_found_whatever_the_sign_and_closed_as_scipy_does(
    sign, along_raster
):
    patches, is_object = blob_patches()
    found = foreground(sign * patches, (12, 10), 10.0, along_raster)[0].reshape(12, 10).numpy()
    kernel = np.ones((3, 3), bool)
    plane = is_object.numpy().reshape(-1, 1) if along_raster else is_object.numpy()
    dilated = ndimage.binary_dilation(plane, kernel)
    again = ndimage.binary_dilation(dilated, kernel)
    expected = ndimage.binary_erosion(again, kernel, border_value=1).reshape(12, 10)
    np.testing.assert_array_equal(found, expected)


def test_both_ways_to_close_a_mask_differ_as_they_do_in_published_code():
    patches, _ = blob_patches()
    plane, column = (foreground(patches, (12, 10), 10.0, raster) for raster in (False, True))
    assert int(plane.sum()) > int(column.sum())


def test_of_a_centre_of_180_patches_63_are_more_than_the_share_as_the_reference_reckons():
    """63 / 180 is 0.35 in binary, and 0.35 * 180 is less than 63."""
    grid = (20, 25)  # the centre has 12 rows and 15 columns
    heights = torch.full(grid, -1.0)
    heights[4:8, 5:20] = heights[8, 5:8] = 40.0
    patches = torch.zeros(1, 500, 4)
    patches[0, :, 0] = heights.flatten()
    found = foreground(patches, grid, 10.0).reshape(grid)
    assert bool(found[5, 10])
    assert not bool(found[15, 10])


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (3, 3)])
def test_small_grids_have_a_foreground_or_none(grid):
    found = foreground(torch.randn(2, grid[0] * grid[1], 8), grid, 10.0)
    assert found.shape == (2, grid[0] * grid[1])


@torch.no_grad()
@pytest.mark.parametrize("mask", ["plane", "column"])
def test_masked_patches_are_zero_and_count(mask):
    plain, image = model_and_images()
    (patches,) = plain.features(image)
    threshold = float(first_component(patches).quantile(0.97))
    model, _ = model_and_images(mask=mask, mask_threshold=threshold)
    model.load_state_dict(plain.state_dict())
    kept = foreground(patches, (4, 8), threshold, mask == "column")
    assert 0 < int(kept.sum()) < kept.numel()
    distance = model.distance(patches) * kept
    torch.testing.assert_close(model(image).pred_score, distance.amax(1))
    all_masked, _ = model_and_images(mask=mask, mask_threshold=1e6)
    assert all_masked(image).pred_score.tolist() == [0.0] * 4


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small data set and a cache of its own."""
    root = tmp_path_factory.mktemp("anomalydino")
    write_mvtec(root / "mvtec", categories=("bottle",), train=10, good=4, defects=6, size=SIZE)
    return Settings(dataset_dir=str(root), cache_dir=str(root / "cache"))


def trained(site, name="anomalydino-small-448", sharing=None, **model):
    """A trainer fitted on small images, its loaders, and the images that went through the backbone."""
    use_settings(site)
    trainer = ModelRegistry.get_trainer(
        name,
        train={"img_size": SIZE, "batch_size": 4, "holdout": 0.2},
        model={"backbone": "dinov2_vits14", "weights": "random", **model},
        seed=1,
    )
    seen = []
    trainer.model.extractor.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    trainer.sharing = sharing
    loaders = get_dataloaders("mvtec", "bottle", img_size=SIZE, batch_size=4, holdout=0.2, seed=1)
    trainer.fit(loaders)
    return trainer, loaders, seen


def test_the_bank_holds_every_patch_of_every_view_or_a_coreset_of_them(site):
    whole, loaders, _ = trained(site, layer="blocks.1", rotations=4, coreset_ratio=1.0)
    assert whole.model.memory_bank.shape == (8 * 4 * 16, 384)
    batch = next(iter(loaders.test))
    turned = rotate(batch.image, torch.full((len(batch.image),), 90.0), "bilinear", "reflection")
    torch.testing.assert_close(turned, torch.rot90(batch.image, 1, (2, 3)), atol=1e-4, rtol=0)

    part, _, _ = trained(site, layer="blocks.1", rotations=4, coreset_ratio=0.25)
    assert len(part.model.memory_bank) == 8 * 16
    rows = {tuple(row) for row in whole.model.memory_bank.tolist()}
    assert {tuple(row) for row in part.model.memory_bank.tolist()} <= rows
    assert part.notes() == ["memory bank of 128 patches, search: exact"]


def test_one_pass_of_the_transformer_serves_several_methods_and_settings(site, tmp_path):
    """Every image of the category goes through it once, in the first trial."""
    elsewhere = replace(site, cache_dir=str(tmp_path))
    wanted = Sharing(TWO)
    trials = [
        ("subspacead-small-448", {"layers": TWO}),
        ("anomalydino-small-448", {"layer": "blocks.1"}),
        ("anomalydino-small-448", {"layer": "blocks.1", "coreset_ratio": 0.02}),
        ("subspacead-base-448", {"layers": ("blocks.1",), "variance": 0.9}),
    ]
    own, passes = [], []
    for name, model in trials:
        alone, loaders, _ = trained(site, name, **model)
        shared, _, seen = trained(elsewhere, name, wanted, **model)
        scores = [t.predict(loaders.test).pred_score for t in (shared, alone)]
        np.testing.assert_array_equal(*scores)
        own.append(sum(seen))
        passes.append([work.built for work in shared.shared_work if work.kind == "features"])
    assert own == [sum(loaders.train.part_sizes), 0, 0, 0]
    assert passes == [[True], [False], [False], [False]]
    files = sorted(path.name.rpartition("-")[2] for path in tmp_path.rglob("*.rows"))
    assert files == ["blocks.0.rows", "blocks.1.rows"]
    # Float16, with eight bytes of sum each: two bytes for each of 17 tokens of 384 numbers.
    (path,) = tmp_path.rglob("*blocks.1.rows")
    assert path.stat().st_size == sum(loaders.train.part_sizes) * (2 * 17 * 384 + 8)


def test_a_soft_bank_weighs_the_cosine_distances_of_its_usual_patches(site):
    soft, loaders, _ = trained(
        site, layer="blocks.1", coreset_ratio=1.0, soft_weights="lof", soft_neighbors=3
    )
    plain, _, _ = trained(site, layer="blocks.1", coreset_ratio=1.0)
    bank = soft.model.memory_bank
    assert len(bank) < len(plain.model.memory_bank)
    assert float(torch.cdist(bank, plain.model.memory_bank).amin(1).max()) < 1e-3

    batch = next(iter(loaders.test))
    with torch.no_grad():
        (patches,) = soft.model.features(batch.image)
        found = soft.model.distance(patches).flatten()
    search = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(bank.double())
    distance, neighbor = search.kneighbors(patches.flatten(0, 1).double())
    expected = distance[:, 0] * soft.model.bank_weights.numpy()[neighbor[:, 0]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"layer": "blocks.12"}, {}, "must be some of blocks"),
        ({"mask": "plain"}, {}, "mask is 'plain' .*did you mean 'plane'"),
        ({"rotations": 0}, {}, "rotations is 0"),
        ({}, {"img_size": 60}, "input size 60 does not suit"),
        ({"rotations": 2}, {"calibration": "cross"}, "set rotations: 1, or calibration: holdout"),
        ({"batched": True}, {}, "coreset_ratio is 0.1; set it to 1.0, or batched: false"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(changes, train, message):
    with pytest.raises(InputError, match=message):
        ModelRegistry.get_trainer(
            "anomalydino-small-448",
            train={"img_size": SIZE, **train},
            model={**SMALL, "weights": "random", **changes},
        )
