"""The driver: plan, preflight, waves of trials, tables. What is done is read off the store alone."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.config import SweepConfig, to_plain
from adray.errors import InputError
from adray.files import write_json
from adray.results.leaderboard import (
    TrialRow,
    format_summary,
    skipped_row,
    table,
    trial_row,
    write_tables,
)
from adray.results.report import report_data, write_report
from adray.results.store import TrialRecord, cell_trials, dead_partials, read_trial
from adray.settings import Settings
from adray.sweep.costs import CostModel, site_device, without_unfit
from adray.sweep.plan import STATES, Plan, PlannedTrial
from adray.sweep.preflight import check_site, prepare
from adray.sweep.ray_site import local_site
from adray.sweep.schedule import format_schedule, in_order
from adray.sweep.waves import INTERRUPTED, run_waves

if TYPE_CHECKING:
    import pandas as pd


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
        insecure: run also where Ray's token authentication is switched off.
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
    insecure: bool = False
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

    def records(self) -> list[TrialRecord]:
        """What the store has of the planned cells, also with other hyperparameters: what predictions learn from."""
        cells = dict.fromkeys(trial.folder.parent for trial in self.plan.trials if trial.folder)
        return [record for cell in cells for record in cell_trials(cell)]

    def outcomes(self) -> tuple[list[TrialRecord], list[TrialRow]]:
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
                others.append(replace(row, status="failed"))
        return records, others

    def write_tables(self, progress: dict[str, Any] | None = None) -> pd.DataFrame:
        """Write leaderboard, table and report, and give the table; a full disk costs the files, not the sweep."""
        records, others = self.outcomes()
        frame = table([*map(trial_row, records), *others])
        try:
            write_tables(self.folder, frame)
            data = report_data(self.config.name, records, others, progress, base=self.folder)
            write_report(self.folder / "report.html", data)
        except (
            Exception
        ) as error:  # whatever a stored file holds: tables can be made again, a sweep cannot
            print(
                f"warning: the tables in {self.folder} are not up to date: {error!r}",
                file=sys.stderr,
            )
        return frame

    def event(self, kind: str, **values: Any) -> None:
        """Append a line to the sweep's events."""
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "event": kind,
            **values,
        }
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
    site = local_site(options.num_gpus, options.num_cpus)
    sweep = Sweep(config, settings, options, plan)
    if options.address is None and sweep.wanted():
        sweep.plan = plan = without_unfit(plan, CostModel(sweep.records(), site_device(site)), site)
    print(format_plan(sweep))
    problems, remarks = check_site(plan, config, settings)
    print("\n".join(f"  {remark}" for remark in remarks))
    problems += plan.problems
    if problems and not options.skip_missing:
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        print(
            "nothing was started; mend these, or go on without such cells with --skip-missing",
            file=sys.stderr,
        )
        return 2
    if options.dry_run:
        costs = CostModel(sweep.records(), site_device(site))
        print(format_schedule(in_order(sweep.wanted(), costs, config.resources, site), site))
        print(
            "".join(
                f"  skipped: {trial.cell} ({trial.reason})\n" for trial in plan.of("impossible")
            ),
            end="",
        )
        return 0
    open_store(sweep)
    if not sweep.wanted():
        print("nothing to run")
        return _finish(sweep)
    try:
        run_waves(sweep)
    except KeyboardInterrupt:
        sweep.write_tables()
        print(
            f"\ninterrupted; what is finished is kept. To go on: {options.command}", file=sys.stderr
        )
        return INTERRUPTED
    return _finish(sweep)


def format_plan(sweep: Sweep) -> str:
    """How many trials are in which state, and which fields made some stale."""
    plan = sweep.plan
    counts = {state: len(plan.of(state)) for state in STATES}
    words = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    lines = [
        f"sweep {sweep.config.name}: {len(plan.trials)} trials ({words or 'none'}), budget {sweep.config.budget}"
    ]
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


def open_store(sweep: Sweep) -> None:
    """Make the sweep's folder, write its plan, and clear away what killed processes left.

    Raises:
        InputError: where the store cannot be written.
    """
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
        print(
            f"{row.status}: {row.dataset}/{row.category}/{row.configuration} seed {row.seed}: {row.reason}"
        )
    print(f"tables and report.html in {sweep.folder}")
    return 0 if states.get("done", 0) == len(sweep.plan.trials) else 1


def _keep_best(sweep: Sweep) -> None:
    """Remove the checkpoints of all but the best configuration of each category, by image AUROC on the test set."""
    best: dict[tuple[str, str], tuple[float, Path]] = {}
    done = [
        r
        for t in sweep.plan.trials
        if t.folder and (r := read_trial(t.folder)) is not None and r.result
    ]
    for record in done:
        row = trial_row(record)
        cell = (row.dataset, row.category)
        score = (-1.0 if row.image_auroc is None else row.image_auroc, record.folder)
        best[cell] = max(score, best.get(cell, (-2.0, Path())))
    kept = {folder for _, folder in best.values()}
    for record in done:
        for file in record.folder.glob("model_*.pth") if record.folder not in kept else ():
            file.unlink()
