"""From a sweep's configuration to its trials, each with its id and what the store says of it.

No GPU needed.
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adray.components.backbone import find_weights, foreign_weights, missing_weights
from adray.conditions import Corruption
from adray.config import ExcludeRule, SweepConfig, convert
from adray.data.accounting import Accounts, account_dataset, dropped_remarks
from adray.data.base import SYNTHETIC, Sample, defects_of, normals_of, split_of
from adray.data.checks import check_data, first_problems
from adray.data.geometry import Geometry
from adray.data.inspect_files import inspect_files
from adray.data.pixel_checks import aspect_remark, mask_remarks, smallest_remark
from adray.data.readers import list_categories, resolve_dataset
from adray.data.roi import roi_of
from adray.data.splits import describe_groups
from adray.errors import InputError
from adray.files import canonical_hash
from adray.job import Job, check_job, job_identity, job_samples, unused_defects
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import Sentence, error_text, nearest_of, sentence_of
from adray.progress_lines import stage
from adray.registry import ModelRegistry, Resolved
from adray.results.corrupted_scores import lacking_corruptions
from adray.results.store import TrialRecord, Unread, cell_trials, read_entry
from adray.results.trial_files import find_checkpoint
from adray.settings import Settings, use_settings
from adray.settle import Settled, settle
from adray.sweep.conditions import (
    TrainingSet,
    condition_remarks,
    corruptions_of_grid,
    list_conditions,
    matches_any,
    without_excluded,
)
from adray.sweep.resources import RETRY_LEVELS
from adray.sweep.sound_weights import is_sound, remember_sound, weights_key
from adray.thresholds import normals_needed, percent, shortage_figures
from adray.types import Json

STATES = ("new", "done", "failed", "stale", "impossible")
_KINDS_SHOWN = 4
"""Kinds of defects that a line on images names."""
_PROBLEMS_SHOWN = 3


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of a sweep."""

    job: Job
    """What to do."""
    state: str
    """One of `STATES`: ``failed`` was tried before, ``stale`` replaces one whose field changed."""
    reason: str = ""
    """For ``stale`` the fields that changed, for ``failed`` and ``impossible`` why."""
    folder: Path | None = None
    """Its place in the store; None for impossible ones."""
    identity: Json = field(default_factory=dict)
    """All that decides its result, as JSON; empty for impossible ones."""
    attempts: int = 0
    """Times it was tried."""
    retry_level: int = 0
    """Of `adray.sweep.resources.RETRY_LEVELS`: the one that it needed, or the one after that
    which did not suffice."""
    search: str = ""
    """Name of the search that tries it; empty for trials of a grid."""
    leaky: bool = False
    """Whether that search chooses by the test set."""
    watched: bool = False
    """Whether it reports after each epoch, so that a scheduler may stop it."""
    images: int = 0
    """Images that it reads, for training and test together."""
    training: TrainingSet = field(default_factory=TrainingSet)
    """What it trains on."""
    lacking: tuple[Corruption, ...] = ()
    """Corruptions under which it is to be scored, and is not yet."""

    @property
    def cell(self) -> str:
        """Name the cell: ``dataset/category/configuration``."""
        return "/".join(self.job.names)

    @property
    def title(self) -> str:
        """Name cell and condition, for people."""
        condition = self.job.condition
        return self.cell if condition.is_plain else f"{self.cell} {condition.title}"

    @property
    def id8(self) -> str:
        """Give the first eight digits of the id, empty for impossible trials."""
        return self.folder.name if self.folder else ""


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep, and what stands in the way of some."""

    trials: tuple[PlannedTrial, ...]
    """In the order of the grid."""
    problems: tuple[str, ...]
    """One sentence each, for missing or unusable files."""
    remarks: tuple[str, ...] = ()
    """One sentence each, on what will be done without what is missing."""
    images: tuple[str, ...] = ()
    """What each part has of images, a sentence each."""

    def of(self, *states: str) -> list[PlannedTrial]:
        """List the trials in any of `states`."""
        return [trial for trial in self.trials if trial.state in states]


def make_plan(config: SweepConfig, settings: Settings, only: Sequence[str] = ()) -> Plan:
    """Expand the grid, compute ids and compare with the store.

    Args:
        config: the sweep.
        settings: with absolute paths; they become those of this process, since plugins and readers
            look there.
        only: patterns of ``dataset/category/configuration`` or beginnings of ids; empty takes all.

    Raises:
        InputError: for names, values and patterns that cannot be meant; missing files become
            `Plan.problems`.
    """
    use_settings(settings)
    problems: dict[str, None] = {}
    jobs = list(expand(config, settings, problems))
    return plan_jobs(jobs, settings, problems, only)


def plan_jobs(
    jobs: Sequence[Job], settings: Settings, problems: dict[str, None], only: Sequence[str] = ()
) -> Plan:
    """Compute the ids of jobs and compare with the store. See `make_plan`.

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
        # Impossible trials have no id: what is wrong with them tells them apart.
        key = (trial.title, trial.id8 or (job.seed, trial.reason))
        trials.setdefault(key, trial)

    chosen = [trial for trial in trials.values() if not only or _matches(trial, only)]
    if not chosen and not problems:
        if only:
            raise InputError(Sentence.of("plan only", patterns=" ".join(only)))
        raise InputError(Sentence.of("plan empty"))

    ids = {trial.id8 for trial in chosen}
    compared = tuple(_without_siblings(trial, ids) for trial in chosen)
    sets = [trial.training for trial in compared if trial.state != "impossible"]
    remarks = (*condition_remarks(sets), *corruption_remarks(compared), *probe.remarks)
    return Plan(compared, tuple(problems), remarks, tuple(probe.images))


def corruption_remarks(trials: Sequence[PlannedTrial]) -> list[str]:
    """Say under how many corruptions trials are scored, and how many of these scores are there."""
    wanted = 0
    lacking = 0
    scored = []
    for trial in trials:
        if trial.job.corruptions and trial.state != "impossible":
            scored.append(trial)
            wanted += len(trial.job.corruptions)
            lacking += len(trial.lacking)
    if not scored:
        return []
    say = load_catalogue(language_of(os.environ))
    number = max(len(trial.job.corruptions) for trial in scored)
    return [say("plan corruption", trials=len(scored), number=number, done=wanted - lacking)]


# The grid


def expand(config: SweepConfig, settings: Settings, problems: dict[str, None]) -> Iterator[Job]:
    """Give the jobs of a sweep's grid. Data that is missing becomes a problem.

    Raises:
        InputError: see `make_plan`.
    """
    names = ModelRegistry.select(config.grid.models)
    _check_patterns(config)
    resolved = {name: resolve(config, name) for name in names}

    for dataset, selection in config.grid.datasets.items():
        for categories in _selected(dataset, selection, settings, problems):
            conditions = list_conditions(config.grid, (dataset,), categories, settings, problems)
            for name in names:
                rules = _rules_of(config.grid.exclude, name, dataset, categories)
                corruptions = corruptions_of_grid(config.grid, rules)
                for condition in without_excluded(conditions, rules):
                    for seed in config.grid.seeds:
                        yield Job(
                            resolved[name],
                            (dataset,),
                            categories,
                            seed,
                            verdict=config.verdict,
                            condition=condition,
                            corruptions=corruptions if condition.is_plain else (),
                        )


def resolve(config: SweepConfig, name: str) -> Resolved:
    """Decide a configuration's hyperparameters by the sweep's budget, weights and overrides."""
    train: Json = {}
    model: Json = {}
    for pattern, changes in config.overrides.items():
        if ModelRegistry.matches(pattern, name):
            train |= changes.get("train", {})
            model |= changes.get("model", {})
    return ModelRegistry.resolve(
        name, train=train, model=model, budget=config.budget, weights=config.weights
    )


def _check_patterns(config: SweepConfig) -> None:
    """Refuse patterns that match no configuration at all: they are misspelt."""
    for pattern in config.overrides:
        _check_pattern(pattern, f"overrides.{pattern}")
    for exclude in config.grid.exclude:
        for pattern in exclude.models:
            _check_pattern(pattern, "grid.exclude")
    for rule in config.resources:
        for pattern in rule.models:
            _check_pattern(pattern, "resources")

    for pattern, changes in config.overrides.items():
        for key in changes:
            if key not in ("train", "model"):
                remedy = nearest_of(key, ("train", "model"))
                raise InputError(
                    Sentence.of("plan overrides", pattern=pattern, field=key, remedy=remedy)
                )


def _check_pattern(pattern: str, where: str) -> None:
    """Refuse a pattern that matches no configuration.

    Raises:
        InputError: says where it is written.
    """
    try:
        ModelRegistry.select([pattern])
    except InputError as error:
        raise InputError(
            Sentence.of("plan pattern", where=where, error=sentence_of(error))
        ) from error


def _rules_of(
    rules: Sequence[ExcludeRule], model: str, dataset: str, categories: tuple[str, ...]
) -> list[ExcludeRule]:
    """List the rules that leave a cell out, under some conditions at least.

    A merged one goes with any of its categories.
    """
    found = []
    for rule in rules:
        of_model = any(ModelRegistry.matches(pattern, model) for pattern in rule.models)
        of_dataset = matches_any(dataset, rule.datasets)
        of_category = any(matches_any(category, rule.categories) for category in categories)
        if of_model and of_dataset and of_category:
            found.append(rule)
    return found


def _selected(
    dataset: str, selection: Any, settings: Settings, problems: dict[str, None]
) -> list[tuple[str, ...]]:
    """Give the category groups of one data set: one trial per tuple."""
    where = f"grid.datasets.{dataset}"
    if selection == "all":
        return [("all",)]
    if selection == "each":
        try:
            return [(category,) for category in list_categories(dataset, settings)]
        except InputError as error:
            problems[error_text(error, language_of(os.environ))] = None
            return []

    if isinstance(selection, str) or not isinstance(selection, Sequence):
        raise InputError(Sentence.of("plan selection", where=where, selection=repr(selection)))
    if not selection:
        raise InputError(Sentence.of("plan selection empty", where=where))
    return [_group(item, where) for item in selection]


def _group(item: Any, where: str) -> tuple[str, ...]:
    """Read one entry of a list of categories: a name, or several that are merged."""
    group = item if isinstance(item, list) else [item]
    if not group:
        raise InputError(Sentence.of("plan list empty", where=where))
    for category in group:
        if not isinstance(category, str):
            raise InputError(Sentence.of("plan category", where=where, category=repr(category)))
    return tuple(convert(group, tuple[str, ...], where))


# The files and the store


@dataclass(frozen=True)
class _DataFacts:
    """What is known of a job's images."""

    fingerprint: str
    """Hash of their names and contents; empty where something is wrong with them."""
    problem: str
    """What is wrong with them; empty where nothing is."""
    samples: tuple[Sample, ...]
    """The images; none where they cannot be listed."""


@dataclass(frozen=True)
class _Cell:
    """What the store has of a cell, which may be ten thousand trials."""

    by_id: Mapping[str, TrialRecord]
    """Trials by the first eight digits of their id."""
    by_seed: Mapping[int | None, list[TrialRecord]]
    """Trials by seed."""

    @classmethod
    def of(cls, records: Sequence[TrialRecord]) -> _Cell:
        """Sort the trials of a cell."""
        by_id = {}
        by_seed: dict[int | None, list[TrialRecord]] = defaultdict(list)
        for record in records:
            by_id[record.id8] = record
            by_seed[record.identity.get("seed")].append(record)
        return cls(by_id, by_seed)


class _Probe:
    """Looks at files and the store for many jobs, each file's state asked for once."""

    def __init__(self, settings: Settings, problems: dict[str, None]) -> None:
        self.settings = settings
        self.problems = problems
        self.remarks: dict[str, None] = {}
        self.images: dict[str, None] = {}
        self._say = load_catalogue(language_of(os.environ))
        self._fixed_split: dict[tuple[str, ...], bool] = {}
        self._data: dict[object, _DataFacts] = {}
        self._settled: dict[object, Settled] = {}
        self._accounts: dict[tuple[str, str], Accounts] = {}
        self._sizes: set[object] = set()
        self._tiles: dict[object, int] = {}
        self._aspects: set[str] = set()
        self._folders: dict[tuple[str, str, str], Path] = {}
        self._cells: dict[Path, _Cell] = {}
        self._promises: set[object] = set()
        self._weights: dict[object, str] = {}

    def plan(self, job: Job) -> PlannedTrial:
        """Plan the trial of a job, impossible where a file is missing."""
        data = self._data_of(job)
        reasons = self._missing_weights(job)
        reasons += [problem for problem in (self._refusal(job), data.problem) if problem]
        if not reasons:
            try:
                settled = self._settle(job, data)
            except InputError as error:
                reasons.append(self._in_words(error))
        if reasons:
            self.problems.update(dict.fromkeys(reasons))
            return PlannedTrial(job, "impossible", "; ".join(reasons))

        job = settled.applied_to(job)
        self._look_at_masks(job, data)
        self._look_at_aspect(job, data)
        identity = job_identity(job, self.settings, data.fingerprint)
        folder = self._cell_folder(job) / canonical_hash(identity)[:8]
        planned = PlannedTrial(
            job,
            "new",
            "",
            folder,
            identity,
            images=settled.images,
            training=TrainingSet(
                job.condition.label,
                settled.training,
                settled.disguised,
                settled.training * self._most_tiles(job, data.samples),
            ),
        )
        trial = self._compare(replace(planned, lacking=self._corruptions(job)), folder)
        if trial.state == "done":
            return trial

        self._remark_on_weights(job)
        # Weight files are opened for what would run only: it takes seconds.
        reason = self._broken_weights(job)
        if reason:
            self.problems[reason] = None
            return PlannedTrial(job, "impossible", reason)
        return trial

    def _most_tiles(self, job: Job, samples: Sequence[Sample]) -> int:
        """Count the tiles of the largest of a job's images, 1 where images are taken whole."""
        geometry = Geometry.of(job.resolved.train_config)
        if geometry.tiling is None:
            return 1
        key = (self._data_key(job), geometry)
        if key not in self._tiles:
            facts = inspect_files([sample.path for sample in samples], self.settings.cache_dir)
            grids = [geometry.grid(found.height, found.width) for found in facts.values()]
            self._tiles[key] = max(map(len, grids), default=1)
        return self._tiles[key]

    def _corruptions(self, job: Job) -> tuple[Corruption, ...]:
        """Give the corruptions under which a job can be scored."""
        if job.corruptions and job.evaluation == SYNTHETIC:
            self.remarks[f"{job.place}: {self._say('plan corruption drawn')}"] = None
            return ()
        return job.corruptions

    def _cell_folder(self, job: Job) -> Path:
        """Give the folder of a job's cell, for which its data sets are looked at once."""
        if job.names not in self._folders:
            self._folders[job.names] = job.cell(self.settings)
        return self._folders[job.names]

    def _missing_weights(self, job: Job) -> list[str]:
        """Say which weight files a job lacks."""
        folder = self.settings.backbone_dir
        names = job.resolved.weight_files
        missing = [name for name in names if find_weights(name, folder) is None]
        return [missing_weights(name, folder).text(self._say) for name in missing]

    def _refusal(self, job: Job) -> str:
        """Say why a configuration cannot be meant, empty where it can."""
        try:
            remarks = check_job(job, self.settings)
        except InputError as error:
            return f"{job.configuration}: {self._in_words(error)}"
        self.remarks.update((f"{job.configuration}: {remark}", None) for remark in remarks)
        return ""

    def _remark_on_weights(self, job: Job) -> None:
        """Remark on weight files that are not the published ones, such as half of a copy."""
        for name in job.resolved.weight_files:
            path = find_weights(name, self.settings.backbone_dir)
            note = "" if path is None else foreign_weights(name, path)
            if note:
                self.remarks[note] = None

    def _broken_weights(self, job: Job) -> str:
        """Say what is wrong with a job's weight files, each looked into once."""
        layers = getattr(job.resolved.config, "layers", ())
        for name in job.resolved.weight_files:
            key = (name, job.resolved.spec.trainer, layers)
            if key not in self._weights:
                with stage("opening weights"):
                    self._weights[key] = _weight_problem(job, name, self.settings)
            if self._weights[key]:
                return self._weights[key]
        return ""

    def _data_of(self, job: Job) -> _DataFacts:
        """Look at a job's images, once for all jobs that have the same."""
        key = self._data_key(job)
        if key not in self._data:
            self._data[key] = self._look_at_data(job)
        return self._data[key]

    def _data_key(self, job: Job) -> object:
        """Give what decides which images a job has."""
        config = job.resolved.train_config
        return (
            job.datasets,
            job.categories,
            None if self._has_fixed_split(job.datasets) else job.seed,
            config.split_mode,
            config.train_defects,
            ModelRegistry.method(job.configuration).supervised,
        )

    def _has_fixed_split(self, datasets: tuple[str, ...]) -> bool:
        """Tell whether no seed moves an image of some data sets."""
        if datasets not in self._fixed_split:
            try:
                found = [resolve_dataset(name, self.settings) for name in datasets]
            except InputError:
                return False  # looking at the images says it
            self._fixed_split[datasets] = all(one.reader.fixed_split for one in found)
        return self._fixed_split[datasets]

    def _look_at_data(self, job: Job) -> _DataFacts:
        """List a job's images, check and hash them."""
        try:
            samples = tuple(job_samples(job, self.settings))
            self._remark(unused_defects(job, samples))
            self._remark(describe_groups(samples))
            accounts = self._accounts_of(job)
            self.remarks.update(dict.fromkeys(dropped_remarks(accounts)))
            checked = check_data(job.place, samples, accounts, self.settings)
        except InputError as error:
            return _DataFacts("", self._in_words(error), ())

        self._remark(checked.remarks)
        problem = ""
        if checked.problems:
            problem = first_problems(checked.problems, _PROBLEMS_SHOWN).text(self._say)
        return _DataFacts(checked.fingerprint, problem, samples)

    def _remark(self, said: Iterable[Sentence]) -> None:
        """Note remarks in the words of the reader's language, each once."""
        for sentence in said:
            self.remarks[sentence.text(self._say)] = None

    def _in_words(self, error: InputError) -> str:
        """Put an error into the words of the reader's language."""
        return sentence_of(error).text(self._say)

    def _accounts_of(self, job: Job) -> dict[str, Accounts]:
        """Account for the files of a job's data sets, once for all jobs."""
        split_mode = job.resolved.train_config.split_mode
        found = {}
        for name in job.datasets:
            key = (name, split_mode)
            if key not in self._accounts:
                self._accounts[key] = account_dataset(name, self.settings, split_mode)
            found[name] = self._accounts[key]
        return found

    def _settle(self, job: Job, data: _DataFacts) -> Settled:
        """Decide what a job is judged by, once for all that have the same images and hold-out.

        Raises:
            InputError: for too few images.
        """
        least = job.resolved.min_normals
        key = (
            self._data_key(job),
            job.seed,
            job.resolved.train_config.kept_apart,
            job.is_cross,
            job.evaluation,
            job.condition,
            least,
        )
        if key not in self._settled:
            settled = settle(job, data.samples)
            self._settled[key] = settled
            self._remark(settled.remarks)
            if job.condition.is_plain:
                self._count_images(job, settled, data.samples)
            for rate in job.verdict.rates:
                self._look_at_promise(job, rate, settled.calibration)
        return self._settled[key]

    def _count_images(self, job: Job, settled: Settled, samples: Sequence[Sample]) -> None:
        """Note how many images of a part train, calibrate and test, once for equal numbers."""
        test = split_of(samples, "test")
        defects = defects_of(test)
        kinds = Counter(sample.defect_type for sample in defects)
        named = [f"{name} {number}" for name, number in kinds.most_common(_KINDS_SHOWN)]
        said = self._say(
            "plan images" if defects else "plan images without defects",
            place=job.place,
            train=settled.training,
            held_out=settled.calibration,
            normal=len(normals_of(test)),
            defects=len(defects),
            kinds=", ".join(named) + (", ..." if len(kinds) > _KINDS_SHOWN else ""),
            masks=sum(sample.has_mask for sample in defects),
        )
        self.images[said] = None

    def _look_at_promise(self, job: Job, rate: float, normals: int) -> None:
        """Remark on a rate of false alarms for which a job has too few calibration normals."""
        key = (job.place, rate, normals)
        if key in self._promises:
            return
        self._promises.add(key)
        tried = job.verdict.tried
        if not normals:
            needed = normals_needed(rate, tried)
            remark = self._say("promise none", rate=percent(rate), needed=needed)
        elif normals < normals_needed(rate, tried):
            remark = self._say("promise short", **shortage_figures(rate, normals, tried))
        else:
            return
        self.remarks[f"{job.place}: {remark}"] = None

    def _look_at_masks(self, job: Job, data: _DataFacts) -> None:
        """Remark on defects that a job's sizes make small or cut away, once for each size."""
        config = job.resolved.train_config
        frame = (config.img_size, config.aspect, config.crop_size, config.fit, config.tiling)
        key = (data.fingerprint, *frame)
        if key not in self._sizes:
            self._sizes.add(key)
            geometry = Geometry.of(config, roi_of(data.samples, self.settings))
            remarks = smallest_remark(data.samples, geometry, self.settings)
            remarks += mask_remarks(data.samples, geometry, self.settings)
            for remark in remarks:
                said = Sentence.of("finding remark", place=job.place, what=remark)
                self._remark([said])

    def _look_at_aspect(self, job: Job, data: _DataFacts) -> None:
        """Remark on images that are no squares, where a job could take them so, once for each place."""
        config = job.resolved.train_config
        is_square = config.aspect == 1 and config.tile is None
        takes_others = ModelRegistry.method(job.configuration).any_aspect
        if not is_square or not takes_others or job.place in self._aspects:
            return
        self._aspects.add(job.place)
        for remark in aspect_remark(data.samples, job.configuration, self.settings):
            self._remark([Sentence.of("finding remark", place=job.place, what=remark)])

    def _compare(self, trial: PlannedTrial, folder: Path) -> PlannedTrial:
        """Add what the store says: done, failed before, or another value of some field."""
        cell = folder.parent
        if cell not in self._cells:
            self._cells[cell] = _Cell.of(cell_trials(cell))

        same = self._cells[cell].by_id.get(trial.id8)
        reason = _closed_reason(folder) if same is None else ""
        if reason:
            self.problems[reason] = None
            return PlannedTrial(trial.job, "impossible", reason)
        if same is not None and same.identity == trial.identity:
            return self._with_lacking(_like_record(trial, same), same)
        changes = []
        for record in self._cells[cell].by_seed.get(trial.job.seed, ()):
            if _is_replaced(record, trial):
                changes.append(difference(record.identity, trial.identity))
        if not changes:
            return trial
        return replace(trial, state="stale", reason=min(changes, key=len))

    def _with_lacking(self, trial: PlannedTrial, record: TrialRecord) -> PlannedTrial:
        """Say what a finished trial still has to be scored under. Without a checkpoint it cannot."""
        if trial.state != "done" or not trial.lacking:
            return trial
        lacking = lacking_corruptions(record, trial.lacking)
        if lacking and find_checkpoint(record.folder) is None:
            remark = self._say("plan corruption none", number=len(lacking))
            self.remarks[f"{trial.title}: {remark}"] = None
            lacking = ()
        return replace(trial, lacking=lacking)


def _closed_reason(folder: Path) -> str:
    """Say that the place of a trial cannot be read, empty where that is not so."""
    entry = read_entry(folder)
    if isinstance(entry, Unread) and entry.is_unreachable:
        return f"{entry.folder}: {entry.reason}"
    return ""


def _like_record(trial: PlannedTrial, record: TrialRecord) -> PlannedTrial:
    """Give a planned trial the state that the store has of the same id."""
    trial = replace(trial, retry_level=_next_level(record))
    if record.status == "failed":
        return replace(trial, state="failed", reason=record.reason, attempts=record.attempts)
    return replace(trial, state="done" if record.status == "done" else "new")


def _is_replaced(record: TrialRecord, trial: PlannedTrial) -> bool:
    """Tell whether a stored trial of a seed is the one that a planned one stands in place of.

    Tries of a search replace nothing, and nothing replaces them. Another condition is another
    question.
    """
    is_same_condition = record.identity.get("condition") == trial.identity.get("condition")
    return is_same_condition and not record.searched and "evaluation" not in trial.identity


def _next_level(record: TrialRecord) -> int:
    """Give the retry level where a trial like a recorded one starts.

    That is the level which sufficed, or the one after that which did not.
    """
    ran_out = record.result is None and record.failure_kind == "out_of_memory"
    return min(record.retry_level + ran_out, len(RETRY_LEVELS) - 1)


def _weight_problem(job: Job, name: str, settings: Settings) -> str:
    """Say what is wrong with a weight file. Empty where nothing is."""
    path = find_weights(name, settings.backbone_dir)
    assert path is not None, "missing files are found before"
    is_plugin = not job.resolved.spec.trainer.startswith("adray.")
    key = weights_key(job.resolved, name, path)
    if not is_plugin and is_sound(key, settings):
        return ""

    trainer = ModelRegistry.trainer_class(job.configuration)
    try:
        trainer.check_weight_file(job.resolved.config, name, path)
    except InputError as error:
        return error_text(error, language_of(os.environ))
    remember_sound(key, settings)
    return ""


def _without_siblings(trial: PlannedTrial, planned: set[str]) -> PlannedTrial:
    """Call a trial new that is stale only by another one which this very sweep also wants."""
    if trial.state != "stale" or trial.folder is None:
        return trial
    for record in cell_trials(trial.folder.parent):
        if record.id8 not in planned and not record.searched:
            return trial
    return replace(trial, state="new", reason="")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the fields in which two identities differ, for instance ``model.lr: 0.4 -> 0.2``."""
    before = _flat(old)
    after = _flat(new)
    parts = []
    for key in {**before, **after}:
        old_value = before.get(key)
        new_value = after.get(key)
        if old_value != new_value:
            parts.append(f"{key}: {_short(old_value)} -> {_short(new_value)}")
    return ", ".join(parts)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Json:
    """Turn a nested mapping into a flat one with dotted keys."""
    flat: Json = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}..." if len(text) > 20 else text


def _matches(trial: PlannedTrial, patterns: Sequence[str]) -> bool:
    """Tell whether a pattern means a trial's cell or begins its id."""
    for pattern in patterns:
        if fnmatch.fnmatchcase(trial.cell, pattern):
            return True
        if trial.id8 and trial.id8.startswith(pattern):
            return True
    return False
