"""Hyperparameter search: settings are tried as trials of the store, judged by an honest objective, and the best kept.

A setting is tried on all categories and seeds of the grid, and its score is the mean over them. By default the trials
leave the test set alone: they are scored on defects drawn on held-out normals. The defaults are always the first
setting, so that a gain over them is measured, and it is measured on images that did not choose (see
`adray.results.search_gain`). What was tried is read off the store, so a search that was killed goes on by itself; what
a scheduler stopped early, and what Optuna proposed, stands in a journal beside the tables.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from adray.config import SearchConfig, SweepConfig, to_plain
from adray.errors import InputError, nearest
from adray.files import atomic_path, canonical_hash
from adray.job import Job
from adray.metrics import METRICS
from adray.registry import ModelRegistry, Resolved
from adray.results.report import report_data, write_report
from adray.results.search_gain import CellScores, Gain, search_gain
from adray.results.store import read_trial
from adray.results.trial_files import read_scores
from adray.search_space import SearchSpace, as_overrides, load_space, values_of
from adray.settings import Settings, use_settings
from adray.sweep.driver import RunOptions, Sweep, open_store
from adray.sweep.plan import Plan, PlannedTrial, expand, plan_jobs, resolve
from adray.sweep.preflight import check_site, prepare_data
from adray.sweep.resources import Site
from adray.sweep.search_journal import Journal
from adray.sweep.searchers import Searcher, Values, make_searcher
from adray.sweep.waves import INTERRUPTED, run_trials, workers

if TYPE_CHECKING:
    import pandas as pd

_REDUCTION = 3
"""Of the settings that reached a rung of categories, one in this many goes on."""
_ASKS = 10
"""A searcher may propose known settings up to this many times as often as there are settings wanted."""


def run_search(config: SweepConfig, options: RunOptions) -> int:
    """Search the hyperparameters of each of the grid's models, and write the winners and the report.

    Args:
        config: a sweep with a `search`.
        options: of the command line.

    Returns:
        Exit code: 0 each search has a winner, 1 one has none or a trial failed with ``--fail-fast``, 2 files are
        missing, 130 interrupted.

    Raises:
        InputError: for spaces, objectives and categories that cannot be meant, and for ``--only``.
    """
    if options.only:
        raise InputError(
            f"--only {' '.join(options.only)} cannot choose among the tries of a search, which are compared on the "
            "same cells; narrow grid.models or grid.datasets instead"
        )
    settings = prepare_data(config)
    use_settings(settings)
    searches = [
        Search(config, settings, options, name) for name in ModelRegistry.select(config.grid.models)
    ]
    plan = _joined([search.plan(search.known[:1]) for search in searches])
    problems, remarks = check_site(plan, config, settings)
    problems += plan.problems
    print(
        "\n".join(
            [search.describe() for search in searches] + [f"  {remark}" for remark in remarks]
        )
    )
    if problems and not options.skip_missing:
        print("".join(f"error: {problem}\n" for problem in problems), end="", file=sys.stderr)
        print(
            "nothing was started; mend these, or go on without such cells with --skip-missing",
            file=sys.stderr,
        )
        return 2
    if options.dry_run:
        return 0
    sweep = Sweep(config, settings, options, plan)
    open_store(sweep)
    try:
        with workers(sweep) as site:
            for search in searches:
                search.run(site)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; what is finished is kept. To go on: {options.command}", file=sys.stderr
        )
        return INTERRUPTED
    except _FirstFailureError:
        print(
            "stopped at the first failure, as --fail-fast asks; what is finished is kept",
            file=sys.stderr,
        )
        return 1
    finally:
        _write_page(config, settings, searches)
    won = [search.finish() for search in searches]
    print(f"report.html and winners in {searches[0].folder}")
    return 0 if all(won) else 1


class _FirstFailureError(Exception):
    """A trial failed, and ``--fail-fast`` asks to stop there."""


class _Batch(Sweep):
    """The trials of some settings; their tables are the search's page, which is written after each batch."""

    def write_tables(self, progress: dict[str, Any] | None = None) -> pd.DataFrame:
        """Nothing: tries of a search stand in no leaderboard."""
        import pandas as pd

        return pd.DataFrame()


@dataclass
class Tried:
    """One setting.

    Attributes:
        values: dotted name to value.
        folders: of its trials, one per cell, as far as they were planned.
        status: ``waiting``, ``done``, ``failed``, or ``stopped`` by the scheduler.
        reason: why it failed.
        score: mean of the metric over all cells, higher is better; None unless done.
    """

    values: dict[str, Any]
    folders: list[Path] = field(default_factory=list)
    status: str = "waiting"
    reason: str = ""
    score: float | None = None


class Search:
    """The search of one configuration.

    Args:
        config: the sweep, with its `search`.
        settings: with absolute paths.
        options: of the command line.
        configuration: name in the registry.

    Raises:
        InputError: for a space, an objective or categories that cannot be meant.
    """

    def __init__(
        self, config: SweepConfig, settings: Settings, options: RunOptions, configuration: str
    ) -> None:
        assert config.search is not None
        self.config, self.settings, self.options, self.configuration = (
            config,
            settings,
            options,
            configuration,
        )
        self.how: SearchConfig = config.search
        self.space: SearchSpace = load_space(self.how.space, configuration)
        self.base: Resolved = resolve(config, configuration)
        _check(self.how, self.base)
        self.problems: dict[str, None] = {}
        self.cells = self._cells()
        self.searcher: Searcher = make_searcher(self.how, self.space)
        self.known = [Tried(values_of(self.space, self.base))]
        """Settings in the order in which they were tried, the defaults first."""
        self.journal = Journal(self.folder / f"search-{configuration}.jsonl", self._key())

    @property
    def folder(self) -> Path:
        """Where the journal, the winner and the report go."""
        return Path(self.settings.output_dir) / "sweeps" / self.config.name

    @property
    def leaky(self) -> bool:
        """Whether the search chooses by the images that later judge."""
        return self.how.objective == "test"

    def describe(self) -> str:
        """One line on what will be tried, and what it is judged by."""
        names = ", ".join(self.space.domains)
        judged = {"synthetic": "defects drawn on held-out normals", "test": "the test set: LEAKY"}
        by = judged.get(self.how.objective, f"the test images of {', '.join(self.how.categories)}")
        return (
            f"search of {self.configuration}: up to {self.how.num_samples} settings of {names} ({self.how.searcher}, "
            f"{self.how.scheduler}) on {len(self.cells)} cells, {self.how.metric} on {by}"
        )

    # Running

    def run(self, site: Site) -> None:
        """Try settings until there are enough, what the store has not being run again."""
        self._run(self.known, site)
        for (
            batch
        ) in self.journal.asked():  # as they were: who goes on depends on who was in the same batch
            self._try(batch, site)
        size = (
            self.how.num_samples
            if self.how.searcher != "optuna"
            else max(2, site.gpus or site.cpus)
        )
        asks = 0
        while (
            left := self.how.num_samples - len(self.known)
        ) > 0 and asks < _ASKS * self.how.num_samples:
            proposed = self.searcher.ask(min(left, size))
            if not proposed:
                break
            asks += len(proposed)
            self._try(proposed, site)

    def _try(self, proposed: Sequence[Values], site: Site) -> None:
        """Run those of some settings that are not known yet; the journal has them before."""
        batch = [tried for values in proposed if (tried := self._add(values)) is not None]
        self.journal.ask([tried.values for tried in batch])
        self._run(batch, site)

    def _add(self, values: Values) -> Tried | None:
        """A setting to be tried, None where it is known."""
        for tried in self.known:
            if tried.values == values:
                if tried.status != "waiting":  # else its twin in the same batch will be told
                    self.searcher.tell(values, tried.score)
                return None
        self.known.append(Tried(dict(values)))
        return self.known[-1]

    def _run(self, batch: Sequence[Tried], site: Site) -> None:
        alive = list(batch)
        stages = self._stages()
        for cells, following in zip(stages, [*stages[1:], None], strict=True):
            if not alive:
                break
            watched = self._is_watched and following is not None
            self._run_cells(alive, cells, watched, site)
            alive = [tried for tried in alive if tried.status == "waiting"]
            if following is not None and not watched:
                alive = self._halve(alive, cells)
        for tried in alive:
            tried.status, tried.score = "done", self._score(tried)
        for tried in batch:
            self.searcher.tell(tried.values, tried.score)

    def _stages(self) -> list[int]:
        """How many cells a setting has run on at each rung; a setting that falls behind runs on no more."""
        total = len(self.cells)
        if self.how.scheduler == "none":
            return [total]
        if self._is_watched:
            return [1, total]
        return (
            [*(_REDUCTION**i for i in range(math.ceil(math.log(total, _REDUCTION)))), total]
            if total > 1
            else [1]
        )

    @property
    def _is_watched(self) -> bool:
        """Whether ASHA looks at the epochs of trained models, rather than at categories."""
        return (
            self.how.scheduler == "asha"
            and not ModelRegistry.trainer_class(self.configuration).single_pass
        )

    def _run_cells(self, batch: Sequence[Tried], cells: int, watched: bool, site: Site) -> None:
        """Run some settings on the first cells; who failed there, or was stopped, is marked."""
        plan = self.plan(batch, cells, watched)
        stopped = self.journal.stopped()
        wanted = tuple(trial for trial in plan.trials if trial.id8 not in stopped)
        sweep = _Batch(self.config, self.settings, self.options, replace(plan, trials=wanted))
        if sweep.wanted():
            work = run_trials(sweep, site)
            for id8, last in work.pruned.items():
                self.journal.stop(id8, last)
            if work.stopped:
                raise _FirstFailureError
        stopped = self.journal.stopped()
        reasons = sweep.unrecorded | {trial.id8: trial.reason for trial in plan.of("impossible")}
        for tried in batch:
            self._mark(tried, cells, stopped, reasons)

    def _mark(
        self, tried: Tried, cells: int, stopped: Mapping[str, Any], reasons: Mapping[str, str]
    ) -> None:
        if len(tried.folders) < cells:
            tried.status, tried.reason = "failed", reasons.get("", "it cannot run")
        for folder in tried.folders[:cells]:
            record = read_trial(folder)
            if folder.name in stopped:
                tried.status = "stopped"
            elif record is None or record.status != "done":
                failure = (record.failure or {}) if record is not None else {}
                tried.status, tried.reason = (
                    "failed",
                    failure.get("reason") or reasons.get(folder.name, "no result"),
                )

    def _halve(self, alive: list[Tried], cells: int) -> list[Tried]:
        """The best third by the mean over the cells so far; the defaults always go on."""
        ranked = sorted(alive, key=lambda tried: -self._mean(tried, cells))
        kept = ranked[: max(1, math.ceil(len(ranked) / _REDUCTION))]
        for tried in alive:
            if tried not in kept and tried is not self.known[0]:
                tried.status = "stopped"
        return [tried for tried in alive if tried.status == "waiting"]

    def _score(self, tried: Tried) -> float | None:
        score = self._mean(tried, len(self.cells))
        return score if math.isfinite(score) else None

    def _mean(self, tried: Tried, cells: int) -> float:
        """Mean of the metric over the first cells, higher is better; minus infinity where one has none."""
        found = [read_trial(folder) for folder in tried.folders[:cells]]
        values = [
            (record.result or {}).get("metrics", {}).get(self.how.metric)
            for record in found
            if record
        ]
        if len(values) < cells or any(value is None for value in values):
            return -math.inf
        sign = 1 if METRICS[self.how.metric].higher_is_better else -1
        return sign * float(np.mean(values))

    # What is tried

    def plan(self, batch: Sequence[Tried], cells: int | None = None, watched: bool = False) -> Plan:
        """The trials of some settings on the first cells, all of them where None; each setting learns its folders."""
        jobs = [[self._job(tried, cell) for cell in self.cells[:cells]] for tried in batch]
        plan = plan_jobs([job for own in jobs for job in own], self.settings, dict(self.problems))
        planned = {repr(trial.job): trial for trial in plan.trials}
        marked = []
        for tried, own in zip(batch, jobs, strict=True):
            trials = [
                planned[repr(job)] for job in own if repr(job) in planned
            ]  # what cannot run counts once
            tried.folders = [trial.folder for trial in trials if trial.folder]
            # The defaults scored on the test set are a trial like any other, which later sweeps may show.
            name = (
                "" if tried is self.known[0] and own[0].evaluation == "test" else self.config.name
            )
            marked += [
                replace(t, search=name, leaky=self.leaky and bool(name), watched=watched)
                for t in trials
            ]
        return replace(plan, trials=tuple(marked))

    def _job(self, tried: Tried, cell: Job) -> Job:
        changes = as_overrides(tried.values)
        train = to_plain(self.base.train_config) | changes.get("train", {})
        if "train.num_epochs" in tried.values and "train.max_steps" not in tried.values:
            train["max_steps"] = None
        model = to_plain(self.base.config) | changes.get("model", {})
        return replace(
            cell, resolved=ModelRegistry.resolve(self.configuration, train=train, model=model)
        )

    def _cells(self) -> list[Job]:
        """One job with the defaults for each category and seed that the search looks at."""
        grid = replace(self.config.grid, models=(self.configuration,))
        jobs = list(expand(replace(self.config, grid=grid), self.settings, self.problems))
        wanted = self.how.categories
        names = sorted({name for job in jobs for name in job.categories})
        for name in wanted:
            if name not in names:
                raise InputError(
                    f"search.categories: {name!r} is in no cell of the grid; {nearest(name, names)}"
                )
        if wanted and set(names) <= set(wanted):
            raise InputError(
                "search.categories names every category of the grid, so none is left that the winner could be held to; "
                "name fewer"
            )
        evaluation = "synthetic" if self.how.objective == "synthetic" else "test"
        return [
            replace(job, evaluation=evaluation)
            for job in jobs
            if not wanted or set(job.categories) <= set(wanted)
        ]

    def _key(self) -> str:
        """What a journal belongs to: another space, objective or grid begins a new one."""
        cells = [[*job.datasets, *job.categories, job.seed, job.evaluation] for job in self.cells]
        how = {name: value for name, value in to_plain(self.how).items() if name != "num_samples"}
        space = {name: to_plain(domain) for name, domain in self.space.domains.items()}
        return canonical_hash(
            {"how": how | {"space": space}, "cells": cells, "base": self.known[0].values}
        )

    # What came out

    def best(self) -> Tried | None:
        """The setting with the highest score; of equal ones the first, which may be the defaults."""
        done = [tried for tried in self.known if tried.score is not None]
        return max(done, key=lambda tried: tried.score or -math.inf) if done else None

    def gain(self) -> Gain | None:
        """See `search_gain`; None for other metrics than image AUROC, and where there are too few images."""
        done = [tried for tried in self.known if tried.score is not None]
        if self.how.metric != "image_auroc" or len(done) < 2 or self.known[0] not in done:
            return None
        numbers: dict[str, int] = {}
        judging = self._unseen() or range(len(self.cells))
        cells = [_cell_scores([tried.folders[i] for tried in done], numbers) for i in judging]
        return (
            search_gain([cell for cell in cells if cell], 0, self.how.seed) if all(cells) else None
        )

    def _unseen(self) -> list[int]:
        """The cells whose images stopped no setting; who got through looks too good on the others."""
        stages = self._stages()
        begun = (
            stages[-2]
            if len(stages) > 1 and any(tried.status == "stopped" for tried in self.known)
            else 0
        )
        seen = {(job.datasets, job.categories) for job in self.cells[:begun]}
        return [i for i, job in enumerate(self.cells) if (job.datasets, job.categories) not in seen]

    def _note(self, gain: Gain | None) -> str:
        """What has to be known of the gain."""
        if gain is None:
            return "no gain is stated: it needs image_auroc, the defaults' score and more images"
        if not self._unseen():
            return "settings were stopped early by these same images, so the gain looks larger than it is"
        return ""

    def summary(self) -> dict[str, Any]:
        """What the report shows, see `adray.results.report.report_data`."""
        best, gain = self.best() or self.known[0], self.gain()
        return {
            "configuration": self.configuration,
            "objective": self.how.objective,
            "leaky": self.leaky,
            "metric": self.how.metric,
            "num_trials": len(self.known),
            "best": best.values,
            "defaults": self.known[0].values,
            "best_score": best.score,
            "default_score": self.known[0].score,
            "gain": gain.value if gain else None,
            "low": gain.low if gain else None,
            "high": gain.high if gain else None,
            "note": self._note(gain),
            "trials": [
                {
                    "id": tried.folders[0].name if tried.folders else "",
                    "values": tried.values,
                    "score": tried.score,
                    "status": tried.status,
                    "reason": tried.reason,
                }
                for tried in self.known
            ],
        }

    def finish(self) -> bool:
        """Say what came out and write the winner; False where no setting has a score."""
        best, summary = self.best(), self.summary()
        if best is None:
            print(
                f"{self.configuration}: no setting has a score; {self.known[0].reason or 'see the report'}"
            )
            return False
        changed = {
            name: value
            for name, value in best.values.items()
            if value != self.known[0].values[name]
        }
        told = ", ".join(f"{name}={value}" for name, value in changed.items()) or "the defaults"
        leaky = " LEAKY: chosen on the test set" if self.leaky else ""
        print(f"{self.configuration}: best {told}; {self.how.metric} {_figures(summary)}{leaky}")
        with atomic_path(self.folder / f"best_{self.configuration}.yaml") as temporary:
            temporary.write_text(self._winner(changed, summary), encoding="utf-8")
        return True

    def _winner(self, changed: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
        """A file that a normal sweep reads, with what differs from the defaults."""
        plain = {key: value for key, value in to_plain(self.config).items() if key != "search"}
        overrides = {**plain["overrides"]}
        own = overrides.pop(self.configuration, {})
        merged = {
            key: own.get(key, {}) | as_overrides(changed).get(key, {}) for key in ("train", "model")
        }
        plain["overrides"] = {
            **overrides,
            self.configuration: {key: value for key, value in merged.items() if value},
        }
        plain["name"] = f"{self.config.name}_best_{self.configuration}"
        plain["grid"]["models"] = [self.configuration]
        plain["grid"]["exclude"] += (
            [{"categories": list(self.how.categories)}] if self.how.categories else []
        )
        plain["settings"] = to_plain(self.settings)
        lines = [
            f"# Best of {summary['num_trials']} settings of {self.configuration}, search {self.config.name}.",
            f"# objective: {self.how.objective}, {self.how.metric} {_figures(summary)}",
        ]
        if self.leaky:
            lines.append(
                "# LEAKY: chosen on the test set, so what this sweep reports on it is too good."
            )
        return "\n".join(lines) + "\n" + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def _check(how: SearchConfig, base: Resolved) -> None:
    if how.metric not in METRICS:
        raise InputError(
            f"search.metric {how.metric!r} is not known; {nearest(how.metric, METRICS)}"
        )
    trained = not ModelRegistry.trainer_class(base.spec.name).single_pass
    if (
        how.scheduler == "asha"
        and trained
        and (how.objective, how.metric) != ("synthetic", "image_auroc")
    ):
        raise InputError(
            f"search.scheduler asha watches the epochs of {base.spec.name} by image_auroc on synthetic defects; "
            "set objective: synthetic and metric: image_auroc, or scheduler: none"
        )


def _joined(plans: Sequence[Plan]) -> Plan:
    """One plan of several; a trial that two of them want counts once."""
    trials: dict[object, PlannedTrial] = {}
    for plan in plans:
        for trial in plan.trials:
            trials.setdefault(trial.folder or (trial.cell, trial.reason), trial)
    problems = dict.fromkeys(problem for plan in plans for problem in plan.problems)
    remarks = dict.fromkeys(remark for plan in plans for remark in plan.remarks)
    return Plan(tuple(trials.values()), tuple(problems), tuple(remarks))


def _cell_scores(folders: Sequence[Path], numbers: dict[str, int]) -> CellScores | None:
    """The scores of all tries on the images that the objective looked at; None where files are missing or differ.

    Args:
        folders: one trial per try.
        numbers: of images by path, the same in all cells; further ones join them.
    """
    tables = [_objective_rows(folder) for folder in folders]
    first = tables[0]
    if first is None or any(t is None or not t["path"].equals(first["path"]) for t in tables):
        return None
    unit = np.array(
        [numbers.setdefault(path.partition("#")[0], len(numbers)) for path in first["path"]]
    )
    return CellScores(
        np.stack([t["pred_score"].to_numpy() for t in tables if t is not None]),
        first["label"].to_numpy(),
        unit,
    )


def _objective_rows(folder: Path) -> pd.DataFrame | None:
    scores = read_scores(folder)
    if scores is None:
        return None
    synthetic = (scores["split"] == "synthetic").any()
    rows = scores[scores["split"].isin(["synthetic", "holdout"] if synthetic else ["test"])]
    return rows.sort_values("path", ignore_index=True)


def _figures(summary: Mapping[str, Any]) -> str:
    """Score against the defaults', and the gain with its spread."""
    scores = [
        f"{s:.4f}" if s is not None else "n/a"
        for s in (summary["default_score"], summary["best_score"])
    ]
    if summary["gain"] is None:
        return f"{scores[0]} (defaults) -> {scores[1]}"
    gain = f"{summary['gain']:+.4f} (95 % interval {summary['low']:+.4f} to {summary['high']:+.4f})"
    sure = "" if summary["low"] > 0 else ", not beyond its error"
    where, note = (
        ("", f"; {summary['note']}") if summary["note"] else (" on images that did not choose", "")
    )
    return f"{scores[0]} (defaults) -> {scores[1]}; gain{where} {gain}{sure}{note}"


def _write_page(config: SweepConfig, settings: Settings, searches: Sequence[Search]) -> None:
    """The search's report; a full disk costs the page, not the search."""
    folder = searches[0].folder
    try:
        data = report_data(
            config.name, [], [], base=folder, searches=[search.summary() for search in searches]
        )
        write_report(folder / "report.html", data)
    except OSError as error:
        print(f"warning: {folder / 'report.html'} is not written: {error}", file=sys.stderr)
