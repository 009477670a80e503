"""Methods of a transformer's or a ResNet's patches on real images: what they make of good features finds defects.

Layers 2 and 3 of a truly pretrained ResNet-18 stand in for a transformer's blocks. No published figure
is of them. What each is compared with is PatchCore on the same patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from adray.components.feature_extractor import TimmFeatureExtractor
from adray.components.k_center_greedy import k_center_greedy
from adray.components.nearest import NearestSearch
from adray.components.patch_embedding import embed_patches
from adray.components.patch_outliers import outlier_factors
from adray.components.top_mean import top_mean
from adray.data.loaders import get_dataloaders
from adray.methods.anomalydino import AnomalydinoConfig
from adray.models.anomalydino import AnomalydinoModel
from adray.models.rad import best_cosine, places_around
from adray.models.superad import PatchBank, farthest_images
from adray.settings import Settings, set_globals, use_settings
from adray.train import train

pytestmark = pytest.mark.slow

GRID = (28, 28)
DEFECTS = 0.1


@dataclass(frozen=True)
class Real:
    """Patches of a category of real images."""

    train: Tensor
    """(N, P, D), averaged over 3 x 3 neighbours."""
    test: Tensor
    """(T, P, D)."""
    label: np.ndarray
    """(T,), 1 for a defect."""

    def patchcore(self) -> float:
        """Give the area that the distances to a tenth of all patches reach."""
        flat = self.train.flatten(0, 1)
        picks = k_center_greedy(flat, len(flat) // 10, torch.Generator().manual_seed(0))
        distance, _ = NearestSearch(flat[picks]).find(self.test.flatten(0, 1))
        return self.area(distance.view(len(self.test), -1).amax(1))

    def area(self, scores: Tensor) -> float:
        """Give the area under the ROC curve of scores of the test images."""
        return float(roc_auc_score(self.label, scores))


@pytest.fixture(scope="module")
def real_patches():
    """Patches of both small categories, which only a machine with the shared folder has."""
    from conftest import SHARED

    if not (SHARED / "datasets").is_dir():
        pytest.skip("no shared folder with real images here")
    before = Settings(
        dataset_dir=str(SHARED.resolve() / "datasets"),
        backbone_dir=str(SHARED.resolve() / "backbones"),
    )
    use_settings(before)
    extractor = TimmFeatureExtractor("resnet18", ("layer2", "layer3"))
    found = {}
    for category in ("hazelnut", "grid"):
        loaders = get_dataloaders("mvtec", category, img_size=224, batch_size=8, holdout=0.0)
        parts = {"train": [], "test": []}
        labels = []
        with torch.no_grad():
            for batch in loaders.train:
                parts["train"].append(embed_patches(extractor(batch.image), GRID))
            for batch in loaders.test:
                parts["test"].append(embed_patches(extractor(batch.image), GRID))
                labels += batch.label.tolist()
        train_patches, test_patches = (torch.cat(parts[name]) for name in ("train", "test"))
        found[category] = Real(train_patches, test_patches, np.array(labels))
    return found


def anomalydino(real: Real) -> Tensor:
    config = AnomalydinoConfig("dinov2_vits14", "blocks.0", "random")
    model = AnomalydinoModel(config).eval()
    model.remember(F.normalize(real.train.flatten(0, 1), dim=1))
    return top_mean(model.distance(real.test))


def superad(real: Real) -> Tensor:
    bank = PatchBank()
    chosen = farthest_images(real.train.mean(1), 16)
    bank.remember(F.normalize(real.train[chosen], dim=2).flatten(0, 1))
    return top_mean(bank.distance(F.normalize(real.test, dim=2)))


def rad(real: Real) -> Tensor:
    near = places_around(GRID, 2)
    stored = F.normalize(real.train, dim=2)
    images = F.normalize(real.test, dim=2)
    return torch.stack(
        [top_mean(1 - best_cosine(stored, image, near)[None])[0] for image in images]
    )


@torch.no_grad()
@pytest.mark.parametrize("method", [anomalydino, superad, rad])
@pytest.mark.parametrize(("category", "floor"), [("hazelnut", 0.95), ("grid", 0.7)])
def test_cosines_to_patches_of_normal_images_find_defects_as_patchcore_does(
    method, category, floor, real_patches
):
    real = real_patches[category]
    found = real.area(method(real))
    assert found >= floor
    assert found >= real.patchcore() - 0.15


@pytest.mark.parametrize("model", ["softpatch-resnet18", "mhpatchcore-resnet18"])
@pytest.mark.parametrize(("category", "floor"), [("hazelnut", 0.95), ("grid", 0.7)])
def test_banks_of_real_patches_find_defects(model, category, floor, shared, tmp_path):
    set_globals(dataset_dir=shared / "datasets", backbone_dir=shared / "backbones")
    sizes = {"img_size": 256, "crop_size": 224, "holdout": 0.0}
    result = train("mvtec", category, model, train=sizes)
    assert result["metrics"]["image_auroc"] >= floor


@torch.no_grad()
@pytest.mark.parametrize(
    ("category", "measure", "floor"),
    [
        ("hazelnut", "lof", 0.8),
        ("hazelnut", "nearest", 0.9),
        ("hazelnut", "gaussian", 0.9),
        # 27 images of a mesh that lies anywhere: its densities tell little, its distances do.
        ("grid", "lof", 0.6),
        ("grid", "nearest", 0.8),
        ("grid", "gaussian", 0.9),
    ],
)
def test_defects_that_were_put_among_the_normals_are_the_least_like_the_others(
    category, measure, floor, real_patches
):
    """A tenth of the training images are defects, other ones each time."""
    real = real_patches[category]
    defects = real.test[torch.from_numpy(real.label == 1)]
    count = max(1, round(DEFECTS * len(real.train)))
    areas = []
    for first in range(0, len(defects) - count + 1, count):
        planted = torch.cat([real.train, defects[first : first + count]])
        factors = outlier_factors(planted, measure, 6)
        is_planted = np.arange(len(planted)) >= len(real.train)
        areas.append(roc_auc_score(is_planted, factors.amax(1)))
    assert np.mean(areas) > floor, areas
