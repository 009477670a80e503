"""Whether a search on synthetic defects would choose as the real test set does: both figures for random settings.

    python jobs/check_objective.py patchcore-resnet18 mvtec screw --backbone-dir backbones --img-size 128

Each setting is drawn from the search space of its model, trained once per seed, and scored twice: on the test set, and
on held-out normals with their defective twins. Spearman's correlation says how alike the two rankings are. Only look at
it to learn about the objective: to choose a setting by the test columns would be choosing on the test set.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from adray.data.loaders import get_dataloaders
from adray.registry import ModelRegistry
from adray.search_space import as_overrides, load_space
from adray.settings import Settings, use_settings

METRICS = ("image_auroc", "pixel_auroc")


def both_figures(configuration, setting, data, train, seed):
    """Metrics of one trained setting: ``real <metric>`` on the test set, ``synthetic <metric>`` on the twins."""
    changes = as_overrides(setting)
    resolved = ModelRegistry.resolve(
        configuration, model=changes.get("model"), train={**train, **changes.get("train", {})}
    )
    config = resolved.train_config
    trainer = ModelRegistry.trainer_class(configuration)(resolved.config, config, "cpu", seed)
    figures = {}
    for name, evaluation in (("real", "test"), ("synthetic", "synthetic")):
        loaders = get_dataloaders(
            *data,
            img_size=config.img_size,
            crop_size=config.crop_size,
            batch_size=config.batch_size,
            normalize=config.normalize,
            holdout=config.holdout,
            seed=seed,
            evaluation=evaluation,
        )
        if name == "real":
            trainer.fit(loaders)
        metrics = trainer.predict(loaders.test).metrics()
        figures |= {f"{name} {metric}": metrics[metric] for metric in METRICS}
    return figures


def main():
    """Print one row per setting, then the correlations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configuration")
    parser.add_argument("dataset")
    parser.add_argument("category")
    parser.add_argument("--dataset-dir", default="datasets")
    parser.add_argument("--backbone-dir", default="backbones")
    parser.add_argument("--img-size", type=int, default=256)
    parser.add_argument("--holdout", type=float, default=0.1)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    use_settings(Settings(dataset_dir=asked.dataset_dir, backbone_dir=asked.backbone_dir))
    space, rng = load_space("auto", asked.configuration), np.random.default_rng(0)
    settings = [{}, *(space.sample(rng) for _ in range(asked.samples - 1))]
    train = {"img_size": asked.img_size, "holdout": asked.holdout}
    rows = []
    for setting in settings:
        runs = [
            both_figures(asked.configuration, setting, (asked.dataset, asked.category), train, seed)
            for seed in range(asked.seeds)
        ]
        rows.append(pd.DataFrame(runs, dtype=float).mean())
        figures = ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items())
        print(f"{setting or 'defaults'}: {figures}", flush=True)
    frame = pd.DataFrame(rows)
    for metric in METRICS:
        real, synthetic = frame[f"real {metric}"], frame[f"synthetic {metric}"]
        if real.notna().all():
            print(f"Spearman of {metric}: {spearmanr(real, synthetic).statistic:.2f}")


if __name__ == "__main__":
    main()
