"""`python -m adray data PATH`: what a folder of images holds, before anything is trained."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adray.cli.command_parser import CommandParser
from adray.cli.options import add_set
from adray.cli.progress import StepLine
from adray.config import build
from adray.config_file import parse_changes
from adray.data.published import PUBLISHED, describe_published
from adray.data.recognise import locate, recognise
from adray.data.survey import DataSurvey, make_survey
from adray.data.survey_page import write_page
from adray.data.survey_text import as_json, as_text, as_yaml, heading
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.sentence import Sentence
from adray.settings import DataOptions, get_globals

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: look at a folder and say what it holds.

    Returns:
        The exit code, 2 where a sweep of the folder would not start.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    say = load_catalogue(language_of(os.environ))

    if _is_only_a_name(options):
        print(describe_published(options.path, say))
        return 0

    outputs = _outputs(options)
    try:
        survey = _look(options, say)
        for path in outputs.write(survey, say):
            print(say("written", path=path), file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{say('interrupted')}", file=sys.stderr)
        return _INTERRUPTED
    return 2 if survey.stops else 0


def _is_only_a_name(options: argparse.Namespace) -> bool:
    """Tell whether a published data set is named of which there is no folder to look at."""
    nothing_to_write = not (options.json or options.write or options.page)
    is_here = locate(options.path, get_globals()) is not None
    return options.path in PUBLISHED and nothing_to_write and not is_here


def _look(options: argparse.Namespace, say: Catalogue) -> DataSurvey:
    """Survey the folder and print what was found."""
    settings = get_globals()
    said = build(DataOptions, parse_changes(options.set), "--set")
    found = recognise(options.path, settings, said)
    if not options.json:
        layouts = [(dataset.name, dataset.reader.shape) for dataset in found.datasets]
        print(heading(found.root, layouts, found.why, say), flush=True)

    line = StepLine(say)
    try:
        survey = make_survey(found, settings, said, line)
    finally:
        line.close()
    print(as_json(survey) if options.json else as_text(survey, say))
    return survey


@dataclass(frozen=True)
class _Outputs:
    """The files that the command shall write."""

    sweep: Path | None
    """The sweep's file."""
    page: Path | None
    """The page."""

    def write(self, survey: DataSurvey, say: Catalogue) -> list[Path]:
        """Write what was asked for and list it."""
        written = []
        if self.sweep is not None:
            with atomic_path(self.sweep) as temporary:
                temporary.write_text(as_yaml(survey, say), encoding="utf-8")
            written.append(self.sweep)
        if self.page is not None:
            write_page(self.page, survey, say)
            written.append(self.page)
        return written


def _outputs(options: argparse.Namespace) -> _Outputs:
    """Check where files shall be written, before the survey begins.

    Raises:
        InputError: for a sweep's file that is there already, a page of another ending, and a folder
            that is not there.
    """
    sweep = Path(options.write) if options.write else None
    page = Path(options.page) if options.page else None
    if sweep is not None and sweep.exists():
        raise InputError(Sentence.of("output exists", option="--write", path=str(sweep)))
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise InputError(Sentence.of("output no_page", option="--page", path=str(page)))
    for name, path in (("--write", sweep), ("--page", page)):
        if path is not None and not path.parent.is_dir():
            said = Sentence.of("output no_folder", option=name, folder=str(path.parent))
            raise InputError(said)
    return _Outputs(sweep, page)


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray data",
        description="Look at a folder of images: the layout recognised, what each file was taken for, sizes, grey "
        "levels, masks, copies across the split, what would stop a sweep, and the YAML to begin with.",
        epilog="exit codes: 0 a sweep could start, 2 a sweep would not start or bad input, 130 interrupted",
    )
    parser.add_argument(
        "path", metavar="PATH", help="a folder of images, or the name of a published data set"
    )
    parser.add_argument(
        "--write", metavar="FILE", help="write a sweep of some quick models; never overwrites"
    )
    parser.add_argument(
        "--page", metavar="FILE.html", help="write all this with pictures, as one file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")
    add_set(parser, "what settings.data would say of it: layout=mvtec, accept=[shared_mask]")
    return parser
