"""`python -m adray backbones`: which weight files are there, and where the missing ones belong."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from adray.backbones import (
    Backbone,
    check_structure,
    find_backbones,
    has_published_features,
    users_of,
)
from adray.cli.command_parser import CommandParser
from adray.components.backbone import missing_weights
from adray.errors import InputError
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.sentence import error_text
from adray.settings import get_globals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        1 where a file that is there is broken, or another network's.
    """
    options = _parser().parse_args(argv)
    say = load_catalogue(language_of(os.environ))
    found = find_backbones(options.backbone_dir, options.names)
    broken = 0
    for backbone in found:
        problem = _problem(backbone, say)
        broken += bool(problem)
        for line in _lines(backbone, problem, options.backbone_dir, say):
            print(line)

    present = sum(backbone.path is not None for backbone in found)
    print(say("backbones count", present=present, total=len(found), broken=broken))
    return int(broken > 0)


def _problem(backbone: Backbone, say: Catalogue) -> str:
    """Say what is wrong with a file, empty where nothing is, or it is missing."""
    if backbone.path is None:
        return ""
    try:
        check_structure(backbone)
    except InputError as error:
        return error_text(error, say.language)
    return ""


def _lines(backbone: Backbone, problem: str, backbone_dir: str, say: Catalogue) -> list[str]:
    """Say of one weight file what it is, or where it belongs."""
    licence = backbone.row.licence or say("backbones licence unknown")
    users = ", ".join(users_of(backbone.name)) or say("backbones unused")
    lines = [f"{backbone.name}: {users}"]
    if backbone.path is None:
        lines.append(f"  {missing_weights(backbone.name, backbone_dir).text(say)}")
        lines.append(f"  {say('backbones licence', licence=licence)}")
        return lines

    key = {True: "backbones published", False: "backbones other", None: "backbones unknown"}
    origin = say(key[backbone.is_published])
    lines.append(f"  {backbone.path}")
    lines.append(f"  {backbone.size:,} bytes, sha256 {backbone.sha256} ({origin})")
    lines.append(f"  {say('backbones licence', licence=licence)}")
    if problem:
        return [*lines, f"  {problem}"]

    lines.append(f"  {say('backbones structure')}")
    is_golden = has_published_features(backbone)
    if is_golden is not None:
        lines.append(f"  {say('backbones golden' if is_golden else 'backbones not golden')}")
    return lines


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray backbones",
        description="List the weight files: what is there, whether it is the published file and holds the network "
        "that its name says, its licence, and where to put what is missing.",
        epilog="exit codes: 0 all that is there can be used; 1 a file is broken or another network's; 2 bad input",
    )
    parser.add_argument(
        "names", nargs="*", help="names or patterns of weight files (default: all of them)"
    )
    parser.add_argument(
        "--backbone-dir", default=get_globals().backbone_dir, help="folder of pretrained weights"
    )
    return parser
