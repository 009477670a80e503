"""Training normals that do not look like the others, the most unlike first.

Each image is scored by methods that were fitted without it (`adray.cross`), and by the local outlier
factor of its patches among those at the same place of the other images (SoftPatch,
`adray.components.patch_outliers`). Scores of different methods do not compare, so that the places
in their lists are averaged: an image stands high where several methods put it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from adray.components.backbone import find_weights
from adray.components.patch_outliers import outlier_factors
from adray.components.soft_weights import SOFT_NEIGHBORS
from adray.cross import cross_scores
from adray.data.base import Sample
from adray.data.folds import calibration_folds
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.registry import ModelRegistry
from adray.settings import Settings
from adray.types import PixelRule

PATCH_FACTOR = "softpatch"
"""Name of the list by the outlier factors of patches."""
BACKBONES = ("resnet18", "wide_resnet50_2", "efficientnet_lite0")
"""Networks of which the first whose file is here gives all features; the last one comes with the
program."""
CROSS_METHODS: Mapping[str, tuple[str, ...]] = {
    "resnet18": ("patchcore-resnet18", "padim", "dfm-resnet18"),
    "wide_resnet50_2": ("patchcore", "padim-wide-resnet50", "dfm-wide-resnet50"),
    "efficientnet_lite0": (
        "patchcore-efficientnet-lite0",
        "padim-efficientnet-lite0",
        "dfm-efficientnet-lite0",
    ),
}
"""The methods of one pass that score, by the network: by patches anywhere, by patches in place, and
by the image as a whole."""
LEAST_NORMALS = 5
"""Images below which nobody can say which one is unlike the others."""
_FOLDS = 5
_LIGHT = {"coreset_ratio": 0.01}
"""Of a memory bank, which is chosen anew for each fold; a whole coreset takes ten times as long."""
_WORST_SHARE = 0.01
"""Part of an image's patches, those most unlike the others, whose mean factor is the image's."""
_BATCH = 16


@dataclass(frozen=True)
class ScoredNormals:
    """What one method says of the training normals of a category."""

    name: str
    """Of the list: the configuration, or `PATCH_FACTOR`."""
    samples: Sequence[Sample]
    """The images."""
    scores: NDArray[np.float32]
    """(N,), higher for what is more unlike the others."""
    pixels: PixelRule
    """How the numbers in the files became 8 bits."""


@dataclass(frozen=True)
class Outlier:
    """One image in the list."""

    sample: Sample
    """The image."""
    place: int
    """Its place, from 1 for the most unlike."""
    mean_rank: float
    """Mean of its places in the lists of all methods."""
    ranks: Mapping[str, float]
    """Its place in the list of each method; images with one score share their mean place."""


def methods_here(backbone_dir: str) -> tuple[str, ...]:
    """Choose the configurations that score, by the weight files that are here."""
    for backbone in BACKBONES[:-1]:
        if find_weights(backbone, backbone_dir) is not None:
            return CROSS_METHODS[backbone]
    return CROSS_METHODS[BACKBONES[-1]]


def check_methods(names: Sequence[str]) -> None:
    """Refuse configurations that cannot score images they were fitted without.

    Raises:
        InputError: with those that can.
    """
    able = []
    for name in ModelRegistry.list_models():
        if ModelRegistry.method(name).crosses:
            able.append(name)
    for name in names:
        if ModelRegistry.get(name).name not in able:
            raise InputError(Sentence.of("outliers model", name=name, able=", ".join(able)))


def score_normals(
    dataset: str,
    category: str,
    names: Sequence[str],
    settings: Settings,
    device: str,
    seed: int = 42,
) -> Iterator[ScoredNormals]:
    """Score the training normals of a category by one method after the other.

    Args:
        dataset: name of a data set that `settings` find.
        category: name of one of its categories.
        names: configurations that cross.
        settings: where images and weights lie.
        device: where the networks run.
        seed: of the folds and of the methods.

    Yields:
        The list of each configuration, and after the first with a memory bank that of
        `PATCH_FACTOR`.

    Raises:
        InputError: for fewer than `LEAST_NORMALS` images.
    """
    has_factors = False
    for name in names:
        resolved = ModelRegistry.resolve(name)
        light = _LIGHT if hasattr(resolved.config, "coreset_ratio") else {}
        trainer = ModelRegistry.get_trainer(
            name, model=light, train={"holdout": 0.0}, device=device, seed=seed
        )
        loaders = _loaders(dataset, category, trainer, settings, device, seed)
        samples = loaders.train.samples
        if len(samples) < LEAST_NORMALS:
            raise InputError(
                Sentence.of(
                    "outliers few",
                    dataset=dataset,
                    category=category,
                    number=len(samples),
                    least_normals=LEAST_NORMALS,
                )
            )
        folds = calibration_folds(samples, loaders.train.small_copies(), seed, _FOLDS)
        scores = cross_scores(trainer, loaders, folds.number).pred_score
        yield ScoredNormals(name, samples, scores, loaders.pixels)

        if hasattr(trainer.model, "memory_bank") and not has_factors:
            has_factors = True
            factors = patch_factors(trainer, len(samples))
            yield ScoredNormals(PATCH_FACTOR, samples, factors, loaders.pixels)


def _loaders(
    dataset: str, category: str, trainer: Any, settings: Settings, device: str, seed: int
) -> Any:
    """Open the images of a category as a trainer sees them, none held out."""
    config = trainer.train_config
    return get_dataloaders(
        dataset,
        category,
        img_size=config.img_size,
        crop_size=config.crop_size,
        batch_size=config.batch_size,
        normalize=config.normalize,
        holdout=0.0,
        seed=seed,
        device=device,
        settings=settings,
    )


@torch.no_grad()
def patch_factors(trainer: Any, count: int) -> NDArray[np.float32]:
    """Score training images by how unlike the others their most unlike patches are, (count,).

    Args:
        trainer: with a memory bank, whose source keeps the features of these images.
        count: of them.
    """
    parts = []
    for index in torch.arange(count, device=trainer.device).split(_BATCH):
        features = trainer.source.kept(index)
        embed = getattr(trainer.model, "embed", _first)
        parts.append(embed(features).cpu())
    factors = outlier_factors(torch.cat(parts), "lof", SOFT_NEIGHBORS)  # (N, P)
    worst = max(1, round(_WORST_SHARE * factors.shape[1]))
    return factors.topk(worst, dim=1).values.mean(1).numpy()


def _first(features: tuple[Tensor, ...]) -> Tensor:
    """Give features that are patches (B, P, D) already."""
    return features[0].float()


def ranked(lists: Sequence[ScoredNormals]) -> list[Outlier]:
    """Sort images by the mean of their places in several lists of the same images."""
    samples = lists[0].samples
    places = {one.name: rankdata(-one.scores) for one in lists}
    mean = np.mean(list(places.values()), axis=0)
    # Where two are alike the name decides, so that the list is the same every time.
    order = sorted(range(len(samples)), key=lambda i: (mean[i], samples[i].key))
    found = []
    for number, i in enumerate(order):
        ranks = {name: float(values[i]) for name, values in places.items()}
        found.append(Outlier(samples[i], number + 1, float(mean[i]), ranks))
    return found
