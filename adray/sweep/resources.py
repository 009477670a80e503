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


@dataclass(frozen=True)
class Site:
    """What Ray has to give.

    Attributes:
        gpus: number of GPUs.
        cpus: number of CPUs.
        memory: bytes of host memory.
    """

    gpus: int
    cpus: int
    memory: int


@dataclass(frozen=True)
class Share:
    """What one trial takes.

    Attributes:
        gpu: one of `SHARES`, a whole number of GPUs, or 0.
        cpu: CPUs, and the number of threads.
        memory: bytes of host memory, for admission only.
    """

    gpu: float
    cpu: int
    memory: int

    def bundle(self) -> dict[str, float]:
        """The resources as Ray names them."""
        bundle: dict[str, float] = {"CPU": self.cpu, "memory": self.memory}
        if self.gpu:
            # Rounded down, since three times 0.3334 would not fit one device.
            bundle["GPU"] = int(self.gpu * 10_000) / 10_000
        return bundle


def choose_share(resolved: Resolved, rules: Sequence[ResourceRule], site: Site, pending: int) -> Share:
    """What a trial of a configuration takes at this site.

    The first rule that names the configuration wins; what it leaves open is chosen here: the row's GPU share, raised
    when few trials are pending so that no GPU idles, and the CPUs that fall to that share.

    Args:
        resolved: the configuration.
        rules: of the sweep.
        site: what there is.
        pending: trials that wait.

    Raises:
        InputError: where a rule asks for more than the site has.
    """
    spec = resolved.spec
    rule = next((r for r in rules if any(ModelRegistry.matches(p, spec.name) for p in r.models)), ResourceRule())
    gpu = _gpu_share(rule.gpu if rule.gpu is not None else spec.gpu, rule.gpu is not None, site, pending)
    cpu = rule.cpu if rule.cpu is not None else _cpus(gpu, site, pending)
    if cpu > site.cpus:
        raise InputError(f"resources: {spec.name} asks for {cpu} CPUs, but there are {site.cpus}; lower cpu")
    # Few sizes, since Ray reuses a process only for an equal request; never more than the site has, or it would wait.
    wanted = rule.memory_gb or 2.0 ** math.ceil(math.log2(spec.memory_gb))
    memory = min(int(wanted * _GB), int(site.memory * 0.9))
    return Share(gpu, cpu, memory)


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
    Rung("one image at a time, and a GPU and the host's memory for itself", 1 << 20, math.inf),
)
"""From first to last; the training batch is never touched, since results depend on it."""


def climb(share: Share, rung: Rung, site: Site) -> Share:
    """The share of a trial on a rung; a share that fills a GPU or spans several grows no further."""
    gpu = share.gpu
    if 0 < gpu < 1:
        gpu = next((s for s in reversed(SHARES) if s >= min(gpu * rung.growth, 1.0) - 1e-3), 1.0)
    return replace(share, gpu=gpu, memory=int(min(share.memory * rung.growth, site.memory * 0.9)))


def _gpu_share(wanted: float, by_rule: bool, site: Site, pending: int) -> float:
    if site.gpus == 0:
        return 0.0
    if wanted > site.gpus:
        raise InputError(f"resources: gpu {wanted:g} is asked for, but there are {site.gpus}; lower gpu")
    if wanted >= 1 or wanted == 0:
        return float(wanted)
    if not by_rule:
        wanted = max(wanted, min(1.0, site.gpus / max(pending, 1)))
    return next((s for s in reversed(SHARES) if s >= wanted - 1e-3), 1.0)


def _cpus(gpu: float, site: Site, pending: int) -> int:
    slots = min(site.gpus / gpu if gpu else site.cpus, max(pending, 1))
    return max(1, int(site.cpus / max(slots, 1)))


def rough_cost(resolved: Resolved, images: int) -> float:
    """Order of magnitude of a trial's work, to start long ones first; not seconds."""
    config = resolved.train_config
    passes = (config.max_steps * config.batch_size / max(images, 1)) if config.max_steps else config.num_epochs
    return (passes + 1) * images * config.input_size**2 * resolved.spec.memory_gb
