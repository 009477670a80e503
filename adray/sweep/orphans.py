"""What ends Ray's helpers once the driver of a sweep, or one of Ray's own processes, was killed.

Ray's own processes end with their driver. But two helpers of the raylet try for a minute to report
its end to a server that is gone too. So a small process waits for the end of the driver, and ends
them: `python -m adray.sweep.orphans PID`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_GRACE_SECONDS = 5.0
"""In which they, and all others, may end by themselves."""
_LOOK_SECONDS = 0.2


@contextmanager
def orphans_ended() -> Iterator[None]:
    """Have what is left of a Ray that is started in here end, also if this process is killed."""
    watcher = subprocess.Popen(
        [sys.executable, "-m", __name__, str(os.getpid())],
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


def left_of(driver: int) -> list[int]:
    """List the processes of the Ray that a driver started, but for the driver itself.

    They are known by the logs that they write: a title, which Ray gives them, takes their command
    line and their environment away.

    Args:
        driver: number of its process, with which the name of its Ray's session ends.
    """
    of_session = re.compile(rf"/session_[^/]+_{driver}/logs/")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            logs = [file for file in (folder / "fd").iterdir() if of_session.search(_target(file))]
            if logs and int(folder.name) != driver:
                found.append(int(folder.name))
    return found


def _target(link: Path) -> str:
    """Read what an open file of a process is, empty where it is closed by now."""
    with suppress(OSError):
        return str(link.readlink())
    return ""


def main(driver: int) -> None:
    """Wait for the end of the driver, and end what it left."""
    # The input ends with the driver, however that ends.
    sys.stdin.buffer.read()

    deadline = time.monotonic() + _GRACE_SECONDS
    left = left_of(driver)
    while left and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        left = left_of(driver)

    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
