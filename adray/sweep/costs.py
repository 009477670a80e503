"""What a trial will take: seconds, host memory, GPU memory; first guesses, corrected by what the store has measured.

A first guess comes from the registry's row and the amount of work: images, epochs, pixels. Each finished trial of the
store says by which factor such a guess was wrong, for its configuration on its device. A prediction is the guess times
the median factor of the trials most like it: the same hyperparameters, else the same configuration, else the same
family, else anything on the same kind of device. The spread of the logarithms of these factors gives the range; with
few trials it is that of the level (see `_SPREAD`), since two equal measurements prove little.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
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
_HANGS = 5.0
"""A trial that takes this many times the upper end of its range hangs."""
_LEAST_LIMIT = 600.0


def work_units(resolved: Resolved, images: int) -> float:
    """Order of magnitude of a trial's work: passes over the images times their pixels, heavier for larger models."""
    config = resolved.train_config
    passes = (
        (config.max_steps * config.batch_size / max(images, 1))
        if config.max_steps
        else config.num_epochs
    )
    return (passes + 1) * images * config.input_size**2 * resolved.spec.memory_gb


class CostModel:
    """Predicts what trials take.

    Args:
        records: of the store; those that did not finish teach nothing.
        device: ``cuda`` or ``cpu``, where the trials will run.
    """

    def __init__(self, records: Iterable[TrialRecord], device: str) -> None:
        self.device = device
        self._factors: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self._gpu_mb: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._resolved: dict[str, Resolved | None] = {}
        for record in records:
            self.learn(record)

    def learn(self, record: TrialRecord) -> None:
        """Take a finished trial of the same kind of device into account."""
        result, identity = record.result, record.trial["identity"]
        gpu_mb = (result or {}).get("memory", {}).get("gpu_peak_mb")
        if result is None or (gpu_mb is not None) != (self.device == "cuda"):
            return
        counts = result.get("counts", {})
        images = sum(v for v in counts.values() if isinstance(v, int))
        timings, host_mb = result.get("timings", {}), result.get("memory", {}).get("host_peak_mb")
        # which of the trials that share work will have to do it is not known before
        seconds = timings.get("alone_seconds") or timings.get("total_seconds")
        resolved = self._resolve(identity)
        if resolved is None or not images or not seconds or not host_mb:
            return
        factors = (
            math.log(seconds / self._seconds(resolved, images)),
            math.log(host_mb / _host_mb(resolved)),
        )
        for level, key in zip(_LEVELS, _keys(resolved), strict=True):
            self._factors[level, key].append(factors)
            if gpu_mb:
                self._gpu_mb[level, key].append(float(gpu_mb))

    def _resolve(self, identity: Mapping[str, Any]) -> Resolved | None:
        """The configuration of a stored trial; None for a plug-in that is not here, or fields of another version."""
        asked = {"train": identity["train"], "model": identity["model"]}
        key = f"{identity['configuration']} {asked}"
        if key not in self._resolved:
            try:
                self._resolved[key] = ModelRegistry.resolve(identity["configuration"], **asked)
            except (ValueError, KeyError):
                self._resolved[key] = None
        return self._resolved[key]

    def need(self, trial: PlannedTrial) -> Need:
        """What a planned trial will take."""
        resolved = trial.job.resolved
        guess = Need(
            self._seconds(resolved, max(trial.images, 1)), 0, 0, _host_mb(resolved), None, 0
        )
        for level, key in zip(_LEVELS, _keys(resolved), strict=True):
            factors = self._factors.get((level, key))
            if factors:
                return self._corrected(guess, np.array(factors), level, key)
        return _with_range(guess, _SPREAD["guess"])

    def _corrected(self, guess: Need, factors: np.ndarray, level: str, key: str) -> Need:
        median = np.median(factors, axis=0)
        count = len(factors)
        own = float(factors[:, 0].std(ddof=1)) if count > 1 else 0.0
        # The spread that was seen counts for as many trials as it was seen on, the level's for three.
        spread = math.sqrt(
            (count * own**2 + 3 * _SPREAD[level] ** 2) / (count + 3) * (1 + 1 / count)
        )
        close = level in ("same", "configuration")
        gpu_mb = self._gpu_mb.get((level, key)) if close else None
        return _with_range(
            replace(
                guess,
                seconds=guess.seconds * math.exp(median[0]),
                host_mb=guess.host_mb * math.exp(median[1]) if close else guess.host_mb,
                gpu_mb=max(gpu_mb) if gpu_mb else None,
                measured=count if close else 0,
            ),
            spread,
        )

    def _seconds(self, resolved: Resolved, images: int) -> float:
        return _SECONDS_PER_UNIT[self.device] * work_units(resolved, images)


def hang_limit(need: Need, hours: float, attempts: int) -> float:
    """Seconds after which a trial counts as hung.

    Args:
        need: its prediction; only one that rests on this configuration's own trials may shorten the limit.
        hours: the sweep's `trial_hours`, which no limit exceeds.
        attempts: a trial that was stopped before gets all of these.
    """
    if need.measured < 3 or attempts:
        return hours * 3600
    return min(hours * 3600, max(_LEAST_LIMIT, _HANGS * need.high))


def without_unfit(plan: Plan, costs: CostModel, site: Site) -> Plan:
    """The plan with those trials impossible that are known not to fit this site, each with what it needs.

    A guess forbids nothing: only a measured peak does.
    """
    return replace(plan, trials=tuple(_fitting(trial, costs, site) for trial in plan.trials))


def _fitting(trial: PlannedTrial, costs: CostModel, site: Site) -> PlannedTrial:
    if trial.state in ("done", "impossible"):
        return trial
    need = costs.need(trial)
    if site.gpu_memory and need.gpu_mb and need.gpu_mb * 2**20 > site.gpu_memory:
        largest = site.gpu_memory / 2**30
        reason = f"needs {need.gpu_mb / 1024:.0f} GB of GPU memory, the largest card has {largest:.0f} GB"
    elif need.measured and need.host_mb * 2**20 > site.memory:
        reason = f"needs {need.host_mb / 1024:.0f} GB of memory, this machine has {site.memory / 2**30:.0f} GB"
    else:
        return trial
    return replace(trial, state="impossible", reason=f"does not fit: {reason}; skipped")


def _host_mb(resolved: Resolved) -> float:
    return resolved.spec.memory_gb * 1000


def _keys(resolved: Resolved) -> tuple[str, str, str, str]:
    """What a trial is like, from close to far; see `_LEVELS`."""
    spec, config = resolved.spec, resolved.train_config
    same = canonical_hash(
        {"name": spec.name, "model": repr(resolved.config), "train": repr(config)}
    )
    return same, f"{spec.name} {config.input_size}", spec.family, "any"


def _with_range(need: Need, spread: float) -> Need:
    low, high = (need.seconds * math.exp(sign * _RANGE * spread) for sign in (-1, 1))
    return replace(need, low=low, high=high)


def site_device(site: Site) -> str:
    """Where trials run at a site."""
    return "cuda" if site.gpus else "cpu"
