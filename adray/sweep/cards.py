"""The GPUs of machines: how many GB each has, and how a process is shown some of them only.

On a cluster each node's label says how many GB its smallest card has.

    python -m adray.sweep.cards      prints the label of this machine for `ray start --labels`, nothing without GPUs
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adray.sweep.resources import Node

LABEL = "adray-card"
NODE_LABEL = "ray.io/node-id"
"""Label that Ray itself gives to each node."""
_DEVICES = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "kfd", "dxg")
"""What the drivers of GPUs that torch can use put below ``/dev``: of NVIDIA, also on Jetson, of AMD,
and of Windows below a Linux."""
_NAME = re.compile(r"\d|GPU-|MIG-")
"""How the name of a GPU begins."""
_FREE_SECONDS = 10.0
"""A GPU that is not given within this time is in use."""


@dataclass(frozen=True)
class Card:
    """One GPU of this machine."""

    name: str
    """As `CUDA_VISIBLE_DEVICES` names it."""
    identity: str
    """Name that no other GPU bears, and that every process has for it."""
    gb: int = 0
    """Its memory in GB, rounded up; 0 where it is not known."""


def count_gpus() -> int:
    """Count the GPUs that this process may use.

    Where the kernel shows no device of theirs there is none, and torch, which takes seconds to
    load, is not asked.
    """
    has_device = any(next(Path("/dev").glob(name), None) for name in _DEVICES)
    if not has_device and "torch" not in sys.modules:
        return 0
    import torch

    return torch.cuda.device_count()


def shown_names(value: str) -> list[str]:
    """List the GPUs that a value of `CUDA_VISIBLE_DEVICES` shows, as CUDA reads it.

    The first entry that names none ends the list, as in ``-1``, ``none`` and ``NoDevFiles``. A GPU
    that is named twice hides all.
    """
    names: list[str] = []
    for entry in value.split(","):
        name = entry.strip()
        if not _NAME.match(name):
            break
        names.append(name)
    return names if len(set(names)) == len(names) else []


def cards_here(gpus: int) -> list[Card]:
    """List the GPUs that this process may use, in CUDA's order.

    Args:
        gpus: as many are made up where there are fewer, to try things out without them.
    """
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = shown_names(given) if given else [str(i) for i in range(max(count, gpus))]
    if count < gpus:
        return [Card(name, name) for name in names]

    cards = []
    for i in range(count):
        about = torch.cuda.get_device_properties(i)
        identity = str(getattr(about, "uuid", names[i]))
        cards.append(Card(names[i], identity, math.ceil(about.total_memory / 10**9)))
    return cards


def nodes_of(found: Sequence[Mapping[str, Any]]) -> tuple[Node, ...]:
    """Read what `ray.nodes` says of those that are alive."""
    nodes = []
    for node in found:
        if node["Alive"]:
            has = node["Resources"]
            gpus = int(has.get("GPU", 0))
            card = int(node.get("Labels", {}).get(LABEL, 0))
            nodes.append(
                Node(
                    gpus=gpus,
                    cpus=int(has.get("CPU", 0)),
                    memory=int(has.get("memory", 0)),
                    cards=(card,) * gpus,
                    host=str(node.get("NodeManagerHostname", "")),
                    id=str(node.get("NodeID", "")),
                )
            )
    return tuple(nodes)


def take_gpus(node: Node) -> Node:
    """Take those GPUs of a cluster's node that nobody uses, until this process leaves the cluster.

    Returns:
        The node with these GPUs only, and their names.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    where = [{NODE_LABEL: node.id}]
    groups = [placement_group([{"GPU": 1}], bundle_label_selector=where) for _ in range(node.gpus)]
    deadline = time.monotonic() + _FREE_SECONDS
    held = []
    for group in groups:
        if group.wait(max(deadline - time.monotonic(), 0.1)):
            held.append(group)
        else:
            remove_placement_group(group)

    names = tuple(ray.get([_name_in(group) for group in held]))
    cards = node.cards[: len(held)]
    return replace(node, gpus=len(held), cards=cards, names=names)


def _name_in(group: Any) -> Any:
    """Ask for the name of the GPU that a placement group holds."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ask: Any = ray.remote(num_cpus=0, num_gpus=1)(_own_name)
    return ask.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()


def _own_name() -> str:
    """Name the GPU of this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


if __name__ == "__main__":
    sizes = [card.gb for card in cards_here(0)]
    print(f"{LABEL}={min(sizes)}" if sizes else "")
