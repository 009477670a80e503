"""Which of the trials that wait starts next, and on which GPUs of which machine.

Ray 2.60 fills one GPU with shares before it opens the next, and takes no wish for a GPU. So places
are chosen here, by the driver while trials run and by the simulation of `adray.sweep.schedule`
alike, and Ray is asked for CPUs and host memory alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar

from adray.sweep.resources import Share, Site

T = TypeVar("T")

_FULL = 1e-3
"""Parts of a GPU that are smaller count as none."""


@dataclass(frozen=True)
class Place:
    """Where a trial runs."""

    node: int
    """Number of its machine among the site's."""
    gpus: tuple[int, ...]
    """Numbers of its GPUs among the site's; none where it has none."""
    neighbours: int
    """Trials that its GPU had when it started."""


@dataclass(frozen=True)
class Placed(Generic[T]):
    """A trial that has a place."""

    trial: T
    """The trial."""
    share: Share
    """Its part of that place."""
    place: Place
    """Where it runs."""


class Queue(Generic[T]):
    """Trials in the order in which they should start. Whatever fits starts.

    Args:
        ordered: the trials with their shares.
        site: where they run.
    """

    def __init__(self, ordered: Iterable[tuple[T, Share]], site: Site) -> None:
        self._free = _Free(site)
        self._waiting: dict[Share, deque[tuple[int, T]]] = {}  # with their places in the order
        self._too_large: set[Share] = set()  # since a trial last ended
        for number, (trial, share) in enumerate(ordered):
            self._waiting.setdefault(share, deque()).append((number, trial))

    def start(self) -> Placed[T] | None:
        """Give the first trial that fits its place. None where nothing fits, or nothing waits."""
        shares = [share for share in self._waiting if share not in self._too_large]
        for share in sorted(shares, key=lambda share: self._waiting[share][0]):
            _, trial = self._waiting[share][0]
            place = self._free.take(share, self._waiting)
            if place is not None:
                self._remove_first(share)
                return Placed(trial, share, place)
            self._too_large.add(share)
        return None

    def end(self, placed: Placed[T]) -> None:
        """Take note that a trial ended, so that others find room."""
        self._free.give_back(placed.share, placed.place)
        self._too_large.clear()

    def close(self, node: int) -> None:
        """Start nothing more on a machine that is gone."""
        self._free.closed.add(node)

    def __len__(self) -> int:
        """Count the trials that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def waits(self) -> bool:
        """Tell whether trials wait."""
        return bool(self._waiting)

    def _remove_first(self, share: Share) -> None:
        self._waiting[share].popleft()
        if not self._waiting[share]:
            del self._waiting[share]


@dataclass
class _Gpu:
    """A GPU at a moment."""

    node: int
    """Number of its machine."""
    card: int
    """GB; 0 where they are not known."""
    room: float = 1.0
    """Part of it that is free."""
    trials: int = 0
    """Trials that it has."""


class _Free:
    """What is free at a moment.

    Args:
        site: of which all is free at first.
    """

    def __init__(self, site: Site) -> None:
        self.closed: set[int] = set()
        """Numbers of machines on which nothing more starts."""
        self._cpus: list[int] = []
        self._memory: list[int] = []
        for node in site.parts:
            self._cpus.append(node.cpus)
            self._memory.append(node.memory)
        self._gpus = [_Gpu(device.node, device.card) for device in site.devices]

    def take(self, share: Share, waiting: Mapping[Share, Sized]) -> Place | None:
        """Take a share where there is room for it. None where there is not.

        Args:
            share: what a trial takes.
            waiting: trials by their shares, this one among them.
        """
        if not share.gpu:
            place = self._without_gpu(share)
        elif share.gpu > 1:
            place = self._on_several(share)
        else:
            place = self._on_one(share, waiting)
        if place is not None:
            self._book(share, place, 1)
        return place

    def give_back(self, share: Share, place: Place) -> None:
        """Free what `take` took."""
        self._book(share, place, -1)

    def _book(self, share: Share, place: Place, trials: int) -> None:
        """Write down that a place has one trial more, or one less."""
        self._cpus[place.node] -= trials * share.cpu
        self._memory[place.node] -= trials * share.memory
        for number in place.gpus:
            gpu = self._gpus[number]
            gpu.room -= trials * min(share.gpu, 1.0)
            gpu.trials += trials

    def _fits(self, node: int, share: Share) -> bool:
        """Tell whether a machine has the CPUs and the memory."""
        if node in self.closed:
            return False
        return share.cpu <= self._cpus[node] and share.memory <= self._memory[node]

    def _without_gpu(self, share: Share) -> Place | None:
        """Find the machine with most CPUs to spare."""
        able = [node for node in range(len(self._cpus)) if self._fits(node, share)]
        if not able:
            return None
        return Place(max(able, key=lambda node: self._cpus[node]), (), 0)

    def _on_several(self, share: Share) -> Place | None:
        """Find a machine with enough GPUs that have no trial."""
        for node in range(len(self._cpus)):
            idle = [i for i in self._idle() if self._gpus[i].node == node]
            if len(idle) >= share.gpu and self._fits(node, share):
                return Place(node, tuple(idle[: int(share.gpu)]), 0)
        return None

    def _on_one(self, share: Share, waiting: Mapping[Share, Sized]) -> Place | None:
        """Find a GPU: that with the fewest trials, the smallest of these that will do.

        One that is in use already where trials wait that want the others for themselves.
        """
        nodes = [node for node in range(len(self._cpus)) if self._fits(node, share)]
        if not nodes:
            return None

        able = []
        for number, gpu in enumerate(self._gpus):
            has_room = gpu.room >= share.gpu - _FULL and gpu.card >= share.card
            if has_room and gpu.node in nodes:
                able.append(number)
        if not able:
            return None

        in_use = [number for number in able if self._gpus[number].trials]
        if in_use and self._idle_are_wanted(share, waiting):
            chosen = min(in_use, key=lambda number: self._gpus[number].room)
        else:
            chosen = min(able, key=self._crowd)
        gpu = self._gpus[chosen]
        return Place(gpu.node, (chosen,), gpu.trials)

    def _crowd(self, number: int) -> tuple[int, int, float]:
        """Sort a GPU behind those with fewer trials, smaller cards and more room."""
        gpu = self._gpus[number]
        return gpu.trials, gpu.card, -gpu.room

    def _idle(self) -> list[int]:
        """List the GPUs without a trial."""
        return [number for number, gpu in enumerate(self._gpus) if not gpu.trials]

    def _idle_are_wanted(self, share: Share, waiting: Mapping[Share, Sized]) -> bool:
        """Tell whether other trials wait that fill all idle GPUs at once and bear none beside them.

        Where CPUs or memory would not let all of them start, no GPU is kept for them.
        """
        idle = self._idle()
        if not idle:
            return False

        smallest = min(self._gpus[number].card for number in idle)
        count = 0
        cpu = 0
        memory = 0
        for other, trials in waiting.items():
            bears_none = 1 - share.gpu + _FULL < other.gpu <= 1
            beside = len(trials) - (other == share)
            if beside and bears_none and other.card <= smallest:
                count += beside
                cpu = max(cpu, other.cpu)
                memory = max(memory, other.memory)

        if count < len(idle):
            return False
        has_cpus = share.cpu + cpu * len(idle) <= sum(self._cpus)
        has_memory = share.memory + memory * len(idle) <= sum(self._memory)
        return has_cpus and has_memory
