"""What a trial will take: seconds, host memory, GPU memory.

First guesses, corrected by what the store has measured.

A first guess comes from the registry's row and the amount of work: images, epochs, pixels. Each
finished trial of the store says by which factor such a guess was wrong, for its configuration on
its device. A prediction is the guess times the median factor of the trials most like it: the same
hyperparameters, else the same configuration, else the same family, else anything on the same kind
of device. The spread of the logarithms of these factors gives the range; with few trials it is that
of the level (see `_SPREAD`), since two equal measurements prove little.

Each trial also recorded how many others its GPU had when it started. Where trials of a configuration
took longer beside others than alone, the factor says which part of a GPU's time one of them takes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adray.files import canonical_hash
from adray.registry import ModelRegistry, Resolved
from adray.results.store import TrialRecord
from adray.sweep.plan import Plan, PlannedTrial
from adray.sweep.resources import Need, Site

_SECONDS_PER_UNIT = {"cpu": 2.5e-7, "cuda": 1e-8}
"""Of `work_units`; PaDiM on 250 images of 256 px takes about 25 s on one CPU core."""
_SPREAD = {"same": 0.2, "configuration": 0.4, "family": 0.9, "device": 1.2, "guess": 1.6}
"""Standard deviation of the logarithm of a prediction's error, by the trials that it rests on."""
_LEVELS = tuple(_SPREAD)[:-1]
_RANGE = 1.64
"""Standard deviations to either end: nine in ten trials lie between."""
_SLOWED = 1.1
"""A trial that takes less than this many times as long beside others was not slowed by them."""
_HANGS = 5.0
"""A trial that takes this many times the upper end of its range hangs."""
_LEAST_LIMIT = 600.0


def work_units(resolved: Resolved, images: int) -> float:
    """Give the order of magnitude of a trial's work.

    That is its passes over the images times their pixels, heavier for larger models.
    """
    config = resolved.train_config
    if config.max_steps:
        passes = config.max_steps * config.batch_size / max(images, 1)
    else:
        passes = config.num_epochs
    return (passes + 1) * images * math.prod(config.input_shape) * resolved.spec.memory_gb


@dataclass(frozen=True)
class _Measured:
    """What one finished trial took, as logarithms of the factors of a first guess."""

    seconds: float
    """Of the duration."""
    host_mb: float
    """Of the peak of host memory."""
    gpu_mb: float | None
    """Peak of GPU memory itself, in MiB; None on a CPU."""
    together: int
    """Trials that its GPU had when it started, with itself; 0 where that is not known."""


class CostModel:
    """Predicts what trials take.

    Args:
        records: of the store; those that did not finish teach nothing.
        device: ``cuda`` or ``cpu``, where the trials will run.
    """

    def __init__(self, records: Iterable[TrialRecord], device: str) -> None:
        self.device = device
        self._measured: dict[tuple[str, str], list[_Measured]] = defaultdict(list)
        self._resolved: dict[str, Resolved | None] = {}
        for record in records:
            self.learn(record)

    def learn(self, record: TrialRecord) -> None:
        """Take a finished trial of the same kind of device into account."""
        result = record.result
        if result is None:
            return
        memory = result.get("memory", {})
        gpu_mb = memory.get("gpu_peak_mb")
        ran_on = "cpu" if gpu_mb is None else "cuda"
        if ran_on != self.device:
            return

        images = sum(v for v in result.get("counts", {}).values() if isinstance(v, int))
        timings = result.get("timings", {})
        # Which of the trials that share work will have to do it is not known before.
        seconds = timings.get("alone_seconds") or timings.get("total_seconds")
        host_mb = memory.get("host_peak_mb")
        resolved = self._resolve(record.identity)
        if resolved is None or not images or not seconds or not host_mb:
            return

        measured = _Measured(
            seconds=math.log(seconds / self._seconds(resolved, images)),
            host_mb=math.log(host_mb / _host_mb(resolved)),
            gpu_mb=float(gpu_mb) if gpu_mb else None,
            together=1 + record.assignment.get("neighbours", -1),
        )
        for level, key in zip(_LEVELS, _keys(resolved), strict=True):
            self._measured[level, key].append(measured)

    def _resolve(self, identity: Mapping[str, Any]) -> Resolved | None:
        """Find the configuration of a stored trial.

        Returns:
            None for a plug-in that is not here, and for fields of another version.
        """
        asked = {"train": identity["train"], "model": identity["model"]}
        key = f"{identity['configuration']} {asked}"
        if key not in self._resolved:
            try:
                self._resolved[key] = ModelRegistry.resolve(identity["configuration"], **asked)
            except (ValueError, KeyError):
                self._resolved[key] = None
        return self._resolved[key]

    def need(self, trial: PlannedTrial) -> Need:
        """Predict what a planned trial will take."""
        resolved = trial.job.resolved
        seconds = self._seconds(resolved, max(trial.images, 1))
        guess = Need(seconds, 0, 0, _host_mb(resolved), None, 0)
        for level, key in zip(_LEVELS, _keys(resolved), strict=True):
            measured = self._measured.get((level, key))
            if measured:
                return _corrected(guess, measured, level)
        return _with_range(guess, _SPREAD["guess"])

    def _seconds(self, resolved: Resolved, images: int) -> float:
        """Guess a duration from the work alone."""
        return _SECONDS_PER_UNIT[self.device] * work_units(resolved, images)


def _corrected(guess: Need, measured: Sequence[_Measured], level: str) -> Need:
    """Correct a first guess by the trials of a level. Memory only by those that are close."""
    if level not in ("same", "configuration"):
        return _with_seconds(guess, measured, level)

    host_mb = np.median([trial.host_mb for trial in measured])
    gpu_mb = [trial.gpu_mb for trial in measured if trial.gpu_mb is not None]
    corrected = replace(
        guess,
        host_mb=guess.host_mb * math.exp(host_mb),
        gpu_mb=max(gpu_mb, default=None),
        measured=len(measured),
        gpu_busy=_gpu_busy(measured),
    )
    if corrected.gpu_busy is not None:
        measured = [trial for trial in measured if trial.together == 1]
    return _with_seconds(corrected, measured, level)


def _with_seconds(need: Need, measured: Sequence[_Measured], level: str) -> Need:
    """Correct the seconds of a guess, and add their range."""
    factors = np.array([trial.seconds for trial in measured])
    corrected = replace(need, seconds=need.seconds * math.exp(np.median(factors)))
    return _with_range(corrected, _spread(factors, _SPREAD[level]))


def _gpu_busy(measured: Sequence[_Measured]) -> float | None:
    """Estimate the part of a GPU's time that a trial takes.

    Of n trials that keep a GPU busy all the time, each takes n times this part as long as alone.

    Returns:
        None where none was seen alone, or none was slowed by others.
    """
    alone = [trial.seconds for trial in measured if trial.together == 1]
    most = max(trial.together for trial in measured)
    if not alone or most < 2:
        return None

    crowded = [trial.seconds for trial in measured if trial.together == most]
    slower = math.exp(np.median(crowded) - np.median(alone))
    return min(1.0, slower / most) if slower > _SLOWED else None


def _spread(logarithms: np.ndarray, of_level: float) -> float:
    """Estimate the standard deviation of a prediction's error.

    The spread that was seen counts for as many trials as it was seen on, the level's for three. The
    mean itself is as uncertain as one in so many, hence the last factor.
    """
    count = len(logarithms)
    own = float(logarithms.std(ddof=1)) if count > 1 else 0.0
    variance = (count * own**2 + 3 * of_level**2) / (count + 3)
    return math.sqrt(variance * (1 + 1 / count))


def hang_limit(need: Need, hours: float, attempts: int) -> float:
    """Give the seconds after which a trial counts as hung.

    Args:
        need: its prediction; only one that rests on this configuration's own trials may shorten the
            limit.
        hours: the sweep's `trial_hours`, which no limit exceeds.
        attempts: a trial that was stopped before gets all of these.
    """
    if need.measured < 3 or attempts:
        return hours * 3600
    return min(hours * 3600, max(_LEAST_LIMIT, _HANGS * need.high))


def without_unfit(plan: Plan, costs: CostModel, site: Site) -> Plan:
    """Make those trials impossible that are known not to fit this site, each with what it needs.

    A guess forbids nothing: only a measured peak does.
    """
    return replace(plan, trials=tuple(_fitting(trial, costs, site) for trial in plan.trials))


def _fitting(trial: PlannedTrial, costs: CostModel, site: Site) -> PlannedTrial:
    """Make a trial impossible that is known not to fit."""
    if trial.state in ("done", "impossible"):
        return trial

    need = costs.need(trial)
    reason = ""
    if site.gpu_memory and need.gpu_mb and need.gpu_mb * 2**20 > site.gpu_memory:
        largest = site.gpu_memory / 2**30
        reason = f"needs {need.gpu_mb / 1024:.0f} GB of GPU memory, the largest card has {largest:.0f} GB"
    elif need.measured and need.host_mb * 2**20 > site.memory:
        has = site.memory / 2**30
        reason = f"needs {need.host_mb / 1024:.0f} GB of memory, this machine has {has:.0f} GB"

    if not reason:
        return trial
    return replace(trial, state="impossible", reason=f"does not fit: {reason}; skipped")


def _host_mb(resolved: Resolved) -> float:
    return resolved.spec.memory_gb * 1000


def _keys(resolved: Resolved) -> tuple[str, str, str, str]:
    """Say what a trial is like, from close to far. See `_LEVELS`."""
    spec = resolved.spec
    config = resolved.train_config
    same = canonical_hash(
        {"name": spec.name, "model": repr(resolved.config), "train": repr(config)}
    )
    return same, f"{spec.name} {config.input_shape}", spec.family, "any"


def _with_range(need: Need, spread: float) -> Need:
    """Add the ends between which nine in ten trials lie."""
    factor = math.exp(_RANGE * spread)
    return replace(need, low=need.seconds / factor, high=need.seconds * factor)
