"""Run a command and say what it and all that it starts took; what the benchmarks of whole commands share."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUBREAPER = 36
"""Number of the option of prctl that gives orphans to this process."""
_POLL_SECONDS = 0.1
_POLLS_PER_MEMORY = 5


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        wall: seconds.
        cpu: CPU seconds of its process tree, looked at ten times a second: what a process did in its last tenth of a
            second is missed.
        peak_mb: largest memory of the tree, pages that processes share counted once (PSS), looked at twice a second.
    """

    wall: float
    cpu: float
    peak_mb: float


def run_measured(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end; orphans come to this process meanwhile, and are counted.

    Args:
        command: program and arguments.
        log: takes what it prints.
        env: its environment in place of this one's.

    Raises:
        SystemExit: where it fails, with the end of what it printed.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    spent: dict[int, float] = {}
    earlier = set(descendants(os.getpid()))  # what an earlier command left is not this one's
    peak, polls, started = 0.0, 0, time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        while process.poll() is None:
            found = {
                pid: cpu for pid, cpu in descendants(os.getpid()).items() if pid not in earlier
            }
            spent |= found
            if polls % _POLLS_PER_MEMORY == 0:
                peak = max(peak, sum(map(_memory_mb, found)))
            polls += 1
            time.sleep(_POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return Usage(time.monotonic() - started, sum(spent.values()), peak)


def descendants(root: int) -> dict[int, float]:
    """CPU seconds by process of all that descend from `root`."""
    parents, seconds = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(") ")[2].split()
            pid = int(entry.parent.name)
            parents[pid], seconds[pid] = (
                int(fields[1]),
                (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            )
    found, edge = dict[int, float](), {root}
    while edge := {pid for pid, parent in parents.items() if parent in edge}:
        found |= {pid: seconds[pid] for pid in edge}
    return found


def _memory_mb(pid: int) -> float:
    """Memory of a process with its part of shared pages; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def bytes_below(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
