"""`python -m adray doctor FILE.adray`: whether this machine runs a bundle as it was made.

Nothing here imports torch, which the machines of a line do not have.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from adray.cli.bundle_file import bundle_errors, precision_text
from adray.cli.command_parser import CommandParser
from adray.cli.line_options import add_backend
from adray.runtime.doctor import Checkup, check_machine


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: check a bundle on this machine and say what was found.

    Returns:
        The exit code, 1 where something is not as it was made.
    """
    options = _parser().parse_args(argv)
    with bundle_errors():
        checkup = check_machine(options.bundle, options.threads, options.backend)
    for line in _lines(checkup):
        print(line)
    return int(bool(checkup.problems))


def _lines(checkup: Checkup) -> list[str]:
    """Say what was found."""
    lines = [
        "every member has the hash of the manifest",
        f"{checkup.golden} golden images judged by {checkup.backend}, scores differ by "
        f"{checkup.largest_error:.1e} of the largest at most",
        precision_text(checkup.precision),
        f"loaded in {checkup.load_seconds:.2f} s, the first image took "
        f"{checkup.first_milliseconds:.0f} ms, later ones {checkup.milliseconds:.1f} ms",
        f"largest memory of the process: {checkup.megabytes:.0f} MB",
    ]
    for name, before, now in checkup.versions:
        lines.append(f"{name} {now}" + ("" if before == now else f", made with {before}"))
    lines += [f"PROBLEM: {problem}" for problem in checkup.problems]
    lines.append(
        "this machine judges as the one that made the bundle"
        if not checkup.problems
        else "do not use this bundle here before the problems are mended"
    )
    return lines


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray doctor",
        description="Check a bundle on this machine: the hashes of its members, the scores of its golden images, "
        "whether they are decoded to the same pixels, speed and memory.",
    )
    parser.add_argument("bundle", help="a file that `adray bundle` made (*.adray)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: all)")
    add_backend(parser)
    return parser
