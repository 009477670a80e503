"""Which sweep has which GPU of this machine, so that two sweeps never take the same.

Each GPU has a file in a folder that all users see. Who holds the lock of that file has the GPU, and
the file says who that is. The kernel ends a lock with its process, whatever ended that, so a lease
is never stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from adray.language.catalogue import spoken
from adray.sweep.cards import Card

FOLDER_VARIABLE = "ADRAY_LEASES"
"""Variable that names the folder, for containers that share a machine's GPUs."""
_FOLDER = "/tmp/adray-leases"
_ANYBODY = 0o666
_TRIES = 3
"""Times that a lock is tried: someone who only looks may hold it for a moment."""
_TRY_SECONDS = 0.01
_LOOK_SECONDS = 5.0
"""Pause before looking again, where all GPUs are taken."""


@dataclass(frozen=True)
class Lease:
    """Who has a GPU."""

    gpu: str
    """The GPU, as `CUDA_VISIBLE_DEVICES` names it."""
    sweep: str
    """Name of the sweep."""
    user: str
    """Who runs it."""
    process: int
    """Number of the process that holds the lease."""
    since: str
    """Local time at which it began."""

    @property
    def holder(self) -> str:
        """Say whose it is."""
        return f"sweep {self.sweep} of {self.user} (process {self.process}, since {self.since})"


@contextmanager
def leased(cards: Sequence[Card], most: int, sweep: str) -> Iterator[list[Card]]:
    """Take GPUs that no other sweep has, as long as the block lasts. Wait where all are taken.

    Processes that are started meanwhile see these GPUs and no others.

    Args:
        cards: of this machine.
        most: as many are taken at most.
        sweep: name of the sweep that takes them.
    """
    with ExitStack() as stack:
        try:
            taken = _wait_for_free(cards, most, sweep, stack)
        except OSError as error:
            said = spoken("lease unusable", error=error, variable=FOLDER_VARIABLE)
            print(said, file=sys.stderr)
            taken = list(cards[:most])
        stack.enter_context(_visible(taken))
        yield taken


def in_use() -> list[str]:
    """Say which GPUs of this machine sweeps have, one sentence for each sweep."""
    gpus: dict[str, list[str]] = {}
    for lease in _held():
        gpus.setdefault(lease.holder, []).append(str(lease.gpu))
    return [f"GPU {', '.join(names)}: {holder}" for holder, names in gpus.items()]


def _held() -> list[Lease]:
    """List the leases that are held."""
    found = []
    for path in sorted(_folder().glob("*.json")):
        with (
            contextlib.suppress(OSError, ValueError, TypeError, RecursionError),
            path.open() as file,
        ):
            if not _lock(file, fcntl.LOCK_SH):
                found.append(Lease(**json.load(file)))
    return found


def _folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE) or _FOLDER)


def _wait_for_free(cards: Sequence[Card], most: int, sweep: str, stack: ExitStack) -> list[Card]:
    """Take the leases of GPUs that are free, once there is one.

    Raises:
        OSError: where the folder of leases cannot be used.
    """
    taken = _take_free(cards, most, sweep, stack)
    if not taken:
        print(spoken("lease waits", holders="; ".join(in_use())), file=sys.stderr)
    while not taken:
        time.sleep(_LOOK_SECONDS)
        taken = _take_free(cards, most, sweep, stack)
    return taken


def _take_free(cards: Sequence[Card], most: int, sweep: str, stack: ExitStack) -> list[Card]:
    """Take the leases of GPUs that are free, until `stack` closes."""
    taken: list[Card] = []
    for card in cards:
        if len(taken) == most:
            break
        # The name of a part of a GPU may have slashes: MIG-<GPU>/1/0.
        file = _open(f"{card.identity.replace('/', '_')}.json")
        if not _lock(file, fcntl.LOCK_EX):
            file.close()
            continue
        stack.enter_context(file)
        _sign(file, card, sweep)
        taken.append(card)
    return taken


def _open(name: str) -> IO[str]:
    """Open the file of a lease, which is made where there is none, for all users."""
    path = _folder() / name
    _make_folder(path.parent)
    # One of another user must not be opened as if it were to be made: the kernel refuses that.
    with contextlib.suppress(FileNotFoundError):
        return path.open("r+")
    file = path.open("a+")
    path.chmod(_ANYBODY)
    return file


def _make_folder(folder: Path) -> None:
    """Make the folder of all leases, where every user can write and none can remove another's."""
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)


def _lock(file: IO[str], how: int) -> bool:
    """Take the lock of an open file, unless another process has it."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_SECONDS)
        else:
            return True
    return False


def _sign(file: IO[str], card: Card, sweep: str) -> None:
    """Write into a lease whose it is."""
    now = datetime.now().isoformat(" ", timespec="minutes")
    file.seek(0)
    file.truncate()
    json.dump(asdict(Lease(card.name, sweep, _user(), os.getpid(), now)), file)
    file.flush()


def _user() -> str:
    """Give the name of this user, or the number where a container knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


@contextmanager
def _visible(cards: Sequence[Card]) -> Iterator[None]:
    """Show some GPUs only to the processes that are started meanwhile."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(card.name for card in cards)
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
