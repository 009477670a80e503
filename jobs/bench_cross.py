"""Count the false alarms of thresholds that training normals calibrate, on real normal images.

    python jobs/bench_cross.py DATASETS BACKBONES --splits 20

All normal images of a category, of training and test, are split at random: half of them train (three
quarters where there are fewer than 100), the others are fresh. `cross` calibrates by all training
normals, each scored by a model without its fold, and `holdout` by a tenth of them, kept from
training. `alarms` is the part of fresh normals above the threshold, a mean over the splits, with its
standard error; splits share images, so it is somewhat larger. Features are computed once per data
set. A row is marked where cross calibration rings more than promised, by more than two errors.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from adray.cross import Refit
from adray.data.folds import calibration_folds
from adray.data.loaders import get_dataloaders
from adray.registry import ModelRegistry
from adray.settings import set_globals
from adray.thresholds import make_promise

RATES = (0.2, 0.05, 0.01)
CATEGORIES = ("screw", "grid", "hazelnut")
METHODS = {
    "dfm-resnet18": {},
    "dfkde": {"layers": ["layer3"]},
    "padim": {"num_features": 50},
    "patchcore-resnet18": {"coreset_ratio": 0.01},
}
"""Configurations on ResNet-18, with what differs from their defaults: the last stage may be missing
in a file of weights, and fewer features and patches keep the time in bounds."""


def link_normals(datasets, category, home):
    """Make a data set whose training images are all normal ones of a category."""
    train = home / "mvtec" / category / "train" / "good"
    test = home / "mvtec" / category / "test" / "good"
    train.mkdir(parents=True)
    test.mkdir(parents=True)
    source = Path(datasets).resolve() / "mvtec" / category
    for split in ("train", "test"):
        for path in sorted((source / split / "good").iterdir()):
            (train / f"{split}_{path.name}").symlink_to(path)
    first = next(iter(sorted(train.iterdir())))
    (test / first.name).symlink_to(first.readlink())


def make_trainer(name, size):
    """Make the trainer of a configuration."""
    found = ModelRegistry.resolve(name, train={"img_size": size}, model=METHODS[name])
    trainer_class = ModelRegistry.trainer_class(name)
    return trainer_class(found.config, found.train_config, "cpu", 42)


def false_alarms(refit, calibration, fresh):
    """Give what thresholds promise and the part of fresh normals above them, for each rate."""
    scores = refit.trainer.predict(refit.images(fresh)).pred_score
    found = []
    for rate in RATES:
        promise = make_promise(calibration, rate)
        found.append((promise.promised, float(np.mean(scores > promise.score))))
    return found


def figures_of_split(refit, copies, seed):
    """Calibrate one split in both ways.

    Returns:
        How many train, and (2, rates, 2): promise and false alarms by cross, then by holdout.
    """
    samples = refit.loaders.train.samples
    order = np.random.default_rng(seed).permutation(len(samples))
    chosen = order[: round(len(order) * (0.5 if len(order) >= 100 else 0.75))]
    fresh = order[len(chosen) :]

    folds = calibration_folds([samples[i] for i in chosen], copies[chosen], seed)
    crossed = refit.scores_by_fold(chosen, folds.number).pred_score
    refit.fit(chosen)
    by_cross = false_alarms(refit, crossed, fresh)

    held_out = chosen[: max(1, round(len(chosen) * 0.1))]
    refit.fit(chosen[len(held_out) :])
    kept_apart = refit.trainer.predict(refit.images(held_out)).pred_score
    by_holdout = false_alarms(refit, kept_apart, fresh)
    return len(chosen), np.array([by_cross, by_holdout])


def print_rows(category, name, normals, figures):
    """Print a row for each rate, and count those that ring more than promised.

    Args:
        category: whose images they are.
        name: of the configuration.
        normals: that trained.
        figures: (splits, 2, rates, 2), see `figures_of_split`.
    """
    mean = figures.mean(0)
    error = figures[:, :, :, 1].std(0, ddof=1) / math.sqrt(len(figures))
    above = 0
    for i, rate in enumerate(RATES):
        cells = []
        for way in (0, 1):
            promised, alarms = mean[way, i]
            cells.append(f"{promised:8.4f} {alarms:7.4f} {error[way, i]:6.4f}")
        excess = mean[0, i, 1] - mean[0, i, 0]
        is_above = excess > 2 * error[0, i]
        above += is_above
        mark = f"  ABOVE by {excess:.4f}" if is_above else ""
        print(
            f"{category:9} {name:19} {normals:4d} {rate:5.2f}  {'  '.join(cells)}{mark}", flush=True
        )
    return above


def main():
    """Print a row for every category, configuration and rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", help="folder that holds mvtec/<category>")
    parser.add_argument("backbones", help="folder with resnet18.pth")
    parser.add_argument("--splits", type=int, default=20, help="random splits of each category")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, help="default: %(default)s")
    parser.add_argument("--models", nargs="+", default=list(METHODS), help="default: %(default)s")
    options = parser.parse_args()

    print(f"{'':41}  {'cross':23}  {'holdout: 0.1'}")
    row = f"{'promised':>8} {'alarms':>7} {'error':>6}"
    print(f"{'category':9} {'configuration':19} {'n':>4} {'asked':>5}  {row}  {row}")
    above = 0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        set_globals(
            dataset_dir=str(home), backbone_dir=options.backbones, cache_dir=str(home / "cache")
        )
        for category in options.categories:
            link_normals(options.datasets, category, home)
            loaders = get_dataloaders("mvtec", category, img_size=options.size, holdout=0.0)
            copies = loaders.train.small_copies()
            for name in options.models:
                started = time.perf_counter()
                refit = Refit(make_trainer(name, options.size), loaders)
                figures = []
                for seed in range(options.splits):
                    normals, found = figures_of_split(refit, copies, seed)
                    figures.append(found)
                above += print_rows(category, name, normals, np.array(figures))
                print(f"# {time.perf_counter() - started:.0f} s", flush=True)
    print(f"{above} rows ring more than cross calibration promised, by more than two errors")


if __name__ == "__main__":
    main()
