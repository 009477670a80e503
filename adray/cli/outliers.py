"""`python -m adray outliers PATH`: training normals that do not look like the others."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adray.cli.command_parser import CommandParser
from adray.cli.options import add_device, add_set, count
from adray.cli.progress import StepLine
from adray.components.backbone import find_weights
from adray.config import build
from adray.config_file import parse_changes
from adray.data.drop import check_dropped, read_list
from adray.data.recognise import Recognised, recognise
from adray.data.survey import make_survey
from adray.data.survey_text import shown, survey_yaml
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.sentence import Sentence, nearest_of
from adray.registry import ModelRegistry
from adray.settings import DataOptions, Settings, get_globals, use_settings

if TYPE_CHECKING:
    from adray.outliers_page import CategoryList

_INTERRUPTED = 130
_SHOW = 40
_PRINTED = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: list images, or write a sweep that leaves some out.

    Raises:
        InputError: for a folder, a category, a model or a list that cannot be used.
    """
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    say = load_catalogue(language_of(os.environ))
    _check_outputs(options)
    said = build(DataOptions, parse_changes(options.set), "--set")
    found = recognise(options.path, get_globals(), said)
    settings = _settings_of(found, said, options.backbone_dir)
    use_settings(settings)

    try:
        if options.drop:
            return _write_sweep(found, settings, said, options, say)
        return _list(found, settings, options, say)
    except KeyboardInterrupt:
        print(f"\n{say('interrupted')}", file=sys.stderr)
        return _INTERRUPTED


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse files that cannot be written, before anything is read.

    Raises:
        InputError: with the option.
    """
    if bool(options.drop) != bool(options.write):
        raise InputError(Sentence.of("outliers both"))
    if options.write and Path(options.write).exists():
        raise InputError(Sentence.of("outliers write exists", write=options.write))
    if options.write and not Path(options.write).absolute().parent.is_dir():
        raise InputError(
            Sentence.of("outliers write folder", parent=str(Path(options.write).parent))
        )
    if options.out and Path(options.out).exists() and not Path(options.out).is_dir():
        raise InputError(Sentence.of("outliers out file", out=options.out))


def _settings_of(found: Recognised, said: DataOptions, backbone_dir: str) -> Settings:
    """Give the settings with which a sweep would find the same images."""
    folders = {}
    for dataset in found.datasets:
        if dataset.folder is not None:
            folders[dataset.name] = dataset.folder
    data = {dataset.name: said for dataset in found.datasets}
    return replace(
        get_globals(),
        dataset_dir=str(found.dataset_dir),
        backbone_dir=backbone_dir,
        folders=folders,
        data=data,
    )


# The list


def _list(
    found: Recognised, settings: Settings, options: argparse.Namespace, say: Catalogue
) -> int:
    """Score the images of each category, print the most unlike and write what is asked for."""
    # Torch takes seconds, and nothing before needs it.
    from adray.outliers import PATCH_FACTOR, check_methods, methods_here

    wanted = _wanted(found, options.category)
    methods = methods_here(options.backbone_dir)
    if options.models:
        methods = tuple(ModelRegistry.select(options.models))
    check_methods(methods)
    about = [
        say("outliers methods", names=", ".join([*methods, PATCH_FACTOR])),
        *_weight_lines(methods, options.backbone_dir, say),
    ]
    print("\n".join(about), flush=True)

    lists = []
    for number, (dataset, category) in enumerate(wanted):
        place = shown(f"{dataset}/{category}")
        print(say("outliers begin", place=place, number=number + 1, of=len(wanted)), flush=True)
        lists.append(_list_of(dataset, category, methods, settings, options.device, say))
    if not options.out:
        print(say("outliers no out"))
        return 0
    _write(Path(options.out), found, about, lists, options.show, say)
    return 0


def _list_of(
    dataset: str,
    category: str,
    methods: Sequence[str],
    settings: Settings,
    device: str | None,
    say: Catalogue,
) -> CategoryList:
    """Score the images of a category and print the most unlike."""
    from adray.components.device import choose_device
    from adray.outliers import ranked, score_normals
    from adray.outliers_page import CategoryList, ranks_text

    scored = []
    for one in score_normals(dataset, category, methods, settings, choose_device(device)):
        scored.append(one)
        print(say("outliers scored", name=one.name, images=len(one.samples)), flush=True)

    outliers = ranked(scored)
    for outlier in outliers[:_PRINTED]:
        text = f"{outlier.place:4d}  {shown(outlier.sample.key)}"
        print(f"{text}  {ranks_text(outlier, say)}", flush=True)
    return CategoryList(dataset, category, outliers, scored[0].pixels)


def _write(
    out: Path,
    found: Recognised,
    about: Sequence[str],
    lists: Sequence[CategoryList],
    show: int,
    say: Catalogue,
) -> None:
    """Write the table and the page, and say how to go on."""
    from adray.outliers_page import PAGE, TABLE, write_outlier_page, write_outlier_table

    out.mkdir(parents=True, exist_ok=True)
    write_outlier_table(out / TABLE, lists)
    hint = say("outliers how", table=out / TABLE, path=shlex.quote(str(found.root)))
    title = say("outliers title", name=shown(found.root.name))
    write_outlier_page(out / PAGE, title, [*about, hint], lists, show, say)
    for path in (out / TABLE, out / PAGE):
        print(say("written", path=path))
    print(hint)


def _wanted(found: Recognised, categories: Sequence[str]) -> list[tuple[str, str]]:
    """List the categories that are looked at, each with its data set.

    Raises:
        InputError: for one that is in no data set.
    """
    known = []
    for dataset in found.datasets:
        known += [(dataset.name, category) for category in dataset.list_categories()]
    names = {category for _, category in known}
    for name in categories:
        if name not in names:
            raise InputError(
                Sentence.of(
                    "outliers no category", name=repr(name), nearest=nearest_of(name, sorted(names))
                )
            )
    if not categories:
        return known
    return [(dataset, category) for dataset, category in known if category in categories]


def _weight_lines(methods: Sequence[str], backbone_dir: str, say: Catalogue) -> list[str]:
    """Say which weight files the methods read."""
    files: dict[str, None] = {}
    for name in methods:
        files.update(dict.fromkeys(ModelRegistry.resolve(name).weight_files))
    lines = []
    for name in files:
        lines.append(say("outliers weights", name=name, path=find_weights(name, backbone_dir)))
    return lines


# A sweep without them


def _write_sweep(
    found: Recognised,
    settings: Settings,
    said: DataOptions,
    options: argparse.Namespace,
    say: Catalogue,
) -> int:
    """Write a sweep of the folder that leaves the listed images out."""
    dropped = _dropped(found, Path(options.drop))
    line = StepLine(say)
    try:
        survey = make_survey(found, settings, said, line)
    finally:
        line.close()
    with atomic_path(Path(options.write)) as temporary:
        temporary.write_text(survey_yaml(survey, say, dropped), encoding="utf-8")

    number = sum(map(len, dropped.values()))
    print(say("outliers dropped", number=number, path=options.write))
    return 0


def _dropped(found: Recognised, path: Path) -> dict[str, tuple[str, ...]]:
    """Read a list of images, and say of which data set each is.

    Raises:
        InputError: for a list that marks nothing, and a name that fits no training image.
    """
    dropped: dict[str, tuple[str, ...]] = {}
    listed: dict[str, None] = {}
    for dataset in found.datasets:
        names = dict.fromkeys(read_list(path.absolute(), dataset.name))
        listed.update(names)
        here = [name for name in names if (dataset.root / name).is_file()]
        if here:
            dropped[dataset.name] = tuple(Path(name).as_posix() for name in here)
            samples = dataset.all_samples()
            check_dropped(dataset.name, dropped[dataset.name], samples)

    for name in listed:
        if not any((dataset.root / name).is_file() for dataset in found.datasets):
            raise InputError(
                Sentence.of(
                    "outliers no file", path=str(path), name=repr(name), root=str(found.root)
                )
            )
    if not dropped:
        raise InputError(Sentence.of("outliers no mark", path=str(path)))
    return dropped


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray outliers",
        description="List the training normals that do not look like the others, the most unlike first: each is scored "
        "by several methods that were fitted without it, and by the outlier factors of its patches. A person looks at "
        "them and marks those to leave out.",
        epilog="exit codes: 0 done, 2 bad input, 130 interrupted",
    )
    parser.add_argument(
        "path", metavar="PATH", help="a folder of images, as `python -m adray data` takes it"
    )
    parser.add_argument(
        "--category", nargs="+", default=[], metavar="NAME", help="only these categories"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME",
        help="configurations that score, of those of one pass over frozen features; by default three on "
        "the first network whose file is here",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="write outliers.csv and a page with pictures there"
    )
    parser.add_argument(
        "--show",
        type=count,
        default=_SHOW,
        help="pictures of each category on the page (default: 40)",
    )
    parser.add_argument(
        "--drop",
        metavar="LIST",
        help="outliers.csv with an x in the column drop, or a text file with a name a line",
    )
    parser.add_argument(
        "--write",
        metavar="FILE",
        help="with --drop: a sweep without these images; never overwrites",
    )
    parser.add_argument(
        "--backbone-dir", default=get_globals().backbone_dir, help="folder of pretrained weights"
    )
    add_device(parser)
    add_set(parser, "what settings.data would say of it: layout=mvtec, channels=gray")
    return parser
