"""Which trial takes what, and starts when: big and long ones first."""

from __future__ import annotations

from collections.abc import Sequence

from adray.config import ResourceRule
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import Share, Site, choose_share, rough_cost


def in_order(
    wanted: Sequence[PlannedTrial], rules: Sequence[ResourceRule], site: Site
) -> list[tuple[PlannedTrial, Share]]:
    """Wanted trials with their shares, big and long ones first, so that they do not wait behind small ones."""
    shares = [choose_share(t.job.resolved, rules, site, len(wanted)) for t in wanted]
    costs = [rough_cost(t.job.resolved, 250) for t in wanted]
    order = sorted(range(len(wanted)), key=lambda i: (-shares[i].gpu, -costs[i], wanted[i].cell, wanted[i].job.seed))
    return [(wanted[i], shares[i]) for i in order]


def format_schedule(ordered: Sequence[tuple[PlannedTrial, Share]], site: Site) -> str:
    """The trials in the order in which they would start, with what each takes."""
    lines = [f"order at {site.gpus} GPUs and {site.cpus} CPUs (gpu, cpu, host GB):"]
    for trial, share in ordered:
        lines.append(
            f"  {share.gpu:5.3f} {share.cpu:3d} {share.memory / 1e9:5.1f}  {trial.state:6} {trial.id8} {trial.cell}"
        )
    return "\n".join(lines)
