"""`python -m adray.sweep FILE`: run a sweep, or continue it."""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
from collections.abc import Sequence

from adray.cli.command_parser import CommandParser
from adray.cli.options import add_set, count, minutes, positive
from adray.config_file import describe_changes, load_sweep
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.sweep.surroundings import check_surroundings

_COLLECTOR = (20_000, 20, 20)
"""Objects before the collector looks: imports make many and no garbage, and at 700 it takes a
quarter of a start."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    gc.set_threshold(*_COLLECTOR)
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    config = load_sweep(options.file, options.set)
    if options.minutes is not None and config.search is not None:
        raise InputError(Sentence.of("sweep minutes"))
    check_surroundings(options.address, options.num_gpus)

    # Imported once the file is known to be good: this takes seconds.
    from adray.sweep.driver import run_sweep
    from adray.sweep.search import run_search
    from adray.sweep.sweep import RunOptions

    run = run_sweep if config.search is None else run_search
    return run(
        config,
        RunOptions(
            only=tuple(options.only),
            dry_run=options.dry_run,
            skip_missing=options.skip_missing,
            fail_fast=options.fail_fast,
            no_retry=options.no_retry,
            address=options.address,
            num_gpus=options.num_gpus,
            num_cpus=options.num_cpus,
            insecure=options.insecure,
            changes=tuple(describe_changes(options.set)),
            seconds=None if options.minutes is None else 60 * options.minutes,
            ray_log=options.ray_log,
            command=shlex.join(["python", "-m", "adray.sweep", *arguments]),
        ),
    )


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray.sweep",
        description="Run a grid of models, data sets and categories. Running the same file again continues it: "
        "what is done is not done again, what failed is tried once more.",
        epilog="exit codes: 0 all done, 1 some failed or were skipped, 2 bad input, 130 interrupted",
    )
    parser.add_argument("file", help="the sweep's YAML file, for instance configs/quickstart.yaml")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and the order of trials, run nothing",
    )
    add_set(parser, "change values of the file: settings.output_dir=/data")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="trials by dataset/category/configuration or id",
    )
    parser.add_argument(
        "--skip-missing", action="store_true", help="go on without cells whose files are missing"
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    parser.add_argument(
        "--no-retry", action="store_true", help="leave out trials that failed before"
    )
    parser.add_argument(
        "--minutes",
        type=minutes,
        help="end after so many minutes with what is finished; the same command goes on",
    )
    parser.add_argument(
        "--address", help="join a Ray cluster, HOST:PORT or auto; by default a Ray of its own"
    )
    parser.add_argument("--num-gpus", type=count, help="GPUs to use; all by default")
    parser.add_argument("--num-cpus", type=positive, help="CPUs to use; all by default")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="run although RAY_AUTH_MODE=disabled lets anyone in",
    )
    parser.add_argument("--ray-log", action="store_true", help="also show what Ray itself logs")
    return parser
