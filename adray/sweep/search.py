"""Hyperparameter search: settings are trials of the store, and the best one is kept.

A setting is tried on all categories and seeds of the grid, and its score is the mean over them. By
default the trials leave the test set alone: they are scored on defects drawn on held-out normals.
The defaults are always the first setting, so that a gain over them is measured, and it is measured
on images that did not choose (see `adray.sweep.winner`). What was tried is read off the store, so a
search that was killed goes on by itself. What a scheduler stopped early, and what Optuna proposed,
stands in a journal beside the tables.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adray.config import SearchConfig, SweepConfig, to_plain
from adray.errors import InputError
from adray.fields import Domain
from adray.files import canonical_hash
from adray.job import Job
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.sentence import Sentence, nearest_of
from adray.metrics import METRICS
from adray.registry import ModelRegistry, Resolved
from adray.results.report import report_data, write_report
from adray.results.store import read_trial
from adray.search_space import SearchSpace, Values, load_space, values_of, with_values
from adray.settings import Settings, use_settings
from adray.sweep.assignment import Assignment
from adray.sweep.driver import print_problems
from adray.sweep.plan import Plan, PlannedTrial, expand, plan_jobs, resolve
from adray.sweep.preflight import check_site, prepare_data
from adray.sweep.resources import Site
from adray.sweep.rounds import run_rounds
from adray.sweep.search_journal import Journal
from adray.sweep.searchers import Searcher, make_searcher
from adray.sweep.session import INTERRUPTED, workers
from adray.sweep.sweep import RunOptions, Sweep
from adray.sweep.winner import (
    Tried,
    Tries,
    mean_metric,
    summary_of,
    values_text,
    write_winner,
)
from adray.types import Json

if TYPE_CHECKING:
    import pandas as pd

_REDUCTION = 3
"""Of the settings that reached a stage, one in this many goes on."""
_ASKS = 10
"""A searcher may propose known settings up to this many times as often as there are settings
wanted."""


def run_search(config: SweepConfig, options: RunOptions) -> int:
    """Search the hyperparameters of the grid's models, and write the winners and the report.

    Args:
        config: a sweep with a `search`.
        options: of the command line.

    Returns:
        Exit code: 0 each search has a winner, 1 one has none or a trial failed with
        ``--fail-fast``, 2 files are missing, 130 interrupted.

    Raises:
        InputError: for spaces, objectives and categories that cannot be meant, and for ``--only``.
    """
    if options.only:
        raise InputError(Sentence.of("search only", only=" ".join(options.only)))
    settings = prepare_data(config)
    use_settings(settings)
    names = ModelRegistry.select(config.grid.models)
    searches = [Search(config, settings, options, name) for name in names]

    plan = _joined([search.plan(search.known[:1]) for search in searches])
    problems, remarks = check_site(plan, config, settings)
    problems += plan.problems
    say = load_catalogue(language_of(os.environ))
    for search in searches:
        print(search.describe(say))
    for change in options.changes:
        print(f"  {change}")
    for remark in remarks:
        print(f"  {remark}")
    if problems and not options.skip_missing:
        print_problems(problems, say)
        return 2
    if options.dry_run:
        return 0

    return _run_all(searches, Sweep(config, settings, options, plan), say)


def _run_all(searches: Sequence[Search], sweep: Sweep, say: Catalogue) -> int:
    """Run searches one after the other on one Ray, and choose the exit code.

    Their page is written whatever happens.
    """
    sweep.open_store()
    try:
        with workers(sweep) as site:
            for search in searches:
                search.run(site)
    except KeyboardInterrupt:
        print("\n" + say("sweep interrupted", command=sweep.options.command), file=sys.stderr)
        return INTERRUPTED
    except _FirstFailureError:
        print(say("search first failure"), file=sys.stderr)
        return 1
    finally:
        _write_page(sweep, searches, say)

    won = [write_winner(search.tries(), search.folder, say) for search in searches]
    print(say("search written", folder=sweep.folder))
    return 0 if all(won) else 1


class _FirstFailureError(Exception):
    """A trial failed, and ``--fail-fast`` asks to stop there."""


@dataclass
class _Batch(Sweep):
    """The trials of some settings, whose tables are the page of the search."""

    search: Search | None = None
    """Knows of which setting a trial is."""

    def said_of(self, assignment: Assignment) -> str:
        """Say which setting of the search a trial was of, and the best of all so far."""
        assert self.search is not None, "a batch is of a search"
        return self.search.said_of(Path(assignment.folder))

    def write_tables(self, progress: Mapping[str, float] | None = None) -> pd.DataFrame:
        """Write nothing: tries of a search stand in no leaderboard."""
        import pandas as pd

        return pd.DataFrame()


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
        self.config = config
        self.settings = settings
        self.options = options
        self.configuration = configuration
        self.how: SearchConfig = config.search

        self.space: SearchSpace = load_space(self.how.space, configuration)
        self.base: Resolved = resolve(config, configuration)
        _check(self.how, self.base)
        self.problems: dict[str, None] = {}
        self.cells = self._cells()
        self.searcher: Searcher = make_searcher(self.how, self.space)
        self.known = [Tried(values_of(self.space, self.base))]
        """Settings in the order in which they were tried, the defaults first."""
        self._highest = -math.inf  # of the means over all cells so far
        self.journal = Journal(self.folder / f"search-{configuration}.jsonl", self._key())

    @property
    def folder(self) -> Path:
        """Name the folder of the journal, the winner and the report."""
        return Path(self.settings.output_dir) / "sweeps" / self.config.name

    def describe(self, say: Catalogue) -> str:
        """Say on one line what will be tried, and what it is judged by."""
        return say(
            "search plan",
            name=self.configuration,
            settings=self.how.num_samples,
            names=", ".join(self.space.domains),
            how=f"{self.how.searcher}, {self.how.scheduler}",
            cells=len(self.cells),
            metric=self.how.metric,
            judged=say(f"search judged {self.how.objective}", names=", ".join(self.how.categories)),
        )

    def said_of(self, folder: Path) -> str:
        """Say which setting a trial that ended was of, what it changes, and the best of all so far.

        Args:
            folder: of the trial.
        """
        say = load_catalogue(language_of(os.environ))
        number, tried = next((k, one) for k, one in enumerate(self.known) if folder in one.folders)
        values = values_text(tried.values, self.known[0].values) or say("search defaults")

        self._highest = max(self._highest, self._mean(tried))
        best = f"{self._highest:.4f}" if math.isfinite(self._highest) else "n/a"
        total = max(self.how.num_samples, len(self.known))
        return say("search trial", number=number + 1, total=total, values=values, best=best)

    def _mean(self, tried: Tried) -> float:
        """Average the metric of a setting over all cells, minus infinity where one has none."""
        return mean_metric(tried, len(self.cells), self.how.metric)

    def tries(self) -> Tries:
        """Give what was tried so far."""
        return Tries(
            self.config,
            self.settings,
            self.base,
            self.how,
            self.cells,
            self._stages(),
            self.known,
        )

    def summary(self) -> Json:
        """Give what the report shows. JSON."""
        return summary_of(self.tries())

    # Running

    def run(self, site: Site) -> None:
        """Try settings until there are enough. What the store has is not run again."""
        self._run(self.known, site)
        # As they were before: who goes on depends on who was in the same batch.
        for batch in self.journal.asked():
            self._try(batch, site)

        size = self.how.num_samples
        if self.how.searcher == "optuna":  # learns between batches
            size = max(2, site.gpus or site.cpus)
        asks = 0
        most_asks = _ASKS * self.how.num_samples
        while len(self.known) < self.how.num_samples and asks < most_asks:
            proposed = self.searcher.ask(min(self.how.num_samples - len(self.known), size))
            if not proposed:
                break
            asks += len(proposed)
            self._try(proposed, site)

    def _try(self, proposed: Sequence[Values], site: Site) -> None:
        """Run those of some settings that are not known yet. The journal has them before."""
        batch = list(filter(None, map(self._add, proposed)))
        self.journal.ask([tried.values for tried in batch])
        self._run(batch, site)

    def _add(self, values: Values) -> Tried | None:
        """Add a setting to be tried, None where it is known."""
        for tried in self.known:
            if tried.values == values:
                if tried.status != "waiting":  # else its score is passed on with the batch
                    self.searcher.tell(values, tried.score)
                return None
        self.known.append(Tried(dict(values)))
        return self.known[-1]

    def _run(self, batch: Sequence[Tried], site: Site) -> None:
        """Run some settings stage by stage, and pass their scores on to the searcher."""
        running = list(batch)
        stages = self._stages()
        for cells, following in zip(stages, [*stages[1:], None], strict=True):
            if not running:
                break
            watched = self._is_watched and following is not None
            self._run_cells(running, cells, watched, site)
            running = _waiting(running)
            if following is not None and not watched:
                running = self._best_third(running, cells)

        for tried in running:
            score = self._mean(tried)
            tried.status = "done"
            tried.score = score if math.isfinite(score) else None
        for tried in batch:
            self.searcher.tell(tried.values, tried.score)

    def _stages(self) -> list[int]:
        """Say how many cells a setting has run on at the end of each stage.

        One that falls behind runs on no more.
        """
        total = len(self.cells)
        if self.how.scheduler == "none" or (total == 1 and not self._is_watched):
            return [total]
        if self._is_watched:
            return [1, total]
        count = math.ceil(math.log(total, _REDUCTION))
        return [*(_REDUCTION**i for i in range(count)), total]

    @property
    def _is_watched(self) -> bool:
        """Tell whether ASHA looks at the epochs of trained models, rather than at categories."""
        is_trained = not ModelRegistry.method(self.configuration).single_pass
        return self.how.scheduler == "asha" and is_trained

    def _run_cells(self, batch: Sequence[Tried], cells: int, watched: bool, site: Site) -> None:
        """Run some settings on the first cells. Who failed there, or was stopped, is marked."""
        plan = self.plan(batch, cells, watched)
        self._highest = max(self._highest, *map(self._mean, batch))
        stopped = self.journal.stopped()
        wanted = tuple(trial for trial in plan.trials if trial.id8 not in stopped)
        part = replace(plan, trials=wanted)
        sweep = _Batch(self.config, self.settings, self.options, part, search=self)
        if sweep.wanted():
            rounds = run_rounds(sweep, site)
            for id8, last in rounds.stopped_early.items():
                self.journal.stop(id8, last.objective, last.percent)
            if rounds.stops:
                raise _FirstFailureError
            if rounds.unread:
                raise InputError(
                    Sentence.of(
                        "search unread",
                        number=len(rounds.unread),
                        reason=next(iter(rounds.unread.values())),
                        command=sweep.options.command,
                    )
                )

        stopped = self.journal.stopped()
        reasons = dict(sweep.unrecorded)
        for trial in plan.of("impossible"):
            reasons[trial.id8] = trial.reason
        for tried in batch:
            _mark(tried, cells, stopped, reasons)

    def _best_third(self, running: list[Tried], cells: int) -> list[Tried]:
        """Keep the best third by the mean over the cells so far. The defaults always go on."""
        ranked = sorted(running, key=lambda tried: -mean_metric(tried, cells, self.how.metric))
        kept = ranked[: max(1, math.ceil(len(ranked) / _REDUCTION))]
        for tried in running:
            if tried not in kept and tried is not self.known[0]:
                tried.status = "stopped"
        return _waiting(running)

    # What is tried

    def plan(self, batch: Sequence[Tried], cells: int | None = None, watched: bool = False) -> Plan:
        """Plan the trials of some settings on the first cells. Each setting is given its folders.

        Args:
            batch: the settings.
            cells: number of cells, all where None.
            watched: whether a scheduler may stop them between epochs.
        """
        jobs_of = [[self._job(tried, cell) for cell in self.cells[:cells]] for tried in batch]
        all_jobs: list[Job] = []
        for jobs in jobs_of:
            all_jobs += jobs
        plan = plan_jobs(all_jobs, self.settings, dict(self.problems))
        planned = {repr(trial.job): trial for trial in plan.trials}

        marked: list[PlannedTrial] = []
        for tried, jobs in zip(batch, jobs_of, strict=True):
            # What cannot run counts once.
            trials = [planned[repr(job)] for job in jobs if repr(job) in planned]
            tried.folders = [trial.folder for trial in trials if trial.folder]
            # The defaults scored on the test set are a trial like any other, which later sweeps may
            # show.
            is_ordinary = tried is self.known[0] and jobs[0].evaluation == "test"
            name = "" if is_ordinary else self.config.name
            leaky = self.how.objective == "test" and not is_ordinary
            marked += [replace(t, search=name, leaky=leaky, watched=watched) for t in trials]
        return replace(plan, trials=tuple(marked))

    def _job(self, tried: Tried, cell: Job) -> Job:
        """Make the job of a setting on a cell."""
        return replace(cell, resolved=with_values(self.base, tried.values))

    def _cells(self) -> list[Job]:
        """Make one job with the defaults for each category and seed that the search looks at."""
        grid = replace(self.config.grid, models=(self.configuration,))
        config = replace(self.config, grid=grid)
        jobs = list(expand(config, self.settings, self.problems))

        wanted = self.how.categories
        names = _categories(jobs)
        for name in wanted:
            if name not in names:
                raise InputError(
                    Sentence.of(
                        "search no category", name=repr(name), nearest=nearest_of(name, names)
                    )
                )
        if wanted and set(names) <= set(wanted):
            raise InputError(Sentence.of("search all categories"))

        evaluation = "synthetic" if self.how.objective == "synthetic" else "test"
        looked_at = [job for job in jobs if not wanted or set(job.categories) <= set(wanted)]
        return [replace(job, evaluation=evaluation) for job in looked_at]

    def _key(self) -> str:
        """Hash what a journal belongs to: another space, objective or grid starts a new one."""
        how = to_plain(self.how)
        del how["num_samples"]  # more of them continue the same search
        how["space"] = {name: _without_note(domain) for name, domain in self.space.domains.items()}
        cells = [[*job.datasets, *job.categories, job.seed, job.evaluation] for job in self.cells]
        return canonical_hash({"how": how, "cells": cells, "base": self.known[0].values})


def _waiting(some: Iterable[Tried]) -> list[Tried]:
    """Choose those that go on."""
    return [tried for tried in some if tried.status == "waiting"]


def _without_note(domain: Domain) -> Json:
    """Give what a domain allows. JSON."""
    plain = to_plain(domain)
    del plain["note"]
    return plain


def _categories(jobs: Sequence[Job]) -> list[str]:
    """List the categories of some jobs, each once."""
    names: set[str] = set()
    for job in jobs:
        names |= set(job.categories)
    return sorted(names)


def _mark(tried: Tried, cells: int, stopped: set[str], reasons: Mapping[str, str]) -> None:
    """Mark a setting that failed on one of its first cells, or was stopped there.

    Args:
        tried: the setting.
        cells: how many of them it ran on.
        stopped: ids of trials that the scheduler stopped.
        reasons: why trials failed that left nothing in the store, by id; under "" what could not
            even be planned.
    """
    if len(tried.folders) < cells:
        tried.status = "failed"
        tried.reason = reasons.get("", "it cannot run")
    for folder in tried.folders[:cells]:
        record = read_trial(folder)
        if folder.name in stopped:
            tried.status = "stopped"
        elif record is None or record.status != "done":
            said = record.reason if record is not None else ""
            tried.status = "failed"
            tried.reason = said or reasons.get(folder.name, "no result")


def _check(how: SearchConfig, base: Resolved) -> None:
    """Refuse a metric that is none, and one that the scheduler cannot watch."""
    if how.metric not in METRICS:
        raise InputError(
            Sentence.of(
                "search metric", metric=repr(how.metric), nearest=nearest_of(how.metric, METRICS)
            )
        )
    is_trained = not ModelRegistry.method(base.spec.name).single_pass
    can_watch = (how.objective, how.metric) == ("synthetic", "image_auroc")
    if how.scheduler == "asha" and is_trained and not can_watch:
        raise InputError(Sentence.of("search asha", name=base.spec.name))


def _joined(plans: Sequence[Plan]) -> Plan:
    """Make one plan of several. A trial that two of them want counts once."""
    trials: dict[object, PlannedTrial] = {}
    problems: dict[str, None] = {}
    remarks: dict[str, None] = {}
    for plan in plans:
        for trial in plan.trials:
            trials.setdefault(trial.folder or (trial.cell, trial.reason), trial)
        problems |= dict.fromkeys(plan.problems)
        remarks |= dict.fromkeys(plan.remarks)
    return Plan(tuple(trials.values()), tuple(problems), tuple(remarks))


def _write_page(sweep: Sweep, searches: Sequence[Search], say: Catalogue) -> None:
    """Write the search's report. A full disk costs the page, not the search."""
    page = sweep.folder / "report.html"
    summaries = [search.summary() for search in searches]
    try:
        data = report_data(sweep.config.name, [], [], base=sweep.folder, searches=summaries)
        write_report(page, data)
    except OSError as error:
        print(say("warning page", page=page, error=error), file=sys.stderr)
