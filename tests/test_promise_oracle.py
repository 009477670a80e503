"""Promises against MAPIE, a library of conformal prediction: intervals about a model's prediction.

An interval is a threshold on the score |y - prediction|. MAPIE is no dependency: without it these
tests are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_datasets import write_mvtec
from sklearn.dummy import DummyRegressor
from sklearn.model_selection import PredefinedSplit
from torch import nn

from adray.config import TrainConfig
from adray.cross import cross_scores
from adray.data.loaders import get_dataloaders
from adray.settings import get_globals
from adray.thresholds import make_promise
from adray.trainer import BaseTrainer
from adray.types import Prediction

regression = pytest.importorskip("mapie.regression")


@pytest.mark.parametrize("rate", [0.3, 0.2, 0.1, 0.05, 0.02])
@pytest.mark.parametrize("normals", [50, 60, 119, 300])
def test_the_threshold_is_half_of_the_interval_of_split_conformal_prediction(normals, rate):
    scores = np.random.default_rng(normals).exponential(size=normals)
    places = np.zeros((normals, 1))
    zero = DummyRegressor(strategy="constant", constant=0.0).fit(places, scores)
    model = regression.SplitConformalRegressor(zero, confidence_level=1 - rate, prefit=True)
    _, interval = model.conformalize(places, scores).predict_interval(places[:1])
    assert interval[0, 1, 0] == pytest.approx(make_promise(scores, rate).score)


@dataclass(frozen=True)
class BrightnessConfig:
    """Nothing to choose."""


class BrightnessModel(nn.Module):
    """How far an image is from the mean brightness of those that trained."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def features(self, image):
        return (image.double().mean((1, 2, 3)),)

    def forward(self, image, features=None):
        (brightness,) = self.features(image) if features is None else features
        return Prediction((brightness - self.mean).abs(), None)


class BrightnessTrainer(BaseTrainer):
    config_class = BrightnessConfig
    single_pass = True
    crosses = True

    def build_model(self):
        return BrightnessModel().double()

    def on_train_start(self):
        self.seen = []

    def train_step(self, batch):
        self.seen.append(batch.features[0])
        return {}

    def on_train_end(self):
        self.model.mean.copy_(torch.cat(self.seen).mean())


@pytest.mark.parametrize("folds", [4, 10, 40])
def test_cross_calibration_is_the_interval_of_cross_conformal_prediction_about_the_whole_model(
    folds,
):
    root = write_mvtec(Path(get_globals().dataset_dir) / "mvtec", ("bottle",), train=40, size=32)
    loaders = get_dataloaders(root.name, "bottle", img_size=32, batch_size=7, holdout=0.0)
    trainer = BrightnessTrainer(BrightnessConfig(), TrainConfig(img_size=32, batch_size=7))
    fold = np.random.default_rng(folds).permutation(40) % folds
    calibration = cross_scores(trainer, loaders, fold).pred_score

    order = loaders.train.order()
    brightness = np.empty(40)
    batches = [trainer.model.features(batch.image)[0].numpy() for batch in loaders.train]
    brightness[order] = np.concatenate(batches)
    model = regression.CrossConformalRegressor(
        DummyRegressor(), confidence_level=0.9, method="base", cv=PredefinedSplit(fold)
    )
    model.fit_conformalize(np.zeros((40, 1)), brightness)
    middle, interval = model.predict_interval(np.zeros((1, 1)))
    half = interval[0, 1, 0] - middle[0]
    assert make_promise(calibration, 0.1).score == pytest.approx(half, rel=1e-5)
    trainer.fit(loaders)
    assert trainer.model.mean.item() == pytest.approx(middle[0])
