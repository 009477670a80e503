"""From a sweep's configuration to its trials, each with its id and what the store says of it. No GPU needed."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adray.components.backbone import find_weights, missing_weights
from adray.config import ExcludeRule, SweepConfig, convert
from adray.data.inspect_files import check_samples, fingerprint
from adray.data.readers import list_categories
from adray.errors import InputError, nearest
from adray.files import canonical_hash
from adray.job import Job, check_job, job_identity, job_samples, unused_defects
from adray.registry import ModelRegistry, Resolved
from adray.results.store import TrialRecord, cell_trials
from adray.settings import Settings, use_settings
from adray.sweep.resources import RUNGS

STATES = ("new", "done", "failed", "stale", "impossible")


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of a sweep.

    Attributes:
        job: what to do.
        state: one of `STATES`: ``failed`` was tried before, ``stale`` replaces one whose field changed.
        reason: for ``stale`` the fields that changed, for ``failed`` and ``impossible`` why.
        folder: its place in the store; None for impossible ones.
        identity: all that decides its result; empty for impossible ones.
        attempts: times it was tried.
        rung: of `adray.sweep.resources.RUNGS`, the one that it needed, or the one after that on which it failed.
        search: name of the search that tries it; empty for trials of a grid.
        leaky: whether that search chooses by the test set.
        watched: whether it reports after each epoch, so that a scheduler may stop it.
        images: that it reads, for training and test together.
    """

    job: Job
    state: str
    reason: str = ""
    folder: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    rung: int = 0
    search: str = ""
    leaky: bool = False
    watched: bool = False
    images: int = 0

    @property
    def cell(self) -> str:
        """``dataset/category/configuration``."""
        return "/".join(self.job.names)

    @property
    def id8(self) -> str:
        """First eight digits of the id, empty for impossible trials."""
        return self.folder.name if self.folder else ""


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep, and what stands in the way of some.

    Attributes:
        trials: in the order of the grid.
        problems: one sentence each, for missing or unusable files.
        remarks: one sentence each, on what will be done without what is missing.
    """

    trials: tuple[PlannedTrial, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def of(self, *states: str) -> list[PlannedTrial]:
        """The trials in any of `states`."""
        return [trial for trial in self.trials if trial.state in states]


def absolute_settings(settings: Settings) -> Settings:
    """The same settings with paths that hold in every process."""
    return replace(
        settings,
        dataset_dir=_absolute(settings.dataset_dir),
        backbone_dir=_absolute(settings.backbone_dir),
        output_dir=_absolute(settings.output_dir),
        cache_dir=_absolute(settings.cache_dir),
    )


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def make_plan(config: SweepConfig, settings: Settings, only: Sequence[str] = ()) -> Plan:
    """Expand the grid, compute ids and compare with the store.

    Args:
        config: the sweep.
        settings: with absolute paths; they become those of this process, since plugins and readers look there.
        only: patterns of ``dataset/category/configuration`` or beginnings of ids; empty takes all.

    Raises:
        InputError: for names, values and patterns that cannot be meant; missing files become `Plan.problems`.
    """
    use_settings(settings)
    problems: dict[str, None] = {}
    return plan_jobs(list(expand(config, settings, problems)), settings, problems, only)


def plan_jobs(
    jobs: Sequence[Job], settings: Settings, problems: dict[str, None], only: Sequence[str] = ()
) -> Plan:
    """Compute the ids of jobs and compare with the store; see `make_plan`.

    Args:
        jobs: what is wanted; those of one id count once.
        settings: of this process, with absolute paths.
        problems: found so far, as keys; further ones join them.
        only: see `make_plan`.
    """
    probe = _Probe(settings, problems)
    trials: dict[object, PlannedTrial] = {}
    for job in jobs:
        trial = probe.plan(job)
        trials.setdefault((trial.cell, trial.id8 or (job.seed, trial.reason)), trial)
    chosen = [trial for trial in trials.values() if not only or _matches(trial, only)]
    if not chosen and not problems:
        wanted = f"--only {' '.join(only)} matches" if only else "the grid leaves"
        raise InputError(f"{wanted} no trial; look at --dry-run, and at grid.exclude")
    ids = {trial.id8 for trial in chosen}
    return Plan(
        tuple(_without_siblings(trial, ids) for trial in chosen),
        tuple(problems),
        tuple(probe.remarks),
    )


def expand(config: SweepConfig, settings: Settings, problems: dict[str, None]) -> Iterator[Job]:
    """The jobs of a sweep's grid; data that is missing becomes a problem.

    Raises:
        InputError: see `make_plan`.
    """
    names = ModelRegistry.select(config.grid.models)
    _check_patterns(config)
    resolved = {name: resolve(config, name) for name in names}
    for dataset, selection in config.grid.datasets.items():
        for categories in _selected(dataset, selection, settings, problems):
            for name in names:
                if any(_excluded(rule, name, dataset, categories) for rule in config.grid.exclude):
                    continue
                for seed in config.grid.seeds:
                    yield Job(resolved[name], (dataset,), categories, seed)


def resolve(config: SweepConfig, name: str) -> Resolved:
    """A configuration with the sweep's budget, weights and overrides."""
    train: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for pattern, changes in config.overrides.items():
        if ModelRegistry.matches(pattern, name):
            train |= changes.get("train", {})
            model |= changes.get("model", {})
    return ModelRegistry.resolve(
        name, train=train, model=model, budget=config.budget, weights=config.weights
    )


def _check_patterns(config: SweepConfig) -> None:
    """Refuse patterns that match no configuration at all: they are misspelt."""
    patterns = [(f"overrides.{pattern}", pattern) for pattern in config.overrides]
    patterns += [("grid.exclude", p) for rule in config.grid.exclude for p in rule.models]
    patterns += [("resources", p) for rule in config.resources for p in rule.models]
    for where, pattern in patterns:
        try:
            ModelRegistry.select([pattern])
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    for pattern, changes in config.overrides.items():
        for key in changes:
            if key not in ("train", "model"):
                raise InputError(
                    f"unknown key 'overrides.{pattern}.{key}'; {nearest(key, ('train', 'model'))}"
                )


def _excluded(rule: ExcludeRule, model: str, dataset: str, categories: tuple[str, ...]) -> bool:
    return (
        any(ModelRegistry.matches(pattern, model) for pattern in rule.models)
        and any(fnmatch.fnmatchcase(dataset, pattern) for pattern in rule.datasets)
        and any(fnmatch.fnmatchcase(c, pattern) for c in categories for pattern in rule.categories)
    )


def _selected(
    dataset: str, selection: Any, settings: Settings, problems: dict[str, None]
) -> list[tuple[str, ...]]:
    """The category groups of one data set: one trial per tuple."""
    if selection == "all":
        return [("all",)]
    if selection == "each":
        try:
            return [(category,) for category in list_categories(dataset, settings)]
        except InputError as error:
            problems[str(error)] = None
            return []
    if isinstance(selection, str) or not isinstance(selection, Sequence):
        raise InputError(
            f"grid.datasets.{dataset} is {selection!r}; write each, all, a list of categories, or a list of lists"
        )
    if not selection:
        raise InputError(
            f"grid.datasets.{dataset} is empty; write each, all, or a list of categories"
        )
    groups = []
    for item in selection:
        group = item if isinstance(item, list) else [item]
        for category in group:
            if not isinstance(category, str):
                raise InputError(
                    f"grid.datasets.{dataset}: category {category!r} is not text; put it in quotes, "
                    'for instance "01", since YAML reads 01 as a number and no as false'
                )
        groups.append(tuple(convert(group, tuple[str, ...], f"grid.datasets.{dataset}")))
    if any(not group for group in groups):
        raise InputError(f"grid.datasets.{dataset} holds an empty list; name its categories")
    return groups


class _Probe:
    """Looks at files and the store for many jobs, each file's state asked for once."""

    def __init__(self, settings: Settings, problems: dict[str, None]) -> None:
        self.settings, self.problems = settings, problems
        self.remarks: dict[str, None] = {}
        self._data: dict[object, tuple[str, str, int]] = {}
        self._cells: dict[Path, dict[str, TrialRecord]] = {}
        self._weights: dict[object, str] = {}

    def plan(self, job: Job) -> PlannedTrial:
        """The trial of a job, impossible where a file is missing."""
        data, data_problem, images = self._data_of(job)
        missing = [
            n
            for n in job.resolved.weight_files
            if find_weights(n, self.settings.backbone_dir) is None
        ]
        reasons = [missing_weights(name, self.settings.backbone_dir) for name in missing]
        reasons += [problem for problem in (self._refusal(job), data_problem) if problem]
        if reasons:
            self.problems.update(dict.fromkeys(reasons))
            return PlannedTrial(job, "impossible", "; ".join(reasons))
        identity = job_identity(job, self.settings, data)
        folder = job.cell(self.settings) / canonical_hash(identity)[:8]
        trial = self._compare(PlannedTrial(job, "new", "", folder, identity, images=images))
        if trial.state != "done" and (reason := self._broken_weights(job)):
            self.problems[reason] = None
            return PlannedTrial(job, "impossible", reason)
        return trial

    def _refusal(self, job: Job) -> str:
        """Why a configuration cannot be meant, empty where it can."""
        try:
            remarks = check_job(job, self.settings)
        except InputError as error:
            return f"{job.configuration}: {error}"
        self.remarks.update((f"{job.configuration}: {remark}", None) for remark in remarks)
        return ""

    def _broken_weights(self, job: Job) -> str:
        """What is wrong with a job's weight files, looked into once per file and only for what would run."""
        layers = getattr(job.resolved.config, "layers", ())
        for name in job.resolved.weight_files:
            key = (name, job.resolved.spec.trainer, layers)
            if key not in self._weights:
                self._weights[key] = _weight_problem(job, name, self.settings)
            if self._weights[key]:
                return self._weights[key]
        return ""

    def _data_of(self, job: Job) -> tuple[str, str, int]:
        """Fingerprint of the job's images, what is wrong with them, and how many there are."""
        config = job.resolved.train_config
        supervised = ModelRegistry.trainer_class(job.configuration).supervised
        key = (
            job.datasets,
            job.categories,
            job.seed,
            config.split_mode,
            config.train_defects,
            supervised,
        )
        if key not in self._data:
            try:
                samples = job_samples(job, self.settings)
                self.remarks.update(dict.fromkeys(unused_defects(job, samples)))
                found = check_samples(samples, self.settings.cache_dir)
                problem = "; ".join(found[:3]) + (
                    f"; and {len(found) - 3} more" if len(found) > 3 else ""
                )
                known = "" if found else fingerprint(samples, self.settings.cache_dir)
                self._data[key] = (known, problem, len(samples))
            except InputError as error:
                self._data[key] = ("", str(error), 0)
        return self._data[key]

    def _compare(self, trial: PlannedTrial) -> PlannedTrial:
        """What the store says: done, failed before, or another value of some field."""
        assert trial.folder is not None
        cell = trial.folder.parent
        if cell not in self._cells:
            self._cells[cell] = {record.id8: record for record in cell_trials(cell)}
        same = self._cells[cell].get(trial.id8)
        if same is not None and same.trial["identity"] == trial.identity:
            trial = replace(trial, rung=_next_rung(same))
            if same.failure is not None and same.result is None:
                attempts = int(same.failure.get("attempts", 1))
                return replace(
                    trial, state="failed", reason=same.failure.get("reason", ""), attempts=attempts
                )
            return replace(trial, state=same.status if same.status == "done" else "new")
        changes = [
            difference(record.trial["identity"], trial.identity)
            for record in self._cells[cell].values()
            if record.trial["identity"].get("seed") == trial.identity["seed"]
            and not record.searched
            and "evaluation"
            not in trial.identity  # tries of a search replace nothing, and nothing replaces them
        ]
        return replace(trial, state="stale", reason=min(changes, key=len)) if changes else trial


def _next_rung(record: TrialRecord) -> int:
    """Where a trial like a recorded one begins: the rung that sufficed, or the one after that which did not."""
    ran_out = record.result is None and (record.failure or {}).get("kind") == "out_of_memory"
    return min(int(record.trial.get("message", {}).get("rung", 0)) + ran_out, len(RUNGS) - 1)


def _weight_problem(job: Job, name: str, settings: Settings) -> str:
    path = find_weights(name, settings.backbone_dir)
    assert path is not None, "missing files are found before"
    try:
        ModelRegistry.trainer_class(job.configuration).check_weight_file(
            job.resolved.config, name, path
        )
    except InputError as error:
        return str(error)
    return ""


def _without_siblings(trial: PlannedTrial, planned: set[str]) -> PlannedTrial:
    """A trial is not stale because of another one that this very sweep also wants."""
    if trial.state != "stale" or trial.folder is None:
        return trial
    found = cell_trials(trial.folder.parent)
    others = [record for record in found if record.id8 not in planned and not record.searched]
    return trial if others else replace(trial, state="new", reason="")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The fields in which two identities differ, for instance ``model.lr: 0.4 -> 0.2``."""
    before, after = _flat(old), _flat(new)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return ", ".join(
        f"{key}: {_short(before.get(key))} -> {_short(after.get(key))}" for key in changed
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= (
            _flat(item, f"{prefix}{key}.")
            if isinstance(item, Mapping)
            else {f"{prefix}{key}": item}
        )
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}..." if len(text) > 20 else text


def _matches(trial: PlannedTrial, patterns: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(trial.cell, p) or (trial.id8 and trial.id8.startswith(p))
        for p in patterns
    )
