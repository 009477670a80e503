"""A sweep that runs, as a table of parts and models, read off its store.

The console of the sweep and ``adray status --watch`` on any machine that sees the store draw the
same lines. What a trial is at stands at the end of its log.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adray.files import read_json, write_json
from adray.language.catalogue import Catalogue
from adray.language.columns import display_width, fit, pad
from adray.results.store import TrialRecord, partials_of, read_if_reachable
from adray.results.trial_names import part_name

LEAST_WIDTH = 80
"""Columns of a terminal below which there is no table."""
NEWS = "now.json"
"""File in a sweep's folder with the time that it takes."""
_MOST_MODEL = 30
_MOST_PART = 22
_LEAST_CELL = 8
_MOST_CELL = 18
_LOG_BYTES = 4000
"""At the end of a log in which a stage is looked for."""
_STAGE = re.compile(r"^\S+ \S+ INFO (?:stage (\w+)|(epoch) (\d+/\d+)|(.{1,40}) (\d+/\d+)$)", re.M)
_CAUSE_CHARACTERS = 60
"""Of a reason, by which failures are one cause."""
_MOST_CAUSES = 3
_OLD_SECONDS = 120.0
"""After which a sweep that wrote nothing may have ended."""


@dataclass(frozen=True)
class LiveTrial:
    """A planned trial, by where it stands in the table and in the store."""

    part: str
    """Name of the part."""
    model: str
    """Its configuration, with the condition where it has one."""
    folder: Path | None
    """Its place in the store; None where it cannot run."""


@dataclass(frozen=True)
class Running:
    """What a trial that runs is at."""

    stage: str
    """Word of the catalogue, or what a log says; empty where that is not known."""
    step: str
    """Such as ``3/50``, empty where there is none."""
    seconds: float
    """Since it started."""


@dataclass
class LiveCell:
    """The trials of one model on one part."""

    figures: list[float] = field(default_factory=list)
    """Image AUROC of those that are done and have one."""
    done: int = 0
    """Done trials."""
    failed: int = 0
    """Failed ones, and those that cannot run."""
    running: list[Running] = field(default_factory=list)
    """Those that run."""
    trials: int = 0
    """All."""


@dataclass(frozen=True)
class LiveView:
    """A sweep as it is at a moment."""

    cells: Mapping[tuple[str, str], LiveCell]
    """By part and model, in the order of the plan."""
    causes: Mapping[str, int]
    """Failures by their cause, the commonest first."""
    gone: float
    """Seconds since the start."""
    left: float | None
    """Seconds to the end; None where that is not known."""
    is_old: bool = False
    """Whether nothing was heard of the sweep for a while."""

    @property
    def trials(self) -> int:
        """Count all trials."""
        return sum(cell.trials for cell in self.cells.values())

    @property
    def done(self) -> int:
        """Count those that are done."""
        return sum(cell.done for cell in self.cells.values())

    @property
    def failed(self) -> int:
        """Count those that failed."""
        return sum(cell.failed for cell in self.cells.values())


class LiveReader:
    """Looks at the trials of a sweep again and again; what is done is read once.

    Args:
        trials: of its plan.
    """

    def __init__(self, trials: Iterable[LiveTrial]) -> None:
        self._trials = list(trials)
        self._done: dict[Path, TrialRecord] = {}

    def look(self, gone: float, left: float | None, *, is_old: bool = False) -> LiveView:
        """Read where all trials are.

        Args:
            gone: seconds since the sweep's start.
            left: seconds to its end, None where that is not known.
            is_old: whether nothing was heard of it for a while.
        """
        cells: dict[tuple[str, str], LiveCell] = defaultdict(LiveCell)
        causes: Counter[str] = Counter()
        for trial in self._trials:
            cell = cells[trial.part, trial.model]
            cell.trials += 1
            if trial.folder is None:
                cell.failed += 1
                continue
            self._count(trial.folder, cell, causes)
        return LiveView(dict(cells), dict(causes.most_common()), gone, left, is_old)

    def _count(self, folder: Path, cell: LiveCell, causes: Counter[str]) -> None:
        """Add a trial to its cell."""
        record = self._done.get(folder) or read_if_reachable(folder)
        if record is not None and record.status == "done":
            self._done[folder] = record
            cell.done += 1
            figure = (record.result or {}).get("metrics", {}).get("image_auroc")
            if figure is not None:
                cell.figures.append(float(figure))
            return

        running = _running_of(folder)
        if running is not None:
            cell.running.append(running)
        elif record is not None and record.status == "failed":
            cell.failed += 1
            causes[" ".join(record.reason.split())[:_CAUSE_CHARACTERS]] += 1


def _running_of(folder: Path) -> Running | None:
    """Read what a trial is at, None for one that does not run."""
    with suppress(OSError):
        partials = partials_of(folder)
        if not partials:
            return None
        started = (partials[-1] / "trial.json").stat().st_mtime
        stage, step = _stage_of(partials[-1] / "log.txt")
        return Running(stage, step, max(0.0, time.time() - started))
    return None


def _stage_of(log: Path) -> tuple[str, str]:
    """Read the last stage that a log names, and how far it is."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LOG_BYTES))
        text = file.read().decode("utf-8", "replace")
    found = ("", "")
    for stage, epoch, epochs, work, step in _STAGE.findall(text):
        found = (stage or epoch or work, epochs or step)
    return found


# On any machine


def write_news(folder: Path, gone: float, left: float | None) -> None:
    """Note how long a sweep has run and will run. A disk that is full costs the note alone."""
    with suppress(OSError):
        write_json(folder / NEWS, {"at": time.time(), "gone": gone, "left": left})


def end_news(folder: Path) -> None:
    """Take the note away, since the sweep has ended."""
    with suppress(OSError):
        (folder / NEWS).unlink(missing_ok=True)


def planned_trials(folder: Path, store: Path) -> list[LiveTrial]:
    """Read the plan of a sweep: none where there is no plan, or one of an older version."""
    plan = read_json(folder / "plan.json")
    found = []
    for trial in (plan or {}).get("trials", []):
        place = trial.get("folder")
        if place is None and trial.get("state") != "impossible":
            return []
        part, model = row_names(trial["cell"], trial.get("condition", ""))
        found.append(LiveTrial(part, model, None if place is None else store / place))
    return found


def row_names(cell: str, condition: str) -> tuple[str, str]:
    """Give part and model of a cell as they stand in the table.

    Args:
        cell: ``dataset/category/configuration``.
        condition: what tells it from the plain case, empty for that.
    """
    part, _, model = cell.rpartition("/")
    dataset, _, category = part.rpartition("/")
    return part_name(dataset, category), f"{model} {condition}".strip()


def running_sweeps(store: Path) -> Iterator[Path]:
    """List the folders of a store's sweeps that say that they run, the newest note last."""
    notes = sorted((store / "sweeps").glob(f"*/{NEWS}"), key=_modified)
    for note in notes:
        yield note.parent


def _modified(path: Path) -> float:
    """Give the time of a file's last change, 0 for one that is gone."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def look_from_afar(reader: LiveReader, folder: Path) -> LiveView | None:
    """Look at a sweep by its note, None where it has ended."""
    news: Any = read_json(folder / NEWS)
    if not isinstance(news, dict):
        return None
    since = max(0.0, time.time() - news["at"])
    left = None if news["left"] is None else max(0.0, news["left"] - since)
    return reader.look(news["gone"] + since, left, is_old=since > _OLD_SECONDS)


# The lines


def duration(seconds: float, say: Catalogue) -> str:
    """Write a duration in the reader's language, in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return say("duration seconds", seconds=whole)
    if whole < 3600:
        return say("duration minutes", minutes=whole // 60, seconds=whole % 60)
    return say("duration hours", hours=whole // 3600, minutes=whole // 60 % 60)


def summary_line(view: LiveView, say: Catalogue) -> str:
    """Say how many trials are done, how long it took, and how long it will take."""
    counts = say("live counts", done=view.done, trials=view.trials, failed=view.failed)
    gone = say("live gone", time=duration(view.gone, say))
    if view.is_old:
        return f"{counts} · {say('live old')}"
    if view.left is None:
        return f"{counts} · {gone}"
    return f"{counts} · {gone} · {say('live left', time=duration(view.left, say))}"


def live_lines(view: LiveView, width: int, height: int, say: Catalogue) -> list[str]:
    """Draw a sweep as lines that fit into a terminal.

    Args:
        view: the sweep.
        width: columns, at least `LEAST_WIDTH`.
        height: lines.
        say: the sentences of the reader's language.
    """
    ending = [summary_line(view, say), *_cause_lines(view, say)]
    parts = list(dict.fromkeys(part for part, _ in view.cells))
    models = list(dict.fromkeys(model for _, model in view.cells))
    # Models are rows, parts columns, as on the page. What doesn't fit gives way to what runs.
    models = _fitting(models, height - len(ending) - 2, _by_model(view))
    name_width = min(_MOST_MODEL, max(map(display_width, models), default=0))

    cell_width = min(_MOST_CELL, max(_LEAST_CELL, *map(display_width, parts)))
    widest = max(cell_width, _widest_cell(view, say))
    number = max(1, (width - name_width - 1) // (widest + 2))
    shown = _fitting(parts, number, _by_part(view))

    lines = [pad("", name_width) + "".join(f"  {pad(part, widest)}" for part in shown)]
    for model in models:
        row = pad(model, name_width)
        for part in shown:
            cell = view.cells.get((part, model))
            text = "" if cell is None else _cell_text(cell, say)
            row += f"  {pad(text, widest)}"
        lines.append(row)
    hidden = len(parts) - len(shown)
    hidden_models = len({model for _, model in view.cells}) - len(models)
    if hidden or hidden_models:
        ending.insert(0, say("live hidden", parts=hidden, models=hidden_models))
    return [fit(line.rstrip(), width - 1) for line in [*lines, *ending]]


def _fitting(names: Sequence[str], number: int, busy: Mapping[str, int]) -> list[str]:
    """Choose so many names, those in which most runs first, in their own order."""
    if len(names) <= number:
        return list(names)
    ranked = sorted(names, key=lambda name: -busy.get(name, 0))
    chosen = set(ranked[: max(1, number)])
    return [name for name in names if name in chosen]


def _by_model(view: LiveView) -> Counter[str]:
    """Count what runs by model; what waits counts a little."""
    busy: Counter[str] = Counter()
    for (_, model), cell in view.cells.items():
        busy[model] += 1000 * len(cell.running) + cell.trials - cell.done
    return busy


def _by_part(view: LiveView) -> Counter[str]:
    """Count what runs by part; what waits counts a little."""
    busy: Counter[str] = Counter()
    for (part, _), cell in view.cells.items():
        busy[part] += 1000 * len(cell.running) + cell.trials - cell.done
    return busy


def _widest_cell(view: LiveView, say: Catalogue) -> int:
    """Give the columns that the longest text of a cell takes, within limits."""
    widths = [display_width(_cell_text(cell, say)) for cell in view.cells.values()]
    return min(_MOST_PART, max(widths, default=0))


def _cell_text(cell: LiveCell, say: Catalogue) -> str:
    """Say where the trials of a cell are: the mean figure, what runs, what failed."""
    parts = []
    if cell.figures:
        parts.append(f"{math.fsum(cell.figures) / len(cell.figures):.3f}")
    elif cell.done:
        parts.append(say("live done"))
    if cell.trials > 1 and 0 < cell.done < cell.trials:
        parts.append(f"{cell.done}/{cell.trials}")
    for running in cell.running[:1]:
        words = filter(None, (say.word(running.stage), running.step))
        parts.append(f"> {' '.join(words)} {duration(running.seconds, say)}".replace("  ", " "))
    if cell.failed:
        parts.append(say("live failed"))
    return " ".join(parts) or "."


def _cause_lines(view: LiveView, say: Catalogue) -> list[str]:
    """Group failures by their cause, a line each."""
    lines = []
    for cause, number in list(view.causes.items())[:_MOST_CAUSES]:
        lines.append(say("live cause", number=number, cause=cause))
    return lines
