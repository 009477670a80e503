"""What a trial takes: GPU share, CPUs, host memory.

Shares are few, so that they fill a device and processes fit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from adray.config import ResourceRule
from adray.errors import InputError
from adray.language.sentence import Sentence
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
_PAYS = 0.95
"""As few trials share a GPU as get this part done of what is possible there."""


@dataclass(frozen=True)
class Node:
    """A machine, beyond which no trial reaches."""

    gpus: int
    """Number of GPUs."""
    cpus: int
    """Number of CPUs."""
    memory: int
    """Bytes of host memory that trials may take."""
    cards: tuple[int, ...] = ()
    """GB of each of its GPUs; empty where they are not known."""
    names: tuple[str, ...] = ()
    """Names of its GPUs in `CUDA_VISIBLE_DEVICES`; empty where they are numbered."""
    host: str = ""
    """Its name, as trials record it."""
    id: str = ""
    """Ray's number of it; empty for the only node of a Ray of our own."""

    def card(self, number: int) -> int:
        """Give the GB of a GPU, 0 where they are not known."""
        return self.cards[number] if self.cards else 0

    def name(self, number: int) -> str:
        """Name a GPU as `CUDA_VISIBLE_DEVICES` does."""
        return self.names[number] if self.names else str(number)


@dataclass(frozen=True)
class Device:
    """One GPU of a site."""

    node: int
    """Number of its node among the site's."""
    name: str
    """Its name in `CUDA_VISIBLE_DEVICES`."""
    card: int
    """Its memory in GB; 0 where it is not known."""


@dataclass(frozen=True)
class Site:
    """What there is for trials."""

    gpus: int
    """Number of GPUs."""
    cpus: int
    """Number of CPUs."""
    memory: int
    """Bytes of host memory."""
    gpu_memory: int = 0
    """Bytes of the largest GPU; 0 where there is none, or where it is not known."""
    nodes: tuple[Node, ...] = ()
    """Its machines; empty for one of which no more is known."""

    @property
    def parts(self) -> tuple[Node, ...]:
        """List the machines, all in one where there are no `nodes`."""
        return self.nodes or (Node(self.gpus, self.cpus, self.memory),)

    @property
    def devices(self) -> tuple[Device, ...]:
        """List the GPUs, node by node."""
        found = []
        for number, node in enumerate(self.parts):
            for gpu in range(node.gpus):
                found.append(Device(number, node.name(gpu), node.card(gpu)))
        return tuple(found)

    @property
    def cards(self) -> tuple[int, ...]:
        """List the GB of each GPU, ascending. 0 where it is not known."""
        return tuple(sorted(device.card for device in self.devices))

    @property
    def device(self) -> str:
        """Name the kind of device that trials run on: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"

    def reach(self, gpu: float, card: int = 0) -> Node:
        """Find the largest machine that may take a trial.

        Args:
            gpu: share of a GPU that it needs, 0 for none.
            card: GB that the GPU must have at least.
        """
        able = []
        for node in self.parts:
            has_card = max(node.cards, default=0) >= card
            if node.cpus and has_card and (node.gpus or not gpu):
                able.append(node)
        return max(
            able, key=lambda node: (node.gpus, node.memory, node.cpus), default=self.parts[0]
        )

    def without(self, places: Collection[str]) -> Site:
        """Give the site without some GPUs.

        Args:
            places: ``host name`` of each.
        """
        nodes = []
        for node in self.parts:
            cards: list[int] = []
            names: list[str] = []
            for gpu in range(node.gpus):
                if f"{node.host} {node.name(gpu)}" not in places:
                    cards.append(node.card(gpu))
                    names.append(node.name(gpu))
            nodes.append(replace(node, gpus=len(names), cards=tuple(cards), names=tuple(names)))
        return replace(self, gpus=sum(node.gpus for node in nodes), nodes=tuple(nodes))


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
    gpu_busy: float | None = None
    """Part of a GPU's time that it takes by itself; None where sharing was not seen to slow it."""

    def on(self, share: float) -> Need:
        """Give what it takes where a GPU has as many such trials as the share allows."""
        if not self.gpu_busy or not 0 < share < 1:
            return self
        slower = max(1.0, self.gpu_busy / share)
        return replace(
            self, seconds=self.seconds * slower, low=self.low * slower, high=self.high * slower
        )


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


def least_share(resolved: Resolved, need: Need, rule: ResourceRule, site: Site) -> Share:
    """Give the least that a trial of a configuration needs at this site.

    What the rule leaves open is chosen here: the GPU share that its measured peak asks for, else the
    row's, raised where more trials on one GPU were measured to gain nothing. The smallest card that
    holds that peak. One CPU. And the host memory that was measured, else the row's.

    Args:
        resolved: the configuration.
        need: its prediction.
        rule: that names it, see `rule_for`.
        site: what there is.

    Raises:
        InputError: where the rule asks for more than the site has.
    """
    card = _smallest_card(need, site)
    wanted = rule.gpu
    if wanted is None:
        wanted = _paying_share(_predicted_share(resolved.spec.gpu, need, card, site), need)
    gpu = _gpu_share(wanted, site)
    if not 0 < gpu <= 1 or card <= min(site.cards):
        card = 0  # any will do

    reach = site.reach(gpu, card)
    cpu = rule.cpu or 1
    if cpu > reach.cpus:
        raise InputError(
            Sentence.of("resources cpus", name=resolved.spec.name, cpu=cpu, cpus=reach.cpus)
        )

    memory_gb = rule.memory_gb or _host_gb(need)
    # Never more than the site has, or the trial would wait for ever.
    memory = min(int(memory_gb * _GB), int(reach.memory * _HOST_PART))
    return Share(gpu, cpu, memory, card)


def rule_for(configuration: str, rules: Sequence[ResourceRule]) -> ResourceRule:
    """Find the first rule that names a configuration. One that leaves all open where none does."""
    for rule in rules:
        if any(ModelRegistry.matches(pattern, configuration) for pattern in rule.models):
            return rule
    return ResourceRule()


def cpus_for(gpu: float, load: float, site: Site) -> int:
    """Count the CPUs that fall to a trial when all that can run at once do.

    Args:
        gpu: its share of a GPU, 0 for none.
        load: GPUs that all waiting trials together would fill, or on a site without GPUs their
            number.
        site: what there is.
    """
    if not site.gpus:
        running = min(max(load, 1), site.cpus)
        return min(int(site.cpus / running), site.reach(0).cpus)
    if not gpu:
        return 1

    # By the node with the fewest per GPU, so that its GPUs do not wait for CPUs.
    per_gpu = math.inf
    fewest = site.cpus
    for node in site.parts:
        if node.gpus:
            per_gpu = min(per_gpu, node.cpus / node.gpus)
            fewest = min(fewest, node.cpus)
    spare = max(1.0, site.gpus / load)
    return max(1, min(int(per_gpu * gpu * spare + _ROUNDING), fewest))


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

    reach = site.reach(gpu, card)
    memory = int(min(share.memory * level.growth, reach.memory * _HOST_PART))
    return replace(share, gpu=gpu, cpu=min(share.cpu, reach.cpus), memory=memory, card=card)


def _gpu_share(wanted: float, site: Site) -> float:
    """Give the least possible share of a GPU that is at least what is wanted.

    Raises:
        InputError: for more GPUs than one machine has.
    """
    if site.gpus == 0:
        return 0.0
    most = max(node.gpus for node in site.parts)
    if wanted > most:
        raise InputError(Sentence.of("resources gpus", wanted=f"{wanted:g}", most=most))
    if wanted >= 1 or wanted == 0:
        return float(wanted)
    return _round_up(wanted)


def _paying_share(least: float, need: Need) -> float:
    """Raise a share of a GPU where more trials at a time were measured to gain nothing.

    Trials that need a part of the GPU's time get as much done as fit into all of it: the number of
    them, or one over that part where this is less.
    """
    if need.gpu_busy is None or not 0 < least < 1:
        return least
    done = {share: min(1 / share, 1 / need.gpu_busy) for share in SHARES}
    most = done[_round_up(least)]
    return next(share for share in SHARES if done[share] >= _PAYS * most)


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
