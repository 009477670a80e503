"""What commands print lasts: in any alphabet, and when its reader has gone."""

from __future__ import annotations

import os
import sys
from typing import TextIO, cast


def make_output_last() -> None:
    """Keep standard output and error from ending a command.

    Letters that the terminal's encoding lacks are printed as escapes. Where the reader of a pipe
    has gone, nothing is printed any more and the work goes on.
    """
    sys.stdout = cast(TextIO, _Lasting(sys.stdout))
    sys.stderr = cast(TextIO, _Lasting(sys.stderr))


class _Lasting:
    """A text stream that swallows what nobody reads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, or lose it where nobody reads."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop_all_that_follows()
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, or lose it where nobody reads."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop_all_that_follows()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _drop_all_that_follows(self) -> None:
        """Point the stream to nowhere, since its buffer would be written again at the end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
