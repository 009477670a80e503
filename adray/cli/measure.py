"""`python -m adray measure STORE`: speed and memory of finished trials, each alone on its device."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from adray.cli.command_parser import CommandParser
from adray.cli.options import add_accept, add_only, model_path
from adray.fields import check_range
from adray.language.catalogue import spoken
from adray.machine import available_cpus, load_average
from adray.measure import (
    LIMIT_SECONDS,
    Request,
    choose_devices,
    find_trials,
    format_csv,
    format_table,
    measure_apart,
    names_of,
    settings_of,
)
from adray.progress_lines import stage
from adray.results.measurements import add_measurement
from adray.results.store import TrialRecord
from adray.results.trial_files import find_checkpoint
from adray.settings import get_globals
from adray.types import Json

logger = logging.getLogger(__name__)

_START_SECONDS = 10.0
"""Of a process with torch and a model, about."""
_FIGURES = 3
"""Latency, latency from the file, and throughput are timed."""
_BUSY_LOAD = 1.0
"""Processes that want to run beside this one, from which on figures are worth little."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: measure trials, store what was found beside them and print it.

    Returns:
        The exit code, 1 where a trial failed.
    """
    options = _parser().parse_args(argv)
    check_range("--threads", options.threads, 1, 1024)
    check_range("--repeats", options.repeats, 1, 1_000_000)
    check_range("--seconds", options.seconds, 0.01, LIMIT_SECONDS / 10)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    store = model_path(options.trials, get_globals().output_dir)
    records = find_trials(Path(store), options.only, options.all)
    devices = choose_devices(options.device)

    announce(len(records) * len(devices), options.seconds)
    rows = []
    for number, record in enumerate(records, start=1):
        names = names_of(record)
        place = "/".join(names.values())
        for device in devices:
            with stage(f"measuring {number}/{len(records)}"):
                row = _measure(record, device, options)
            rows.append({**names, **row})
            figure = row.get("latency_ms")
            found = "" if figure is None else f": {figure:.3g} ms an image"
            logger.info("%d/%d  %s on %s%s", number, len(records), place, device, found)
    print(format_csv(rows) if options.format == "csv" else format_table(rows))
    return int(any("failed" in row for row in rows))


def announce(number: int, seconds: float) -> None:
    """Say how long so many measurements take at most, and whether the machine has other work.

    Args:
        number: of measurements.
        seconds: after which a figure takes no further call.
    """
    most = number * (_START_SECONDS + _FIGURES * seconds)
    logger.info(spoken("measure begins", number=number, minutes=math.ceil(most / 60)))
    load = load_average()
    if load is not None and load > _BUSY_LOAD:
        logger.info(spoken("measure busy", load=f"{load:.1f}"))


def _measure(record: TrialRecord, device: str, options: argparse.Namespace) -> Json:
    """Measure a trial and store what was found beside it.

    Returns:
        The keys of `adray.results.measurements.FIELDS`, or ``reason`` why there are none, with
        ``failed`` where there should be; JSON.
    """
    if find_checkpoint(record.folder) is None:
        remedy = "set keep: all in the sweep's file and run the trial again"
        return {"reason": f"the trial kept no checkpoint; {remedy}"}

    settings = settings_of(record, options.backbone_dir, options.plugins)
    effort = (options.threads, options.repeats, options.seconds)
    accept = options.accept_other_weights
    row = measure_apart(Request(record.folder, device, *effort, settings, accept))
    if "reason" in row:
        return {**row, "failed": True}
    add_measurement(record, row)
    return row


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray measure",
        description="Measure how fast finished trials predict and what memory that takes, from their checkpoints, "
        "each alone in a fresh process. Run it while nothing else runs on the machine; what does is recorded.",
    )
    parser.add_argument(
        "trials",
        help="the output_dir of a sweep, the folder of one trial, or its part and configuration "
        "(screw/padim)",
    )
    add_only(parser)
    parser.add_argument(
        "--all",
        action="store_true",
        help="every trial; by default one of those whose configuration, hyperparameters, image size and size of "
        "checkpoint are the same, since what was learnt does not change the speed",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda", "both"),
        help="the CPU, and the GPU where there is one, by default",
    )

    parser.add_argument(
        "--threads", type=int, default=available_cpus(), help="CPU threads (default: one a core)"
    )
    parser.add_argument(
        "--repeats", type=int, default=200, help="timed calls per figure (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="no further call after this time per figure (default: %(default)s)",
    )
    parser.add_argument(
        "--format", choices=("table", "csv"), default="table", help="default: %(default)s"
    )

    # Without them each trial's own are used.
    parser.add_argument(
        "--backbone-dir", help="folder of pretrained weights; by default that of the sweep"
    )
    parser.add_argument("--plugins", nargs="*", help="modules that register models of your own")
    add_accept(parser)
    return parser
