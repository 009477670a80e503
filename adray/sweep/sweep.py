"""A sweep that runs: its plan, the options of its command, and what it writes beside the trials."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.config import SweepConfig, to_plain
from adray.decide import decide, decide_safest
from adray.decisions.decision import Decision
from adray.decisions.teams import read_teams
from adray.decisions.text import page_summaries
from adray.errors import InputError
from adray.file_system import file_system_of
from adray.files import write_json
from adray.language.catalogue import spoken
from adray.language.sentence import Sentence, sentence_of
from adray.results.corrupted_scores import lacking_corruptions
from adray.results.json_parts import PartReader
from adray.results.leaderboard import TrialRow, skipped_row, table, trial_row, write_tables
from adray.results.report import report_data, write_report
from adray.results.store import (
    TrialRecord,
    Unread,
    cell_trials,
    dead_partials,
    partials_of,
    read_entry,
    write_header,
)
from adray.settings import Settings
from adray.sweep.assignment import Assignment
from adray.sweep.plan import STATES, Plan, PlannedTrial

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a sweep's file."""

    only: tuple[str, ...] = ()
    """Patterns of ``dataset/category/configuration`` or beginnings of ids."""
    dry_run: bool = False
    """Print the plan and the schedule, run nothing."""
    skip_missing: bool = False
    """Leave out cells whose files are missing."""
    fail_fast: bool = False
    """Stop at the first failure."""
    no_retry: bool = False
    """Leave out trials that failed before."""
    address: str | None = None
    """Of a Ray cluster to join; a Ray of its own where None."""
    num_gpus: int | None = None
    """GPUs to use, all where None."""
    num_cpus: int | None = None
    """CPUs to use, all where None."""
    insecure: bool = False
    """Run also where Ray's token authentication is switched off."""
    changes: tuple[str, ...] = ()
    """What ``--set`` changed of the file, one line each, for the plan."""
    seconds: float | None = None
    """After which it ends with what is finished; as long as it takes where None."""
    ray_log: bool = False
    """Show what Ray itself logs."""
    command: str = "the same command"
    """How to run the same again, for messages."""


@dataclass
class Sweep:
    """A sweep that runs."""

    config: SweepConfig
    """What was asked."""
    settings: Settings
    """Paths and limits, absolute."""
    options: RunOptions
    """What the command line added."""
    plan: Plan
    """Its trials, with what the store says of them."""
    started: float = field(default_factory=time.monotonic)
    """Time of its start, of the monotonic clock."""
    unrecorded: dict[str, str] = field(default_factory=dict)
    """Reasons by id of failures that the store could not take."""
    decisions: list[Decision] = field(default_factory=list)
    """What to deploy for each part, as `write_tables` found it last."""

    @property
    def folder(self) -> Path:
        """Name the folder of the plan, the events and the tables."""
        return Path(self.settings.output_dir) / "sweeps" / self.config.name

    def said_of(self, assignment: Assignment) -> str:
        """Say what a line of the console has to add on a trial that ended, empty for its counts."""
        return ""

    def wanted(self) -> list[PlannedTrial]:
        """List the trials that this run works on: to be trained, or to be scored further."""
        states = ("new", "stale") if self.options.no_retry else ("new", "stale", "failed")
        scored_further = [trial for trial in self.plan.of("done") if trial.lacking]
        return [*self.plan.of(*states), *scored_further]

    def lacking(self) -> int:
        """Count the scores under corruptions that finished trials of the plan lack now."""
        count = 0
        for trial in self.plan.trials:
            entry = read_entry(trial.folder) if trial.folder and trial.lacking else None
            if isinstance(entry, TrialRecord) and entry.status == "done":
                count += len(lacking_corruptions(entry, trial.lacking))
        return count

    def records(self) -> list[TrialRecord]:
        """Read what the store has of the planned cells, from which predictions learn."""
        found: list[TrialRecord] = []
        for cell in self._cells():
            found += cell_trials(cell)
        return found

    def outcomes(self) -> tuple[list[TrialRecord], list[TrialRow]]:
        """Read the planned trials that are in the store, and make rows of those that could not be."""
        records = []
        rows = []
        parse = PartReader().parse
        for trial in self.plan.trials:
            entry = read_entry(trial.folder, parse) if trial.folder else None
            if isinstance(entry, TrialRecord):
                records.append(entry)
            elif trial.state == "impossible":
                rows.append(_row_of(trial, "skipped", trial.reason))
            elif trial.id8 in self.unrecorded:
                rows.append(_row_of(trial, "failed", self.unrecorded[trial.id8]))
            elif entry is not None:
                status = "unread" if entry.is_unreachable else "failed"
                rows.append(_row_of(trial, status, entry.reason))
        return records, rows

    def decide(self, records: Sequence[TrialRecord]) -> list[Decision]:
        """Decide for each part of the sweep what to deploy.

        Nothing is decided, and a warning says why, where a stored file makes that impossible: the
        results are there all the same.

        Args:
            records: its trials that are in the store.
        """
        try:
            return decide(records, teams=read_teams(self.settings.output_dir), draws=0)
        except Exception as error:  # whatever a stored file holds
            print(spoken("warning decision", error=error), file=sys.stderr)
            return []

    def write_tables(self, progress: Mapping[str, float] | None = None) -> pd.DataFrame:
        """Write leaderboard, table and report, and give the table.

        A full disk costs the files, not the sweep.
        """
        records, others = self.outcomes()
        frame = table([*map(trial_row, records), *others])
        self.decisions = self.decide(records)
        try:
            write_tables(self.folder, frame)
            data = report_data(
                self.config.name,
                records,
                others if progress is None else [*others, *self._pending(records)],
                progress,
                base=self.folder,
                decisions=page_summaries(self.decisions),
                safest=page_summaries(decide_safest(records)),
            )
            write_report(self.folder / "report.html", data)
        except (
            Exception
        ) as error:  # whatever a stored file holds: tables can be made again, a sweep cannot
            print(spoken("warning tables", folder=self.folder, error=error), file=sys.stderr)
        return frame

    def _pending(self, records: Sequence[TrialRecord]) -> Iterator[TrialRow]:
        """Make rows of the trials that wait, and of those that run.

        Args:
            records: the others.
        """
        known = {record.folder for record in records}
        for trial in self.wanted():
            if trial.folder is None or trial.folder in known or trial.id8 in self.unrecorded:
                continue
            if isinstance(read_entry(trial.folder), Unread):  # it has a row of its own
                continue
            runs = bool(partials_of(trial.folder))
            yield _row_of(trial, "running" if runs else "waiting", "")

    def event(self, kind: str, **values: Any) -> None:
        """Append a line to the sweep's events. A full disk costs the line, not the sweep."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "event": kind, **values}, ensure_ascii=False)
        try:
            with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            print(spoken("warning event", kind=kind, error=error), file=sys.stderr)

    def open_store(self) -> None:
        """Make the sweep's folder, write its plan, and clear away what killed processes left.

        The store's header then says what its file system can do.

        Raises:
            InputError: where the store cannot be written.
        """
        trials = [
            {
                "cell": t.cell,
                "id": t.id8,
                "seed": t.job.seed,
                "condition": t.job.condition.title,
                "state": t.state,
                "reason": t.reason,
                "folder": _place(t, self.settings.output_dir),
            }
            for t in self.plan.trials
        ]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            store = Path(self.settings.output_dir)
            write_header(store, file_system_of(store))
            plan = {"config": to_plain(self.config), "trials": trials}
            write_json(self.folder / "plan.json", plan)
            self.event("start", states={state: len(self.plan.of(state)) for state in STATES})
        except OSError as error:
            raise InputError(
                Sentence.of(
                    "sweep output", output_dir=self.settings.output_dir, error=sentence_of(error)
                )
            ) from error
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Delete working folders whose process is gone, also those of an earlier sweep."""
        for cell in self._cells():
            for folder in dead_partials(cell):
                shutil.rmtree(folder, ignore_errors=True)

    def _cells(self) -> list[Path]:
        """List the folders of the planned cells, each once."""
        return list(dict.fromkeys(t.folder.parent for t in self.plan.trials if t.folder))


def _place(trial: PlannedTrial, store: str) -> str | None:
    """Give a trial's folder as seen from the store, None where it cannot run."""
    return None if trial.folder is None else os.path.relpath(trial.folder, store)


def _row_of(trial: PlannedTrial, status: str, reason: str) -> TrialRow:
    """Make the row of a trial that is not in the store."""
    condition = trial.job.condition
    row = skipped_row(trial.job.names, trial.job.seed, reason)
    draw = condition.stored().get("draw")
    return replace(row, status=status, condition=condition.label, draw=draw)
