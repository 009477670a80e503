"""Which trial takes what and starts when: big and long ones first."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adray.config import ResourceRule
from adray.registry import ModelRegistry
from adray.sweep.costs import CostModel
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import Need, Share, Site, choose_share
from adray.sweep.sharing import frozen_key, spread

_SHOWN = 40
"""Trials that a printed schedule lists; of longer ones it gives the sums."""
_FULL = 1e-3
"""Parts of a GPU that are smaller count as none."""


@dataclass(frozen=True)
class Scheduled:
    """A trial with what it takes."""

    trial: PlannedTrial
    """The trial."""
    share: Share
    """Of the site."""
    need: Need
    """Predicted."""


@dataclass(frozen=True)
class Slot:
    """When and where a simulated trial runs."""

    scheduled: Scheduled
    """The trial."""
    devices: tuple[int, ...]
    """Numbers of its GPUs; none where it has none."""
    start: float
    """Seconds from the beginning."""
    end: float
    """Seconds from the beginning."""


def in_order(
    wanted: Sequence[PlannedTrial], costs: CostModel, rules: Sequence[ResourceRule], site: Site
) -> list[Scheduled]:
    """Give wanted trials their shares, and put big and long ones first, before small ones.

    Of those that share a frozen stage only one starts while its features are being built, where
    there is other work.
    """
    found = []
    for trial in wanted:
        need = costs.need(trial)
        share = choose_share(trial.job.resolved, need, rules, site, pending=len(wanted))
        found.append(Scheduled(trial, share, need))
    found.sort(key=_urgency)
    return spread(found, lambda scheduled: frozen_key(scheduled.trial), _most_at_once(found, site))


def _urgency(scheduled: Scheduled) -> tuple[float, float, float, str, int]:
    """Sort the largest card, share and duration first.

    Of equal ones by name, so that the order is always the same.
    """
    trial = scheduled.trial
    share = scheduled.share
    return -share.card, -share.gpu, -scheduled.need.seconds, trial.cell, trial.job.seed


def _most_at_once(found: Sequence[Scheduled], site: Site) -> int:
    """Count the trials that run at a time at most."""
    most = 1
    for scheduled in found:
        share = scheduled.share
        fitting = int(site.gpus / share.gpu) if share.gpu else site.cpus // share.cpu
        most = max(most, fitting)
    return most


def most_gpus(scheduled: Sequence[Scheduled]) -> int:
    """Count the GPUs that the largest trial needs."""
    return math.ceil(max((entry.share.gpu for entry in scheduled), default=0))


def is_short(configuration: str, site: Site) -> bool:
    """Tell whether a configuration's trials share warm processes.

    Long ones on a GPU get fresh ones, which give all memory back.
    """
    return site.gpus == 0 or ModelRegistry.trainer_class(configuration).single_pass


# A simulated run


def simulate(ordered: Sequence[Scheduled], site: Site) -> list[Slot]:
    """Find when each trial would run if all took what is predicted.

    As Ray does it: whatever fits starts, in this order, on the first device with room. Those with
    fresh processes all end before the first that shares a warm one starts.
    """
    short: list[Scheduled] = []
    long: list[Scheduled] = []
    for scheduled in ordered:
        group = short if is_short(scheduled.trial.job.configuration, site) else long
        group.append(scheduled)

    slots = _simulate(long, site, 0.0)
    return slots + _simulate(short, site, max((slot.end for slot in slots), default=0.0))


def _simulate(ordered: Sequence[Scheduled], site: Site, begin: float) -> list[Slot]:
    """Simulate a run from a moment on, from the end of one trial to that of the next."""
    free = _Free(site)
    waiting = defaultdict[Share, deque[tuple[int, Scheduled]]](deque)
    for place, scheduled in enumerate(ordered):
        waiting[scheduled.share].append((place, scheduled))

    slots: list[Slot] = []
    now = begin
    running: list[tuple[float, int, Slot]] = []  # the number breaks ties, since slots have no order
    while waiting or running:
        for scheduled, devices in _starts(waiting, free):
            slot = Slot(scheduled, devices, now, now + scheduled.need.seconds)
            slots.append(slot)
            heapq.heappush(running, (slot.end, len(slots), slot))

        now = running[0][0]
        while running and running[0][0] <= now:
            _, _, ended = heapq.heappop(running)
            free.give_back(ended.scheduled.share, ended.devices)
    return slots


def _starts(
    waiting: dict[Share, deque[tuple[int, Scheduled]]], free: _Free
) -> Iterator[tuple[Scheduled, tuple[int, ...]]]:
    """Take what fits, in order. Where one does not fit, no later one with the same share does."""
    fitting = dict(waiting)
    while fitting:
        share = min(fitting, key=lambda s: fitting[s][0][0])  # of the trial that is first in line
        devices = free.take(share)
        if devices is None:
            del fitting[share]
            continue

        _, scheduled = waiting[share].popleft()
        yield scheduled, devices
        if not waiting[share]:
            del waiting[share], fitting[share]


class _Free:
    """What is free at a moment.

    Args:
        site: of which all is free at first.
    """

    def __init__(self, site: Site) -> None:
        self.cards = site.cards
        self.gpus = [1.0] * len(self.cards)
        self.cpus = site.cpus
        self.memory = site.memory

    def take(self, share: Share) -> tuple[int, ...] | None:
        """Take a share and say on which GPUs, or None where it does not fit."""
        if share.cpu > self.cpus or share.memory > self.memory:
            return None

        chosen: tuple[int, ...] = ()
        if share.gpu:
            part = min(share.gpu, 1.0)
            count = max(1, int(share.gpu))
            room = self._with_room(part, share.card)
            if len(room) < count:
                return None
            chosen = tuple(room[:count])
            for device in chosen:
                self.gpus[device] -= part

        self.cpus -= share.cpu
        self.memory -= share.memory
        return chosen

    def _with_room(self, part: float, card: int) -> list[int]:
        """List the GPUs of at least `card` GB that have a part free."""
        places = enumerate(zip(self.gpus, self.cards, strict=True))
        return [i for i, (free, size) in places if free >= part - _FULL and size >= card]

    def give_back(self, share: Share, devices: Sequence[int]) -> None:
        """Free what `take` took."""
        for device in devices:
            self.gpus[device] += min(share.gpu, 1.0)
        self.cpus += share.cpu
        self.memory += share.memory


def format_schedule(ordered: Sequence[Scheduled], site: Site) -> str:
    """Print the simulated run: places and times, the load of each device, the end with its range."""
    slots = simulate(ordered, site)
    end = max((slot.end for slot in slots), default=0.0)

    # The end is uncertain as far as the work is.
    work = sum(scheduled.need.seconds for scheduled in ordered) or 1.0
    low = end * sum(scheduled.need.low for scheduled in ordered) / work
    high = end * sum(scheduled.need.high for scheduled in ordered) / work

    last = f"  {len(slots)} trials in about {format_duration(end)} ({format_duration(low)} to {format_duration(high)})"
    guessed = sum(scheduled.need.measured == 0 for scheduled in ordered)
    if guessed:
        last += f"; {guessed} of them are guesses that no trial of this store has corrected yet"
    return "\n".join(
        [
            f"simulated at {site.gpus} GPUs and {site.cpus} CPUs (start, end, GPU, share, CPUs, host GB):",
            *_rows(slots),
            *_loads(slots, site, end),
            last,
        ]
    )


def _rows(slots: Sequence[Slot]) -> Iterator[str]:
    """Give a line for each of the first trials."""
    for slot in slots[:_SHOWN]:
        trial = slot.scheduled.trial
        share = slot.scheduled.share
        gpu = ",".join(map(str, slot.devices)) or "-"
        yield (
            f"  {format_duration(slot.start):>10} {format_duration(slot.end):>10}  {gpu:>3} {share.gpu:5.3f} "
            f"{share.cpu:3d} {share.memory / 1e9:5.1f}  {trial.state:6} {trial.id8} {trial.cell}"
        )
    if len(slots) > _SHOWN:
        yield f"  and {len(slots) - _SHOWN} more"


def _loads(slots: Sequence[Slot], site: Site, end: float) -> Iterator[str]:
    """Say how many trials each GPU has, and for which part of the time it is busy."""
    for device, card in enumerate(site.cards):
        own = sorted((slot.start, slot.end) for slot in slots if device in slot.devices)
        covered = 0.0
        until = -math.inf
        for start, stop in own:
            covered += max(0.0, stop - max(start, until))
            until = max(until, stop)

        size = f" ({card} GB)" if card else ""
        busy = 100 * covered / end if end else 0
        yield f"  GPU {device}{size}: {len(own)} trials, busy {busy:.0f} % of the time"


def format_duration(seconds: float) -> str:
    """Print a duration as ``2:05 h`` or ``3:20 min``."""
    hours = int(seconds // 3600)
    minutes = int(seconds // 60) % 60
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes}:{int(seconds) % 60:02d} min"
