"""GPUs of unequal memory: a raylet for each kind of card, so that a trial can ask for one.

Ray does not choose among the cards of one raylet. So each raylet has cards of one size only, and a
label that says how many GB they have; a trial that needs more than the smallest asks for the labels
that are large enough, any of them.

    python -m adray.sweep.cards      prints the label of this machine for `ray start --labels`, nothing without GPUs
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adray.sweep.resources import Node, Share, Site

LABEL = "adray-card"
_JOIN_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
_STORE_BYTES = 100 * 2**20
_MEMORY_PART = 0.7
"""Of the host's memory is given to trials; about as much as Ray gives by itself."""


@dataclass(frozen=True)
class Card:
    """One GPU of this machine."""

    name: str
    """As `CUDA_VISIBLE_DEVICES` names it."""
    identity: str
    """Name that no other GPU bears, and that every process has for it."""
    gb: int = 0
    """Its memory in GB, rounded up; 0 where it is not known."""


def cards_here(gpus: int) -> list[Card]:
    """List the GPUs that this process may use, in CUDA's order.

    Args:
        gpus: as many are made up where there are fewer, to try things out without them.
    """
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = given.split(",") if given else [str(i) for i in range(max(count, gpus))]
    if count < gpus:
        return [Card(name, name) for name in names]

    cards = []
    for i in range(count):
        about = torch.cuda.get_device_properties(i)
        identity = str(getattr(about, "uuid", names[i]))
        cards.append(Card(names[i], identity, math.ceil(about.total_memory / 10**9)))
    return cards


def card_sizes() -> tuple[int, ...]:
    """Read the memory of each GPU that this process may use, in GB, in CUDA's order."""
    return tuple(card.gb for card in cards_here(0))


def selector(share: Share, site: Site) -> list[dict[str, str]] | None:
    """Give the labels that are large enough for a trial, as Ray takes them for its one bundle.

    Returns:
        None where any will do.
    """
    if not share.card:
        return None
    enough = sorted({node.card for node in site.nodes if node.card >= share.card})
    return [{LABEL: f"in({','.join(map(str, enough))})"}]


def nodes_of(found: Sequence[Mapping[str, Any]]) -> tuple[Node, ...]:
    """Read what `ray.nodes` says of those that are alive, the smallest cards first."""
    nodes = []
    for node in found:
        if node["Alive"]:
            has = node["Resources"]
            nodes.append(
                Node(
                    gpus=int(has.get("GPU", 0)),
                    cpus=int(has.get("CPU", 0)),
                    memory=int(has.get("memory", 0)),
                    card=int(node.get("Labels", {}).get(LABEL, 0)),
                )
            )
    return tuple(sorted(nodes, key=lambda node: node.card))


def by_card(sizes: Sequence[int], site: Site) -> list[tuple[Node, str]]:
    """Make one node for each size of card. CPUs and memory are divided by the number of GPUs.

    Args:
        sizes: see `card_sizes`.
        site: what there is in all; with fewer GPUs than cards the first ones count, with more
            nothing is known.

    Returns:
        The nodes, the smallest cards first, each with what `CUDA_VISIBLE_DEVICES` must be for it to
        see its own only.
    """
    if len(sizes) < site.gpus:
        return []

    used = sizes[: site.gpus]
    found = []
    for size in sorted(set(used)):
        places = [i for i, other in enumerate(used) if other == size]
        part = len(places) / len(used)
        cpus = max(1, int(site.cpus * part))
        memory = int(site.memory * part * _MEMORY_PART)
        found.append((Node(len(places), cpus, memory, size), _visible(places)))
    return found


@contextmanager
def joined(address: str, others: Sequence[tuple[Node, str]], log: Path) -> Iterator[None]:
    """Run further raylets on this machine, as long as the block lasts. Each sees its own GPUs only.

    Args:
        address: of the Ray that they join.
        others: see `by_card`.
        log: takes what Ray prints.

    Raises:
        RuntimeError: where one does not come up in time.
    """
    import ray

    with ExitStack() as stack:
        for node, gpus in others:
            stack.enter_context(_raylet(address, node, gpus, log))

        deadline = time.monotonic() + _JOIN_SECONDS
        while sum(node["Alive"] for node in ray.nodes()) <= len(others):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a raylet for cards of another size did not start; see {log}")
            time.sleep(0.1)

        try:
            yield
        finally:
            ray.shutdown()  # ends all actors, for which the raylets would wait


@contextmanager
def _raylet(address: str, node: Node, gpus: str, log: Path) -> Iterator[None]:
    """Run a raylet that has a node's resources and sees some GPUs only."""
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        f"--address={address}",
        f"--num-cpus={node.cpus}",
        f"--num-gpus={node.gpus}",
        f"--memory={node.memory}",
        f"--labels={LABEL}={node.card}",
        f"--object-store-memory={_STORE_BYTES}",
        "--disable-usage-stats",
        "--block",
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpus}
    with log.open("a") as output:
        # A session of its own: Ctrl-C ends the driver, which then ends this.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_the_driver,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _end_with_the_driver() -> None:
    """Have the kernel send SIGTERM when the process that started this one is killed.

    Ray itself takes a minute.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _visible(places: Sequence[int]) -> str:
    """Name the GPUs at some positions among those that this process sees."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(max(places) + 1)]
    return ",".join(names[i] for i in places)


if __name__ == "__main__":
    sizes = card_sizes()
    print(f"{LABEL}={min(sizes)}" if sizes else "")
