"""Ray up and down, signals, and a folder for scratch.

Nothing calls the outside, no GPU is grabbed unasked, and the token stays private.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from adray.errors import InputError
from adray.sweep.cards import LABEL, by_card, card_sizes, joined, nodes_of
from adray.sweep.nodes import check_nodes, leave_out
from adray.sweep.resources import Node, Site
from adray.sweep.sweep import Sweep

INTERRUPTED = 130
"""Exit code of a sweep that Ctrl-C or SIGTERM ended."""
_OBJECT_STORE_BYTES = 200 * 2**20
_TOKEN = "~/.ray/auth_token"


@contextmanager
def workers(sweep: Sweep) -> Iterator[Site]:
    """Start or join Ray as long as a sweep's trials run.

    Of a cluster only the nodes take part that would give the same results as this one.

    Raises:
        InputError: see `ray_site`, and for nodes that differ.
    """
    options = sweep.options
    local = local_site(options.num_gpus, options.num_cpus)
    with ray_site(options.address, local, insecure=options.insecure) as site, _interruptible():
        held = _leave_unfit_nodes_out(sweep) if options.address else []
        yield site
        del held


def _leave_unfit_nodes_out(sweep: Sweep) -> list[Any]:
    """Refuse a cluster whose nodes differ, or leave those out where missing cells may be skipped.

    Returns:
        What holds the nodes that are left out, as long as it is referred to.

    Raises:
        InputError: with what is wrong with each node.
    """
    unfit = check_nodes(sweep.plan, sweep.settings, sweep.folder)
    problems: list[str] = []
    for found in unfit.values():
        problems += found

    if problems and not sweep.options.skip_missing:
        said = "; ".join(problems)
        raise InputError(f"{said}; or leave such nodes out with --skip-missing")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return leave_out(list(unfit))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the sweep as Ctrl-C does, and a second of either end it at once.

    It is entered after Ray has started, which sets handlers of its own. Ray's processes end with
    this one.
    """
    stopped: list[bool] = []

    def stop(*_: object) -> None:
        if stopped:
            os._exit(INTERRUPTED)
        stopped.append(True)
        raise KeyboardInterrupt

    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, stop)
    yield

    # Set back only here: while Ray shuts down after a first Ctrl-C, a second one must still find
    # its handler.
    for number, handler in previous.items():
        signal.signal(number, handler)


@contextmanager
def scratch_folder(sweep: Sweep) -> Iterator[Path]:
    """Make a folder for Tune's own files and throw it away afterwards.

    On a cluster one that every node reaches.
    """
    if sweep.options.address:
        folder = tempfile.mkdtemp(prefix=".tune-", dir=sweep.folder)
    else:
        folder = tempfile.mkdtemp(prefix="adray-tune-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Ray


def ray_environment() -> dict[str, str]:
    """Give the environment that must be set before ray is imported.

    It asks for no network, no hidden GPUs and no second Ctrl-C handler.
    """
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

    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        elif len(local.nodes) > 1 and (parts := by_card(card_sizes(), local)):
            stack.enter_context(_ray_by_card(parts))
        else:
            labels = {LABEL: str(max(local.cards))} if local.gpus else None
            _start(local.cpus, local.gpus, labels=labels)

        # Ray prints a traceback for each trial that dies; ours becomes a row with one sentence.
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield _joined_site()


def _start(cpus: int, gpus: int, **more: Any) -> None:
    """Start a Ray of our own on this machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        **more,
    )
    _protect_token()


@contextmanager
def _ray_by_card(parts: Sequence[tuple[Node, str]]) -> Iterator[None]:
    """Start a Ray of our own with a raylet for each size of card."""
    import ray

    (first, gpus), *others = parts
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    _start(first.cpus, first.gpus, _memory=first.memory, labels={LABEL: str(first.card)})

    with tempfile.TemporaryDirectory(prefix="adray-raylets-") as folder:
        context = ray.get_runtime_context()
        with joined(context.gcs_address, others, Path(folder) / "ray.txt"):
            yield


def _joined_site() -> Site:
    """Read what the Ray that was joined has to give."""
    import ray

    nodes = nodes_of(ray.nodes())
    return Site(
        gpus=sum(node.gpus for node in nodes),
        cpus=sum(node.cpus for node in nodes),
        memory=sum(node.memory for node in nodes),
        gpu_memory=max(node.card for node in nodes) * 10**9,
        nodes=nodes,
    )


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
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = Path(named or _TOKEN).expanduser()
    if named and token.is_file() and token.stat().st_mode & 0o077:
        raise InputError(f"token file {token} can be read by others; run chmod 600 {token}")


def _protect_token() -> None:
    """Keep Ray's token from others: Ray writes it readable by everybody."""
    token = Path(_TOKEN).expanduser()
    if token.is_file():
        token.chmod(0o600)


def local_site(num_gpus: int | None, num_cpus: int | None) -> Site:
    """Give GPUs, CPUs and memory of this machine, within the limits of the options."""
    gpus = num_gpus
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()

    cpus = num_cpus or len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    site = Site(gpus, cpus, memory)
    if not gpus:
        return site

    nodes = tuple(node for node, _ in by_card(card_sizes(), site))
    largest = max((node.card for node in nodes), default=0)
    return replace(site, gpu_memory=largest * 10**9, nodes=nodes)
