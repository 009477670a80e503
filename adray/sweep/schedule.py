"""Which trial takes what, in which order they start, and the run that this promises.

Shares grow where all trials run at once anyway. Of several orders the one counts whose simulated run
ends first.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from adray.config import ResourceRule
from adray.language.catalogue import Catalogue
from adray.language.columns import pad_left
from adray.registry import ModelRegistry
from adray.results.live import duration
from adray.sweep.costs import CostModel
from adray.sweep.placement import Placed, Queue
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import SHARES, Need, Share, Site, cpus_for, least_share, rule_for
from adray.sweep.sharing import frozen_key, spread

_SHOWN = 40
"""Trials that a printed schedule lists; of longer ones it gives the sums."""
_COLUMNS = 60
"""Characters of a lane."""


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
    """Give wanted trials their shares, and put them into the order in which they should start.

    Of those that share a frozen stage only one starts while its features are being built, where
    there is other work.
    """
    found = []
    for trial in wanted:
        resolved = trial.job.resolved
        need = costs.need(trial)
        share = least_share(resolved, need, rule_for(trial.job.configuration, rules), site)
        found.append(Scheduled(trial, share, need.on(share.gpu)))
    return arrange(found, rules, site)


def arrange(
    found: Sequence[Scheduled], rules: Sequence[ResourceRule], site: Site
) -> list[Scheduled]:
    """Give trials what is free beyond the least that they need, and order them.

    Args:
        found: trials with the least share of each.
        rules: of the sweep; what they name does not grow.
        site: where they run.
    """
    grown = _with_cpus(_with_free_gpus(found, rules, site), rules, site)
    return _first_to_end(grown, site)


def _with_free_gpus(
    found: Sequence[Scheduled], rules: Sequence[ResourceRule], site: Site
) -> Sequence[Scheduled]:
    """Raise the shares of a GPU as far as all trials still run at once."""
    if len(found) > site.gpus / min(SHARES):
        return found

    for gpu in SHARES:
        grown = []
        for entry in found:
            is_open = rule_for(entry.trial.job.configuration, rules).gpu is None
            if is_open and 0 < entry.share.gpu < gpu:
                entry = replace(entry, share=replace(entry.share, gpu=gpu))
            grown.append(entry)
        if _run_at_once(grown, site):
            return grown
    return found


def _run_at_once(found: Sequence[Scheduled], site: Site) -> bool:
    """Tell whether all trials find a place on a site where nothing runs."""
    queue = _queue_of(sorted(found, key=_by_share), site)
    started = 0
    while queue.start() is not None:
        started += 1
    return started == len(found)


def _with_cpus(
    found: Sequence[Scheduled], rules: Sequence[ResourceRule], site: Site
) -> list[Scheduled]:
    """Divide the CPUs among the trials that run at once."""
    load = float(len(found))
    if site.gpus:
        load = sum((entry.share.gpu for entry in found), 0.0)

    grown = []
    for entry in found:
        if rule_for(entry.trial.job.configuration, rules).cpu is None:
            cpu = cpus_for(entry.share.gpu, load, site)
            entry = replace(entry, share=replace(entry.share, cpu=cpu))
        grown.append(entry)
    return grown


# The order


def _first_to_end(found: Sequence[Scheduled], site: Site) -> list[Scheduled]:
    """Order trials in several ways, and give the order whose simulated run ends first."""
    keys = {id(entry.trial): frozen_key(entry.trial) for entry in found}
    at_once = _most_at_once(found, site)

    orders = [sorted(found, key=urgency) for urgency in (_by_share, _by_seconds, _by_work)]
    orders.append(_side_by_side(found))

    tried: dict[float, list[Scheduled]] = {}
    for order in orders:
        ordered = spread(order, lambda entry: keys[id(entry.trial)], at_once)
        if ordered not in tried.values():
            tried.setdefault(end_of(simulate(ordered, site)), ordered)
    return tried[min(tried)]


def _by_share(scheduled: Scheduled) -> tuple[object, ...]:
    """Sort the largest card, share and duration first."""
    share = scheduled.share
    return -share.card, -share.gpu, -scheduled.need.seconds, *_name(scheduled)


def _by_seconds(scheduled: Scheduled) -> tuple[object, ...]:
    """Sort the longest first."""
    return -scheduled.need.seconds, -scheduled.share.gpu, *_name(scheduled)


def _by_work(scheduled: Scheduled) -> tuple[object, ...]:
    """Sort those first that take most of the GPUs' time."""
    work = scheduled.share.gpu * scheduled.need.seconds
    return -work, -scheduled.need.seconds, *_name(scheduled)


def _side_by_side(found: Sequence[Scheduled]) -> list[Scheduled]:
    """Let trials of every share run from the first to the last, the longest of each first.

    One share after the other would leave GPUs free in the time of one, and CPUs in that of another.
    """
    alike = defaultdict(list)
    for entry in sorted(found, key=_by_seconds):
        alike[entry.share].append(entry)

    # How much of the work of its share lies before a trial.
    before = {}
    for entries in alike.values():
        work = sum(entry.need.seconds for entry in entries) or 1.0
        done = 0.0
        for entry in entries:
            before[id(entry)] = done / work
            done += entry.need.seconds
    return sorted(found, key=lambda entry: (before[id(entry)], _by_share(entry)))


def _name(scheduled: Scheduled) -> tuple[str, int]:
    """Name a trial, so that the order of equal ones is always the same."""
    return scheduled.trial.title, scheduled.trial.job.seed


def _most_at_once(found: Sequence[Scheduled], site: Site) -> int:
    """Count the trials that run at a time at most."""
    most = 1
    for share in {scheduled.share for scheduled in found}:
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
    return site.gpus == 0 or ModelRegistry.method(configuration).single_pass


# A simulated run


def simulate(ordered: Sequence[Scheduled], site: Site) -> list[Slot]:
    """Find when and where each trial would run if all took what is predicted."""
    queue = _queue_of(ordered, site)
    slots: list[Slot] = []
    running: list[tuple[float, int, Placed[Scheduled]]] = []  # the number breaks ties
    now = 0.0
    while True:
        while placed := queue.start():
            end = now + placed.trial.need.seconds
            slots.append(Slot(placed.trial, placed.place.gpus, now, end))
            heapq.heappush(running, (end, len(slots), placed))
        if not running:
            return slots

        # On to the next moment at which a trial ends, or several.
        now = running[0][0]
        while running and running[0][0] <= now:
            queue.end(heapq.heappop(running)[2])


def _queue_of(ordered: Sequence[Scheduled], site: Site) -> Queue[Scheduled]:
    """Let trials wait at a site where nothing runs."""
    return Queue([(scheduled, scheduled.share) for scheduled in ordered], site)


def end_of(slots: Sequence[Slot]) -> float:
    """Give the seconds after which all trials have ended."""
    return max((slot.end for slot in slots), default=0.0)


def lower_bound(found: Sequence[Scheduled], site: Site) -> float:
    """Give seconds before which no order of trials can end.

    That is the longest trial, or all work on GPUs that are large enough, on CPUs or in memory, over
    what there is of them.
    """
    longest = 0.0
    cpus = 0.0
    memory = 0.0
    gpus: dict[int, float] = defaultdict(float)  # by the GB of the card that it needs
    for entry in found:
        seconds = entry.need.seconds
        longest = max(longest, seconds)
        cpus += seconds * entry.share.cpu
        memory += seconds * entry.share.memory
        for card in {0, *site.cards}:
            if entry.share.card >= card:
                gpus[card] += seconds * entry.share.gpu

    has_memory = sum(node.memory for node in site.parts)
    bound = max(longest, cpus / site.cpus, memory / has_memory)
    for card, work in gpus.items():
        able = sum(size >= card for size in site.cards)
        bound = max(bound, work / max(able, 1))
    return bound


def format_schedule(ordered: Sequence[Scheduled], site: Site, say: Catalogue) -> str:
    """Print the simulated run: places and times, the load of each device, the end with its range.

    Args:
        ordered: the trials in the order of their start.
        site: where they would run.
        say: the sentences of the reader's language.
    """
    slots = simulate(ordered, site)
    end = end_of(slots)
    head = "schedule head" if site.gpus else "schedule head without gpus"
    return "\n".join(
        [
            say(head, gpus=site.gpus, cpus=site.cpus),
            *_rows(slots, site, say),
            *_lanes(slots, site, end, say),
            *_loads(slots, site, end, say),
            "  " + _end_text(ordered, site, end, say),
        ]
    )


def _end_text(ordered: Sequence[Scheduled], site: Site, end: float, say: Catalogue) -> str:
    """Say when all would be done, with a range where some trials of before correct the guesses."""
    guessed = sum(scheduled.need.measured == 0 for scheduled in ordered)
    values = {"trials": len(ordered), "end": duration(end, say)}
    if guessed == len(ordered):
        return say("schedule guessed all", **values)

    # The end is uncertain as far as the work is.
    work = 0.0
    low = 0.0
    high = 0.0
    for scheduled in ordered:
        work += scheduled.need.seconds
        low += scheduled.need.low
        high += scheduled.need.high
    scale = end / (work or 1.0)
    text = say(
        "schedule end",
        **values,
        low=duration(low * scale, say),
        high=duration(high * scale, say),
        best=duration(lower_bound(ordered, site), say),
    )
    return f"{text}; {say('schedule guessed', number=guessed)}" if guessed else text


def _rows(slots: Sequence[Slot], site: Site, say: Catalogue) -> Iterator[str]:
    """Give a line for each of the first trials."""
    for slot in slots[:_SHOWN]:
        trial = slot.scheduled.trial
        share = slot.scheduled.share
        times = [pad_left(duration(seconds, say), 12) for seconds in (slot.start, slot.end)]
        parts = [*times, f"{share.cpu:3d}", f"{share.memory / 1e9:5.1f}"]
        if site.gpus:
            gpu = ",".join(map(str, slot.devices)) or "-"
            parts[2:2] = [f"{gpu:>3}", f"{share.gpu:5.3f}"]
        parts.append(f"{trial.id8} {trial.title} {say('schedule seed', seed=trial.job.seed)}")
        yield " ".join(parts)
    if len(slots) > _SHOWN:
        yield "  " + say("schedule more", number=len(slots) - _SHOWN)


def _loads(slots: Sequence[Slot], site: Site, end: float, say: Catalogue) -> Iterator[str]:
    """Say how many trials each GPU has, and for which part of the time it is busy."""
    for number, device in enumerate(site.devices):
        own = sorted((slot.start, slot.end) for slot in slots if number in slot.devices)
        covered = 0.0
        until = -math.inf
        for start, stop in own:
            covered += max(0.0, stop - max(start, until))
            until = max(until, stop)

        size = f", {device.card} GB" if device.card else ""
        busy = f"{100 * covered / end if end else 0:.0f}"
        yield "  " + say("schedule load", gpu=number, trials=len(own), busy=busy) + size


def _lanes(slots: Sequence[Slot], site: Site, end: float, say: Catalogue) -> Iterator[str]:
    """Draw the fleet over time: a line for each GPU, a digit for the trials in each column."""
    if not slots or not end:
        return
    yield "  " + say("schedule lanes", column=duration(end / _COLUMNS, say))
    for device in range(site.gpus):
        own = [slot for slot in slots if device in slot.devices]
        yield f"  GPU {device:<3}|{_lane(own, end)}|"
    alone = [slot for slot in slots if not slot.devices]
    if alone:
        yield f"  CPUs   |{_lane(alone, end)}|"


def _lane(slots: Sequence[Slot], end: float) -> str:
    """Draw how many trials run in the middle of each column."""
    counts = [0] * _COLUMNS
    for slot in slots:
        first = math.ceil(slot.start / end * _COLUMNS - 0.5)
        after = math.ceil(slot.end / end * _COLUMNS - 0.5)
        for column in range(first, after):
            counts[column] += 1
    return "".join(_digit(count) for count in counts)


def _digit(count: int) -> str:
    """Write a number of trials as one character."""
    if count == 0:
        return "."
    return str(count) if count < 10 else "+"
