"""How well trials fill a fleet: simulated runs beside the time before which none can end.

    python jobs/bench_packing.py

Each row is a fleet and a grid. *Bound* is the largest of the longest trial and of all work on GPUs, CPUs and host
memory over what there is of each, with the least that each trial needs. *Ratio* is the simulated end over that bound.
*Idle* counts the moments at which a GPU had nothing to do while another had two trials and one that waited would have
fitted it. The exit code is 1 where a ratio is above 1.1, or a GPU idled. Nothing here needs a GPU, Ray or data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adray.job import Job
from adray.language.catalogue import load_catalogue
from adray.registry import ModelRegistry
from adray.results.live import duration
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import Need, Node, Share, Site
from adray.sweep.schedule import (
    Scheduled,
    Slot,
    arrange,
    end_of,
    lower_bound,
    simulate,
)

GB = 10**9
ALLOWED = 1.1


@dataclass(frozen=True)
class Kind:
    """Trials that are alike."""

    count: int
    """How many there are."""
    gpu: float
    """Share of a GPU that each needs."""
    minutes: float
    """Median duration."""
    spread: float = 0.0
    """Standard deviation of the logarithm of the duration."""
    memory: int = 4
    """GB of host memory."""
    card: int = 0
    """GB that the GPU must have at least."""
    gpu_busy: float | None = None
    """Part of the GPU's time, as a learned cost model has it."""


def box(cards: Sequence[int], cpus: int, memory: int = 512) -> Site:
    """Make a site of one machine.

    Args:
        cards: GB of each GPU.
        cpus: number of CPUs.
        memory: GB of host memory.
    """
    return cluster((Node(len(cards), cpus, memory * GB, tuple(cards)),))


def cluster(nodes: Sequence[Node]) -> Site:
    """Make a site of several machines."""
    gpus = sum(node.gpus for node in nodes)
    cpus = sum(node.cpus for node in nodes)
    memory = sum(node.memory for node in nodes)
    largest = max(max(node.cards, default=0) for node in nodes)
    return Site(gpus, cpus, memory, largest * GB, tuple(nodes))


EIGHT = box([80] * 8, 64)
FOUR = box([24] * 4, 32)
MIXED = box([24, 24, 80, 80], 32)
TWO_BOXES = cluster(
    (Node(4, 32, 256 * GB, (24,) * 4, id="a"), Node(2, 16, 128 * GB, (80,) * 2, id="b"))
)
CASES: dict[str, tuple[Site, tuple[Kind, ...]]] = {
    "1 GPU, 1 trial": (box([24], 8), (Kind(1, 0.25, 10),)),
    "1 GPU, 200 short": (box([24], 8), (Kind(200, 0.25, 1, 0.3),)),
    "1 GPU, 2 CPUs, 200 short": (box([24], 2), (Kind(200, 0.25, 1, 0.3),)),
    "2 GPUs, 3 trials": (box([24] * 2, 16), (Kind(3, 0.25, 10),)),
    "2 GPUs, one large and 5 small": (box([24] * 2, 16), (Kind(1, 1, 60), Kind(5, 0.25, 10))),
    "4 GPUs, 4 CPUs, 32 quarters": (box([24] * 4, 4), (Kind(32, 0.25, 10),)),
    "4 GPUs, 6 CPUs, 60 quarters": (box([24] * 4, 6), (Kind(60, 0.25, 10, 0.3),)),
    "4 GPUs, 5 trials": (FOUR, (Kind(5, 0.25, 30),)),
    "4 GPUs, 300 mixed": (
        FOUR,
        (Kind(40, 1, 20, 0.5), Kind(160, 0.25, 4, 0.5), Kind(100, 0.5, 8, 0.5)),
    ),
    "4 GPUs, 4 long quarters, 100 short wholes": (FOUR, (Kind(4, 0.25, 300), Kind(100, 1, 10))),
    "4 GPUs, 40 GB of host memory": (box([24] * 4, 32, 40), (Kind(80, 0.25, 10, 0.3, memory=8),)),
    "4 GPUs, 1,000 eighths": (FOUR, (Kind(1000, 1 / 8, 2, 0.6),)),
    "8 GPUs, 48 sixths": (EIGHT, (Kind(48, 1 / 6, 10),)),
    "8 GPUs, 10 CPUs, 200 quarters": (box([80] * 8, 10), (Kind(200, 0.25, 5, 0.4),)),
    "8 GPUs, 96 CPUs, 5,000 mixed": (
        box([80] * 8, 96),
        (Kind(4000, 1 / 6, 1, 0.5), Kind(800, 1 / 3, 6, 0.5), Kind(200, 1, 30, 0.5)),
    ),
    "8 GPUs, 64 long and short": (EIGHT, (Kind(16, 0.5, 240, 0.2), Kind(48, 0.25, 20, 0.2))),
    "8 GPUs, a search of 40 settings x 3": (EIGHT, (Kind(120, 0.25, 15, 0.2),)),
    "8 GPUs, sharing measured not to pay": (EIGHT, (Kind(400, 1, 5, 0.3, gpu_busy=1.0),)),
    "8 GPUs, sharing measured to pay for two": (EIGHT, (Kind(400, 0.5, 5, 0.3, gpu_busy=0.5),)),
    "24 and 80 GB, 100 mixed": (MIXED, (Kind(20, 1, 30, 0.3, card=80), Kind(80, 0.25, 10, 0.3))),
    "24 and 80 GB, 500 small": (MIXED, (Kind(500, 0.25, 3, 0.5),)),
    "two boxes, 300 mixed": (TWO_BOXES, (Kind(30, 1, 20, 0.4, card=80), Kind(270, 0.25, 6, 0.4))),
    "5 GPUs, 16 CPUs, 200 halves and 60 long eighths": (
        box([24] * 5, 16, 64),
        (Kind(200, 0.5, 5, 0.3, memory=8), Kind(60, 1 / 8, 30, 0.3, memory=1)),
    ),
    "7 GPUs, 32 CPUs, 200 short halves and 60 long sixths": (
        box([24] * 7, 32, 128),
        (Kind(200, 0.5, 5, 0.3, memory=1), Kind(60, 1 / 6, 30, 0.3)),
    ),
    "2 GPUs, 6 CPUs, 200 wholes and 200 long eighths": (
        box([80] * 2, 6),
        (Kind(200, 1, 5, 0.3), Kind(200, 1 / 8, 30, 0.3)),
    ),
    "3 GPUs, 8 CPUs, 60 short wholes and 60 long sixths": (
        box([24] * 3, 8, 256),
        (Kind(60, 1, 1, 0.3, memory=1), Kind(60, 1 / 6, 5, 0.5, memory=1)),
    ),
    "two GPUs each, 12 of them": (EIGHT, (Kind(12, 2, 30), Kind(200, 0.25, 3, 0.4))),
    "no GPU, 16 CPUs, 300 trials": (box([], 16), (Kind(300, 0, 3, 0.5),)),
}


def trials_of(kinds: Sequence[Kind], seed: int = 0) -> list[Scheduled]:
    """Draw trials with the least share of each."""
    rng = np.random.default_rng(seed)
    resolved = ModelRegistry.resolve("padim")
    found = []
    for kind in kinds:
        for minutes in kind.minutes * np.exp(rng.normal(scale=kind.spread, size=kind.count)):
            job = Job(resolved, ("mvtec",), ("bottle",), len(found))
            need = Need(60 * float(minutes), 0, 0, 1000.0, None, 0, kind.gpu_busy)
            share = Share(kind.gpu, 1, kind.memory * GB, kind.card)
            found.append(Scheduled(PlannedTrial(job, "new"), share, need))
    return found


def idle_moments(ordered: Sequence[Scheduled], slots: Sequence[Slot], site: Site) -> int:
    """Count the ends of trials after which a GPU idles beside one with two trials, though a waiting trial fits it."""
    starts = {id(slot.scheduled): slot.start for slot in slots}
    count = 0
    for moment in {slot.end for slot in slots}:
        running = [slot for slot in slots if slot.start <= moment < slot.end]
        waiting = [entry.share for entry in ordered if starts[id(entry)] > moment]
        count += _idles(running, waiting, site)
    return count


def _idles(running: Sequence[Slot], waiting: Sequence[Share], site: Site) -> bool:
    """Tell whether a GPU idles at a moment though it should not."""
    on = [sum(number in slot.devices for slot in running) for number in range(site.gpus)]
    if max(on, default=0) < 2 or 0 not in on:
        return False

    # Of one machine; on several it would matter where the CPUs are free.
    cpus = site.cpus - sum(slot.scheduled.share.cpu for slot in running)
    memory = site.memory - sum(slot.scheduled.share.memory for slot in running)
    card = max(site.devices[number].card for number, trials in enumerate(on) if not trials)
    for share in set(waiting):
        fits = share.cpu <= cpus and share.memory <= memory
        if fits and 0 < share.gpu <= 1 and share.card <= card:
            return True
    return False


def main() -> int:
    """Print the table; the exit code."""
    print(
        "| fleet and grid | trials | bound | simulated | ratio | idle |\n|---|--:|--:|--:|--:|--:|"
    )
    say = load_catalogue("en")
    worst = 0.0
    idle = 0
    for name, (site, kinds) in CASES.items():
        least = trials_of(kinds)
        ordered = arrange(least, (), site)
        slots = simulate(ordered, site)
        bound = lower_bound(least, site)
        ratio = end_of(slots) / bound
        idles = idle_moments(ordered, slots, site) if len(site.parts) == 1 else 0
        worst = max(worst, ratio)
        idle += idles
        print(
            f"| {name} | {len(least)} | {duration(bound, say)} | {duration(end_of(slots), say)} "
            f"| {ratio:.3f} | {idles} |",
            flush=True,
        )
    print(f"\nlargest ratio {worst:.3f}")
    return int(worst > ALLOWED or idle > 0)


if __name__ == "__main__":
    sys.exit(main())
