"""Whether every node of a cluster would give the same results: versions, weights, folders; asked before any trial."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from adray.components.backbone import find_weights
from adray.files import file_sha256
from adray.settings import Settings
from adray.sweep.plan import Plan

_PACKAGES = ("adray", "torch", "torchvision", "timm", "ray")


@dataclass(frozen=True)
class NodeFacts:
    """What one node says of itself.

    Attributes:
        name: its address.
        versions: of Python and the packages that decide results.
        weights: name of a weight file to its sha256; empty where it is missing.
        has_data: whether `dataset_dir` is there.
        has_store: whether the folder that the driver made in `output_dir` is there.
        cache_problem: why `cache_dir` cannot be written, empty where it can.
    """

    name: str
    versions: Mapping[str, str]
    weights: Mapping[str, str] = field(default_factory=dict)
    has_data: bool = True
    has_store: bool = True
    cache_problem: str = ""


def look(name: str, settings: Settings, weight_files: Sequence[str], marker: str) -> NodeFacts:
    """What this node says of itself.

    Args:
        name: its address.
        settings: of the sweep, with absolute paths.
        weight_files: names that the sweep needs.
        marker: a folder in the store that the driver made.
    """
    versions = {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}}
    weights = {}
    for file in weight_files:
        path = find_weights(file, settings.backbone_dir)
        weights[file] = file_sha256(path) if path is not None else ""
    problem = ""
    try:
        Path(settings.cache_dir).mkdir(parents=True, exist_ok=True)
        if not os.access(settings.cache_dir, os.W_OK):
            problem = "it is read-only"
    except OSError as error:
        problem = str(error.strerror)
    return NodeFacts(
        name, versions, weights, Path(settings.dataset_dir).is_dir(), Path(marker).is_dir(), problem
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def compare_nodes(
    here: NodeFacts, others: Sequence[NodeFacts], settings: Settings
) -> dict[str, list[str]]:
    """What makes other nodes unfit, one sentence each, by node; fit ones are left out.

    Args:
        here: the driver's node, by which the others are judged.
        others: the nodes of the cluster.
        settings: of the sweep, for the remedies.
    """
    found = {node.name: _differences(here, node, settings) for node in others}
    return {name: problems for name, problems in found.items() if problems}


def _differences(here: NodeFacts, node: NodeFacts, settings: Settings) -> list[str]:
    problems = [
        f"node {node.name} has {package} {node.versions.get(package) or 'missing'}, the driver {version}; install that"
        for package, version in here.versions.items()
        if node.versions.get(package) != version
    ]
    for name, digest in here.weights.items():
        own = node.weights.get(name, "")
        if digest and own != digest:  # what the driver lacks too, the plan says
            says = (
                f"other weights for {name} (sha256 {own[:8]}, the driver's {digest[:8]})"
                if own
                else f"no {name}"
            )
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
    """Ask every living node of the cluster that this process has joined, and compare; see `compare_nodes`.

    Args:
        plan: whose weight files all nodes must have.
        settings: of the sweep, with absolute paths.
        marker: a folder in the store that the driver made.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask: Any = ray.remote(num_cpus=0)(look)
    names = sorted({name for trial in plan.trials for name in trial.job.resolved.weight_files})
    arguments = (settings, tuple(names), str(marker))
    answers = [
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(_address(node), *arguments)
        for node in living_nodes()
    ]
    return compare_nodes(look("driver", *arguments), ray.get(answers), settings)


def living_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _address(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']}, {node['NodeID'][:6]})"


def leave_out(names: Sequence[str]) -> list[Any]:
    """Occupy all that some nodes have, so that Ray places nothing there.

    Args:
        names: as `check_nodes` names them.

    Returns:
        Actors that hold the resources as long as they are referred to.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    holders = []
    for node in living_nodes():
        if _address(node) in names:
            has = node["Resources"]
            holder: Any = ray.remote(num_cpus=has.get("CPU", 0), num_gpus=has.get("GPU", 0))(
                _Holder
            )
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            holders.append(holder.options(scheduling_strategy=where).remote())
    ray.get([holder.ready.remote() for holder in holders])
    return holders


class _Holder:
    """An actor that does nothing but occupy its node."""

    def ready(self) -> None:
        """Return once it has its resources."""
