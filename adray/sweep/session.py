"""Ray up and down, signals, and a folder for scratch.

Nothing calls the outside, no GPU is grabbed unasked, and the token stays private.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from adray.errors import InputError
from adray.sweep.cards import card_sizes, gpu_names, nodes_of, take_gpus
from adray.sweep.nodes import check_nodes, ids_of
from adray.sweep.resources import Node, Site
from adray.sweep.surroundings import (
    check_address,
    check_visible_gpus,
    choose_ray_folder,
    use_token_of_our_own,
)
from adray.sweep.sweep import Sweep

INTERRUPTED = 130
"""Exit code of a sweep that a signal ended."""
_OBJECT_STORE_BYTES = 200 * 2**20
_MEMORY_PART = 0.7
"""Of the host's memory is given to trials; about as much as Ray gives by itself."""
_STARTS = 4
"""Times that a Ray of our own is started before it is given up."""
_TOO_SLOW = "timed out during startup"
"""What Ray says of a machine that is too slow for it."""


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
        if not options.address:
            yield site
            return
        taken = [take_gpus(node) for node in _fit_nodes(sweep, site)]
        yield site_of([node for node, _ in taken])
        del taken


def _fit_nodes(sweep: Sweep, site: Site) -> list[Node]:
    """Give the nodes of a cluster that are like this one.

    Raises:
        InputError: with what is wrong with each other node, unless missing cells may be skipped.
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
    left_out = ids_of(unfit)
    return [node for node in site.nodes if node.id not in left_out]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and a line that is cut end the sweep as Ctrl-C does, a second one at once.

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
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
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
        "TUNE_MAX_PENDING_TRIALS_PG": "64",
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
    if address:
        check_address(address)
    else:
        use_token_of_our_own()
    import ray

    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        if address:
            _join(address)
        else:
            _start(local)

        # Ray prints a traceback for each trial that dies; ours becomes a row with one sentence.
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield site_of(nodes_of(ray.nodes())) if address else local


def _join(address: str) -> None:
    """Join a cluster.

    Raises:
        InputError: where Ray cannot.
    """
    import ray

    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named and not os.access(Path(named).expanduser(), os.R_OK):
        raise InputError(
            f"RAY_AUTH_TOKEN_PATH {named} cannot be read; copy the cluster's token there, or unset "
            "the variable"
        )
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds
        raise InputError(
            f"--address {address}: the cluster cannot be joined ({_first_line(error)}); look at "
            "`ray status` there, and at its token and Ray's version"
        ) from error


def _start(local: Site) -> None:
    """Start a Ray of our own on this machine, again where a busy machine is too slow at first.

    It knows of no GPU: see `adray.sweep.placement`.

    Raises:
        InputError: where Ray does not start.
    """
    import ray

    folder = choose_ray_folder()
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=local.cpus,
                num_gpus=0,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
                _memory=local.parts[0].memory,
                _temp_dir=str(folder),
            )
        except Exception as error:  # Ray raises many kinds
            ray.shutdown()
            # Ray waits for half a minute, whatever the machine has to do.
            if left and _TOO_SLOW in str(error):
                print("Ray is slow to start on this machine; trying again", file=sys.stderr)
                continue
            raise InputError(
                f"Ray does not start on this machine ({_first_line(error)}); its logs are in "
                f"{folder}/session_latest/logs"
            ) from error
        return


def _first_line(error: Exception) -> str:
    """Give the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def site_of(nodes: Sequence[Node]) -> Site:
    """Join machines to a site."""
    return Site(
        gpus=sum(node.gpus for node in nodes),
        cpus=sum(node.cpus for node in nodes),
        memory=sum(node.memory for node in nodes),
        gpu_memory=max(max(node.cards, default=0) for node in nodes) * 10**9,
        nodes=tuple(nodes),
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
    if not named:
        return
    token = Path(named).expanduser()
    if token.is_file() and token.stat().st_mode & 0o077:
        raise InputError(f"token file {token} can be read by others; run chmod 600 {token}")


def local_site(num_gpus: int | None, num_cpus: int | None) -> Site:
    """Give GPUs, CPUs and memory of this machine, within the limits of the options.

    Raises:
        InputError: for more GPUs than this process may see.
    """
    check_visible_gpus(num_gpus)
    gpus = num_gpus
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()

    cpus = num_cpus or len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    sizes = card_sizes()[:gpus] if gpus else ()
    # More GPUs than cards are a test's, of which nothing is known.
    cards = sizes if len(sizes) == gpus else ()
    names = gpu_names(gpus) if cards else ()
    node = Node(gpus, cpus, int(memory * _MEMORY_PART), cards, names, host=platform.node())
    return replace(site_of([node]), memory=memory)
