"""`python -m adray update TRIAL IMAGES`: add normal images to a trained model, in seconds."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from adray.cli.command_parser import CommandParser
from adray.cli.model_path import check_model_path
from adray.cli.options import add_device, add_model_places, add_store, model_path, use_model_places
from adray.errors import InputError
from adray.found_images import find_images
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.sentence import Sentence
from adray.promises import promise_text
from adray.thresholds import Promise
from adray.types import Json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: make a new trial of a finished one and further normal images.

    Raises:
        InputError: for a trial that cannot be updated, and images that cannot be added or taken
            away.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_model_places(options)
    say = load_catalogue(language_of(os.environ))
    if not options.images and not options.remove:
        raise InputError(Sentence.of("update nothing"))

    folder = Path(model_path(options.trial, options.store))
    if not folder.is_dir():
        raise InputError(Sentence.of("update no trial", folder=str(folder)))
    check_model_path(folder)
    added = _find(options.images)
    removed = _find(options.remove)
    out = Path(options.output) if options.output else None

    # Torch takes seconds, and nothing before needs it.
    from adray.components.device import choose_device
    from adray.update import update_trial

    found = update_trial(folder, added, removed, choose_device(options.device), out)
    if found.known:
        print(say("update known", number=found.known))
    if found.existed:
        print(say("update existed", path=found.folder))
    else:
        print(say("update done", added=found.added, removed=found.removed, path=found.folder))
    for line in _promise_lines(found.result, say):
        print(line)
    return 0


def _find(names: Sequence[str]) -> list[Path]:
    """Find images, and print what is left out."""
    if not names:
        return []
    images = find_images(names)
    for remark in images.remarks:
        print(remark)
    return list(images.paths)


def _promise_lines(result: Json, say: Catalogue) -> list[str]:
    """Say what the new trial promises, or that it promises nothing."""
    promises = result["verdict"]["promises"]
    if not promises or promises[0]["score"] is None:
        return [say("update no promise")]
    return [promise_text(Promise(**promises[0]), say)]


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray update",
        description="Add normal images to a trained model of one pass, or take some away, without training again: a "
        "new trial, calibrated anew by the normals that its parent held out, which never train. The parent stays.",
    )
    parser.add_argument(
        "trial", help="a trial's folder in a store, or its part and configuration (screw/padim)"
    )
    parser.add_argument(
        "images", nargs="*", help="normal images to add: files, folders or patterns"
    )
    parser.add_argument(
        "--remove",
        nargs="+",
        action="extend",
        default=[],
        metavar="IMAGES",
        help="images that the model has learnt from and shall forget; not for memory banks",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="folder of the new trial; in the parent's by default"
    )
    add_device(parser)
    add_store(parser)
    add_model_places(parser)
    return parser
