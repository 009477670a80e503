"""The steps of `python -m adray start`, from a folder to a decision."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from adray.cli.options import minutes_or_none
from adray.cli.progress import StepLine
from adray.config import check_file_name
from adray.config_file import load_sweep
from adray.data.base import list_folders, list_images
from adray.data.findings import STOPS
from adray.data.names import is_normal_name, looks_defective
from adray.data.recognise import (
    Recognised,
    image_folders,
    locate,
    recognise,
    recognise_normals,
)
from adray.data.survey import CategorySurvey, DataSurvey, make_survey
from adray.data.survey_text import finding_line, heading, shown, sweep_values, yaml_text
from adray.decide import decide
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.catalogue import Catalogue
from adray.language.sentence import Sentence, nearest_of
from adray.results.current import view_store
from adray.results.store import all_trials
from adray.settings import DEFAULT_OPTIONS, get_globals
from adray.sweep.first_sweep import Choice, choose_models
from adray.sweep.session import local_site

_MARK = "python -m adray start"
"""Begins the first line of the file that this command writes, by which it knows it again."""
_MINUTES = 30.0
"""For which models are chosen where the file alone is written."""
_END_SECONDS = 10.0
"""What Ray takes to stop, and the page to be written."""
_CLEARLY_MORE = 2
"""The fullest folder is taken for the normal images where it holds this many times as many as the
next."""


class FirstHour:
    """One run of the command.

    Args:
        options: of the command line.
        say: the sentences of the reader's language.
        command: does the same again.
    """

    def __init__(self, options: argparse.Namespace, say: Catalogue, command: str) -> None:
        self._options = options
        self._command = command
        self._say = say
        self._started = time.monotonic()
        self._asks = sys.stdin.isatty() and sys.stdout.isatty() and not options.yes
        self._settings = replace(
            get_globals(), backbone_dir=options.backbone_dir, output_dir=options.store
        )

    def run(self) -> int:
        """Look, ask, write, run and say how to go on."""
        self._tell("start looking", folder=shown(self._options.folder))
        if not self._asks:
            self._tell("start yes" if self._options.yes else "start no terminal")

        survey = self._accepted(self._surveyed())
        file = self._file(survey)
        minutes = self._minutes()
        if not minutes:
            self._tell("start not run", command=f"python -m adray.sweep {shlex.quote(str(file))}")
            return 0

        code = self._swept(file, minutes)
        if code not in (0, 1):
            return code
        page = self._page(file)
        self._show(page)
        self._tell_steps(file, minutes)
        return 0 if any(all_trials(self._settings.output_dir)) else 1

    def _tell(self, key: str, **values: object) -> None:
        """Print a sentence at once."""
        print(self._say(key, **values), flush=True)

    def _ask(self, question: str, default: str) -> str:
        """Ask something on the terminal, or take the default where nobody is asked."""
        if not self._asks:
            return default
        # Python would write the question to standard error.
        print(f"{question} [{default}] ", end="", flush=True)
        try:
            return input().strip() or default
        except EOFError:
            return default

    # The folder

    def _surveyed(self) -> DataSurvey:
        """Look at the folder and print what was understood."""
        found = self._recognised()
        layouts = [(dataset.name, dataset.reader.shape) for dataset in found.datasets]
        print(heading(found.root, layouts, found.why, self._say), flush=True)
        survey = self._survey_of(found)
        print("\n".join(_part_lines(survey, self._say)), flush=True)
        return survey

    def _survey_of(self, found: Recognised) -> DataSurvey:
        """Find out what there is, with a line of progress."""
        line = StepLine(self._say)
        options = found.datasets[0].options
        try:
            return make_survey(found, self._settings, options, line)
        finally:
            line.close()

    def _recognised(self) -> Recognised:
        """Find out how the folder is to be read, and ask where its names do not tell.

        Raises:
            InputError: for a folder that holds nothing to learn from, and names that cannot be kept.
        """
        folder = self._options.folder
        root = locate(folder, self._settings)
        if root is not None:
            _check_names(root)
        try:
            found = recognise(folder, self._settings, DEFAULT_OPTIONS)
        except InputError:
            if root is None:
                raise
            return recognise_normals(root, self._normal_folder(root), DEFAULT_OPTIONS)

        if found.why == "flat":
            self._check_flat(found.root)
        return found

    def _normal_folder(self, root: Path) -> str:
        """Say which folder holds the normal images, where none is called so.

        Raises:
            InputError: where there is none that may, or none that stands out and nobody to ask.
        """
        folders = image_folders(root)
        if not folders:
            raise InputError(self._nothing_normal(root))
        first = folders[0]
        is_clear = len(folders) == 1 or first.images >= _CLEARLY_MORE * folders[1].images
        if not self._asks and not is_clear:
            listed = ", ".join(shown(folder.name) for folder in folders)
            raise InputError(self._say("start unclear", root=shown(root), names=listed))

        for folder in folders:
            self._tell("start folder", name=shown(folder.name), images=folder.images)
        chosen = self._ask(self._say("start which normal"), first.name)
        names = [folder.name for folder in folders]
        if chosen not in names:
            raise InputError(
                Sentence.of(
                    "start no folder",
                    root=str(root),
                    chosen=repr(chosen),
                    nearest=nearest_of(chosen, names),
                )
            )
        self._tell("start taken normal", name=shown(chosen))
        return chosen

    def _nothing_normal(self, root: Path) -> str:
        """Say why there is nothing to learn from: no images, or only defects."""
        if not list_folders(root):
            return self._say("start empty", root=shown(root))
        names = ", ".join(shown(folder.name) for folder in list_folders(root))
        return self._say("start only defects", root=shown(root), names=names)

    def _check_flat(self, root: Path) -> None:
        """Look whether images without folders are good ones, as far as names tell.

        Raises:
            InputError: where some are called as defects are, or all of them lie in a folder that is
                and nobody says that they are good.
        """
        images = list_images(root)
        bad = [path for path in images if looks_defective(path.stem)]
        if bad:
            values = {"number": len(bad), "images": len(images), "first": shown(bad[0].name)}
            raise InputError(self._say("start mixed", root=shown(root), **values))
        if is_normal_name(root.name) and _has_sisters(root):
            self._tell("start only normals", parent=shown(root.parent))
        if not looks_defective(root.name):
            return

        question = self._say("start sounds bad", root=shown(root))
        if self._ask(question, "n")[:1].lower() not in ("y", "예", "네"):
            raise InputError(
                self._say("start only defects", root=shown(root.parent), names=root.name)
            )

    def _accepted(self, survey: DataSurvey) -> DataSurvey:
        """Ask whether to go on with images in which something would change a result.

        Raises:
            InputError: where that is refused, or nothing can be done about it here.
        """
        stopping = [finding for finding in survey.findings if finding.stops]
        if not stopping:
            return survey
        for finding in stopping:
            print(finding_line(finding, self._say))
        kinds = sorted({finding.kind for finding in stopping})
        answer = "n"
        if all(kind in STOPS for kind in kinds):
            answer = self._ask(self._say("start go on"), "n")
        if answer[:1].lower() not in ("y", "예", "네"):
            raise InputError(self._say("start mend", root=shown(survey.root)))
        return replace(survey, options=replace(survey.options, accept=tuple(kinds)))

    # The sweep

    def _choice(self, survey: DataSurvey) -> Choice:
        """Choose the models and say which."""
        settings = self._settings
        store = Path(settings.output_dir)
        records = list(all_trials(store)) if store.is_dir() else []
        site = local_site(None, None)
        seconds = 60 * (self._options.minutes or _MINUTES)
        choice = choose_models(survey, settings.backbone_dir, records, site, seconds)

        names = ", ".join(choice.models)
        left = max(1, round(choice.seconds / 60))
        self._tell("start models", names=names, minutes=left, device=site.device.upper())
        if not choice.is_in_time:
            self._tell("start too long", minutes=f"{self._options.minutes:g}")
        if all("efficientnet" in name for name in choice.models):
            self._tell("start larger", folder=shown(settings.backbone_dir))
        return choice

    def _file(self, survey: DataSurvey) -> Path:
        """Write the sweep's file, or take the one that an earlier run wrote of the same folder."""
        mark = f"{_MARK} {shlex.quote(str(survey.root))}"
        for file in _names_of(survey):
            if _begins_with(file, mark):
                self._tell("start file kept", file=file)
                return file
            if not file.exists():
                break

        values = sweep_values(survey, self._choice(survey).models)
        values["name"] = file.stem
        values["settings"] |= {
            "backbone_dir": str(self._options.backbone_dir),
            "output_dir": str(self._options.store),
        }
        with atomic_path(file) as temporary:
            temporary.write_text(yaml_text(values, mark), encoding="utf-8")
        self._tell("start file", file=file)
        return file

    def _minutes(self) -> float:
        """Ask how long it may take, 0 for not at all.

        Raises:
            InputError: for what is no number.
        """
        default = f"{self._options.minutes:g}"
        answer = self._ask(self._say("start how long"), default)
        try:
            return minutes_or_none(answer)
        except (ValueError, argparse.ArgumentTypeError):
            raise InputError(Sentence.of("start minutes", answer=repr(answer))) from None

    def _swept(self, file: Path, minutes: float) -> int:
        """Run the sweep in the time that is left, and give its exit code."""
        config = load_sweep(file)

        # Imported once all is known to be good: this takes seconds.
        from adray.sweep.driver import run_sweep
        from adray.sweep.surroundings import check_surroundings
        from adray.sweep.sweep import RunOptions

        check_surroundings(None)
        left = 60 * minutes - (time.monotonic() - self._started) - _END_SECONDS
        run = RunOptions(skip_missing=True, seconds=max(left, 1.0), command=self._command)
        return run_sweep(config, run)

    # What came of it

    def _page(self, file: Path) -> Path:
        """Name the page of the sweep."""
        return Path(self._options.store) / "sweeps" / file.stem / "report.html"

    def _show(self, page: Path) -> None:
        """Open the page where somebody sits before it, and say where it is."""
        has_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        is_open = False
        if self._asks and has_screen and page.is_file():
            with suppress(webbrowser.Error, OSError):
                is_open = webbrowser.open(page.resolve().as_uri())
        self._tell("start page open" if is_open else "start page", page=page)

    def _tell_steps(self, file: Path, minutes: float) -> None:
        """Print the command of every step that does it alone."""
        self._tell("start steps")
        for command in _steps(self._options, file, minutes):
            print(f"  {command}")
        for place in self._decided(file):
            print(f"  python -m adray predict {place} NEW_IMAGES --out found")
            print(f"  python -m adray bundle {place} --out line.adray")

    def _decided(self, file: Path) -> Iterator[str]:
        """Give the trials to deploy, one for each part of the sweep that has one."""
        datasets = load_sweep(file).grid.datasets
        records = view_store(self._options.store).shown(everything=False)
        for decision in decide(records, draws=0):
            chosen = decision.chosen
            if decision.dataset in datasets and chosen is not None and chosen.has_checkpoint:
                yield shlex.quote(str(chosen.place))


# What was understood


def _part_lines(survey: DataSurvey, say: Catalogue) -> Iterator[str]:
    """Say how many images each part has, of which kind, and what they are used for."""
    for category in survey.categories:
        train, test = _normals(category)
        name = category.dataset if len(survey.categories) == 1 else category.name
        yield say("start part", name=shown(name), good=train + test, train=train, test=test)
        kinds = list(_defect_kinds(category))
        if kinds:
            defects = sum(number for _, number in kinds)
            listed = ", ".join(f"{shown(kind)} {number}" for kind, number in kinds)
            masks = sum(count.with_mask for count in category.counts)
            yield "  " + say("start defects", number=defects, kinds=listed, masks=masks)
        else:
            yield "  " + say("start no defects")
    number = sum(group.files for group in survey.left_out)
    if number:
        yield say("start left out", number=number, folder=shlex.quote(str(survey.root)))


def _normals(category: CategorySurvey) -> tuple[int, int]:
    """Count the normal images that train, and the others."""
    train = 0
    test = 0
    for count in category.counts:
        if count.kind == "good" and count.split == "train":
            train += count.images
        elif count.kind == "good":
            test += count.images
    return train, test


def _defect_kinds(category: CategorySurvey) -> Iterator[tuple[str, int]]:
    """Count the defective images by type."""
    by_kind: dict[str, int] = {}
    for count in category.counts:
        if count.kind != "good":
            by_kind[count.kind] = by_kind.get(count.kind, 0) + count.images
    yield from by_kind.items()


def _check_names(root: Path) -> None:
    """Refuse a folder whose name no file of a sweep can hold.

    Raises:
        InputError: for a name that is not UTF-8, or empty, or begins with a dot.
    """
    try:
        str(root).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(Sentence.of("start name", root=shown(root))) from None
    check_file_name("FOLDER", root.name)


def _has_sisters(root: Path) -> bool:
    """Tell whether other folders of images lie beside a folder."""
    with suppress(InputError, OSError):
        return len(list_folders(root.parent)) > 1
    return False


def _names_of(survey: DataSurvey) -> Iterator[Path]:
    """Give the names that the sweep's file may have, the plain one first."""
    stem = sweep_values(survey, ())["name"]
    yield Path(f"{stem}.yaml")
    for number in range(2, 1000):
        yield Path(f"{stem}_{number}.yaml")


def _begins_with(file: Path, mark: str) -> bool:
    """Tell whether an earlier run of this command wrote a file, of the same folder."""
    try:
        first = file.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return False
    return first == f"# {mark}"


def _steps(options: argparse.Namespace, file: Path, minutes: float) -> Iterator[str]:
    """Give the commands of all steps that were done."""
    folder = shlex.quote(options.folder)
    yaml = shlex.quote(str(file))
    store = shlex.quote(options.store)
    yield f"python -m adray data {folder}"
    yield f"python -m adray check {yaml}"
    yield f"python -m adray.sweep {yaml} --minutes {minutes:g}"
    yield f"python -m adray status {store}"
    yield f"python -m adray decide {store}"
