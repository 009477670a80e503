"""What a trial takes: GPU share, CPUs, host memory.

Shares are few, so that they fill a device and processes fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adray.config import ResourceRule
from adray.errors import InputError
from adray.registry import ModelRegistry, Resolved

SHARES = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)
"""Parts of a GPU that a trial may take, the largest first."""
_GB = 10**9
_HEADROOM = 1.2
"""A trial gets this many times its measured peak."""
_CONTEXT_MB = 500.0
"""What a CUDA context takes of a GPU beside the tensors."""
_HOST_PART = 0.9
"""Of a machine's memory is given to trials at most."""
_ROUNDING = 1e-3
"""Shares that differ by less are the same."""


@dataclass(frozen=True)
class Node:
    """A part of a site that a trial cannot reach beyond.

    That is a machine, or the cards of one size in a machine.
    """

    gpus: int
    """Number of GPUs."""
    cpus: int
    """Number of CPUs."""
    memory: int
    """Bytes of host memory."""
    card: int = 0
    """GB of each of its GPUs; 0 where there is none, or where it is not known."""


@dataclass(frozen=True)
class Site:
    """What Ray has to give."""

    gpus: int
    """Number of GPUs."""
    cpus: int
    """Number of CPUs."""
    memory: int
    """Bytes of host memory."""
    gpu_memory: int = 0
    """Bytes of the largest GPU; 0 where there is none, or where it is not known."""
    nodes: tuple[Node, ...] = ()
    """Its parts, the smallest cards first; empty for one that has none."""

    @property
    def cards(self) -> tuple[int, ...]:
        """List the GB of each GPU, ascending. 0 where it is not known."""
        found: list[int] = []
        for node in self.nodes:
            found += [node.card] * node.gpus
        return tuple(found) or (0,) * self.gpus

    @property
    def device(self) -> str:
        """Name the kind of device that trials run on: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"

    def reach(self, gpu: float, card: int = 0) -> Node:
        """Find the largest part that may take a trial.

        Args:
            gpu: share of a GPU that it needs, 0 for none.
            card: GB that the GPU must have at least.
        """
        parts = [
            node
            for node in self.nodes
            if node.cpus and node.card >= card and (node.gpus or not gpu)
        ]
        whole = Node(self.gpus, self.cpus, self.memory)
        return max(parts, key=lambda node: (node.gpus, node.memory, node.cpus), default=whole)


@dataclass(frozen=True)
class Need:
    """What a trial is predicted to take; see `adray.sweep.costs`."""

    seconds: float
    """Duration."""
    low: float
    """Nine in ten trials take longer than this,"""
    high: float
    """and shorter than this."""
    host_mb: float
    """Peak memory of its process in MiB."""
    gpu_mb: float | None
    """Peak memory on the GPU in MiB; None where nothing was measured."""
    measured: int
    """Trials of the same configuration that this rests on; 0 for a guess."""


@dataclass(frozen=True)
class Share:
    """What one trial takes."""

    gpu: float
    """One of `SHARES`, a whole number of GPUs, or 0."""
    cpu: int
    """CPUs, and the number of threads."""
    memory: int
    """Bytes of host memory, for admission only."""
    card: int = 0
    """GB that the GPU must have at least; 0 where any will do."""

    def bundle(self) -> dict[str, float]:
        """Give the resources as Ray names them."""
        bundle: dict[str, float] = {"CPU": self.cpu, "memory": self.memory}
        if self.gpu:
            # Rounded down, since three times 0.3334 would not fit one device.
            bundle["GPU"] = int(self.gpu * 10_000) / 10_000
        return bundle


@dataclass(frozen=True)
class RetryLevel:
    """How a trial runs that ran out of memory one level below; none of it changes a score."""

    description: str
    """How the trial runs, for the log and the documents."""
    eval_divisor: int
    """The evaluation batch is divided by this, down to one image."""
    growth: float
    """The shares of GPU and host memory grow by this."""


RETRY_LEVELS = (
    RetryLevel("as planned", 1, 1.0),
    RetryLevel("a quarter of the evaluation batch, in a fresh process", 4, 1.0),
    RetryLevel("a quarter of the evaluation batch and twice the share", 4, 2.0),
    RetryLevel(
        "one image at a time, one of the largest GPUs and the host's memory for itself",
        1 << 20,
        math.inf,
    ),
)
"""From first to last; the training batch is never touched, since results depend on it."""


def choose_share(
    resolved: Resolved, need: Need, rules: Sequence[ResourceRule], site: Site, pending: int
) -> Share:
    """Choose what a trial of a configuration takes at this site.

    The first rule that names the configuration wins. What it leaves open is chosen here: the GPU
    share that its measured peak asks for, else the row's, raised when few trials are pending so
    that no GPU idles. The smallest card that holds that peak. The CPUs that fall to that share. And
    the host memory that was measured, else the row's.

    A share is raised, also one that a rule names, where CPUs or memory would leave GPUs idle.

    Args:
        resolved: the configuration.
        need: its prediction.
        rules: of the sweep.
        site: what there is.
        pending: trials that wait.

    Raises:
        InputError: where a rule asks for more than the site has.
    """
    spec = resolved.spec
    rule = _rule_for(spec.name, rules)

    card = _smallest_card(need, site)
    if rule.gpu is not None:
        gpu = _gpu_share(rule.gpu, site)
    else:
        predicted = _predicted_share(spec.gpu, need, card, site)
        gpu = _gpu_share(_not_idle(predicted, site, pending), site)
    if not gpu or card <= min(site.cards):
        card = 0  # any will do

    reach = site.reach(gpu, card)
    cpu = rule.cpu if rule.cpu is not None else min(_cpus(gpu, site, pending), reach.cpus)
    if cpu > reach.cpus:
        raise InputError(
            f"resources: {spec.name} asks for {cpu} CPUs, but there are {reach.cpus}; lower cpu"
        )

    wanted = rule.memory_gb or _host_gb(need)
    # Never more than the site has, or the trial would wait for ever.
    memory = min(int(wanted * _GB), int(reach.memory * _HOST_PART))
    return _spread(Share(gpu, cpu, memory, card), site, pending)


def share_at(share: Share, level: RetryLevel, site: Site) -> Share:
    """Give a trial's share at a retry level.

    One that fills a GPU or spans several grows no further.
    """
    card = share.card
    if share.gpu and math.isinf(level.growth) and len(set(site.cards)) > 1:
        card = max(site.cards)

    gpu = share.gpu
    if 0 < gpu < 1:
        gpu = _round_up(min(gpu * level.growth, 1.0))

    most = site.reach(gpu, card).memory * _HOST_PART
    memory = int(min(share.memory * level.growth, most))
    return replace(share, gpu=gpu, memory=memory, card=card)


def _rule_for(configuration: str, rules: Sequence[ResourceRule]) -> ResourceRule:
    """Find the first rule that names a configuration. One that leaves all open where none does."""
    for rule in rules:
        if any(ModelRegistry.matches(pattern, configuration) for pattern in rule.models):
            return rule
    return ResourceRule()


def _gpu_share(wanted: float, site: Site) -> float:
    """Give the least possible share of a GPU that is at least what is wanted.

    Raises:
        InputError: for more GPUs than one machine has.
    """
    if site.gpus == 0:
        return 0.0
    most = site.reach(wanted).gpus
    if wanted > most:
        raise InputError(f"resources: gpu {wanted:g} is asked for, but there are {most}; lower gpu")
    if wanted >= 1 or wanted == 0:
        return float(wanted)
    return _round_up(wanted)


def _not_idle(wanted: float, site: Site, pending: int) -> float:
    """Raise a share where so few trials wait that GPUs would idle."""
    if wanted >= 1 or wanted == 0:
        return wanted
    return max(wanted, min(1.0, site.gpus / max(pending, 1)))


def _spread(share: Share, site: Site, pending: int) -> Share:
    """Raise a share of a GPU where CPUs or host memory let fewer trials run than the GPUs hold.

    Ray fills one GPU before it opens the next, so that with small shares the last GPUs would idle.
    """
    if not 0 < share.gpu < 1:
        return share
    at_once = min(pending, site.cpus // share.cpu, int(site.memory // share.memory))

    # The largest share at which as many still run at once.
    for gpu in SHARES:
        places = site.gpus * int(1 / gpu)
        if gpu > share.gpu and places >= at_once:
            return replace(share, gpu=gpu)
    return share


def _round_up(part: float) -> float:
    """Give the least of `SHARES` that is at least `part`."""
    enough = [share for share in SHARES if share >= part - _ROUNDING]
    return min(enough, default=1.0)


def _smallest_card(need: Need, site: Site) -> int:
    """Give the GB of the smallest card that holds a measured peak, else of the largest.

    Without a measured peak any card will do, so it is the smallest.
    """
    cards = sorted(set(site.cards)) or [0]
    if not need.gpu_mb:
        return cards[0]
    wanted = _with_headroom(need.gpu_mb)
    return next((card for card in cards if card * _GB >= wanted), cards[-1])


def _predicted_share(row: float, need: Need, card: int, site: Site) -> float:
    """Give the part of a card that a measured peak takes.

    It is the row's where nothing was measured, where cards are not known, and where the row asks
    for several GPUs.
    """
    are_unequal = len(set(site.cards)) > 1
    memory = card * _GB if are_unequal else site.gpu_memory
    if row == 0 or row > 1 or not need.gpu_mb or not memory:
        return row
    return min(1.0, _with_headroom(need.gpu_mb) / memory)


def _with_headroom(gpu_mb: float) -> float:
    """Count the bytes that a trial should have whose peak on the GPU is known."""
    return (gpu_mb * _HEADROOM + _CONTEXT_MB) * 2**20


def _host_gb(need: Need) -> float:
    """Give the host memory to ask for, a power of two in GB: Ray reuses a process only for an equal request."""
    predicted = need.host_mb / 1000
    if need.measured:
        predicted *= _HEADROOM
    return 2.0 ** math.ceil(math.log2(max(predicted, 1.0)))


def _cpus(gpu: float, site: Site, pending: int) -> int:
    """Count the CPUs that fall to a trial when the site is full, or all that wait run at once."""
    places = site.gpus / gpu if gpu else site.cpus
    running = min(places, max(pending, 1))
    return max(1, int(site.cpus / max(running, 1)))
