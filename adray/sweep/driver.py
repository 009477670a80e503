"""The driver: plan, preflight, waves of Ray Tune trials, tables.

What is done is read off the store alone. Ray's own account is not trusted: a run that was interrupted, a trainable that
returns nothing and a trial killed for memory all look finished there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.config import SweepConfig, to_plain
from adray.errors import InputError
from adray.files import canonical_hash, write_json
from adray.registry import ModelRegistry
from adray.results.leaderboard import format_summary, skipped_row, table, trial_row, write_tables
from adray.results.report import report_data, write_report
from adray.results.store import TrialRecord, dead_partials, partials_of, read_trial
from adray.settings import Settings
from adray.sweep.plan import STATES, Plan, PlannedTrial
from adray.sweep.preflight import check_site, prepare
from adray.sweep.resources import RUNGS, Share, Site, choose_share, climb, rough_cost
from adray.sweep.trial import KILLED, left_word, on_rung, record_crash, trial_message

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_TRIALS_PER_TUNER = 1000
_TABLE_SECONDS = 30.0
_HOST_MEMORY = "killed because the host ran out of memory, also when it ran alone; raise memory_gb or lower batch_size"
INTERRUPTED = 130


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a sweep's file.

    Attributes:
        only: patterns of ``dataset/category/configuration`` or beginnings of ids.
        dry_run: print the plan and the schedule, run nothing.
        skip_missing: leave out cells whose files are missing.
        fail_fast: stop at the first failure.
        no_retry: leave out trials that failed before.
        address: of a Ray cluster to join; a Ray of its own where None.
        num_gpus: GPUs to use, all where None.
        num_cpus: CPUs to use, all where None.
        command: how to run the same again, for messages.
    """

    only: tuple[str, ...] = ()
    dry_run: bool = False
    skip_missing: bool = False
    fail_fast: bool = False
    no_retry: bool = False
    address: str | None = None
    num_gpus: int | None = None
    num_cpus: int | None = None
    command: str = "the same command"


@dataclass
class Sweep:
    """A sweep that runs: its plan, what it says, and where it writes."""

    config: SweepConfig
    settings: Settings
    options: RunOptions
    plan: Plan
    started: float = field(default_factory=time.monotonic)
    unrecorded: dict[str, str] = field(default_factory=dict)
    """Reasons by id of failures that the store could not take."""

    @property
    def folder(self) -> Path:
        """Where plan, events and tables of this sweep go."""
        return Path(self.settings.output_dir) / "sweeps" / self.config.name

    def wanted(self) -> list[PlannedTrial]:
        """The trials that this run works on."""
        states = ("new", "stale") if self.options.no_retry else ("new", "stale", "failed")
        return self.plan.of(*states)

    def outcomes(self) -> tuple[list[TrialRecord], list[dict[str, Any]]]:
        """The planned trials that left something in the store, and rows of those that could not."""
        records, others = [], []
        for trial in self.plan.trials:
            record = read_trial(trial.folder) if trial.folder else None
            if record is not None:
                records.append(record)
            elif trial.state == "impossible":
                others.append(skipped_row(trial.job.names, trial.job.seed, trial.reason))
            elif trial.id8 in self.unrecorded:
                row = skipped_row(trial.job.names, trial.job.seed, self.unrecorded[trial.id8])
                others.append({**row, "status": "failed"})
        return records, others

    def write_tables(self, progress: dict[str, Any] | None = None) -> pd.DataFrame:
        """Write leaderboard, table and report, and give the table; a full disk costs the files, not the sweep."""
        records, others = self.outcomes()
        frame = table([*map(trial_row, records), *others])
        try:
            write_tables(self.folder, frame)
            data = report_data(self.config.name, records, others, progress, base=self.folder)
            write_report(self.folder / "report.html", data)
        except Exception as error:  # whatever a stored file holds: tables can be made again, a sweep cannot
            print(f"warning: the tables in {self.folder} are not up to date: {error!r}", file=sys.stderr)
        return frame

    def event(self, kind: str, **values: Any) -> None:
        """Append a line to the sweep's events."""
        line = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "event": kind, **values}
        try:
            with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            print(f"warning: event {kind} is not recorded: {error}", file=sys.stderr)


def run_sweep(config: SweepConfig, options: RunOptions) -> int:
    """Run what is not done yet, and write the tables.

    Args:
        config: the sweep.
        options: of the command line.

    Returns:
        Exit code: 0 all done, 1 some failed or were skipped, 2 files are missing, 130 interrupted.

    Raises:
        InputError: for a configuration that cannot be meant.
    """
    settings, plan = prepare(config, options.only)
    sweep = Sweep(config, settings, options, plan)
    print(format_plan(sweep))
    problems, remarks = check_site(plan, config, settings)
    print("\n".join(f"  {remark}" for remark in remarks))
    problems += plan.problems
    if problems and not options.skip_missing:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        print("nothing was started; mend these, or go on without such cells with --skip-missing", file=sys.stderr)
        return 2
    if options.dry_run:
        print(format_schedule(sweep, local_site(options)))
        return 0
    _open_store(sweep)
    if not sweep.wanted():
        print("nothing to run")
        return _finish(sweep)
    try:
        _run_waves(sweep)
    except KeyboardInterrupt:
        sweep.write_tables()
        print(f"\ninterrupted; what is finished is kept. To go on: {options.command}", file=sys.stderr)
        return INTERRUPTED
    return _finish(sweep)


def format_plan(sweep: Sweep) -> str:
    """How many trials are in which state, and which fields made some stale."""
    plan = sweep.plan
    counts = {state: len(plan.of(state)) for state in STATES}
    words = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    lines = [f"sweep {sweep.config.name}: {len(plan.trials)} trials ({words or 'none'}), budget {sweep.config.budget}"]
    reasons: dict[str, list[str]] = {}
    for trial in plan.of("stale"):
        reasons.setdefault(f"{trial.job.configuration}: {trial.reason}", []).append(trial.cell)
    lines += [f"  stale, {len(cells)} trials of {reason}" for reason, cells in reasons.items()]
    for trial in plan.of("failed"):
        verb = "left out" if sweep.options.no_retry else "tried again"
        lines.append(f"  failed before, {verb}: {trial.cell} ({trial.reason})")
    lines += [f"  {remark}" for remark in plan.remarks]
    if sweep.config.weights == "random":
        lines.append(
            "  WEIGHTS: RANDOM. Backbones are untrained; figures show that the program runs, not what it finds."
        )
    return "\n".join(lines)


def format_schedule(sweep: Sweep, site: Site) -> str:
    """The trials in the order in which they would start, with what each takes."""
    lines = [f"order at {site.gpus} GPUs and {site.cpus} CPUs (gpu, cpu, host GB):"]
    for trial, share in _ordered(sweep, site):
        lines.append(
            f"  {share.gpu:5.3f} {share.cpu:3d} {share.memory / 1e9:5.1f}  {trial.state:6} {trial.id8} {trial.cell}"
        )
    lines += [f"  skipped: {trial.cell} ({trial.reason})" for trial in sweep.plan.of("impossible")]
    return "\n".join(lines)


def local_site(options: RunOptions) -> Site:
    """GPUs, CPUs and memory of this machine, within the limits of the options."""
    gpus = options.num_gpus
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    cpus = options.num_cpus or len(os.sched_getaffinity(0))
    return Site(gpus, cpus, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _ordered(sweep: Sweep, site: Site) -> list[tuple[PlannedTrial, Share]]:
    """Wanted trials with their shares, big and long ones first, so that they do not wait behind small ones."""
    wanted = sweep.wanted()
    shares = [choose_share(t.job.resolved, sweep.config.resources, site, len(wanted)) for t in wanted]
    costs = [rough_cost(t.job.resolved, 250) for t in wanted]
    order = sorted(range(len(wanted)), key=lambda i: (-shares[i].gpu, -costs[i], wanted[i].cell, wanted[i].job.seed))
    return [(wanted[i], shares[i]) for i in order]


def _open_store(sweep: Sweep) -> None:
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        plan = [
            {"cell": t.cell, "id": t.id8, "seed": t.job.seed, "state": t.state, "reason": t.reason}
            for t in sweep.plan.trials
        ]
        write_json(sweep.folder / "plan.json", {"config": to_plain(sweep.config), "trials": plan})
        sweep.event("start", states={s: len(sweep.plan.of(s)) for s in STATES})
    except OSError as error:
        raise InputError(
            f"output folder {sweep.settings.output_dir} cannot be written: {error}; choose another"
        ) from error
    _remove_leftovers(sweep)


def _remove_leftovers(sweep: Sweep) -> None:
    """Delete working folders whose process is gone: of this sweep's trials that ran again, or of one before it."""
    for cell in {trial.folder.parent for trial in sweep.plan.trials if trial.folder}:
        for folder in dead_partials(cell):
            shutil.rmtree(folder, ignore_errors=True)


def _finish(sweep: Sweep) -> int:
    """Clear up, write the tables, say what came out, and choose the exit code."""
    _remove_leftovers(sweep)
    if sweep.config.keep == "best":
        _keep_best(sweep)
    frame = sweep.write_tables()
    states = frame["status"].value_counts().to_dict()
    sweep.event("end", **{str(k): int(v) for k, v in states.items()})
    print(format_summary(frame))
    for row in frame[frame["status"].isin(["failed", "skipped"])].itertuples():
        print(f"{row.status}: {row.dataset}/{row.category}/{row.configuration} seed {row.seed}: {row.reason}")
    print(f"tables and report.html in {sweep.folder}")
    return 0 if states.get("done", 0) == len(sweep.plan.trials) else 1


def _keep_best(sweep: Sweep) -> None:
    """Remove the checkpoints of all but the best configuration of each category, by image AUROC on the test set."""
    best: dict[tuple[str, str], tuple[float, Path]] = {}
    done = [r for t in sweep.plan.trials if t.folder and (r := read_trial(t.folder)) is not None and r.result]
    for record in done:
        row = trial_row(record)
        score = (row["image_auroc"] if row["image_auroc"] is not None else -1.0, record.folder)
        best[row["dataset"], row["category"]] = max(score, best.get((row["dataset"], row["category"]), (-2.0, Path())))
    kept = {folder for _, folder in best.values()}
    for record in done:
        for file in record.folder.glob("model_*.pth") if record.folder not in kept else ():
            file.unlink()


def _run_waves(sweep: Sweep) -> None:
    """Run trials until each has a result or a failure.

    Ray's memory monitor may kill several trials at once, the culprit among them, and one such kill ends a whole
    `Tuner.fit`. So trials whose process ended without a word, or that such an end interrupted, run once more, each
    alone, after all others; one that is killed alone is the culprit.
    """
    with _ray(sweep.options) as site, _interruptible():
        work = _Work(sweep, site)
        waiting, suspects = list(work.messages), list[dict[str, Any]]()
        while waiting or suspects:
            work.alone = not waiting
            wave = suspects[:1] if work.alone else waiting
            crash = work.run(wave)
            climbing = work.take_climbing()
            told = {*sweep.unrecorded, *(message["id8"] for message in climbing)}
            left = [m for m in wave if m["id8"] not in told and not _settled(m)]
            if work.stopped:
                return
            begun = [] if work.alone else [m for m in left if partials_of(Path(m["folder"]))]
            if crash is None or work.alone:
                for message in left:
                    if message not in begun:
                        work.failed(message, record_crash(message, _HOST_MEMORY if crash else KILLED))
                left = begun
            elif not begun:
                raise crash
            suspects = suspects[1:] if work.alone else suspects + begun
            waiting = climbing + [message for message in left if message not in begun]
            if crash is not None and begun:
                print(f"Ray ended all trials ({str(crash).splitlines()[0][:160]}); {len(begun)} run again later, alone")


def _settled(message: dict[str, Any]) -> bool:
    """Whether the store has this trial's result, or a failure newer than the one it began with."""
    record = read_trial(Path(message["folder"]))
    if record is None or record.status == "unfinished":
        return False
    return record.status == "done" or int((record.failure or {}).get("attempts", 0)) > message["attempts"]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the sweep as Ctrl-C does; entered after Ray has started, which sets handlers of its own."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def ray_environment() -> dict[str, str]:
    """Environment that must be set before ray is imported: no network, no hidden GPUs, no second Ctrl-C handler."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


@contextmanager
def _ray(options: RunOptions) -> Iterator[Site]:
    """Start a Ray of our own, or join one, and say what it has."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        raise InputError("RAY_AUTH_MODE=disabled lets anyone on the network run code here; unset it")
    os.environ.update(ray_environment())
    import ray

    if options.address:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
        have = ray.cluster_resources()
        site = Site(int(have.get("GPU", 0)), int(have.get("CPU", 1)), int(have.get("memory", 8e9)))
    else:
        local = local_site(options)
        ray.init(
            address="local",
            num_cpus=local.cpus,
            num_gpus=local.gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 * 2**20,
        )
        site = Site(local.gpus, local.cpus, int(ray.cluster_resources().get("memory", 8e9)))
        _protect_token()
    # Ray prints a traceback for each trial that dies; ours becomes a row with one sentence.
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield site
    finally:
        ray.shutdown()


def _protect_token() -> None:
    """Ray writes its token readable by everybody."""
    token = Path("~/.ray/auth_token").expanduser()
    if token.is_file():
        token.chmod(0o600)


class _Work:
    """The trials of one run, and what is said and written while they run."""

    def __init__(self, sweep: Sweep, site: Site) -> None:
        self.sweep, self.site = sweep, site
        ordered = _ordered(sweep, site)
        self.trials = {trial.id8: trial for trial, _ in ordered}
        self.shares = {trial.id8: share for trial, share in ordered}
        config = sweep.config
        messages = [
            trial_message(
                trial, sweep.settings, save_maps=config.save_maps, keep=config.keep != "none", hours=config.trial_hours
            )
            for trial, _ in ordered
        ]
        rungs = remembered_rungs(sweep.plan)
        self.messages = [on_rung(message, rungs.get(_kind(message["identity"]), 0)) for message in messages]
        self.costs = {trial.id8: rough_cost(trial.job.resolved, 250) for trial, _ in ordered}
        self.climbing: list[dict[str, Any]] = []
        self.seen: dict[str, str] = {}
        self.best: tuple[float, str] = (-1.0, "")
        self.stopped = False
        self.alone = False
        self._write_after = time.monotonic() + _TABLE_SECONDS

    def run(self, wave: Sequence[dict[str, Any]]) -> Exception | None:
        """Run some trials to their end; what Ray raised instead is returned."""
        reused = [m for m in wave if self._reuses_actor(m)]
        fresh = [m for m in wave if not self._reuses_actor(m)]
        for group, reuse in ((fresh, False), (reused, True)):
            for start in range(0, len(group), _TRIALS_PER_TUNER):
                crash = self._tune(group[start : start + _TRIALS_PER_TUNER], reuse)
                if crash is not None or self.stopped:
                    return crash
        return None

    def _reuses_actor(self, message: dict[str, Any]) -> bool:
        """Short trials share warm processes; long ones on a GPU get fresh ones, which give all memory back."""
        if message["rung"]:
            return False
        return self.site.gpus == 0 or ModelRegistry.trainer_class(message["identity"]["configuration"]).single_pass

    def _tune(self, messages: Sequence[dict[str, Any]], reuse: bool) -> Exception | None:
        from ray import tune

        from adray.sweep.worker import FailFast, Progress, SweepTrial

        if not messages:
            return None
        scratch = self._scratch()

        def bundle(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([self.share(config["trial"]["message"]).bundle()])

        shares = [self.share(m) for m in messages]
        trials = [{"message": m, "threads": s.cpu, "gpu": s.gpu} for m, s in zip(messages, shares, strict=True)]
        tuner = tune.Tuner(
            tune.with_resources(SweepTrial, bundle),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(
                reuse_actors=reuse, trial_dirname_creator=_trial_name, trial_name_creator=_trial_name
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
        try:
            tuner.fit()
        except Exception as error:  # the memory monitor's kill arrives as a RuntimeError
            return error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return None

    def _scratch(self) -> Path:
        """Tune's own folder, thrown away afterwards; on a cluster it must be one that every node reaches."""
        if self.sweep.options.address:
            return Path(tempfile.mkdtemp(prefix=".tune-", dir=self.sweep.folder))
        return Path(tempfile.mkdtemp(prefix="adray-tune-"))

    def done(self, message: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Say that a trial ended in a result or a recorded failure, or that it climbs a rung."""
        if outcome.get("kind") == "out_of_memory" and message["rung"] + 1 < len(RUNGS):
            self._climb(message)
            return
        if outcome.get("status") != "done":
            self.failed(message, outcome)
            return
        self.seen[message["id8"]] = "done"
        score, seconds = outcome.get("image_auroc"), outcome.get("seconds", 0.0)
        if score is not None and score > self.best[0]:
            self.best = (score, message["cell"])
        words = "n/a" if score is None else f"{score:.4f}"
        self._say(f"done   {message['cell']} image AUROC {words} in {seconds:.0f} s")
        self.sweep.event("done", id=message["id8"], cell=message["cell"], image_auroc=score, seconds=seconds)

    def _climb(self, message: dict[str, Any]) -> None:
        """Out of memory is no end: the trial runs again in the next wave, with more room."""
        rung = message["rung"] + 1
        self.climbing.append(on_rung({**message, "attempts": message["attempts"] + 1}, rung))
        print(f"{message['cell']}: out of memory; next with {RUNGS[rung].words}", flush=True)
        self.sweep.event("out_of_memory", id=message["id8"], cell=message["cell"], rung=rung)

    def take_climbing(self) -> list[dict[str, Any]]:
        """The trials that climbed a rung since the last call."""
        taken, self.climbing = self.climbing, []
        return taken

    def share(self, message: dict[str, Any]) -> Share:
        """What a trial takes on its rung."""
        return climb(self.shares[message["id8"]], RUNGS[message["rung"]], self.site)

    def died(self, message: dict[str, Any], why: str) -> None:
        """Say that a trial's process is gone; one that left no word is tried again alone, at the end."""
        if why == KILLED and not self.alone and not left_word(message):
            print(f"{message['cell']}: {KILLED}; it runs once more, alone, at the end", flush=True)
            return
        self.failed(message, record_crash(message, why))

    def failed(self, message: dict[str, Any], failure: dict[str, Any]) -> None:
        """Say that a trial failed."""
        self.seen[message["id8"]] = "failed"
        if not _settled(message):
            self.sweep.unrecorded[message["id8"]] = failure.get("reason", "")
        self._say(f"FAILED {message['cell']}: {failure.get('reason', '')[:300]}")
        self.sweep.event("failed", id=message["id8"], cell=message["cell"], reason=failure.get("reason", ""))
        self.stopped = self.stopped or self.sweep.options.fail_fast

    def _say(self, text: str) -> None:
        states = list(self.seen.values())
        left = len(self.messages) - len(states)
        seconds = time.monotonic() - self.sweep.started
        finished = sum(self.costs[id8] for id8 in self.seen)
        eta = seconds * (sum(self.costs.values()) - finished) / finished if finished else 0.0
        tail = f"{states.count('done')} done, {states.count('failed')} failed, {left} left"
        tail += f", ETA {_duration(eta)}" if left else ""
        tail += f", best {self.best[1]} {self.best[0]:.4f}" if self.best[1] else ""
        print(f"{text} | {tail}", flush=True)
        if time.monotonic() > self._write_after:
            start = time.monotonic()
            rate = 3600 * len(states) / seconds
            self.sweep.write_tables({"left": left, "seconds": seconds, "eta_seconds": eta, "per_hour": rate})
            took = time.monotonic() - start
            self._write_after = time.monotonic() + max(_TABLE_SECONDS, 20 * took)


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
    return str(trial.config["trial"]["message"]["id8"])


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes}:{int(seconds) % 60:02d} min"
