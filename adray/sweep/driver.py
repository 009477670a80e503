"""The driver: plan, preflight, rounds of trials, tables.

What is done is read off the store alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from adray.config import SweepConfig
from adray.decisions.options import part_of
from adray.decisions.text import summary
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.progress_lines import stage
from adray.results.leaderboard import format_summary, repetition_of
from adray.results.store import TrialRecord, done_of
from adray.results.summaries import MANY, read_summaries
from adray.sweep.costs import CostModel, without_unfit
from adray.sweep.plan import STATES
from adray.sweep.preflight import check_site, prepare
from adray.sweep.rounds import run_rounds
from adray.sweep.schedule import format_schedule, in_order
from adray.sweep.session import INTERRUPTED, local_site, workers
from adray.sweep.sweep import RunOptions, Sweep


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
    say = load_catalogue(language_of(os.environ))
    with stage("looking at images and weights"):
        settings, plan = prepare(config, options.only)
    site = local_site(options.num_gpus, options.num_cpus)
    sweep = Sweep(config, settings, options, plan)
    if options.address is None and sweep.wanted():
        costs = CostModel(sweep.records(), site.device)
        sweep.plan = without_unfit(plan, costs, site)
    print(format_plan(sweep, say))

    problems, remarks = check_site(sweep.plan, config, settings)
    print("\n".join(f"  {remark}" for remark in remarks))
    problems += sweep.plan.problems
    if problems and not options.skip_missing:
        print_problems(problems, say)
        return 2
    if options.dry_run:
        costs = CostModel(sweep.records(), site.device)
        ordered = in_order(sweep.wanted(), costs, config.resources, site)
        print(format_schedule(ordered, site, say))
        for trial in sweep.plan.of("impossible"):
            print("  " + say("sweep skipped", trial=trial.title, reason=trial.reason))
        return 0

    sweep.open_store()
    if not sweep.wanted():
        print(say("sweep nothing"))
        return _finish(sweep, say)
    _open_page(sweep, say)
    try:
        with workers(sweep) as site:
            rounds = run_rounds(sweep, site)
    except KeyboardInterrupt:
        sweep.write_tables()
        print("\n" + say("sweep interrupted", command=options.command), file=sys.stderr)
        return INTERRUPTED
    if rounds.is_out_of_time:
        print(say("sweep out of time", command=options.command))
    return _finish(sweep, say)


def _open_page(sweep: Sweep, say: Catalogue) -> None:
    """Write the page before anything runs, and say where it is."""
    sweep.write_tables({"left": len(sweep.wanted()), "seconds": 0.0})
    page = os.path.relpath(sweep.folder / "report.html")
    print(say("live page", page=page))
    print(say("live start"), flush=True)


def print_problems(problems: list[str], say: Catalogue) -> None:
    """Say what is missing, and that nothing was started."""
    for problem in problems:
        print(say("sweep error", problem=problem), file=sys.stderr)
    print(say("sweep not started"), file=sys.stderr)


def format_plan(sweep: Sweep, say: Catalogue) -> str:
    """Say how many trials are in which state, what ``--set`` changed, and what made some stale."""
    plan = sweep.plan
    states = []
    for state in STATES:
        number = len(plan.of(state))
        if number:
            states.append(say(f"sweep state {state}", number=number))
    head = say(
        "sweep plan",
        name=sweep.config.name,
        trials=len(plan.trials),
        states=", ".join(states) or "-",
        budget=say(f"sweep budget {sweep.config.budget}"),
    )
    lines = [head]
    lines += [f"  {change}" for change in sweep.options.changes]

    cells_by_reason: dict[str, list[str]] = {}
    for trial in plan.of("stale"):
        reason = f"{trial.job.configuration}: {trial.reason}"
        cells_by_reason.setdefault(reason, []).append(trial.cell)
    for reason, cells in cells_by_reason.items():
        lines.append("  " + say("sweep stale", number=len(cells), reason=reason))

    key = "sweep failed left out" if sweep.options.no_retry else "sweep failed tried again"
    for trial in plan.of("failed"):
        lines.append("  " + say(key, trial=trial.title, reason=trial.reason))

    lines += [f"  {line}" for line in (*plan.images, *plan.remarks)]
    if sweep.config.weights == "random":
        lines.append("  " + say("sweep untrained"))
    return "\n".join(lines)


def _finish(sweep: Sweep, say: Catalogue) -> int:
    """Clear up, write the tables, say what came out, and choose the exit code."""
    sweep.remove_leftovers()
    if sweep.config.keep == "best":
        _keep_best(sweep)

    frame = sweep.write_tables()
    states = frame["status"].value_counts().to_dict()
    sweep.event("end", **{str(state): int(number) for state, number in states.items()})

    if len(frame) >= MANY:
        read_summaries(sweep.settings.output_dir)  # so that the first look at them is short

    print(format_summary(frame, say))
    for row in frame[frame["status"].isin(["failed", "skipped", "unread"])].itertuples():
        cell = f"{row.dataset}/{row.category}/{row.configuration}"
        trial = f"{cell} {repetition_of(row)}"
        print(say(f"sweep {row.status}", trial=trial, reason=row.reason))
    print(say("sweep tables", folder=sweep.folder))
    for decision in sweep.decisions:
        print("\n".join(summary(decision, say)))
    lacking = sweep.lacking()
    if lacking:
        print(say("sweep lacking", number=lacking, command=sweep.options.command))
    return 0 if states.get("done", 0) == len(sweep.plan.trials) and not lacking else 1


def _keep_best(sweep: Sweep) -> None:
    """Remove the checkpoints of all but the model to deploy of each part.

    Those of trials under a condition go too. All of a part stay where nothing can be judged, where
    a team is to be deployed, and where the model to deploy lost its checkpoint in an earlier run.
    """
    records, _ = sweep.outcomes()
    kept = {}
    for decision in sweep.decide(records):
        chosen = decision.chosen
        if chosen is not None and chosen.has_checkpoint and not chosen.is_team:
            kept[decision.dataset, decision.category] = chosen.place

    for record in done_of(records):
        if kept.get(part_of(record), record.folder) != record.folder:
            _remove_checkpoints(record)


def _remove_checkpoints(record: TrialRecord) -> None:
    """Delete a trial's weights."""
    for file in Path(record.folder).glob("model_*.pth"):
        file.unlink()
