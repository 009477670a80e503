"""`python -m adray clean STORE`: remove what nothing refers to, after showing it."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

from adray.clean import Waste, find_caches, find_waste, remove
from adray.cli.command_parser import CommandParser
from adray.language.catalogue import spoken
from adray.settings import get_globals

_MB = 1e6


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: show what nothing refers to, and remove it where asked for.

    Returns:
        The exit code, 1 where something could not be removed.
    """
    options = _parser().parse_args(argv)
    settings = get_globals()
    found = find_waste(options.store)
    waste = found.waste + (find_caches(settings) if options.caches else [])
    for item in waste:
        print(f"{item.kind:14} {item.size / _MB:10.1f} MB  {item.path}: {item.reason}")
    for note in found.notes:
        print(note)

    print(_summary(waste))
    if not options.yes:
        if waste:
            print(spoken("clean kept"))
        return 0
    freed = remove(waste, settings)
    print(spoken("clean freed", size=f"{freed / _MB:.1f}"))
    left = [item for item in waste if item.path.exists()]
    for item in left:
        print(spoken("clean left", path=item.path))
    return int(bool(left))


def _summary(waste: Sequence[Waste]) -> str:
    """Count what was found by its kind."""
    by_kind: dict[str, list[Waste]] = defaultdict(list)
    for item in waste:
        by_kind[item.kind].append(item)
    if not by_kind:
        return spoken("clean nothing")

    parts = []
    for kind, items in sorted(by_kind.items()):
        size = sum(item.size for item in items) / _MB
        parts.append(spoken("clean kind", kind=kind, number=len(items), size=f"{size:.1f}"))
    return ", ".join(parts)


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray clean",
        description="Show what nothing of a store refers to any more, and how much it takes: what killed processes "
        "left, and trials whose images have changed since. Results that count, or that a later setting replaced, stay.",
    )
    parser.add_argument("store", help="the output_dir of sweeps")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="only show it, as without any option")
    how.add_argument("--yes", action="store_true", help="remove it")
    parser.add_argument(
        "--caches",
        action="store_true",
        help="also the decoded images and features in this machine's cache that no process uses "
        "now; they are made again when needed",
    )
    return parser
