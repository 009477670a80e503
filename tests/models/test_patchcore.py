"""PatchCore against its method section written out in numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from adray.components.architectures import CONVOLUTIONAL
from adray.components.nearest import nearest
from adray.config import TrainConfig, stored_values
from adray.errors import InputError
from adray.methods.patchcore import fit_bytes
from adray.models.patchcore import PatchcoreConfig, PatchcoreModel, PatchcoreTrainer
from adray.registry import ModelRegistry
from adray.types import EIGHT_BITS, Batch

SIZE = 64


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(count, seed=0):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def new_model(num_neighbors=9, bank=50):
    """A model with random weights and a bank of every so many patches of 6 images."""
    config = PatchcoreConfig("resnet18", weights="random", num_neighbors=num_neighbors)
    model = PatchcoreModel(config, SIZE).eval()
    patches = model.embed(model.features(images(6))).flatten(0, 1)
    model.remember(patches[torch.linspace(0, len(patches) - 1, bank).long()])
    return model


def slow_scores(model, image, count):
    """Patch distances (B, P) and weighted image scores (B,), equations 5 to 7 read literally, in float64."""
    bank = model.memory_bank.double().numpy()
    distances, scores = [], []
    for patches in model.embed(model.features(image)).double().numpy():
        to_bank = cdist(patches, bank)
        nearest = to_bank.min(1)
        worst = nearest.argmax()
        usual = bank[to_bank[worst].argmin()]
        around = np.argsort(cdist(usual[None], bank)[0])[:count]
        weight = 1 - np.exp(nearest[worst]) / np.exp(to_bank[worst][around]).sum()
        distances.append(nearest)
        scores.append(weight * nearest[worst])
    return np.stack(distances), np.array(scores)


def test_the_patches_are_mean_pooled_and_joined_on_the_first_grid():
    model = new_model()
    middle, deep = (f.numpy() for f in model.features(images(2)))

    def mean3(feature):  # zeros outside count, as in a padded average
        return ndimage.uniform_filter(feature, (0, 0, 3, 3), mode="constant")

    grown = F.interpolate(
        torch.from_numpy(mean3(deep)), (8, 8), mode="bilinear", align_corners=False
    ).numpy()
    expected = np.concatenate((mean3(middle), grown), axis=1).reshape(2, 384, 64).transpose(0, 2, 1)
    np.testing.assert_allclose(
        model.embed(model.features(images(2))).numpy(), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("count", [2, 3, 9])
def test_map_and_score_are_those_of_the_equations(count):
    model = new_model(count)
    distance, expected = slow_scores(model, images(4, 1), count)
    with torch.no_grad():
        prediction = model(images(4, 1))
    np.testing.assert_allclose(prediction.pred_score.numpy(), expected, rtol=1e-4)
    grown = F.interpolate(
        torch.from_numpy(distance).view(4, 1, 8, 8),
        (SIZE, SIZE),
        mode="bilinear",
        align_corners=False,
    )
    smooth = ndimage.gaussian_filter(grown[:, 0].numpy(), (0, 4, 4), mode="mirror")
    np.testing.assert_allclose(prediction.anomaly_map[:, 0].numpy(), smooth, rtol=1e-4)


@torch.no_grad()
def test_the_weighted_score_is_at_most_the_largest_distance_which_a_single_neighbor_gives():
    weighted, plain = new_model(9), new_model(1)
    plain.load_state_dict(weighted.state_dict())
    largest = slow_scores(weighted, images(4, 1), 1)[0].max(1)
    np.testing.assert_allclose(plain(images(4, 1)).pred_score.numpy(), largest, rtol=1e-5)
    assert (weighted(images(4, 1)).pred_score < plain(images(4, 1)).pred_score).all()


@torch.no_grad()
def test_distances_whose_exponential_overflows_still_weigh():
    model = new_model()
    model.remember(1e4 * model.memory_bank)
    prediction = model(images(2), tuple(1e4 * f for f in model.features(images(2))))
    assert torch.isfinite(prediction.pred_score).all()
    assert (prediction.pred_score > 1e3).all()


@torch.no_grad()
@pytest.mark.parametrize("bank", [1, 2, 5])
def test_a_bank_smaller_than_the_neighborhood_works(bank):
    model = new_model(9, bank)
    assert (model(images(3, 1)).pred_score > 0).all()


@torch.no_grad()
def test_patches_of_the_bank_have_no_distance_also_far_from_the_origin():
    model = new_model()
    patches = model.memory_bank + 500.0
    model.remember(patches)
    distance, neighbor = nearest(patches, model.memory_bank, model.center)
    assert float(distance.max()) == 0.0
    assert neighbor.tolist() == list(range(len(patches)))


@torch.no_grad()
def test_chunks_do_not_change_the_distances(monkeypatch):
    model, patches = new_model(), torch.randn(100, 384)
    whole = nearest(patches, model.memory_bank, model.center)
    monkeypatch.setattr("adray.components.nearest._CHUNK_BYTES", 7 * 4 * len(model.memory_bank))
    for ours, expected in zip(
        nearest(patches, model.memory_bank, model.center), whole, strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


@torch.no_grad()
def test_scores_of_a_batch_of_eight_are_those_of_eight_batches():
    model = new_model()
    one = torch.cat([model(image[None]).pred_score for image in images(8, 2)])
    torch.testing.assert_close(model(images(8, 2)).pred_score, one, rtol=1e-5, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("backbone", CONVOLUTIONAL)
@pytest.mark.parametrize("layers", [("layer2", "layer3"), ("layer1",), ("layer4",)])
def test_the_memory_of_a_fit_is_known_before_it(backbone, layers):
    config = PatchcoreConfig(backbone, layers, "random", coreset_ratio=0.5)
    model = PatchcoreModel(config, 70).eval()
    patches = model.embed(model.features(torch.randn(1, 3, 70, 70)))
    train_config = TrainConfig(img_size=70)
    # All patches, their copy around the mean, and half of them.
    assert fit_bytes(config, train_config, 7) == 2.5 * 7 * patches.nbytes


class Images:
    """What the trainer needs of a loader."""

    def __init__(self, count):
        self.samples = list(range(count))

    def __len__(self):
        return -(-len(self.samples) // 4)

    def __iter__(self):
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


def fit(count, **config):
    trainer = PatchcoreTrainer(
        PatchcoreConfig(backbone="resnet18", weights="random", **config),
        TrainConfig(img_size=SIZE, batch_size=4),
    )
    trainer.fit(Loaders(count))
    return trainer


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 384), (0.1, 38), (1e-6, 1)])
def test_the_bank_is_a_share_of_the_training_patches_and_never_empty(ratio, expected):
    model = fit(6, coreset_ratio=ratio).model
    assert model.memory_bank.shape == (expected, 384)
    patches = model.embed(model.features(images(6))).flatten(0, 1)
    # Batches of 4 and 2 images against one of 6: convolutions round differently.
    assert float(torch.cdist(model.memory_bank, patches).amin(1).max()) < 1e-2
    if ratio == 1.0:
        assert float(nearest(patches, model.memory_bank, model.center)[0].max()) < 1e-4


def test_a_smaller_ratio_keeps_the_beginning_of_a_larger_ones_bank():
    small, large = (fit(6, coreset_ratio=ratio).model.memory_bank for ratio in (0.05, 0.3))
    assert torch.equal(large[: len(small)], small)


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(InputError, match="coreset_ratio is"):
        PatchcoreConfig(coreset_ratio=ratio)


def test_a_soft_bank_multiplies_squared_distances_by_the_weights_of_the_neighbors():
    trainer = fit(8, soft_weights="lof", num_neighbors=1)
    model = trainer.model
    patches = model.embed(model.features(images(8))).flatten(0, 1)
    assert len(model.memory_bank) == len(model.bank_weights) == int(0.1 * len(patches))

    with torch.no_grad():
        queries = model.embed(model.features(images(3, 1)))
        prediction = model(images(3, 1))
    to_bank = cdist(queries.flatten(0, 1).double(), model.memory_bank.double())
    weights = model.bank_weights.numpy()[to_bank.argmin(1)]
    expected = (to_bank.min(1) ** 2 * weights).reshape(3, -1).max(1)
    np.testing.assert_allclose(prediction.pred_score.numpy(), expected, rtol=1e-4)


def test_a_soft_bank_forgets_what_one_image_alone_shows_and_a_plain_one_does_not():
    class OneDefect(Loaders):
        """Images alike but for little noise, of which the last has a bright square."""

        def __init__(self):
            super().__init__(12)
            shown = images(1) + 0.05 * images(12, 2)
            shown[11, :, 8:40, 8:40] += 6.0
            self.shown = shown
            one = self

            class Shown(Images):
                def __iter__(self):
                    for index in torch.tensor(self.samples).split(4):
                        yield Batch(one.shown[index], torch.zeros_like(index), None, index)

            self.train = Shown(12)

    scores = {}
    for kind in ("none", "lof"):
        trainer = PatchcoreTrainer(
            PatchcoreConfig("resnet18", weights="random", soft_weights=kind, num_neighbors=1),
            TrainConfig(img_size=SIZE, batch_size=4),
        )
        loaders = OneDefect()
        trainer.fit(loaders)
        with torch.no_grad():
            found = trainer.model(loaders.shown).pred_score
        scores[kind] = float(found[11] / found[:11].median())
    assert scores["lof"] > 5 * scores["none"]


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"soft_removed": 0.3}, {}, "says nothing with soft_weights none"),
        ({"soft_weights": "gaussian", "soft_neighbors": 9}, {}, "says nothing with soft_weights"),
        ({"soft_weights": "loff"}, {}, "did you mean 'lof'"),
        ({"soft_weights": "lof"}, {"tile": 64}, "tiles of tile 64 mix"),
    ],
)
def test_weights_that_cannot_be_are_refused_with_the_remedy(changes, train, message):
    with pytest.raises(InputError, match=message):
        ModelRegistry.get_trainer(
            "patchcore-resnet18", model={"weights": "random", **changes}, train=train
        )


def test_a_plain_bank_is_named_by_files_as_before_there_were_weights():
    plain = ModelRegistry.resolve("patchcore-resnet18").config
    assert set(stored_values(plain)) == {
        *("backbone", "layers", "weights", "coreset_ratio", "num_neighbors", "sigma"),
    }
    soft = ModelRegistry.resolve("softpatch-resnet18").config
    assert stored_values(soft)["soft_weights"] == "lof"
    assert "bank_weights" not in PatchcoreModel(plain_random(), SIZE).state_dict()


def plain_random():
    return PatchcoreConfig("resnet18", weights="random")


def test_a_soft_bank_needs_more_normals_than_it_has_neighbors():
    soft = ModelRegistry.resolve("softpatch-resnet18", model={"soft_neighbors": 9})
    assert soft.min_normals == 10
    assert ModelRegistry.resolve("patchcore-resnet18").min_normals == 1
