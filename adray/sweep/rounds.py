"""The rounds of Ray Tune trials that a sweep runs in, until each trial has a result or a failure.

What may succeed another time runs again in a later round: out of memory at its next retry level, an
unreachable store once it is back, what another sweep works on until that has a result, and what
failed on a device that was put aside.

Ray's memory monitor may kill several trials at once, the culprit among them, and one such kill ends
a whole round. So trials that crashed without a log, or that such an end interrupted, run again,
each alone, after all others. `adray.sweep.retries` decides; here it is done.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from adray.config import SweepConfig
from adray.errors import InputError
from adray.files import canonical_hash
from adray.job import CheckpointKind
from adray.language.catalogue import spoken
from adray.language.sentence import Sentence
from adray.machine import host_identity
from adray.results.store import partials_of, progress_file, read_if_reachable, read_trial
from adray.sweep.assignment import Assignment, Outcome, PlacedTrial, assign, at_retry_level
from adray.sweep.cards import NODE_LABEL
from adray.sweep.costs import CostModel, hang_limit
from adray.sweep.devices import DeviceWatch
from adray.sweep.nodes import living_nodes
from adray.sweep.overdue import Overdue, kill_on_node
from adray.sweep.patience import raylet_runs
from adray.sweep.placement import Place, Placed, Queue
from adray.sweep.plan import Plan
from adray.sweep.progress import Progress
from adray.sweep.resources import RETRY_LEVELS, Share, Site, share_at
from adray.sweep.retries import KILLED, LOST_NODE, NextStep, next_step
from adray.sweep.schedule import Scheduled, in_order, is_short, most_gpus
from adray.sweep.second_worker import SecondWorker
from adray.sweep.session import scratch_folder
from adray.sweep.sharing import sharings
from adray.sweep.sweep import Sweep
from adray.sweep.worker import log_explains, outcome_of, record_crash, store_is_there
from adray.types import Json

_TRIALS_PER_TUNER = 1000
_WARM_TAG = 1
_FRESH_TAG = 1000
"""Bytes beyond a trial's memory, from which Ray tells processes apart: one more for each GPU, and
from here on one more for each trial with a process of its own."""
_AHEAD = 2
"""Without GPUs Ray is given this many times as many trials as run at a time."""
_ALIVE_SECONDS = 10.0
"""Pause between two looks at which nodes are alive."""
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
                rounds.look_again()
                break
            if isinstance(error, RayEndedError):
                raise error
            wait_for_store(sweep)
            rounds.sort_out(trials, error)
            rounds.look_again()
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
                Sentence.of(
                    "sweep output gone",
                    output_dir=output_dir,
                    store_seconds=f"{_STORE_SECONDS:.0f}",
                    command=sweep.options.command,
                )
            )
        time.sleep(1.0)


class RayEndedError(InputError):
    """Ray's own process on this machine is gone, for which Tune would wait for ever."""


class Rounds:
    """The trials of one run: which wait, which run alone at the end, and what became of the others.

    It is the `adray.sweep.tuner.Source` of the trials that run.

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
        self._seconds = {entry.trial.id8: entry.need.seconds for entry in scheduled}

        driver = f"{host_identity()}-{os.getpid()}"
        self._waiting = _assignments(sweep, scheduled, driver)
        self._alone: list[Assignment] = []
        self._is_alone = False
        self._handled: set[str] = set()  # ids of this round that ended for themselves
        self._not_read: list[tuple[Assignment, Outcome]] = []  # ended, while nothing could be read

        self._queue: Queue[Assignment] = Queue((), site)
        self._second_worker = SecondWorker(0.0)
        self._running: dict[str, Placed[Assignment]] = {}
        self._started: set[str] = set()
        self._given = 0  # trials that Ray was given
        self._look_after = 0.0
        self._overdue = Overdue(driver, kill_on_node)
        self._devices = DeviceWatch(spare=site.gpus - most_gpus(scheduled))
        self.progress = Progress(sweep, {entry.trial.id8: entry.need for entry in scheduled})
        self.unread: dict[str, str] = {}
        """Ids of trials that ended and whose files could not be read since, with the reason."""
        self.stopped_early: dict[str, Outcome] = {}
        """What a search's scheduler stopped, by id, with its last report."""
        self._is_failed = False  # whether a failure ends the sweep
        seconds = sweep.options.seconds
        self._deadline = math.inf if seconds is None else sweep.started + seconds

    @property
    def is_out_of_time(self) -> bool:
        """Tell whether the time that the sweep was given is over."""
        return time.monotonic() >= self._deadline

    @property
    def stops(self) -> bool:
        """Tell whether all trials are to end now: after a failure, or out of time."""
        return self._is_failed or self.is_out_of_time

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

        groups: dict[bool, list[Assignment]] = {True: [], False: []}
        for trial in trials:
            groups[trial.watched and not trial.retry_level].append(trial)

        for is_watched, group in groups.items():
            for start in range(0, len(group), _TRIALS_PER_TUNER):
                part = group[start : start + _TRIALS_PER_TUNER]
                self._wait(part)
                with scratch_folder(self._sweep) as scratch:
                    error = run_trials(self, len(part), scratch, watched=is_watched)
                if error is not None or self.stops:
                    return error
        return None

    def _wait(self, trials: Sequence[Assignment]) -> None:
        """Let trials wait at a site where nothing runs."""
        self._site = self._site.without(self._devices.aside)
        site = self._site
        if not site.gpus and not self._sweep.options.address:
            # Ray holds back what does not fit yet, and a warm process finds its next trial there.
            site = Site(0, _AHEAD * site.cpus, _AHEAD * site.memory)
        self._queue = Queue([(trial, self._share(trial)) for trial in trials], site)
        self._second_worker = SecondWorker(sum(self._seconds[trial.id8] for trial in trials))
        self._running = {}
        self._started = set()
        if self._sweep.options.address:
            self._close_nodes_that_left()

    def _share(self, trial: Assignment) -> Share:
        """Give what a trial takes at its retry level."""
        return share_at(self._shares[trial.id8], RETRY_LEVELS[trial.retry_level], self._site)

    def next_trial(self) -> PlacedTrial | None:
        """Give the first trial that fits, with its place. None where none fits for now.

        Raises:
            RuntimeError: where none will ever fit, since nodes have left.
        """
        placed = None if self.is_out_of_time or self._one_is_enough() else self._queue.start()
        if placed is None:
            if self.is_out_of_time:
                return None
            if self._queue.waits and not self._running:
                raise RuntimeError("no node is left that can take the trials that wait")
            return None
        self._running[placed.trial.id8] = placed
        return self._given_to_ray(placed)

    def _one_is_enough(self) -> bool:
        """Tell whether a trial runs and the others may as well wait for its process.

        GPUs never idle for that, and who reports to a scheduler has a process of its own.
        """
        if not self._running or self._site.gpus or self._sweep.options.address:
            return False
        if any(placed.trial.watched for placed in self._running.values()):
            return False
        return not self._second_worker.pays(len(self._queue), time.monotonic())

    def _given_to_ray(self, placed: Placed[Assignment]) -> PlacedTrial:
        """Say what a worker may use of its node, and what Ray must find for it."""
        share = placed.share
        assignment = replace(
            placed.trial,
            threads=share.cpu,
            gpu=share.gpu,
            visible_gpus=self._visible(placed.place),
            neighbours=placed.place.neighbours,
        )
        bundle = {"CPU": float(share.cpu), "memory": float(share.memory + self._tag(placed))}
        node = self._site.parts[placed.place.node]
        labels = [{NODE_LABEL: node.id}] if node.id else None
        return PlacedTrial(assignment, bundle, labels)

    def _visible(self, place: Place) -> str:
        """Name the GPUs of a place as `CUDA_VISIBLE_DEVICES` does."""
        devices = self._site.devices
        return ",".join(devices[number].name for number in place.gpus)

    def _tag(self, placed: Placed[Assignment]) -> int:
        """Give the bytes by which a trial's request differs from those of other processes.

        Short trials on one GPU share warm processes. Long ones get fresh ones, which give all memory
        back, and so do those that ran out of memory.
        """
        self._given += 1
        if placed.trial.retry_level or not is_short(placed.trial.configuration, self._site):
            return _FRESH_TAG + self._given
        first = min(placed.place.gpus, default=-1)
        return _WARM_TAG + first

    # While trials run

    def tick(self) -> None:
        """End the trials that hang, and all where Ray is gone.

        Raises:
            RuntimeError: where a node left before a trial could start there, for which Ray would
                wait for ever.
            RayEndedError: where the process that runs Ray's workers on this machine is gone.
        """
        self._overdue.end()
        self.progress.tick()
        if time.monotonic() <= self._look_after:
            return

        self._look_after = time.monotonic() + _ALIVE_SECONDS
        if not self._sweep.options.address:
            self._look_for_ray()
            return
        gone = self._close_nodes_that_left()
        for id8, placed in self._running.items():
            if placed.place.node in gone and id8 not in self._started:
                raise RuntimeError("a node left before a trial started there")

    def _look_for_ray(self) -> None:
        """Refuse to go on where the raylet of a Ray of our own is gone."""
        if not raylet_runs():
            raise RayEndedError(
                Sentence.of("ray gone", process="raylet", command=self._sweep.options.command)
            )

    def _close_nodes_that_left(self) -> set[int]:
        """Start nothing more on nodes of a cluster that left, and give their numbers."""
        alive = {node["NodeID"] for node in living_nodes()}
        gone = set()
        for number, node in enumerate(self._site.parts):
            if node.id not in alive:
                gone.add(number)
                self._queue.close(number)
        return gone

    def started(self, assignment: Assignment) -> None:
        """Take note that a process took up a trial."""
        self._started.add(assignment.id8)
        self._second_worker.started(assignment.id8, time.monotonic())
        self.progress.started(assignment)
        self._overdue.began(assignment)

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        """Do what is next for a trial that ended for itself."""
        placed = self._running.pop(assignment.id8)
        if outcome.kind == "node_lost":
            self._queue.close(placed.place.node)
        self._queue.end(placed)
        self._second_worker.ended(assignment.id8, time.monotonic())
        self._overdue.ended(assignment)
        # Ray ended it, which is no crash: the same sweep goes on with it another time.
        if self.is_out_of_time and not _is_settled(assignment) and not _why_unread(assignment):
            return
        if outcome.status == "crashed":
            outcome = _explained(assignment, outcome)
        self._take(assignment, outcome)

    def sort_out(self, trials: Sequence[Assignment], error: Exception | None) -> None:
        """Do what is next for the trials of a round that ended with it.

        Raises:
            InputError: where Ray found no disk for its own files.
            Exception: what else Ray raised, where it began with no trial at all.
        """
        left = self._take_what_is_stored(trials)
        if error is None:
            for trial in left:
                self._take(trial, _explained(trial, Outcome("crashed", "silent")))
            return

        started = [trial for trial in left if _has_begun(trial)]
        if not started and not self._handled and not self._is_alone:
            _refuse_full_disk(error)
            raise error
        if started and not self._is_alone:
            why = str(error).partition("\n")[0][:160]
            self.progress.say(spoken("ray ended all", why=why, number=len(started)))
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
        """Do what is next for a trial. One whose files cannot be read is looked at again later."""
        self._handled.add(assignment.id8)
        try:
            outcome = _stored_outcome(assignment, outcome)
        except OSError:
            self._not_read.append((assignment, outcome))
            return

        step = next_step(assignment, outcome, recorded=_is_settled(assignment))
        if step.say is not None:
            self.progress.say_of(assignment, step.say)

        if step.action == "finish":
            self._devices.note(assignment, worked=True)
            self.progress.done(assignment, outcome)
            if outcome.reason:
                self.progress.say(f"{assignment.cell}: {outcome.reason}")
        elif step.action == "stop":
            self._stop(assignment, outcome)
        elif step.action == "fail":
            self._fail(assignment, outcome, step)
        else:
            self._run_again(assignment, outcome, step)

    def look_again(self) -> None:
        """Do what is next for trials that ended while their files could not be read.

        They are looked at for a while. What came of those that cannot be read then, nobody knows.
        """
        deadline = time.monotonic() + _STORE_SECONDS
        while self._not_read:
            assignment, outcome = self._not_read.pop(0)
            reason = _why_unread(assignment)
            while reason and time.monotonic() < deadline:
                time.sleep(1.0)
                reason = _why_unread(assignment)
            if not reason:
                self._take(assignment, outcome)
                continue
            self.unread[assignment.id8] = reason
            self.progress.unread(assignment, reason)

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
        self._is_failed = self._is_failed or self._sweep.options.fail_fast

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
        """Leave out the GPUs on which only failures happen, and run again what failed there."""
        for place, failed in self._devices.put_aside().items():
            again = [replace(trial, attempts=trial.attempts + 1) for trial in failed]
            self._waiting += again
            self.progress.device_put_aside(place, again)

    def give_others_time(self) -> None:
        """Pause where all that is left is being worked on by another sweep."""
        if self._waiting and all(trial.waits for trial in self._waiting):
            time.sleep(_OTHER_SWEEP_SECONDS)


def _refuse_full_disk(error: Exception) -> None:
    """Say where Ray's own files found no room.

    Raises:
        InputError: where that is what an error says.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise InputError(
            Sentence.of("ray no room", gettempdir=tempfile.gettempdir(), error=str(error.strerror))
        ) from error


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
            checkpoint=_checkpoint_kind(config) if is_of_grid else "none",
            driver=driver,
            sharing=shared.get(trial.id8),
        )
        level = levels.get(_memory_kind(trial.identity), 0)
        found.append(at_retry_level(assignment, level))
    return found


def _checkpoint_kind(config: SweepConfig) -> CheckpointKind:
    """Say what the files of trained models hold."""
    kinds: dict[str, CheckpointKind] = {"none": "none", "whole": "whole"}
    return kinds.get(config.keep, "named")


def _stored_outcome(assignment: Assignment, outcome: Outcome) -> Outcome:
    """Correct how a trial ended by what the store shows of it, which alone counts.

    A worker may hear an error, or die, after its result is visible. And it may report a result that
    a file system has lost.

    Raises:
        OSError: where the store does not let it be read.
    """
    folder = Path(assignment.folder)
    record = read_trial(folder)
    is_done = record is not None and record.status == "done"
    if is_done == (outcome.status == "done"):
        return outcome
    if is_done:
        return outcome_of(record)

    # NFS shows what another node wrote once the folder above is opened anew.
    with suppress(OSError):
        next(folder.parent.iterdir(), None)
    record = read_trial(folder)
    if record is not None and record.status == "done":
        return outcome
    return Outcome("failed", "io", "its result is not in the store, though it was published")


def _has_begun(assignment: Assignment) -> bool:
    """Tell whether a trial has a working folder, also where the store does not say."""
    try:
        return bool(partials_of(Path(assignment.folder)))
    except OSError:
        return True


def _why_unread(assignment: Assignment) -> str:
    """Say why a trial's files cannot be read, empty where they can."""
    try:
        read_trial(Path(assignment.folder))
    except OSError as error:
        return str(error)
    return ""


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
