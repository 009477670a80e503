"""What commands print lasts: in any alphabet, and when its reader has gone or its disk is full."""

from __future__ import annotations

import os
import sys
from typing import TextIO, cast


def make_output_last() -> None:
    """Keep standard output and error from ending a command.

    Letters that the terminal's encoding lacks are printed as escapes. Where nothing can be printed
    any more, since the reader of a pipe has gone, the terminal is cut off or the disk of a log is
    full, the work goes on without.
    """
    _open_closed_streams()
    sys.stdout = cast(TextIO, _Lasting(sys.stdout))
    sys.stderr = cast(TextIO, _Lasting(sys.stderr))


def _open_closed_streams() -> None:
    """Lead the standard streams that were closed to nowhere.

    Else the next file that is opened takes their number, and gets what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        os.set_inheritable(number, True)
        setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


class _Lasting:
    """A text stream that swallows what nobody reads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, or lose it where that cannot be."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop_all_that_follows()
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, or lose it where that cannot be."""
        try:
            self._stream.flush()
        except OSError:
            self._drop_all_that_follows()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _drop_all_that_follows(self) -> None:
        """Point the stream to nowhere, since its buffer would be written again at the end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
