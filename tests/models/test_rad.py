"""RAD against its equations written out as loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from adray.components.input_checks import all_patches_bytes
from adray.config import TrainConfig
from adray.errors import InputError
from adray.methods.rad import RadConfig
from adray.models.rad import RadModel, best_cosine, places_around
from adray.registry import ModelRegistry

TWO = ("blocks.0", "blocks.1")
SMALL = {"backbone": "dinov2_vits14", "layers": TWO, "weights": "random"}
GRID = (4, 5)
SIZE = (14 * GRID[0], 14 * GRID[1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@torch.no_grad()
def model_and_images(count: int = 5, **changes):
    """A model that remembers some random images, and three others."""
    model = RadModel(RadConfig(**{**SMALL, **changes})).eval()
    *layers, class_token = model.features(torch.randn(count, 3, *SIZE))
    # Those of random weights are all but the same.
    others = F.normalize(torch.randn(class_token.shape), dim=1)
    model.remember(torch.stack(layers), others)
    return model, torch.randn(3, 3, *SIZE)


def looped(model, image: torch.Tensor) -> np.ndarray:
    """Distances (B, h, w), one patch of one layer of one training image after the other."""
    *layers, class_token = (part.double().numpy() for part in model.features(image))
    bank = model.memory_bank.double().numpy()
    class_bank = model.class_bank.double().numpy()
    height, width = GRID
    radius = model.radius
    found = np.zeros((len(image), height, width))
    for number, token in enumerate(class_token):
        similar = np.argsort(-(class_bank @ token))[: model.num_images]
        for layer, stored in zip(layers, bank, strict=True):
            for row, column in np.ndindex(height, width):
                best = -1.0
                for i in range(max(0, row - radius), min(height, row + radius + 1)):
                    for j in range(max(0, column - radius), min(width, column + radius + 1)):
                        near = stored[similar, i * width + j]
                        best = max(best, (near @ layer[number, row * width + column]).max())
                found[number, row, column] += (1 - best) / len(layers)
    return found


@torch.no_grad()
@pytest.mark.parametrize(("num_images", "radius"), [(2, 0), (2, 1), (5, 2), (150, 1), (1, 64)])
def test_map_and_score_are_those_of_loops_in_numpy(num_images, radius):
    model, image = model_and_images(num_images=num_images, radius=radius)
    prediction = model(image)
    distance = torch.from_numpy(looped(model, image))
    grown = F.interpolate(distance[:, None], SIZE, mode="bilinear")[:, 0].numpy()
    for number, raw in enumerate(grown):
        smooth = ndimage.gaussian_filter(raw, 1.0, mode="mirror", truncate=2.0)
        found = prediction.anomaly_map[number, 0].numpy()
        np.testing.assert_allclose(found, smooth, rtol=1e-4, atol=1e-6)
        highest = np.sort(smooth.ravel())[-int(0.01 * smooth.size) :].mean()
        np.testing.assert_allclose(float(prediction.pred_score[number]), highest, rtol=1e-4)


@torch.no_grad()
def test_a_radius_of_the_whole_grid_finds_a_patch_wherever_it_lies():
    model, image = model_and_images(radius=64)
    shuffled = model.memory_bank[:, :, torch.randperm(GRID[0] * GRID[1])]
    before = model(image).pred_score
    model.remember(shuffled, model.class_bank)
    torch.testing.assert_close(model(image).pred_score, before)
    near, _ = model_and_images(radius=0)
    near.load_state_dict(model.state_dict())
    assert (near(image).pred_score > before).all()


@torch.no_grad()
def test_a_remembered_image_has_no_distance_and_a_moved_one_within_the_radius_neither():
    stored = F.normalize(torch.randn(3, 20, 16), dim=2)
    moved = stored[1].reshape(4, 5, 16).roll(1, dims=1)
    inside = torch.ones(4, 5, dtype=torch.bool)
    inside[:, 0] = False  # what came from beyond the border
    for radius, is_found in ((0, False), (1, True)):
        cosine = best_cosine(stored, moved.reshape(20, 16), places_around(GRID, radius))
        found = cosine.reshape(4, 5)[inside] > 1 - 1e-5
        assert bool(found.all()) == is_found


def test_places_around_are_those_of_the_grid_once_each():
    near = places_around(GRID, 1)
    assert sorted(near[0].tolist()) == [-1] * 5 + [0, 1, 5, 6]
    assert sorted(near[7].tolist()) == [1, 2, 3, 6, 7, 8, 11, 12, 13]
    assert places_around((1, 1), 3).tolist() == [[0]]


@torch.no_grad()
def test_parts_of_the_bank_of_any_size_find_the_same(monkeypatch):
    stored, patches = (F.normalize(torch.randn(*shape, 8), dim=-1) for shape in ((6, 20), (20,)))
    near = places_around(GRID, 1)
    whole = best_cosine(stored, patches, near)
    monkeypatch.setattr("adray.models.rad._CHUNK_NUMBERS", 1)
    torch.testing.assert_close(best_cosine(stored, patches, near), whole)


@torch.no_grad()
def test_only_the_most_similar_images_are_compared_with():
    model, image = model_and_images(count=4, num_images=1, radius=64)
    *layers, class_token = model.features(image[:1])
    bank = model.memory_bank.clone()
    bank[:, 2] = torch.stack(layers)[
        :, 0
    ].half()  # the image itself, under a class token of its own
    model.remember(bank, torch.cat([model.class_bank[:3], class_token]))
    assert float(model(image[:1]).pred_score) > 1e-2
    model.remember(bank[:, [0, 1, 3, 2]], torch.cat([model.class_bank[:3], class_token]))
    assert float(model(image[:1]).pred_score) < 1e-3


@torch.no_grad()
def test_the_memory_of_a_fit_is_known_before_it():
    model, _ = model_and_images(count=5)
    train_config = TrainConfig(img_size=84, crop_size=70)
    *layers, _ = model.features(torch.randn(5, 3, 70, 70))
    stored = torch.stack(layers).half().nbytes
    assert all_patches_bytes(RadConfig(**SMALL), train_config, 5) == stored


@pytest.mark.parametrize(
    ("changes", "train", "message"),
    [
        ({"layers": ("blocks.12",)}, {}, "must be some of blocks"),
        ({"radius": -1}, {}, "radius is -1"),
        ({"num_images": 0}, {}, "num_images is 0"),
        ({}, {"img_size": 64, "crop_size": 60}, "input size 60 does not suit"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(changes, train, message):
    with pytest.raises(InputError, match=message):
        ModelRegistry.get_trainer(
            "rad-small-448",
            train={"img_size": 64, "crop_size": 56, **train},
            model={**SMALL, **changes},
        )
