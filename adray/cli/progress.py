"""The line that says how far a command is: redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from adray.language.catalogue import Catalogue, language_of, load_catalogue
from adray.language.columns import fit
from adray.progress_lines import PROGRESS, SECONDS

_PLAIN_SECONDS = 10.0
"""Between two lines where nothing can be redrawn."""
_ERASE = "\r\x1b[K"
"""Goes back to the beginning of a terminal's line and empties it."""


class ProgressLine:
    """Writes to standard error how far the work is.

    On a terminal each text replaces the one before. Elsewhere a text is printed where it still holds
    after some seconds, and not too often, so that a log stays short.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._is_drawn = False
        self._due = 0.0
        self._timer: threading.Timer | None = None

    def show(self, text: str) -> None:
        """Show a text, or take the last one away where it is empty."""
        if not text:
            self.close()
        elif self._is_terminal:
            width = shutil.get_terminal_size().columns
            print(f"{_ERASE}{fit(text, width - 1)}", end="", file=sys.stderr, flush=True)
            self._is_drawn = True
        elif time.monotonic() >= self._due:
            print(text, file=sys.stderr, flush=True)
            self._due = time.monotonic() + _PLAIN_SECONDS

    def begin(self, text: str) -> None:
        """Show a text of work without parts: at once on a terminal, elsewhere if it takes long."""
        if self._is_terminal:
            self.show(text)
            return
        self._stop_timer()
        self._timer = threading.Timer(SECONDS, self.show, [text])
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Take the text away from a terminal."""
        self._stop_timer()
        if self._is_drawn:
            print(_ERASE, end="", file=sys.stderr, flush=True)
            self._is_drawn = False

    def _stop_timer(self) -> None:
        """Forget a text that was to be shown later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class StepLine:
    """Shows how far each step of a survey is: a `adray.data.survey.Watch`.

    Args:
        say: names the steps.
    """

    def __init__(self, say: Catalogue) -> None:
        self._say = say
        self._line = ProgressLine()
        self._step = ""
        self._total = 0
        self._done = 0
        self._due = 0.0

    def begin(self, step: str, total: int) -> None:
        """Begin a step of `total` parts."""
        self._step = self._say(f"step {step}")
        self._total = total
        self._done = 0
        self._due = time.monotonic() + SECONDS

    def advance(self) -> None:
        """Count a part, and say so where the step takes long."""
        self._done += 1
        if time.monotonic() >= self._due:
            self._line.show(f"{self._step} {self._done}/{self._total}")
            self._due = time.monotonic() + SECONDS / 10

    def close(self) -> None:
        """Take the line away."""
        self._line.close()


@contextmanager
def progress_shown() -> Iterator[None]:
    """Show how far long work is, as `adray.progress_lines.watched` logs it."""
    handler = _LineHandler()
    PROGRESS.addHandler(handler)
    level = PROGRESS.level
    PROGRESS.setLevel(logging.INFO)
    # The line is shown here alone, not again by whoever prints the log.
    PROGRESS.propagate = False
    try:
        yield
    finally:
        PROGRESS.propagate = True
        PROGRESS.setLevel(level)
        PROGRESS.removeHandler(handler)
        handler.close()


class _LineHandler(logging.Handler):
    """Hands the lines of a log to a `ProgressLine`."""

    def __init__(self) -> None:
        super().__init__()
        self._line = ProgressLine()

    def emit(self, record: logging.LogRecord) -> None:
        """Show one line, its words in the reader's language."""
        what, _, step = record.getMessage().rpartition(" ")
        say = load_catalogue(language_of(os.environ))
        if step[:1].isdigit():
            self._line.show(f"{say.word(what)} {step}")
        elif step:
            self._line.begin(say.word(record.getMessage()))
        else:
            self._line.close()

    def close(self) -> None:
        """Take the last line away."""
        self._line.close()
        super().close()
