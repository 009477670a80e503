"""Which trial takes what, and starts when: big and long ones first, long ones in processes of their own."""

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


@dataclass(frozen=True)
class Scheduled:
    """A trial with what it takes.

    Attributes:
        trial: the trial.
        share: of the site.
        need: predicted.
    """

    trial: PlannedTrial
    share: Share
    need: Need


@dataclass(frozen=True)
class Slot:
    """When and where a simulated trial runs.

    Attributes:
        scheduled: the trial.
        devices: numbers of its GPUs; none where it has none.
        start: seconds from the beginning.
        end: seconds from the beginning.
    """

    scheduled: Scheduled
    devices: tuple[int, ...]
    start: float
    end: float


def in_order(
    wanted: Sequence[PlannedTrial], costs: CostModel, rules: Sequence[ResourceRule], site: Site
) -> list[Scheduled]:
    """Wanted trials with their shares, big and long ones first, so that they do not wait behind small ones.

    Of those that share a frozen stage only one starts while its features are being built, where there is other work.
    """
    found = []
    for trial in wanted:
        need = costs.need(trial)
        found.append(
            Scheduled(trial, choose_share(trial.job.resolved, need, rules, site, len(wanted)), need)
        )
    found.sort(
        key=lambda s: (-s.share.card, -s.share.gpu, -s.need.seconds, s.trial.cell, s.trial.job.seed)
    )
    return spread(found, lambda s: frozen_key(s.trial), _slots(found, site))


def _slots(found: Sequence[Scheduled], site: Site) -> int:
    """Most trials that run at a time."""
    counts = (
        int(site.gpus / s.share.gpu) if s.share.gpu else site.cpus // s.share.cpu for s in found
    )
    return max(counts, default=1)


def is_short(configuration: str, site: Site) -> bool:
    """Whether its trials share warm processes; long ones on a GPU get fresh ones, which give all memory back."""
    return site.gpus == 0 or ModelRegistry.trainer_class(configuration).single_pass


def simulate(ordered: Sequence[Scheduled], site: Site) -> list[Slot]:
    """When each trial would run if all took what is predicted.

    As Ray does it: whatever fits starts, in this order, on the first device with room. Those with fresh processes all
    end before the first that shares a warm one begins.
    """
    long = [s for s in ordered if not is_short(s.trial.job.configuration, site)]
    short = [s for s in ordered if is_short(s.trial.job.configuration, site)]
    slots = _simulate(long, site, 0.0)
    return slots + _simulate(short, site, max((slot.end for slot in slots), default=0.0))


def _simulate(ordered: Sequence[Scheduled], site: Site, begin: float) -> list[Slot]:
    free = _Free(site)
    waiting = defaultdict[Share, deque[tuple[int, Scheduled]]](deque)
    for place, scheduled in enumerate(ordered):
        waiting[scheduled.share].append((place, scheduled))
    slots, now = list[Slot](), begin
    running: list[tuple[float, int, Slot]] = []
    while waiting or running:
        for scheduled, devices in _starts(waiting, free):
            slots.append(Slot(scheduled, devices, now, now + scheduled.need.seconds))
            heapq.heappush(running, (slots[-1].end, len(slots), slots[-1]))
        now = running[0][0]
        while running and running[0][0] <= now:
            _, _, ended = heapq.heappop(running)
            free.give_back(ended.scheduled.share, ended.devices)
    return slots


def _starts(
    waiting: dict[Share, deque[tuple[int, Scheduled]]], free: _Free
) -> Iterator[tuple[Scheduled, tuple[int, ...]]]:
    """Take what fits, in order; where one does not fit, no later one with the same share does."""
    fitting = dict(waiting)
    while fitting:
        share = min(fitting, key=lambda s: fitting[s][0][0])
        devices = free.take(share)
        if devices is None:
            del fitting[share]
            continue
        yield waiting[share].popleft()[1], devices
        if not waiting[share]:
            del waiting[share], fitting[share]


class _Free:
    """What is free at a moment."""

    def __init__(self, site: Site) -> None:
        self.cards = site.cards
        self.gpus = [1.0] * len(self.cards)
        self.cpus, self.memory = site.cpus, site.memory

    def take(self, share: Share) -> tuple[int, ...] | None:
        """Take a share and say on which GPUs, or None where it does not fit."""
        if share.cpu > self.cpus or share.memory > self.memory:
            return None
        part, count = (share.gpu, 1) if share.gpu < 1 else (1.0, int(share.gpu))
        room = [
            i
            for i, free in enumerate(self.gpus)
            if free >= part - 1e-3 and self.cards[i] >= share.card
        ]
        if share.gpu and len(room) < count:
            return None
        chosen = tuple(room[:count]) if share.gpu else ()
        for device in chosen:
            self.gpus[device] -= part
        self.cpus, self.memory = self.cpus - share.cpu, self.memory - share.memory
        return chosen

    def give_back(self, share: Share, devices: Sequence[int]) -> None:
        """Free what `take` took."""
        for device in devices:
            self.gpus[device] += min(share.gpu, 1.0)
        self.cpus, self.memory = self.cpus + share.cpu, self.memory + share.memory


def format_schedule(ordered: Sequence[Scheduled], site: Site) -> str:
    """The simulated run: trials with places and times, the load of each device, and the end with its range."""
    slots = simulate(ordered, site)
    end = max((slot.end for slot in slots), default=0.0)
    busy = sum(s.need.seconds for s in ordered) or 1.0
    low, high = (
        end * sum(getattr(s.need, name) for s in ordered) / busy for name in ("low", "high")
    )
    guessed = sum(s.need.measured == 0 for s in ordered)
    lines = [
        f"simulated at {site.gpus} GPUs and {site.cpus} CPUs (start, end, GPU, share, CPUs, host GB):"
    ]
    lines += _rows(slots)
    lines += _loads(slots, site, end)
    lines.append(
        f"  {len(slots)} trials in about {format_duration(end)} ({format_duration(low)} to {format_duration(high)})"
        + (
            f"; {guessed} of them are guesses that no trial of this store has corrected yet"
            if guessed
            else ""
        )
    )
    return "\n".join(lines)


def _rows(slots: Sequence[Slot]) -> Iterator[str]:
    for slot in slots[:_SHOWN]:
        trial, share = slot.scheduled.trial, slot.scheduled.share
        gpu = ",".join(map(str, slot.devices)) or "-"
        yield (
            f"  {format_duration(slot.start):>10} {format_duration(slot.end):>10}  {gpu:>3} {share.gpu:5.3f} "
            f"{share.cpu:3d} {share.memory / 1e9:5.1f}  {trial.state:6} {trial.id8} {trial.cell}"
        )
    if len(slots) > _SHOWN:
        yield f"  and {len(slots) - _SHOWN} more"


def _loads(slots: Sequence[Slot], site: Site, end: float) -> Iterator[str]:
    """How many trials each GPU has, and for which part of the time it is busy with at least one."""
    for device, card in enumerate(site.cards):
        own = sorted((slot.start, slot.end) for slot in slots if device in slot.devices)
        covered, until = 0.0, -math.inf
        for start, stop in own:
            covered += max(0.0, stop - max(start, until))
            until = max(until, stop)
        size = f" ({card} GB)" if card else ""
        yield f"  GPU {device}{size}: {len(own)} trials, busy {100 * covered / end if end else 0:.0f} % of the time"


def format_duration(seconds: float) -> str:
    """``2:05 h`` or ``3:20 min``."""
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours}:{minutes:02d} h" if hours else f"{minutes}:{int(seconds) % 60:02d} min"
