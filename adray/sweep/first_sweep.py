"""The first sweep of a folder: which models run on this machine within the time that is given.

Of each method that learns in minutes, the best configuration is taken whose weights are here, as
long as the whole is predicted to end in time. Nothing is opened or planned for it, so that it takes
no torch and no second look at the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adray.components.backbone import find_weights
from adray.data.survey import DataSurvey
from adray.job import Job
from adray.registry import ModelRegistry, Resolved
from adray.results.store import TrialRecord
from adray.sweep.costs import CostModel
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import Site
from adray.sweep.schedule import end_of, in_order, simulate

METHODS = (
    ("patchcore", "patchcore-resnet18", "patchcore-efficientnet-lite0"),
    ("padim", "padim-efficientnet-lite0"),
    ("dfm-wide-resnet50", "dfm", "dfm-resnet18", "dfm-efficientnet-lite0"),
    ("dinomaly-base-392", "dinomaly-small-392", "dinomaly-small-224"),
    ("reverse-distillation", "reverse-distillation-resnet18"),
    ("stfpm",),
    ("dfkde", "dfkde-efficientnet-lite0"),
)
"""Methods in the order in which they are worth trying, each with its configurations, the best
first."""
WITHOUT_WEIGHTS = "autoencoder"
"""Is trained from nothing, and taken where no weights are here at all."""
_MOST_METHODS = 6
_PART = 0.8
"""Of the time is planned for; predictions may be wrong."""
_START_SECONDS = 30.0
"""What Ray takes to start, and the tables to be written."""


@dataclass(frozen=True)
class Choice:
    """The models of a first sweep."""

    models: tuple[str, ...]
    """Configurations."""
    seconds: float
    """After which they are predicted to have ended."""
    is_in_time: bool
    """Whether that is within the time that is given."""


def choose_models(
    survey: DataSurvey,
    backbone_dir: str,
    records: Sequence[TrialRecord],
    site: Site,
    seconds: float,
) -> Choice:
    """Choose the models that run here within the time.

    Args:
        survey: of the images.
        backbone_dir: folder of pretrained weights.
        records: of the store, from which predictions learn.
        site: where they will run.
        seconds: that the whole may take.

    Returns:
        At least one model, even where it takes longer.
    """
    costs = CostModel(records, site.device)
    limit = _PART * seconds - _START_SECONDS
    chosen: list[str] = []
    for names in METHODS:
        for name in _runnable(names, backbone_dir):
            if _end([*chosen, name], survey, costs, site) <= limit:
                chosen.append(name)
                break
        if len(chosen) == _MOST_METHODS:
            break

    if not chosen:
        chosen = [_fastest(survey, costs, site, backbone_dir)]
    end = _end(chosen, survey, costs, site) + _START_SECONDS
    return Choice(tuple(chosen), end, end <= seconds)


def _runnable(names: Sequence[str], backbone_dir: str) -> Iterator[str]:
    """Give the configurations whose weight files are all here."""
    for name in names:
        files = _resolved(name).weight_files
        if all(find_weights(file, backbone_dir) is not None for file in files):
            yield name


def _fastest(survey: DataSurvey, costs: CostModel, site: Site, backbone_dir: str) -> str:
    """Find the configuration that is predicted to end first."""
    known = []
    for names in METHODS:
        known += list(_runnable(names, backbone_dir))
    candidates = known or [WITHOUT_WEIGHTS]
    return min(candidates, key=lambda name: _end([name], survey, costs, site))


def _end(names: Sequence[str], survey: DataSurvey, costs: CostModel, site: Site) -> float:
    """Predict the seconds after which some models on all parts have ended.

    Infinite where one of them finds no place.
    """
    trials = []
    for category in survey.categories:
        for name in names:
            job = Job(_resolved(name), (category.dataset,), (category.category,), 42)
            trials.append(PlannedTrial(job, "new", images=category.images))
    slots = simulate(in_order(trials, costs, (), site), site)
    # What needs more memory than there is never starts.
    return end_of(slots) if len(slots) == len(trials) else math.inf


def _resolved(name: str) -> Resolved:
    """Decide the hyperparameters of a configuration as the sweep will."""
    return ModelRegistry.resolve(name, budget="quick")
