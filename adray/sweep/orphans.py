"""What ends Ray's helpers once the driver of a sweep, or the raylet, was killed.

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
"""In which they, and all others, may end by themselves."""
_LOOK_SECONDS = 0.1


@contextmanager
def orphans_ended() -> Iterator[None]:
    """Have the helpers of a Ray that is started in here end, also if this process is killed."""
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
        # After an end in order none is left, and it ends at once.
        watcher.communicate()


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
    # The input ends with the driver, however that ends.
    sys.stdin.buffer.read()

    deadline = time.monotonic() + _GRACE_SECONDS
    left = helpers_of(mark)
    while left and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        left = helpers_of(mark)

    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
