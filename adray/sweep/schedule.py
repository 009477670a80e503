"""Which trial takes what, in which order they start, and the run that this promises.

Shares of GPUs grow where all trials run at once anyway, CPUs as far as that does not delay the end.
Of several orders the one counts whose simulated run ends first.
"""

from __future__ import annotations

import heapq
import math
import random
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

_NEAR = 1.02
"""Ends that differ by this factor count as the same."""
_CPU_PARTS = (1.0, 1 / 2, 1 / 4)
"""Parts of the CPUs that fall to a trial; it gets the first that does not delay the end, else one CPU."""
_FEW = 300
"""Of at most so many trials pairs change places. Of more, each is a small part of the whole."""
_EXCHANGES = 400
"""Pairs that are tried."""
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


@dataclass(frozen=True)
class _Run:
    """A simulated run."""

    ordered: list[Scheduled]
    """Trials in the order of their start."""
    end: float
    """Seconds after which all have ended."""


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
        found: trials with the least share of each: one CPU, where no rule says more.
        rules: of the sweep; what they name does not grow.
        site: where they run.
    """
    bound = lower_bound(found, site)
    run = _first_to_end(_with_free_gpus(found, rules, site), site, bound)
    return _with_spare_cpus(run, rules, site, bound)


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


def _with_spare_cpus(
    run: _Run, rules: Sequence[ResourceRule], site: Site, bound: float
) -> list[Scheduled]:
    """Give ordered trials as many of the CPUs that fall to them as do not delay the end.

    What large trials get beside their GPU may be what small ones wait for.
    """
    for part in _CPU_PARTS:
        grown = _with_cpus(run.ordered, rules, site, part)
        if end_of(simulate(grown, site)) <= _NEAR * max(bound, run.end):
            return grown
    return run.ordered


def _with_cpus(
    found: Sequence[Scheduled], rules: Sequence[ResourceRule], site: Site, part: float
) -> list[Scheduled]:
    """Divide a part of the CPUs among the trials that run at once. Each has one at least."""
    load = float(len(found))
    if site.gpus:
        load = sum((entry.share.gpu for entry in found), 0.0)

    grown = []
    for entry in found:
        if rule_for(entry.trial.job.configuration, rules).cpu is None:
            cpu = int(part * cpus_for(entry.share.gpu, load, site))
            entry = replace(entry, share=replace(entry.share, cpu=max(1, cpu)))
        grown.append(entry)
    return grown


# The order


class _Runs:
    """Simulated runs of the same trials in different orders.

    Args:
        found: the trials.
        site: where they run.
    """

    def __init__(self, found: Sequence[Scheduled], site: Site) -> None:
        self._site = site
        self._at_once = _most_at_once(found, site)
        self._keys = {id(entry): frozen_key(entry.trial) for entry in found}

    def of(self, order: Sequence[Scheduled]) -> _Run:
        """Simulate an order in which no trial starts beside the one that builds what it reads."""
        ordered = spread(order, lambda entry: self._keys[id(entry)], self._at_once)
        return _Run(ordered, end_of(simulate(ordered, self._site)))


def _first_to_end(found: Sequence[Scheduled], site: Site, bound: float) -> _Run:
    """Order trials in several ways, and give the run that ends first.

    Near the bound no better one is looked for.
    """
    runs = _Runs(found, site)
    best = _Run(list(found), math.inf)
    for order in _orders(found, site, bound):
        best = min(best, runs.of(order), key=lambda run: run.end)
        if best.end <= _NEAR * bound:
            return best

    return _with_exchanges(best, runs, bound) if len(found) <= _FEW else best


def _with_exchanges(plain: _Run, runs: _Runs, bound: float) -> _Run:
    """Let pairs of trials change places where this does not delay the end.

    Where nothing is gained in the end, the plain order stays.
    """
    rng = random.Random(0)  # the same order again for the same trials
    places = range(len(plain.ordered))
    best = plain
    for _ in range(_EXCHANGES):
        order = list(best.ordered)
        one, other = rng.choice(places), rng.choice(places)
        if _are_alike(order[one], order[other]):
            continue

        order[one], order[other] = order[other], order[one]
        run = runs.of(order)
        if run.end <= best.end:
            best = run
        if best.end <= _NEAR * bound:
            break
    return best if best.end < plain.end else plain


def _are_alike(one: Scheduled, other: Scheduled) -> bool:
    """Tell whether two trials may change places without any difference."""
    return one.share == other.share and one.need.seconds == other.need.seconds


def _orders(found: Sequence[Scheduled], site: Site, bound: float) -> Iterator[list[Scheduled]]:
    """Order trials in several ways, the plain ones first."""
    for urgency in (_by_share, _by_seconds, _by_work):
        yield sorted(found, key=urgency)
    yield _side_by_side(found)

    # GPUs that the largest leave to the others where all end at the bound.
    largest = max((entry.share.gpu for entry in found), default=0.0)
    work = 0.0
    for entry in found:
        if entry.share.gpu == largest:
            work += largest * entry.need.seconds
    left = site.gpus - work / (bound or 1.0)
    for gpus in sorted({math.floor(left), math.ceil(left)}):
        if 0 < gpus < site.gpus:
            yield _small_first(found, site, gpus)


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


def _small_first(found: Sequence[Scheduled], site: Site, gpus: int) -> list[Scheduled]:
    """Fill some GPUs with small trials from the start. Then the largest go before the others.

    So they follow each other on the other GPUs. One that small trials share is never free for them.

    Args:
        found: the trials.
        site: where they run.
        gpus: number of GPUs for small trials, less than all.
    """
    order = sorted(found, key=lambda entry: (-entry.share.gpu, _by_share(entry)))
    large = order[0].share
    small = []
    for entry in order:
        if entry.share.gpu < large.gpu:
            small.append((entry, replace(entry.share, card=0)))

    # Beside as many large ones as the other GPUs hold.
    beside = int((site.gpus - gpus) / large.gpu)
    cpus = site.cpus - beside * large.cpu
    memory = site.memory - beside * large.memory
    queue = Queue(small, Site(gpus, cpus, memory))
    first = []
    while placed := queue.start():
        first.append(placed.trial)

    are_first = {id(entry) for entry in first}
    return first + [entry for entry in order if id(entry) not in are_first]


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
    cards = {0, *site.cards}
    gpus: dict[int, float] = defaultdict(float)  # by the GB of the card that it needs
    for entry in found:
        seconds = entry.need.seconds
        longest = max(longest, seconds)
        cpus += seconds * entry.share.cpu
        memory += seconds * entry.share.memory
        for card in cards:
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
