"""SuperAD against scikit-learn's neighbours, greedy loops in numpy, and its parts by themselves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_datasets import write_mvtec
from PIL import Image
from scipy import ndimage
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from adray.components.rotation import turned_views
from adray.config import TrainConfig
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.methods.superad import SuperadConfig, fit_bytes
from adray.models.superad import SuperadModel, farthest_images
from adray.registry import ModelRegistry
from adray.settings import Settings, use_settings
from adray.tiling import Tiling
from adray.types import Batch

TWO = ("blocks.0", "blocks.1")
SMALL = {"backbone": "dinov2_vits14", "layers": TWO, "weights": "random"}
SIDE = 56


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trainer_of(images: torch.Tensor, batch_size: int = 3, inside=None, backwards=False, **changes):
    """A trainer, and loaders of one pass over images in memory, also from the last to the first."""
    trainer = ModelRegistry.get_trainer(
        "superad-small-448", train={"img_size": SIDE, "holdout": 0.0}, model={**SMALL, **changes}
    )

    class Loader(list):
        samples = list(images)

        def set_epoch(self, epoch):
            pass

    batches = Loader()
    order = torch.arange(len(images))
    for index in (order.flip(0) if backwards else order).split(batch_size):
        part = None if inside is None else inside[index]
        batches.append(Batch(images[index], torch.zeros_like(index), None, index, inside=part))
    trainer.loaders = SimpleNamespace(train=batches)
    return trainer


def fit(trainer):
    """Let a trainer see its images once."""
    trainer.train_epoch(trainer.loaders.train)
    return trainer.model.eval()


@torch.no_grad()
def test_map_and_score_are_one_minus_the_cosine_of_scikit_learn_averaged_over_blocks():
    model = SuperadModel(SuperadConfig(**SMALL)).eval()
    *layers, _ = model.features(torch.randn(4, 3, SIDE, SIDE))
    for bank, patches in zip(model.banks, layers, strict=True):
        bank.remember(patches.flatten(0, 1))

    image = torch.randn(2, 3, SIDE, SIDE)
    *queries, _ = model.features(image)
    distance = np.zeros((2, 16))
    for patches, query in zip(layers, queries, strict=True):
        search = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute")
        search.fit(patches.flatten(0, 1).double().numpy())
        found, _ = search.kneighbors(query.flatten(0, 1).double().numpy())
        distance += found.reshape(2, 16) / len(TWO)

    prediction = model(image)
    # A hundredth of 16 patches is less than one, so the highest counts.
    np.testing.assert_allclose(prediction.pred_score, distance.max(1), rtol=1e-4, atol=1e-6)
    small = torch.from_numpy(distance).reshape(2, 1, 4, 4)
    grown = F.interpolate(small, (SIDE, SIDE), mode="bilinear")[:, 0].numpy()
    for number in range(2):
        smooth = ndimage.gaussian_filter(grown[number], 4.0, mode="mirror")
        found = prediction.anomaly_map[number, 0].numpy()
        np.testing.assert_allclose(found, smooth, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_images_are_chosen_as_the_reference_chooses_them_written_out_in_numpy(count):
    tokens = np.random.default_rng(1).normal(size=(20, 6))
    distance = np.linalg.norm(tokens[:, None] - tokens[None], axis=2)
    least = np.linalg.norm(distance, axis=1)
    expected = []
    for _ in range(count):
        expected.append(int(least.argmax()))
        least = np.minimum(least, distance[:, expected[-1]])
    assert farthest_images(torch.from_numpy(tokens).float(), count).tolist() == expected


def test_the_chosen_images_leave_none_farther_than_twice_the_least_that_can_be():
    tokens = np.random.default_rng(2).normal(size=(9, 3))
    distance = np.linalg.norm(tokens[:, None] - tokens[None], axis=2)
    chosen = farthest_images(torch.from_numpy(tokens), 2).tolist()
    pairs = [distance[:, [i, j]].min(1).max() for i in range(9) for j in range(i)]
    assert distance[:, chosen].min(1).max() <= 2 * min(pairs)


@torch.no_grad()
def test_banks_are_of_the_chosen_images_whatever_order_they_come_in():
    images = torch.randn(7, 3, SIDE, SIDE)
    forth = trainer_of(images, num_images=3)
    model = fit(forth)
    *layers, tokens = model.features(images)
    chosen = farthest_images(tokens, 3).sort().values
    for bank, patches in zip(model.banks, layers, strict=True):
        torch.testing.assert_close(bank.memory_bank, patches[chosen].flatten(0, 1))

    again = fit(trainer_of(images, batch_size=2, backwards=True, num_images=3))
    for bank, other in zip(model.banks, again.banks, strict=True):
        assert sorted(bank.memory_bank.tolist()) == sorted(other.memory_bank.tolist())


@torch.no_grad()
def test_turned_views_of_the_chosen_images_are_in_the_banks():
    images = torch.randn(4, 3, SIDE, SIDE)
    model = fit(trainer_of(images, num_images=2, rotations=4))
    assert [len(bank.memory_bank) for bank in model.banks] == [2 * 4 * 16] * 2
    *_, tokens = model.features(images)
    chosen = farthest_images(tokens, 2)
    quarter = torch.rot90(images[chosen], 1, (2, 3))
    assert float(model(quarter).pred_score.max()) < 1e-4
    assert float(model(images.roll(7, dims=3)).pred_score.min()) > 1e-3


@torch.no_grad()
def test_patches_of_the_room_around_an_image_are_in_no_bank():
    images = torch.randn(3, 3, SIDE, SIDE)
    inside = torch.zeros(3, 1, SIDE, SIDE, dtype=torch.bool)
    inside[:, :, 14:42] = True  # the two rows of patches in the middle
    model = fit(trainer_of(images, inside=inside, rotations=2))
    *layers, _ = model.features(torch.cat([images, *turned_views(images, 2)]))
    for bank, patches in zip(model.banks, layers, strict=True):
        expected = patches[:, 4:12].flatten(0, 1)
        assert len(bank.memory_bank) == 3 * 2 * 8
        torch.testing.assert_close(bank.memory_bank, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def wide(tmp_path, own_settings):
    """A small data set of images that are twice as wide as high."""
    write_mvtec(tmp_path / "mvtec", categories=("bottle",), train=5, good=2, defects=2, size=SIDE)
    for path in (tmp_path / "mvtec").rglob("*.png"):
        with Image.open(path) as image:
            image.resize((2 * SIDE, SIDE)).save(path)
    use_settings(Settings(dataset_dir=str(tmp_path), cache_dir=str(tmp_path / "cache")))


def trained(data, **train):
    """A trainer that has seen the wide images, and the loaders of these."""
    trainer = ModelRegistry.get_trainer(
        "superad-small-448",
        train={"img_size": SIDE, "batch_size": 4, "holdout": 0.0, **train},
        model={**SMALL, "num_images": 4},
    )
    loaders = get_dataloaders(
        "mvtec", "bottle", img_size=SIDE, batch_size=4, holdout=0.0, seed=1, **data
    )
    trainer.fit(loaders)
    return trainer, loaders


def test_images_keep_their_aspect_ratio_with_room_that_is_in_no_bank_and_no_score(wide):
    trainer, loaders = trained({"fit": "pad"}, fit="pad")
    # Half of the four rows of patches are of the image.
    assert [len(bank.memory_bank) for bank in trainer.model.banks] == [4 * 8] * 2
    batch = next(iter(loaders.test))
    scores = trainer.predict_batch(batch)
    repainted = torch.where(batch.inside, scores.anomaly_map, torch.inf).amin((1, 2, 3))
    outside = torch.where(batch.inside, -torch.inf, scores.anomaly_map).amax((1, 2, 3))
    torch.testing.assert_close(outside, repainted)  # the room has the lowest value


def test_of_images_in_tiles_the_banks_are_made_of_tiles(wide):
    tiling = {"tile": SIDE, "overlap": 0.25}
    trainer, loaders = trained({"tiling": Tiling(SIDE, 0.25, 1.0)}, **tiling)
    assert len(loaders.train.samples) == 5 * 3
    assert [len(bank.memory_bank) for bank in trainer.model.banks] == [4 * 16] * 2
    scores = trainer.predict(loaders.test)
    assert len(scores.pred_score) == 4
    assert np.isfinite(scores.pred_score).all()


def test_views_are_turned_by_equal_parts_of_a_full_turn():
    image = torch.randn(2, 3, 15, 15)
    views = list(turned_views(image, 4))
    assert len(views) == 3
    for number, view in enumerate(views):
        torch.testing.assert_close(view, torch.rot90(image, number + 1, (2, 3)), rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_memory_of_a_fit_is_that_of_its_banks_and_one_more():
    images = torch.randn(5, 3, SIDE, SIDE)
    model = fit(trainer_of(images, num_images=3, rotations=2))
    kept = sum(bank.memory_bank.nbytes for bank in model.banks)
    config = SuperadConfig(**SMALL, num_images=3, rotations=2)
    assert fit_bytes(config, TrainConfig(img_size=SIDE), 5) == kept * 3 / 2
    assert fit_bytes(config, TrainConfig(img_size=SIDE), 2) == kept


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"layers": ("blocks.12",)}, {}, "must be some of blocks"),
        ({"num_images": 0}, {}, "num_images is 0"),
        ({"rotations": 8}, {"calibration": "cross"}, "set rotations: 1, or calibration: holdout"),
        ({}, {"img_size": 60}, "input size 60 does not suit"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(changes, train, message):
    with pytest.raises(InputError, match=message):
        ModelRegistry.get_trainer(
            "superad-small-448", train={"img_size": SIDE, **train}, model={**SMALL, **changes}
        )
