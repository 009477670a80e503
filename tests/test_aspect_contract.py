"""Methods that take images that are no squares pass `adray.testing` on rectangles; all others refuse."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, tiny_subject, write_site

from adray.errors import InputError
from adray.job import Job, check_job, configurations_that
from adray.model_specs import MODEL_SPECS
from adray.registry import ModelRegistry
from adray.settings import get_globals, use_settings
from adray.testing import Subject, check_name, checks_of
from adray.trainer import BaseTrainer

ASPECT = 1.5
HEIGHT = 64
WIDTH = 96
TAKERS = (
    *("anomalydino-small-448", "anomalydino-small-448-fewshot", "superad-small-448"),
    *("superad-large-672", "subspacead-small-448", "subspacead-small-448-fewshot"),
    *("musc-small-448", "patchcore-resnet18", "softpatch-resnet18", "mhpatchcore-resnet18"),
    *("dfm-resnet18", "dfkde"),
)
"""A configuration of each way to use a method that takes them."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The contract's site with images of 3 to 2."""
    folder = tmp_path_factory.mktemp("aspect")
    settings = write_site(folder)
    for path in (folder / "datasets" / "mvtec").rglob("*.png"):
        Image.open(path).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(path)
    return settings


@pytest.fixture(autouse=True)
def settings(site, own_settings, own_registry, one_thread):
    use_settings(site)


def in_a_rectangle(name: str, **train: object) -> Subject:
    """A configuration made small, whose input is 3 to 2 unless it is said otherwise."""
    subject = tiny_subject(name)
    changes = {"crop_size": None, "aspect": ASPECT, **train}
    return replace(subject, train={**subject.train, **changes})


@functools.lru_cache(maxsize=1)
def subject(name: str) -> Subject:
    """Each is fitted once."""
    return in_a_rectangle(name)


def cases():
    for name in TAKERS:
        for check in checks_of(name):
            yield pytest.param(name, check, id=f"{name}-{check_name(check)}")


@pytest.mark.parametrize(("name", "check"), cases())
def test_a_rectangle_keeps_the_contract(name, check):
    check(subject(name))


def test_maps_and_masks_have_the_shape_of_the_input():
    scores = subject("superad-small-448").fitted.scores
    assert scores.anomaly_map.shape[1:] == scores.mask.shape[1:] == (56, 84)
    assert scores.mask.any()


@pytest.mark.parametrize("fit", ["squeeze", "pad", "crop"])
@pytest.mark.parametrize("name", ["superad-large-672", "anomalydino-small-448", "dfm-resnet18"])
def test_every_fit_trains_and_scores_in_a_rectangle_that_stands(name, fit):
    upright = in_a_rectangle(name, aspect=0.75, fit=fit)
    scores = upright.fitted.scores
    assert np.isfinite(scores.pred_score).all()
    height, width = scores.anomaly_map.shape[1:]
    assert height > width
    assert (scores.inside is not None) == (fit == "pad")


def test_methods_that_take_rectangles_are_those_that_say_so():
    families = {ModelRegistry.get(name).trainer for name in TAKERS}
    said = set()
    for spec in MODEL_SPECS:
        if ModelRegistry.method(spec.name).any_aspect:
            said.add(spec.trainer)
    assert said == families
    assert not BaseTrainer.any_aspect  # a plug-in says it by itself


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_method_bound_to_squares_refuses_before_anything_starts(name):
    settings = get_globals()
    small = {**TINY[name].get("train", {}), "crop_size": None, "aspect": ASPECT}
    resolved = ModelRegistry.resolve(name, train=small, model=TINY[name].get("model", {}))
    job = Job(resolved, ("mvtec",), ("bottle",), seed=1)
    if ModelRegistry.method(name).any_aspect:
        check_job(job, settings)
        return
    with pytest.raises(InputError, match=f"aspect 1.5 does not suit {name}.*fit: pad") as refused:
        check_job(job, settings)
    for taker in configurations_that("any_aspect"):
        assert taker in str(refused.value)
