"""What ends Ray's helpers once the driver of a sweep was killed.

Ray's own processes end with their driver. But two helpers of the raylet try for a minute to report
its end to a server that is gone too. So a small process waits for the end of the driver, and ends
them: `python -m adray.sweep.orphans MARK`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_VARIABLE = "ADRAY_DRIVER"
"""Environment of all processes of one driver, by which they are known."""
_GRACE_SECONDS = 5.0
"""In which all others end by themselves."""


@contextmanager
def orphans_ended() -> Iterator[None]:
    """Have the helpers of a Ray that is started in here end, if this process is killed."""
    os.environ[_VARIABLE] = uuid.uuid4().hex
    mark = f"{_VARIABLE}={os.environ[_VARIABLE]}"
    watcher = subprocess.Popen(
        [sys.executable, "-m", __name__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        # It hears of an end in order, and of any other by the end of its input.
        watcher.communicate(b"done")


def helpers_of(mark: str) -> list[int]:
    """List the processes of Ray's helpers that have a variable in their environment.

    They are called agents, first by the path of their program and then by a title.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            is_marked = mark.encode() in (folder / "environ").read_bytes().split(b"\0")
            name = (folder / "cmdline").read_bytes().lower()
            if is_marked and b"ray" in name and b"agent" in name:
                found.append(int(folder.name))
    return found


def main(mark: str) -> None:
    """Wait for the end of the driver, and end the helpers that it left."""
    if sys.stdin.buffer.read():
        return
    time.sleep(_GRACE_SECONDS)
    for pid in helpers_of(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
