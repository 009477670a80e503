"""Ray as this program starts or joins it: no call to the outside, no GPU grabbed unasked, a private token."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from adray.errors import InputError
from adray.sweep.cards import LABEL, by_card, card_sizes, joined, nodes_of
from adray.sweep.resources import Node, Site


def ray_environment() -> dict[str, str]:
    """Environment that must be set before ray is imported: no network, no hidden GPUs, no second Ctrl-C handler."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


@contextmanager
def ray_site(address: str | None, local: Site, *, insecure: bool = False) -> Iterator[Site]:
    """Start a Ray of our own, or join one, and say what it has.

    Args:
        address: of a cluster to join, or None.
        local: what a Ray of our own may use.
        insecure: go on without token authentication.

    Raises:
        InputError: for authentication that is switched off, and for a token that others can read.
    """
    check_token(insecure=insecure)
    os.environ.update(ray_environment())
    import ray

    parts = by_card(card_sizes(), local) if len(local.nodes) > 1 and not address else []
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        elif parts:
            stack.enter_context(_ray_by_card(parts))
        else:
            _start(
                local.cpus,
                local.gpus,
                labels={LABEL: str(max(local.cards))} if local.gpus else None,
            )
        # Ray prints a traceback for each trial that dies; ours becomes a row with one sentence.
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield _site()


def _start(cpus: int, gpus: int, **more: Any) -> None:
    """A Ray of our own on this machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 2**20,
        **more,
    )
    _protect_token()


@contextmanager
def _ray_by_card(parts: Sequence[tuple[Node, str]]) -> Iterator[None]:
    """A Ray of our own with a raylet for each size of card."""
    import ray

    (first, gpus), *others = parts
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    _start(first.cpus, first.gpus, _memory=first.memory, labels={LABEL: str(first.card)})
    with tempfile.TemporaryDirectory(prefix="adray-raylets-") as folder:
        context = ray.get_runtime_context()
        with joined(context.gcs_address, others, Path(folder) / "ray.txt"):
            yield


def _site() -> Site:
    """What the Ray that was joined has to give."""
    import ray

    nodes = nodes_of(ray.nodes())
    gpus, cpus, memory = (
        sum(getattr(node, name) for node in nodes) for name in ("gpus", "cpus", "memory")
    )
    return Site(gpus, cpus, memory, max(node.card for node in nodes) * 10**9, nodes)


def check_token(*, insecure: bool) -> None:
    """Refuse a Ray that anyone on the network could run code in.

    Raises:
        InputError: see `ray_site`.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" and not insecure:
        raise InputError(
            "RAY_AUTH_MODE=disabled lets anyone on the network run code here; unset it, or give --insecure on a "
            "network that nobody else is on"
        )
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if os.environ.get("RAY_AUTH_TOKEN_PATH") and token.is_file() and token.stat().st_mode & 0o077:
        raise InputError(f"token file {token} can be read by others; run chmod 600 {token}")


def _protect_token() -> None:
    """Ray writes its token readable by everybody."""
    token = Path("~/.ray/auth_token").expanduser()
    if token.is_file():
        token.chmod(0o600)


def local_site(num_gpus: int | None, num_cpus: int | None) -> Site:
    """GPUs, CPUs and memory of this machine, within the limits of the options."""
    gpus = num_gpus
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    cpus = num_cpus or len(os.sched_getaffinity(0))
    site = Site(gpus, cpus, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    nodes = tuple(node for node, _ in by_card(card_sizes(), site)) if gpus else ()
    return replace(
        site, gpu_memory=max((node.card for node in nodes), default=0) * 10**9, nodes=nodes
    )
