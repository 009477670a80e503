"""The waves of Ray Tune trials that a sweep runs in.

What is done is read off the store alone. Ray's own account is not trusted: a run that was interrupted, a trainable that
returns nothing and a trial killed for memory all look finished there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.errors import InputError
from adray.files import canonical_hash
from adray.results.store import partials_of, progress_file, read_trial
from adray.sweep.cards import selector
from adray.sweep.costs import CostModel, hang_limit, site_device
from adray.sweep.devices import DeviceWatch, hold
from adray.sweep.nodes import check_nodes, leave_out
from adray.sweep.overdue import Overdue, kill_on_node
from adray.sweep.plan import Plan
from adray.sweep.ray_site import local_site, ray_site
from adray.sweep.resources import RUNGS, Share, Site, climb
from adray.sweep.schedule import format_duration, in_order, is_short
from adray.sweep.sharing import sharings
from adray.sweep.trial import (
    KILLED,
    LOST_NODE,
    TAKEN,
    left_word,
    on_rung,
    record_crash,
    store_is_there,
    trial_message,
)

if TYPE_CHECKING:
    from ray.tune import Tuner
    from ray.tune.schedulers import TrialScheduler

    from adray.sweep.driver import Sweep

_TRIALS_PER_TUNER = 1000
_TABLE_SECONDS = 30.0
_LIVES = 3
"""Times that a trial may be begun whose process ends without a word, or whose store is away."""
_RIVAL_SECONDS = 5.0
_STORE_SECONDS = 120.0
INTERRUPTED = 130
_HOST_MEMORY = "killed because the host ran out of memory, also when it ran alone; raise memory_gb or lower batch_size"


def run_waves(sweep: Sweep) -> None:
    """Start or join Ray and run the sweep's trials until each has a result or a failure."""
    with workers(sweep) as site:
        run_trials(sweep, site)


def _fit_nodes(sweep: Sweep) -> list[Any]:
    """Refuse a cluster whose nodes differ, or leave those nodes out where missing cells may be skipped.

    Returns:
        What holds the nodes that are left out, as long as it is referred to.

    Raises:
        InputError: with what is wrong with each node.
    """
    unfit = check_nodes(sweep.plan, sweep.settings, sweep.folder)
    problems = [problem for found in unfit.values() for problem in found]
    if problems and not sweep.options.skip_missing:
        raise InputError("; ".join(problems) + "; or leave such nodes out with --skip-missing")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return leave_out(list(unfit))


@contextmanager
def workers(sweep: Sweep) -> Iterator[Site]:
    """Ray, as long as trials run; of a cluster, the nodes that would give the same results as this one.

    Raises:
        InputError: see `ray_site`, and for nodes that differ.
    """
    options = sweep.options
    local = local_site(options.num_gpus, options.num_cpus)
    with ray_site(options.address, local, insecure=options.insecure) as site, _interruptible():
        held = _fit_nodes(sweep) if options.address else []
        yield site
        del held


def run_trials(sweep: Sweep, site: Site) -> Work:
    """Run the sweep's trials on a Ray that is there already, in waves.

    What may succeed another time runs again in a later wave: out of memory on its next rung, an unreachable store once
    it is back, what another sweep works on until that has a result, and what failed on a device that was put aside.

    Ray's memory monitor may kill several trials at once, the culprit among them, and one such kill ends a whole
    `Tuner.fit`. So trials whose process ended without a word, or that such an end interrupted, run again, each alone,
    after all others; one that is killed for memory alone climbs a rung.

    Raises:
        InputError: where the store is gone and does not come back.
    """
    work = Work(sweep, site)
    waiting, suspects = list(work.messages), list[dict[str, Any]]()
    while waiting or suspects:
        work.alone = not waiting
        wave = suspects[:1] if work.alone else waiting
        crash = work.run(wave)
        if work.stopped:
            break
        work.wait_for_store()
        again = work.take_again()
        told = {*sweep.unrecorded, *work.pruned, *(message["id8"] for message in again)}
        left = [m for m in wave if m["id8"] not in told and not _settled(m)]
        begun = [m for m in left if partials_of(Path(m["folder"]))]
        suspects, waiting = suspects[1:] if work.alone else suspects, again
        if crash is None:
            suspects += filter(None, map(work.revive, left))
        elif work.alone:
            suspects += filter(None, map(work.climb_alone, left))
        elif begun:
            print(
                f"Ray ended all trials ({str(crash).splitlines()[0][:160]}); {len(begun)} run again later, alone"
            )
            suspects, waiting = suspects + begun, again + [m for m in left if m not in begun]
        else:
            raise crash
        work.pause(again)
    return work


def _settled(message: dict[str, Any]) -> bool:
    """Whether the store has this trial's result, or a failure newer than the one it began with."""
    record = read_trial(Path(message["folder"]))
    if record is None or record.status == "unfinished":
        return False
    return (
        record.status == "done"
        or int((record.failure or {}).get("attempts", 0)) > message["attempts"]
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the sweep as Ctrl-C does, and a second of either at once, without waiting for anything.

    Entered after Ray has started, which sets handlers of its own; its processes end with this one.
    """
    stopped: list[bool] = []

    def stop(*_: object) -> None:
        if stopped:
            os._exit(INTERRUPTED)
        stopped.append(True)
        raise KeyboardInterrupt

    numbers = [
        n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN
    ]
    previous = {number: signal.signal(number, stop) for number in numbers}
    yield
    # Set back only here: while Ray shuts down after a first Ctrl-C, a second one must still find its handler.
    for number, handler in previous.items():
        signal.signal(number, handler)


class Work:
    """The trials of one run, and what is said and written while they run."""

    def __init__(self, sweep: Sweep, site: Site) -> None:
        self.sweep, self.site = sweep, site
        config = sweep.config
        self.costs = CostModel(sweep.records(), site_device(site))
        ordered = in_order(sweep.wanted(), self.costs, config.resources, site)
        self.trials = {s.trial.id8: s.trial for s in ordered}
        self.shares = {s.trial.id8: s.share for s in ordered}
        self.needs = {s.trial.id8: s.need for s in ordered}
        shared = sharings(s.trial for s in ordered)
        messages = [
            trial_message(
                s.trial,
                sweep.settings,
                save_maps=0 if s.trial.search else config.save_maps,
                keep=config.keep != "none" and not s.trial.search,
                limit_seconds=hang_limit(s.need, config.trial_hours, s.trial.attempts),
                sharing=shared.get(s.trial.id8),
            )
            for s in ordered
        ]
        driver = f"{socket.gethostname()}-{os.getpid()}"
        about = {"driver": driver, "lives": _LIVES, "waits": False}
        messages = [message | about for message in messages]
        rungs = remembered_rungs(sweep.plan)
        self.messages = [
            on_rung(message, rungs.get(_kind(message["identity"]), 0)) for message in messages
        ]
        self.again: list[dict[str, Any]] = []
        largest = math.ceil(max((share.gpu for share in self.shares.values()), default=0))
        self.watch = DeviceWatch(spare=site.gpus - largest)
        self.overdue = Overdue(driver, kill_on_node)
        self._held: list[Any] = []
        self.pruned: dict[str, dict[str, Any]] = {}
        """What a search's scheduler stopped early, by id, with its last report."""
        self.seen: dict[str, str] = {}
        self.best: tuple[float, str] = (-1.0, "")
        self.stopped = False
        self.alone = False
        self._write_after = time.monotonic() + _TABLE_SECONDS

    def run(self, wave: Sequence[dict[str, Any]]) -> Exception | None:
        """Run some trials to their end; what Ray raised instead is returned."""
        watched = [m for m in wave if m["watched"] and not m["rung"]]
        rest = [m for m in wave if m not in watched]
        reused = [m for m in rest if self._reuses_actor(m)]
        fresh = [m for m in rest if not self._reuses_actor(m)]
        for group, tuner in (
            (watched, self._watching_tuner),
            (fresh, self._tuner),
            (reused, self._reusing_tuner),
        ):
            for start in range(0, len(group), _TRIALS_PER_TUNER):
                crash = self._fit(tuner, group[start : start + _TRIALS_PER_TUNER])
                if crash is not None or self.stopped:
                    return crash
        return None

    def _reuses_actor(self, message: dict[str, Any]) -> bool:
        return not message["rung"] and is_short(message["identity"]["configuration"], self.site)

    def _fit(
        self, make_tuner: Callable[..., Tuner], messages: Sequence[dict[str, Any]]
    ) -> Exception | None:
        trials = [{"message": message, **self._place(self.share(message))} for message in messages]
        scratch = self._scratch()
        try:
            make_tuner(trials, scratch).fit()
        except Exception as error:  # the memory monitor's kill arrives as a RuntimeError
            return error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return None

    def _place(self, share: Share) -> dict[str, Any]:
        """What a worker may use of its node, and what Ray must find for it."""
        labels = selector(share, self.site)
        return {"threads": share.cpu, "gpu": share.gpu, "bundle": share.bundle(), "labels": labels}

    def _tuner(self, trials: Sequence[dict[str, Any]], scratch: Path) -> Tuner:
        from adray.sweep.worker import SweepTrial

        return self._make(SweepTrial, trials, scratch)

    def _reusing_tuner(self, trials: Sequence[dict[str, Any]], scratch: Path) -> Tuner:
        from adray.sweep.worker import SweepTrial

        return self._make(SweepTrial, trials, scratch, reuse=True)

    def _watching_tuner(self, trials: Sequence[dict[str, Any]], scratch: Path) -> Tuner:
        """Trials of a search that report after each epoch, and of which ASHA stops the hopeless."""
        from ray.tune.schedulers import ASHAScheduler

        from adray.sweep.worker import watched_trial

        # Rungs at 4, 12 and 36 % of the epochs; the end lies beyond 100, or ASHA would stop a trial as it finishes.
        asha = ASHAScheduler(
            "percent", "objective", "max", max_t=101, grace_period=4, reduction_factor=3
        )
        return self._make(watched_trial, trials, scratch, scheduler=asha)

    def _make(
        self,
        trainable: Any,
        trials: Sequence[dict[str, Any]],
        scratch: Path,
        *,
        reuse: bool = False,
        scheduler: TrialScheduler | None = None,
    ) -> Tuner:
        from ray import tune

        from adray.sweep.worker import FailFast, Progress, bundle_of

        return tune.Tuner(
            tune.with_resources(trainable, bundle_of),
            param_space={"trial": tune.grid_search([json.dumps(trial) for trial in trials])},
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                reuse_actors=reuse,
                trial_dirname_creator=_trial_name,
                trial_name_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(scratch),
                callbacks=[Progress(self)],
                failure_config=tune.FailureConfig(max_failures=0),
                stop=FailFast(self),
                verbose=0,
            ),
        )

    def _scratch(self) -> Path:
        """Tune's own folder, thrown away afterwards; on a cluster it must be one that every node reaches."""
        if self.sweep.options.address:
            return Path(tempfile.mkdtemp(prefix=".tune-", dir=self.sweep.folder))
        return Path(tempfile.mkdtemp(prefix="adray-tune-"))

    def done(self, message: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Say that a trial ended in a result or a recorded failure, was stopped, or climbs a rung."""
        self.overdue.ended(message)
        if message["watched"] and "status" not in outcome:
            self._prune(message, outcome)
            return
        if (later := self._later(message, outcome)) is not None:
            self.again.append(later)
            return
        self.watch.note(message, worked=outcome.get("status") == "done")
        if outcome.get("status") != "done":
            self.failed(message, outcome)
            return
        self.seen[message["id8"]] = "done"
        score, seconds = outcome.get("image_auroc"), outcome.get("seconds", 0.0)
        if score is not None and score > self.best[0]:
            self.best = (score, message["cell"])
        words = "n/a" if score is None else f"{score:.4f}"
        self._say(f"done   {message['cell']} image AUROC {words} in {seconds:.0f} s")
        self.sweep.event(
            "done", id=message["id8"], cell=message["cell"], image_auroc=score, seconds=seconds
        )

    def _later(self, message: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any] | None:
        """The trial as it runs again in a later wave, or None where that would change nothing."""
        if outcome.get("kind") == "out_of_memory" and message["rung"] + 1 < len(RUNGS):
            return self._climb(message)
        if outcome.get("status") == TAKEN:
            if not message["waits"]:
                print(
                    f"{message['cell']}: another sweep works on it; its result is waited for",
                    flush=True,
                )
            return {**message, "waits": True}
        if outcome.get("kind") == "io" and message["lives"] > 1:
            print(
                f"{message['cell']}: {outcome.get('reason', '')[:200]}; it runs again", flush=True
            )
            recorded = _settled(message)
            return {
                **message,
                "lives": message["lives"] - 1,
                "attempts": message["attempts"] + recorded,
            }
        return None

    def _prune(self, message: dict[str, Any], last: dict[str, Any]) -> None:
        """A search's scheduler ended the trial; its files go, its last report stays."""
        self.seen[message["id8"]] = "pruned"
        self.pruned[message["id8"]] = {
            "objective": last.get("objective"),
            "percent": last.get("percent"),
        }
        for folder in partials_of(Path(message["folder"])):
            shutil.rmtree(folder, ignore_errors=True)
        progress_file(Path(message["folder"])).unlink(missing_ok=True)
        self.sweep.event(
            "pruned", id=message["id8"], cell=message["cell"], **self.pruned[message["id8"]]
        )

    def _climb(self, message: dict[str, Any]) -> dict[str, Any]:
        """Out of memory is no end: the trial on its next rung, with more room."""
        rung = message["rung"] + 1
        print(f"{message['cell']}: out of memory; next with {RUNGS[rung].words}", flush=True)
        self.sweep.event("out_of_memory", id=message["id8"], cell=message["cell"], rung=rung)
        return on_rung({**message, "attempts": message["attempts"] + 1}, rung)

    def climb_alone(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """A trial that was killed for host memory although it ran alone; None once it is on the last rung."""
        if message["rung"] + 1 < len(RUNGS):
            return {**self._climb(message), "attempts": message["attempts"]}
        self.failed(message, record_crash(message, _HOST_MEMORY))
        return None

    def revive(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """A trial whose process ended without a word, for another try alone; None after some of them."""
        lives = message["lives"] - 1
        if lives > 0 and not left_word(message):
            return {**message, "lives": lives}
        self.failed(message, record_crash(message, KILLED))
        return None

    def take_again(self) -> list[dict[str, Any]]:
        """The trials that were found since the last call to deserve another wave."""
        for place, messages in self.watch.put_aside().items():
            print(
                f"GPU {place}: different models failed there one after the other, others work; it is put aside and"
            )
            print(f"  {len(messages)} trials run again elsewhere", flush=True)
            self.sweep.event(
                "device_put_aside", device=place, again=[message["id8"] for message in messages]
            )
            self.again += [{**message, "attempts": message["attempts"] + 1} for message in messages]
            for message in messages:
                self.seen.pop(message["id8"], None)
        taken, self.again = self.again, []
        return taken

    def pause(self, again: Sequence[dict[str, Any]]) -> None:
        """Between two waves: hold the devices that were put aside, and give other sweeps time."""
        if self.watch.aside and len(self._held) < len(self.watch.aside):
            held = hold(self.watch.aside, self.site.gpus)
            self._held += held
            self.site = replace(self.site, gpus=self.site.gpus - len(held))
        if again and all(message["waits"] for message in again):
            time.sleep(_RIVAL_SECONDS)

    def wait_for_store(self) -> None:
        """Nothing can be said of a wave while the store is away, for instance a network mount.

        Raises:
            InputError: where it does not come back in time.
        """
        output_dir, deadline = self.sweep.settings.output_dir, time.monotonic() + _STORE_SECONDS
        while not store_is_there(output_dir):
            if time.monotonic() > deadline:
                raise InputError(
                    f"output folder {output_dir} is gone or cannot be written, and did not come back in "
                    f"{_STORE_SECONDS:.0f} s; mount it and run {self.sweep.options.command} again, what is finished is "
                    "kept"
                )
            time.sleep(1.0)

    def share(self, message: dict[str, Any]) -> Share:
        """What a trial takes on its rung."""
        return climb(self.shares[message["id8"]], RUNGS[message["rung"]], self.site)

    def died(self, message: dict[str, Any], why: str) -> None:
        """Say that a trial's process is gone.

        One that left no word is tried again: elsewhere where its node is gone, else alone, at the end.
        """
        self.overdue.ended(message)
        if message["lives"] == 1 or why not in (KILLED, LOST_NODE) or left_word(message):
            self.failed(message, record_crash(message, why))
        elif why == LOST_NODE:
            print(f"{message['cell']}: {LOST_NODE}; it runs again elsewhere", flush=True)
            for folder in partials_of(Path(message["folder"])):
                shutil.rmtree(folder, ignore_errors=True)
            self.again.append({**message, "lives": message["lives"] - 1})
        else:
            print(f"{message['cell']}: {KILLED}; it runs again, alone, at the end", flush=True)

    def failed(self, message: dict[str, Any], failure: dict[str, Any]) -> None:
        """Say that a trial failed."""
        self.seen[message["id8"]] = "failed"
        if not _settled(message):
            self.sweep.unrecorded[message["id8"]] = failure.get("reason", "")
        self._say(f"FAILED {message['cell']}: {failure.get('reason', '')[:300]}")
        self.sweep.event(
            "failed", id=message["id8"], cell=message["cell"], reason=failure.get("reason", "")
        )
        self.stopped = self.stopped or self.sweep.options.fail_fast

    def _say(self, text: str) -> None:
        states = list(self.seen.values())
        left = len(self.messages) - len(states)
        low, eta, high = self._eta()
        tail = f"{states.count('done')} done, {states.count('failed')} failed, {left} left"
        tail += f", ETA {format_duration(low)} to {format_duration(high)}" if left else ""
        tail += f", best {self.best[1]} {self.best[0]:.4f}" if self.best[1] else ""
        print(f"{text} | {tail}", flush=True)
        if time.monotonic() > self._write_after:
            start = time.monotonic()
            seconds = start - self.sweep.started
            figures = {
                "eta_seconds": eta,
                "eta_low": low,
                "eta_high": high,
                "per_hour": 3600 * len(states) / seconds,
            }
            self.sweep.write_tables({"left": left, "seconds": seconds, **figures})
            took = time.monotonic() - start
            self._write_after = time.monotonic() + max(_TABLE_SECONDS, 20 * took)

    def _eta(self) -> tuple[float, float, float]:
        """Seconds to the end: predicted work that is left, at the rate at which predicted work was done so far."""
        ended = sum(self.needs[id8].seconds for id8 in self.seen)
        left = [self.needs[m["id8"]] for m in self.messages if m["id8"] not in self.seen]
        rate = (time.monotonic() - self.sweep.started) / ended if ended else 0.0
        low, middle, high = (
            rate * sum(getattr(need, name) for need in left) for name in ("low", "seconds", "high")
        )
        # Errors of single trials cancel out in a sum; what they have in common does not, and the rate has it already.
        shrink = 1 / max(1.0, len(left)) ** 0.5
        return middle - (middle - low) * shrink, middle, middle + (high - middle) * shrink


def remembered_rungs(plan: Plan) -> dict[str, int]:
    """The rung on which trials of a kind begin: the highest that one of them needed, by what the store says."""
    rungs: dict[str, int] = {}
    for trial in plan.of("done", "failed"):
        if trial.rung:
            kind = _kind(trial.identity)
            rungs[kind] = max(rungs.get(kind, 0), trial.rung)
    return rungs


def _kind(identity: dict[str, Any]) -> str:
    """What decides how much memory a trial takes, short of the data: the configuration with its hyperparameters."""
    return canonical_hash({key: identity[key] for key in ("configuration", "model", "train")})


def _trial_name(trial: Any) -> str:
    from adray.sweep.worker import given

    return str(given(trial.config)["message"]["id8"])
