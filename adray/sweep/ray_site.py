"""Ray as this program starts or joins it: no call to the outside, no GPU grabbed unasked, a private token."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from adray.errors import InputError
from adray.sweep.resources import Site


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

    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        have = ray.cluster_resources()
        site = Site(int(have.get("GPU", 0)), int(have.get("CPU", 1)), int(have.get("memory", 8e9)))
    else:
        ray.init(
            address="local",
            num_cpus=local.cpus,
            num_gpus=local.gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 * 2**20,
        )
        site = replace(local, memory=int(ray.cluster_resources().get("memory", 8e9)))
        _protect_token()
    # Ray prints a traceback for each trial that dies; ours becomes a row with one sentence.
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield site
    finally:
        ray.shutdown()


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
    return Site(gpus, cpus, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _gpu_memory() if gpus else 0)


def _gpu_memory() -> int:
    """Bytes of the largest GPU here, 0 where there is none."""
    import torch

    return max((torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())), default=0)
