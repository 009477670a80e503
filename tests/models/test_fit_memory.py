"""What banks keep while they fit, and while they are searched, measured beside what a plan says of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from adray.components.nearest import NearestSearch, nearest
from adray.models.musc import least_distances
from adray.models.rad import best_cosine, places_around
from adray.registry import ModelRegistry
from adray.types import Batch

TRANSFORMER = {"backbone": "dinov2_vits14", "weights": "random"}
TWO = {**TRANSFORMER, "layers": ("blocks.0", "blocks.1")}
LAST = {**TRANSFORMER, "layer": "blocks.1"}
RESNET = {"weights": "random", "coreset_ratio": 0.02}

CASES = {
    "patchcore": ("patchcore-resnet18", RESNET, 60),
    "softpatch by lof": ("softpatch-resnet18", RESNET, 60),
    "softpatch by gaussian": ("softpatch-resnet18", {**RESNET, "soft_weights": "gaussian"}, 60),
    "anomalydino": ("anomalydino-small-448", {**LAST, "coreset_ratio": 0.02}, 40),
    "anomalydino, all": ("anomalydino-small-448", {**LAST, "coreset_ratio": 1.0}, 40),
    "anomalydino, soft": (
        "anomalydino-small-448",
        {**LAST, "coreset_ratio": 1.0, "soft_weights": "lof"},
        40,
    ),
    "mhpatchcore": ("mhpatchcore-resnet18", {"weights": "random", "bank_size": 300}, 40),
    "rad": ("rad-small-448", TWO, 40),
    "musc": ("musc-small-448", TWO, 40),
    "superad": ("superad-small-448", {**TWO, "num_images": 16}, 40),
}
BATCH = 4
AROUND = 36e6
"""Bytes of a batch with its features, and of a part of the patches that is worked on at a time."""


def peak_of(run: Callable[[], object]) -> int:
    """Give the most bytes of tensors that a call holds at once, besides those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [
        event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    held = 0
    most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def features_of(name: str, count: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Draw what a method's frozen stage gives of some images: maps at 224 px, patches at 448 px."""
    if "resnet18" in name:
        shapes = [(128, 28, 28), (256, 14, 14)]
    elif name.startswith("anomalydino"):
        shapes = [(1024, 384)]
    else:
        shapes = [(1024, 384), (1024, 384), (384,)][: 2 if name.startswith("musc") else 3]
    drawn = [torch.randn(count, *shape, generator=generator) for shape in shapes]
    return tuple(one.half() if name.startswith("musc") else one for one in drawn)


class Loader(list):
    """Batches of images of which nothing is known but their features, drawn when they are asked for."""

    def __init__(self, name: str, images: int) -> None:
        super().__init__(torch.arange(images).split(BATCH))
        self.name = name
        self.samples = list(range(images))

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for index in super().__iter__():
            features = features_of(self.name, len(index), generator)
            yield Batch(torch.zeros(len(index), 3, 1, 1), index, None, index, features)

    def set_epoch(self, epoch):
        pass


@pytest.mark.parametrize("case", CASES)
def test_a_fit_takes_the_memory_that_is_told_before_it_and_hardly_more(case, one_thread):
    name, model, images = CASES[case]
    size = 224 if "resnet18" in name else 448
    trainer = ModelRegistry.get_trainer(
        name,
        train={"img_size": size, "crop_size": None, "batch_size": BATCH, "holdout": 0.0},
        model=model,
        device="cpu",
    )
    trainer.loaders = SimpleNamespace(train=Loader(name, images))
    trainer.with_features = lambda batch: batch
    told = trainer.fit_bytes(trainer.config, trainer.train_config, images)

    @torch.no_grad()
    def fit():
        trainer.on_train_start()
        for batch in trainer.loaders.train:
            trainer.train_step(batch)
        trainer.on_train_end()

    taken = peak_of(fit)
    assert taken <= told + AROUND
    assert taken >= 0.6 * told
    assert any(note.endswith("search: exact") for note in trainer.notes())


PATCHES = F.normalize(torch.randn(8192, 48, generator=torch.Generator().manual_seed(1)), dim=1)
GRID = (32, 32)
BANK = PATCHES.repeat(8, 1)
"""More vectors than are prepared in a moment, and no fewer to compare with."""


@torch.no_grad()
@pytest.mark.parametrize("kind", ["whole", "by bounds", "rad", "musc"])
def test_no_search_holds_the_distances_of_all_patches_to_the_whole_bank(kind, one_thread):
    stored = BANK.view(64, 1024, 48)
    image = PATCHES[:1024]
    near = places_around(GRID, 64)
    search = NearestSearch(BANK) if kind == "by bounds" else None
    runs = {
        "whole": lambda: nearest(PATCHES, BANK, BANK.mean(0)),
        "by bounds": lambda: search.find(PATCHES),
        "rad": lambda: best_cosine(stored, image, near),
        "musc": lambda: least_distances(image, stored, GRID, 3),
    }
    queries = len(image) if kind in ("rad", "musc") else len(PATCHES)
    assert peak_of(runs[kind]) < 0.7 * 4 * queries * len(BANK)
