"""The rounds of Ray Tune trials that a sweep runs in, until each trial has a result or a failure.

What may succeed another time runs again in a later round: out of memory at its next retry level, an
unreachable store once it is back, what another sweep works on until that has a result, and what
failed on a device that was put aside.

Ray's memory monitor may kill several trials at once, the culprit among them, and one such kill ends
a whole round. So trials that crashed without a log, or that such an end interrupted, run again,
each alone, after all others. `adray.sweep.retries` decides; here it is done.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from adray.errors import InputError
from adray.files import canonical_hash
from adray.machine import host_identity
from adray.results.store import partials_of, progress_file, read_if_reachable
from adray.sweep.assignment import (
    Assignment,
    Outcome,
    PlacedTrial,
    Processes,
    assign,
    at_retry_level,
)
from adray.sweep.cards import selector
from adray.sweep.costs import CostModel, hang_limit
from adray.sweep.devices import DeviceWatch, hold
from adray.sweep.overdue import Overdue, kill_on_node
from adray.sweep.plan import Plan
from adray.sweep.progress import Progress
from adray.sweep.resources import RETRY_LEVELS, Site, share_at
from adray.sweep.retries import KILLED, LOST_NODE, NextStep, next_step
from adray.sweep.schedule import Scheduled, in_order, is_short, most_gpus
from adray.sweep.session import scratch_folder
from adray.sweep.sharing import sharings
from adray.sweep.sweep import Sweep
from adray.sweep.worker import log_explains, outcome_of, record_crash, store_is_there
from adray.types import Json

_TRIALS_PER_TUNER = 1000
_OTHER_SWEEP_SECONDS = 5.0
"""Pause before looking again for the results of another sweep, when nothing else is left to do."""
_STORE_SECONDS = 120.0


def run_rounds(sweep: Sweep, site: Site) -> Rounds:
    """Run the sweep's trials on a Ray that is there already.

    Raises:
        InputError: where the store is gone and does not come back.
    """
    rounds = Rounds(sweep, site)
    with closing(rounds.progress):
        while trials := rounds.next_round():
            error = rounds.run(trials)
            if rounds.stops:
                break
            wait_for_store(sweep)
            rounds.sort_out(trials, error)
            rounds.put_bad_devices_aside()
            rounds.give_others_time()
    return rounds


def wait_for_store(sweep: Sweep) -> None:
    """Wait while the store is away, for instance a network mount.

    Raises:
        InputError: where it does not come back in time.
    """
    output_dir = sweep.settings.output_dir
    deadline = time.monotonic() + _STORE_SECONDS
    while not store_is_there(output_dir):
        if time.monotonic() > deadline:
            raise InputError(
                f"output folder {output_dir} is gone or cannot be written, and did not come back in "
                f"{_STORE_SECONDS:.0f} s; mount it and run {sweep.options.command} again, what is finished is "
                "kept"
            )
        time.sleep(1.0)


class Rounds:
    """The trials of one run: which wait, which run alone at the end, and what became of the others.

    It is the `adray.sweep.tuner.Listener` of the trials that run.

    Args:
        sweep: whose trials run.
        site: where they run.
    """

    def __init__(self, sweep: Sweep, site: Site) -> None:
        self._sweep = sweep
        self._site = site
        costs = CostModel(sweep.records(), site.device)
        scheduled = in_order(sweep.wanted(), costs, sweep.config.resources, site)
        self._shares = {entry.trial.id8: entry.share for entry in scheduled}

        driver = f"{host_identity()}-{os.getpid()}"
        self._waiting = _assignments(sweep, scheduled, driver)
        self._alone: list[Assignment] = []
        self._is_alone = False
        self._handled: set[str] = set()  # ids of this round that ended for themselves

        self._overdue = Overdue(driver, kill_on_node)
        self._devices = DeviceWatch(spare=site.gpus - most_gpus(scheduled))
        self._held: list[Any] = []
        self.progress = Progress(sweep, {entry.trial.id8: entry.need for entry in scheduled})
        self.stopped_early: dict[str, Outcome] = {}
        """What a search's scheduler stopped, by id, with its last report."""
        self.stops = False
        """Whether a failure ends the sweep."""

    # One round

    def next_round(self) -> list[Assignment]:
        """Take the trials of the next round: all that wait, else one that runs alone, else none."""
        self._handled = set()
        self._is_alone = not self._waiting
        if self._is_alone:
            trials = self._alone[:1]
            del self._alone[:1]
            return trials

        trials = self._waiting
        self._waiting = []
        return trials

    def run(self, trials: Sequence[Assignment]) -> Exception | None:
        """Run some trials to their end, and give what Ray raised in place of one."""
        # Ray reads its environment when it is imported, and a plan needs none of it.
        from adray.sweep.tuner import run_trials

        groups: dict[Processes, list[Assignment]] = {"watched": [], "fresh": [], "reused": []}
        for trial in trials:
            groups[self._processes(trial)].append(trial)

        for processes, group in groups.items():
            for start in range(0, len(group), _TRIALS_PER_TUNER):
                part = group[start : start + _TRIALS_PER_TUNER]
                with scratch_folder(self._sweep) as scratch:
                    placed = [self._placed(trial) for trial in part]
                    error = run_trials(placed, processes, self, scratch)
                if error is not None or self.stops:
                    return error
        return None

    def _processes(self, trial: Assignment) -> Processes:
        """Choose how a trial runs.

        One that ran out of memory gets a fresh process, which has all of it.
        """
        if trial.retry_level:
            return "fresh"
        if trial.watched:
            return "watched"
        return "reused" if is_short(trial.configuration, self._site) else "fresh"

    def _placed(self, trial: Assignment) -> PlacedTrial:
        """Say what a worker may use of its node, and what Ray must find for it."""
        share = share_at(self._shares[trial.id8], RETRY_LEVELS[trial.retry_level], self._site)
        assignment = replace(trial, threads=share.cpu, gpu=share.gpu)
        return PlacedTrial(assignment, share.bundle(), selector(share, self._site))

    # While trials run

    def tick(self) -> None:
        """End the trials that hang."""
        self._overdue.end()

    def started(self, assignment: Assignment) -> None:
        """Take note that a process took up a trial."""
        self._overdue.began(assignment)

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        """Do what is next for a trial that ended for itself."""
        self._overdue.ended(assignment)
        if outcome.status == "crashed":
            outcome = _explained(assignment, outcome)
        self._take(assignment, outcome)

    def sort_out(self, trials: Sequence[Assignment], error: Exception | None) -> None:
        """Do what is next for the trials of a round that ended with it.

        Raises:
            Exception: what Ray raised, where it began with no trial at all.
        """
        left = self._take_what_is_stored(trials)
        if error is None:
            for trial in left:
                self._take(trial, _explained(trial, Outcome("crashed", "silent")))
            return

        started = [trial for trial in left if partials_of(Path(trial.folder))]
        if not started and not self._handled and not self._is_alone:
            raise error
        if started and not self._is_alone:
            why = str(error).partition("\n")[0][:160]
            self.progress.say(
                f"Ray ended all trials ({why}); {len(started)} run again later, alone"
            )
        for trial in left:
            kind = "started" if trial in started else "not_started"
            self._take(trial, Outcome("interrupted", "alone" if self._is_alone else kind))

    def _take_what_is_stored(self, trials: Sequence[Assignment]) -> list[Assignment]:
        """Do what is next for trials that ended in the store unheard, and give those that did not."""
        left = []
        for trial in trials:
            if trial.id8 in self._handled:
                continue
            if _is_settled(trial):
                self._take(trial, outcome_of(read_if_reachable(Path(trial.folder))))
            else:
                left.append(trial)
        return left

    def _take(self, assignment: Assignment, outcome: Outcome) -> None:
        """Do what is next for a trial."""
        outcome = _stored_outcome(assignment, outcome)
        step = next_step(assignment, outcome, recorded=_is_settled(assignment))
        self._handled.add(assignment.id8)
        if step.say:
            self.progress.say(f"{assignment.cell}: {step.say}")

        if step.action == "finish":
            self._devices.note(assignment, worked=True)
            self.progress.done(assignment, outcome)
        elif step.action == "stop":
            self._stop(assignment, outcome)
        elif step.action == "fail":
            self._fail(assignment, outcome, step)
        else:
            self._run_again(assignment, outcome, step)

    def _stop(self, assignment: Assignment, outcome: Outcome) -> None:
        """Keep the last report of a trial that a search's scheduler stopped. Its files go."""
        _remove_partials(assignment)
        progress_file(Path(assignment.folder)).unlink(missing_ok=True)
        self.stopped_early[assignment.id8] = outcome
        self.progress.stopped(assignment, outcome)

    def _fail(self, assignment: Assignment, outcome: Outcome, step: NextStep) -> None:
        """Make a trial a row that says what happened."""
        reason = step.reason
        if outcome.status == "failed":
            self._devices.note(assignment, worked=False)
        else:  # the worker could not write it
            reason = record_crash(assignment, reason)
        if not _is_settled(assignment):
            self._sweep.unrecorded[assignment.id8] = reason
        self.progress.failed(assignment, reason)
        self.stops = self.stops or self._sweep.options.fail_fast

    def _run_again(self, assignment: Assignment, outcome: Outcome, step: NextStep) -> None:
        """Put a trial among those of a later round."""
        if outcome.kind == "node_lost":
            _remove_partials(assignment)
        if step.assignment.retry_level > assignment.retry_level:
            self.progress.out_of_memory(step.assignment)
        queue = self._waiting if step.action == "again" else self._alone
        queue.append(step.assignment)

    # Between two rounds

    def put_bad_devices_aside(self) -> None:
        """Occupy the GPUs on which only failures happen, and run again what failed there."""
        for place, failed in self._devices.put_aside().items():
            again = [replace(trial, attempts=trial.attempts + 1) for trial in failed]
            self._waiting += again
            self.progress.device_put_aside(place, again)

        if len(self._held) < len(self._devices.aside):
            held = hold(self._devices.aside, self._site.gpus)
            self._held += held
            self._site = replace(self._site, gpus=self._site.gpus - len(held))

    def give_others_time(self) -> None:
        """Pause where all that is left is being worked on by another sweep."""
        if self._waiting and all(trial.waits for trial in self._waiting):
            time.sleep(_OTHER_SWEEP_SECONDS)


def _assignments(sweep: Sweep, scheduled: Sequence[Scheduled], driver: str) -> list[Assignment]:
    """Write down what workers get, in the order in which trials should start."""
    config = sweep.config
    shared = sharings(entry.trial for entry in scheduled)
    levels = remembered_levels(sweep.plan)

    found = []
    for entry in scheduled:
        trial = entry.trial
        # Tries of a search are many and are looked at by their figures alone.
        is_of_grid = not trial.search
        assignment = assign(
            trial,
            sweep.settings,
            limit_seconds=hang_limit(entry.need, config.trial_hours, trial.attempts),
            save_maps=config.save_maps if is_of_grid else 0,
            keep_checkpoint=config.keep != "none" and is_of_grid,
            driver=driver,
            sharing=shared.get(trial.id8),
        )
        level = levels.get(_memory_kind(trial.identity), 0)
        found.append(at_retry_level(assignment, level))
    return found


def _stored_outcome(assignment: Assignment, outcome: Outcome) -> Outcome:
    """Correct how a trial ended by what the store shows of it, which alone counts.

    A worker may hear an error, or die, after its result is visible. And it may report a result that
    a file system has lost.
    """
    folder = Path(assignment.folder)
    record = read_if_reachable(folder)
    is_done = record is not None and record.status == "done"
    if is_done == (outcome.status == "done"):
        return outcome
    if is_done:
        return outcome_of(record)

    # NFS shows what another node wrote once the folder above is opened anew.
    with suppress(OSError):
        next(folder.parent.iterdir(), None)
    record = read_if_reachable(folder)
    if record is not None and record.status == "done":
        return outcome
    return Outcome("failed", "io", "its result is not in the store, though it was published")


def _is_settled(assignment: Assignment) -> bool:
    """Tell whether the store has this trial's result, or a failure newer than it started with."""
    record = read_if_reachable(Path(assignment.folder))
    if record is None or record.status == "unfinished":
        return False
    return record.status == "done" or record.attempts > assignment.attempts


def _explained(assignment: Assignment, outcome: Outcome) -> Outcome:
    """Complete a crash by what its log says."""
    if outcome.kind != "explained" and log_explains(assignment):
        outcome = replace(outcome, kind="explained")
    default = LOST_NODE if outcome.kind == "node_lost" else KILLED
    return replace(outcome, reason=outcome.reason or default)


def _remove_partials(assignment: Assignment) -> None:
    """Delete the working folders of a trial."""
    for folder in partials_of(Path(assignment.folder)):
        shutil.rmtree(folder, ignore_errors=True)


def remembered_levels(plan: Plan) -> dict[str, int]:
    """Give the retry level on which trials of a kind start: the highest that one of them needed."""
    levels: dict[str, int] = {}
    for trial in plan.of("done", "failed"):
        if trial.retry_level:
            kind = _memory_kind(trial.identity)
            levels[kind] = max(levels.get(kind, 0), trial.retry_level)
    return levels


def _memory_kind(identity: Json) -> str:
    """Hash what decides how much memory a trial takes, short of the data."""
    return canonical_hash({key: identity[key] for key in ("configuration", "model", "train")})
