"""The console of a sweep: a table that is redrawn on a terminal, plain short lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

from adray.results.live import LEAST_WIDTH

_LINES_OF_A_REASON = 4


class Console:
    """Prints lines, and keeps a table below them on a terminal that is wide enough.

    The table is redrawn in its place, so that lines scroll past above it. A terminal may change its
    size at any time.
    """

    def __init__(self) -> None:
        self._drawn = 0  # lines of the table on the screen

    @property
    def has_table(self) -> bool:
        """Tell whether there is room for a table."""
        return sys.stdout.isatty() and self.width >= LEAST_WIDTH

    @property
    def width(self) -> int:
        """Give the columns of the terminal, 80 where there is none."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else LEAST_WIDTH

    @property
    def height(self) -> int:
        """Give the lines of the terminal."""
        return shutil.get_terminal_size().lines

    def say(self, text: str) -> None:
        """Print a text above the table, broken into lines that fit."""
        self.clear()
        for line in text.splitlines():
            wrapped = textwrap.wrap(line, self.width, subsequent_indent="  ") or [""]
            print("\n".join(wrapped[:_LINES_OF_A_REASON]), flush=True)

    def draw(self, lines: Sequence[str]) -> None:
        """Draw the table anew, in the place of the last one."""
        self.clear()
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
        self._drawn = len(lines)

    def clear(self) -> None:
        """Take the table away."""
        if self._drawn:
            # Up to its first line, then empty all below.
            sys.stdout.write(f"\x1b[{self._drawn}A\r\x1b[J")
            sys.stdout.flush()
            self._drawn = 0
