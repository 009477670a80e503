"""What PatchCore's prediction costs beside the forward pass of its backbone, and whether it is exact.

    python jobs/bench_nearest.py --dataset-dir datasets --backbone-dir backbones

A ResNet-18 at 224 px, the default coreset of --images training images of a category, one thread. An
image goes through the backbone, through the whole prediction, and through both searches for
neighbours in turn, so that other work on the machine slows all alike: the processor time of each is
divided by that of the backbone just before, and the table has the medians. `whole bank` compares
each patch with all of the bank, `by bounds` is what prediction does. The last line has the largest
relative difference of the scores and maps between the two. The exit code is 1 where it is above
1e-5, or a prediction takes more than --most times the backbone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from adray.components.device import move_to
from adray.components.k_center_greedy import k_center_greedy
from adray.components.nearest import BankSearch, nearest
from adray.data.loaders import get_dataloaders
from adray.methods.patchcore import PatchcoreConfig
from adray.models.patchcore import PatchcoreModel
from adray.settings import Settings, use_settings
from adray.types import Prediction

_SIZE = 224
_ALLOWED = 1e-5


class WholeBank(BankSearch):
    """Compares with all of the bank, centered anew each time."""

    def nearest(self, vectors: Tensor, bank: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest neighbours."""
        return nearest(vectors, bank, center)


def main() -> int:
    """Print the table."""
    options = parse_options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        use_settings(Settings(options.dataset_dir, options.backbone_dir, cache_dir=cache))
        model, images = fitted(options.category, options.images)
    print(f"bank of {len(model.memory_bank):,} patches, {len(images)} test images")

    with torch.no_grad():
        costs = [measured(model, images, batch) for batch in (1, 8)]
        difference = largest_difference(model, images)
    print(f"largest difference {difference:.1e}")
    return int(difference > _ALLOWED or costs[0] > options.most)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset-dir", type=Path, default="datasets")
    parser.add_argument("--backbone-dir", type=Path, default="backbones")
    parser.add_argument("--category", default="screw", help="of MVTec AD (default: screw)")
    parser.add_argument("--images", type=int, default=100, help="training images (default: 100)")
    parser.add_argument("--most", type=float, default=1.3, help="times the backbone (default: 1.3)")
    return parser.parse_args()


def fitted(category: str, count: int) -> tuple[PatchcoreModel, Tensor]:
    """Fit a model on some training images, and give it with forty test images."""
    loaders = get_dataloaders("mvtec", category, img_size=_SIZE, batch_size=10, holdout=0.0)
    config = PatchcoreConfig("resnet18")
    model = PatchcoreModel(config, _SIZE).eval()
    move_to(torch.device("cpu"), model)

    parts = []
    for batch in loaders.train:
        parts.append(model.embed(model.features(batch.image)))
        if sum(map(len, parts)) >= count:
            break
    patches = torch.cat(parts)[:count].flatten(0, 1)
    size = int(config.coreset_ratio * len(patches))
    model.remember(patches[k_center_greedy(patches, size, torch.Generator().manual_seed(0))])
    images = torch.cat([batch.image for batch in loaders.test])
    return model, images[:: max(1, len(images) // 40)][:40]


def measured(model: PatchcoreModel, images: Tensor, size: int) -> float:
    """Print the row of a batch size, and give the prediction's cost."""
    search = model.neighbors
    whole = WholeBank()
    rows = []
    for batch in images.split(size):
        features = model.features(batch)  # not counted: the caches of the processor fill
        backbone = seconds(model.features, batch)
        predicted = seconds(model, batch)
        patches = model.embed(features).flatten(0, 1)
        both = []
        for one in (search, whole):
            both.append(seconds(one.nearest, patches, model.memory_bank, model.center))
        rows.append([1e3 * backbone / len(batch), *(t / backbone for t in (predicted, *both))])

    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(
        f"batch {size}: backbone {medians[0]:.1f} ms, prediction {medians[1]:.2f} of it, "
        f"search by bounds {medians[2]:.2f}, whole bank {medians[3]:.2f}"
    )
    return medians[1]


def seconds(work: Callable[..., object], *arguments: Tensor) -> float:
    """Measure the processor time of a call."""
    started = time.process_time()
    work(*arguments)
    return time.process_time() - started


def largest_difference(model: PatchcoreModel, images: Tensor) -> float:
    """Compare scores and maps of both searches, relative to the largest."""
    found: list[Prediction] = [model(image[None]) for image in images]
    model.neighbors = WholeBank()
    largest = 0.0
    for image, one in zip(images, found, strict=True):
        expected = model(image[None])
        assert one.anomaly_map is not None
        assert expected.anomaly_map is not None
        for ours, theirs in (
            (one.pred_score, expected.pred_score),
            (one.anomaly_map, expected.anomaly_map),
        ):
            largest = max(largest, float((ours - theirs).abs().max() / theirs.abs().max()))
    return largest


if __name__ == "__main__":
    raise SystemExit(main())
