"""What a trial takes: GPU share, CPUs, host memory. Shares are quantised so that they fill a device and actors fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adray.config import ResourceRule
from adray.errors import InputError
from adray.registry import ModelRegistry, Resolved

SHARES = (1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)
_GB = 10**9
_HEADROOM = 1.2
"""A trial gets this many times its measured peak."""
_CONTEXT_MB = 500.0
"""What a CUDA context takes of a GPU beside the tensors."""


@dataclass(frozen=True)
class Node:
    """A part of a site that a trial cannot reach beyond: a machine, or the cards of one size in a machine.

    Attributes:
        gpus: number of GPUs.
        cpus: number of CPUs.
        memory: bytes of host memory.
        card: GB of each of its GPUs; 0 where there is none, or where it is not known.
    """

    gpus: int
    cpus: int
    memory: int
    card: int = 0


@dataclass(frozen=True)
class Site:
    """What Ray has to give.

    Attributes:
        gpus: number of GPUs.
        cpus: number of CPUs.
        memory: bytes of host memory.
        gpu_memory: bytes of the largest GPU; 0 where there is none, or where it is not known.
        nodes: its parts, the smallest cards first; empty for one that has none.
    """

    gpus: int
    cpus: int
    memory: int
    gpu_memory: int = 0
    nodes: tuple[Node, ...] = ()

    @property
    def cards(self) -> tuple[int, ...]:
        """GB of each GPU, ascending; 0 where it is not known."""
        return tuple(node.card for node in self.nodes for _ in range(node.gpus)) or (0,) * self.gpus

    def reach(self, gpu: float, card: int = 0) -> Node:
        """The largest part that may take a trial with some share of a GPU of at least `card` GB, or with none."""
        parts = [
            node
            for node in self.nodes
            if node.cpus and node.card >= card and (node.gpus or not gpu)
        ]
        whole = Node(self.gpus, self.cpus, self.memory)
        return max(parts, key=lambda node: (node.gpus, node.memory, node.cpus), default=whole)


@dataclass(frozen=True)
class Need:
    """What a trial is predicted to take; see `adray.sweep.costs`.

    Attributes:
        seconds: duration.
        low: nine in ten trials take longer than this,
        high: and shorter than this.
        host_mb: peak memory of its process in MiB.
        gpu_mb: peak memory on the GPU in MiB; None where nothing was measured.
        measured: trials of the same configuration that this rests on; 0 for a guess.
    """

    seconds: float
    low: float
    high: float
    host_mb: float
    gpu_mb: float | None
    measured: int


@dataclass(frozen=True)
class Share:
    """What one trial takes.

    Attributes:
        gpu: one of `SHARES`, a whole number of GPUs, or 0.
        cpu: CPUs, and the number of threads.
        memory: bytes of host memory, for admission only.
        card: GB that the GPU must have at least; 0 where any will do.
    """

    gpu: float
    cpu: int
    memory: int
    card: int = 0

    def bundle(self) -> dict[str, float]:
        """The resources as Ray names them."""
        bundle: dict[str, float] = {"CPU": self.cpu, "memory": self.memory}
        if self.gpu:
            # Rounded down, since three times 0.3334 would not fit one device.
            bundle["GPU"] = int(self.gpu * 10_000) / 10_000
        return bundle


def choose_share(
    resolved: Resolved, need: Need, rules: Sequence[ResourceRule], site: Site, pending: int
) -> Share:
    """What a trial of a configuration takes at this site.

    The first rule that names the configuration wins; what it leaves open is chosen here: the GPU share that its
    measured peak asks for, else the row's, raised when few trials are pending so that no GPU idles; the smallest card
    that holds that peak; the CPUs that fall to that share; and the host memory that was measured, else the row's.

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
    rule = next(
        (r for r in rules if any(ModelRegistry.matches(p, spec.name) for p in r.models)),
        ResourceRule(),
    )
    card = _card(need, site)
    wanted_gpu = rule.gpu if rule.gpu is not None else _predicted_share(spec.gpu, need, card, site)
    gpu = _gpu_share(wanted_gpu, rule.gpu is not None, site, pending)
    card = card if gpu and card > min(site.cards) else 0
    reach = site.reach(gpu, card)
    cpu = rule.cpu if rule.cpu is not None else min(_cpus(gpu, site, pending), reach.cpus)
    if cpu > reach.cpus:
        raise InputError(
            f"resources: {spec.name} asks for {cpu} CPUs, but there are {reach.cpus}; lower cpu"
        )
    # Few sizes, since Ray reuses a process only for an equal request; never more than the site has, or it would wait.
    predicted = need.host_mb / 1000 * (_HEADROOM if need.measured else 1.0)
    wanted = rule.memory_gb or 2.0 ** math.ceil(math.log2(max(predicted, 1.0)))
    memory = min(int(wanted * _GB), int(reach.memory * 0.9))
    return Share(gpu, cpu, memory, card)


@dataclass(frozen=True)
class Rung:
    """How a trial runs that ran out of memory on the rung below; none of it changes a score.

    Attributes:
        words: what is tried, for the log and the row.
        eval_divisor: the evaluation batch is divided by this, down to one image.
        growth: the shares of GPU and host memory grow by this.
    """

    words: str
    eval_divisor: int
    growth: float


RUNGS = (
    Rung("as planned", 1, 1.0),
    Rung("a quarter of the evaluation batch, in a fresh process", 4, 1.0),
    Rung("a quarter of the evaluation batch and twice the share", 4, 2.0),
    Rung(
        "one image at a time, one of the largest GPUs and the host's memory for itself",
        1 << 20,
        math.inf,
    ),
)
"""From first to last; the training batch is never touched, since results depend on it."""


def climb(share: Share, rung: Rung, site: Site) -> Share:
    """The share of a trial on a rung; a share that fills a GPU or spans several grows no further."""
    gpu, card = share.gpu, share.card
    if gpu and math.isinf(rung.growth) and len(set(site.cards)) > 1:
        card = max(site.cards)
    if 0 < gpu < 1:
        gpu = next((s for s in reversed(SHARES) if s >= min(gpu * rung.growth, 1.0) - 1e-3), 1.0)
    memory = int(min(share.memory * rung.growth, site.reach(gpu, card).memory * 0.9))
    return replace(share, gpu=gpu, memory=memory, card=card)


def _gpu_share(wanted: float, by_rule: bool, site: Site, pending: int) -> float:
    if site.gpus == 0:
        return 0.0
    most = site.reach(wanted).gpus
    if wanted > most:
        raise InputError(f"resources: gpu {wanted:g} is asked for, but there are {most}; lower gpu")
    if wanted >= 1 or wanted == 0:
        return float(wanted)
    if not by_rule:
        wanted = max(wanted, min(1.0, site.gpus / max(pending, 1)))
    return next((s for s in reversed(SHARES) if s >= wanted - 1e-3), 1.0)


def _card(need: Need, site: Site) -> int:
    """GB of the smallest card that holds a measured peak, else of the largest; of the smallest without a peak."""
    cards = sorted(set(site.cards)) or [0]
    if not need.gpu_mb:
        return cards[0]
    return next((card for card in cards if card * _GB >= _with_headroom(need.gpu_mb)), cards[-1])


def _predicted_share(row: float, need: Need, card: int, site: Site) -> float:
    """The part of a card that a measured peak takes; the row's where nothing was measured, or cards are not known."""
    memory = card * _GB if len(set(site.cards)) > 1 else site.gpu_memory
    if row == 0 or row > 1 or not need.gpu_mb or not memory:
        return row
    return min(1.0, _with_headroom(need.gpu_mb) / memory)


def _with_headroom(gpu_mb: float) -> float:
    """Bytes that a trial should have whose peak is known."""
    return (gpu_mb * _HEADROOM + _CONTEXT_MB) * 2**20


def _cpus(gpu: float, site: Site, pending: int) -> int:
    slots = min(site.gpus / gpu if gpu else site.cpus, max(pending, 1))
    return max(1, int(site.cpus / max(slots, 1)))
