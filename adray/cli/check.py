"""`python -m adray check FILE`: say all that a sweep lacks, at once, and start nothing."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adray.cli.command_parser import CommandParser
from adray.cli.options import add_set
from adray.config_file import describe_changes, load_sweep
from adray.language.catalogue import language_of, load_catalogue
from adray.progress_lines import stage
from adray.settings import Settings
from adray.sweep.plan import Plan
from adray.sweep.preflight import check_all_pixels, check_site, prepare
from adray.sweep.surroundings import check_surroundings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(argv)
    config = load_sweep(options.file, options.set)
    check_surroundings(options.address)
    with stage("looking at images and weights"):
        settings, plan = prepare(config)

    of_site, remarks = check_site(plan, config, settings)
    problems = [*plan.problems, *of_site]
    if options.full:
        problems += check_all_pixels(plan, settings)
    if options.address:
        problems += _check_cluster(plan, settings, options.address)

    done = len(plan.of("done"))
    blocked = len(plan.of("impossible"))
    say = load_catalogue(language_of(os.environ))
    print(say("check trials", trials=len(plan.trials), done=done, blocked=blocked))
    for remark in [*describe_changes(options.set), *plan.images, *plan.remarks, *remarks]:
        print(f"  {remark}")
    for problem in problems:
        print(say("check problem", problem=problem), file=sys.stderr)
    if problems:
        return 2
    print(say("check ready"))
    return 0


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray check",
        description="Look at a sweep's file, data, weights and this machine, and say all that is missing at once.",
        epilog="exit codes: 0 the sweep can start, 2 something is missing",
    )
    parser.add_argument("file", help="the sweep's YAML file")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also decode every image, which takes as long as it takes",
    )
    add_set(parser, "change values of the file")
    parser.add_argument(
        "--address", help="also look at every node of a Ray cluster, HOST:PORT or auto"
    )
    return parser


def _check_cluster(plan: Plan, settings: Settings, address: str) -> list[str]:
    """Say what makes nodes of a cluster unfit.

    A folder is made in the store for the time of the look.
    """
    from adray.sweep.nodes import check_nodes
    from adray.sweep.session import local_site, ray_site

    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=settings.output_dir, prefix=".adray-") as marker,
        ray_site(address, local_site(None, None)),
    ):
        unfit = check_nodes(plan, settings, Path(marker))

    problems: list[str] = []
    for found in unfit.values():
        problems += found
    return problems
