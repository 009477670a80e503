"""Nodes of a cluster that would give other results, by versions, weights and folders."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from adray.components.backbone import find_weights
from adray.files import file_sha256
from adray.settings import Settings
from adray.sweep.plan import Plan
from adray.types import Json

_PACKAGES = ("adray", "torch", "torchvision", "timm", "ray")


@dataclass(frozen=True)
class NodeFacts:
    """What one node says of itself."""

    name: str
    """Its address."""
    versions: Mapping[str, str]
    """Of Python and the packages that decide results."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Name of a weight file to its sha256; empty where it is missing."""
    has_data: bool = True
    """Whether `dataset_dir` is there."""
    has_store: bool = True
    """Whether the folder that the driver made in `output_dir` is there."""
    cache_problem: str = ""
    """Why `cache_dir` cannot be written, empty where it can."""


def look(name: str, settings: Settings, weight_files: Sequence[str], marker: str) -> NodeFacts:
    """Look at this node.

    Args:
        name: its address.
        settings: of the sweep, with absolute paths.
        weight_files: names that the sweep needs.
        marker: a folder in the store that the driver made.
    """
    versions = {package: _version(package) for package in _PACKAGES}
    weights = {}
    for file in weight_files:
        path = find_weights(file, settings.backbone_dir)
        weights[file] = file_sha256(path) if path is not None else ""
    return NodeFacts(
        name,
        {"python": platform.python_version(), **versions},
        weights,
        Path(settings.dataset_dir).is_dir(),
        Path(marker).is_dir(),
        _cache_problem(settings.cache_dir),
    )


def _cache_problem(cache_dir: str) -> str:
    """Say why the cache cannot be written. Empty where it can."""
    try:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return str(error.strerror)
    return "" if os.access(cache_dir, os.W_OK) else "it is read-only"


def _version(package: str) -> str:
    """Give the version of an installed package, empty where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def compare_nodes(
    here: NodeFacts, others: Sequence[NodeFacts], settings: Settings
) -> dict[str, list[str]]:
    """Say what makes other nodes unfit, one sentence each, by node. Fit ones are left out.

    Args:
        here: the driver's node, by which the others are judged.
        others: the nodes of the cluster.
        settings: of the sweep, for the remedies.
    """
    found = {node.name: _differences(here, node, settings) for node in others}
    return {name: problems for name, problems in found.items() if problems}


def _differences(here: NodeFacts, node: NodeFacts, settings: Settings) -> list[str]:
    """Say in what a node differs from the driver's so that its results would."""
    problems = []
    for package, version in here.versions.items():
        own = node.versions.get(package)
        if own != version:
            problems.append(
                f"node {node.name} has {package} {own or 'missing'}, the driver {version}; install that"
            )

    for name, digest in here.weights.items():
        own = node.weights.get(name, "")
        if not digest or own == digest:  # what the driver lacks too, the plan says
            continue
        says = f"no {name}"
        if own:
            says = f"other weights for {name} (sha256 {own[:8]}, the driver's {digest[:8]})"
        problems.append(
            f"node {node.name} has {says}; copy the driver's file to {settings.backbone_dir} there"
        )

    if not node.has_data:
        problems.append(
            f"node {node.name} does not see dataset_dir {settings.dataset_dir}; mount or copy it there"
        )
    if not node.has_store:
        problems.append(
            f"node {node.name} does not see the store {settings.output_dir} that the driver writes to; mount the same "
            "folder there"
        )
    if node.cache_problem:
        problems.append(
            f"node {node.name} cannot write cache_dir {settings.cache_dir} ({node.cache_problem}); set another"
        )
    return problems


def check_nodes(plan: Plan, settings: Settings, marker: Path) -> dict[str, list[str]]:
    """Ask every living node of the cluster that this process has joined, and compare.

    See `compare_nodes`.

    Args:
        plan: whose weight files all nodes must have.
        settings: of the sweep, with absolute paths.
        marker: a folder in the store that the driver made.
    """
    import ray

    names: set[str] = set()
    for trial in plan.trials:
        names |= set(trial.job.resolved.weight_files)
    arguments = (settings, tuple(sorted(names)), str(marker))

    ask: Any = ray.remote(num_cpus=0)(look)
    answers = [
        ask.options(scheduling_strategy=_on(node)).remote(_address(node), *arguments)
        for node in living_nodes()
    ]
    return compare_nodes(look("driver", *arguments), ray.get(answers), settings)


def living_nodes() -> list[Json]:
    """List the nodes of the cluster, as Ray describes them. JSON."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def with_what_is_free(nodes: Sequence[Json]) -> list[Json]:
    """Give nodes as Ray describes them, with the resources that nobody uses right now. JSON."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [{**node, "Resources": free.get(node["NodeID"], {})} for node in nodes]


def _on(node: Mapping[str, Any]) -> Any:
    """Give the strategy that places something on a node and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _address(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']}, {node['NodeID'][:6]})"


def ids_of(names: Collection[str]) -> set[str]:
    """Give Ray's numbers of nodes as `check_nodes` names them."""
    return {str(node["NodeID"]) for node in living_nodes() if _address(node) in names}
