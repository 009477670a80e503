"""Ray up and down, signals, and a folder for scratch.

Nothing calls the outside, no GPU is grabbed unasked, and the token stays private.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

from adray.errors import InputError
from adray.language.catalogue import spoken
from adray.language.sentence import Sentence
from adray.machine import available_cpus, available_memory
from adray.sweep.bytecode import keep_bytecode
from adray.sweep.cards import Card, cards_here, count_gpus, nodes_of, take_gpus
from adray.sweep.leases import leased
from adray.sweep.lost_gcs import ended_without_gcs
from adray.sweep.nodes import check_nodes, ids_of, living_nodes, with_what_is_free
from adray.sweep.orphans import orphans_ended
from adray.sweep.patience import RayletEndedError, patient_start
from adray.sweep.resources import Node, Site
from adray.sweep.surroundings import (
    check_address,
    check_token_file,
    check_visible_gpus,
    choose_ray_folder,
    find_ray_folder,
    keep_proxies_out,
    use_token_of_our_own,
)
from adray.sweep.sweep import Sweep
from adray.sweep.worker import log_tail

INTERRUPTED = 130
"""Exit code of a sweep that a signal ended."""
_OBJECT_STORE_BYTES = 200 * 2**20
_MEMORY_PART = 0.7
"""Of the host's memory is given to trials; about as much as Ray gives by itself."""
_LOOK_SECONDS = 5.0
"""Pause before looking again, where nothing of a cluster is free."""
_STARTS = 10
"""Times that a Ray of our own is started before it is given up."""
_QUICK_STARTS = 2
"""The same, where it ends by itself within seconds."""
_QUICK_SECONDS = 10.0
_TOO_SLOW = "timed out during startup"
"""What Ray says of a machine that is too slow for it."""
_FIRST_LOGS = ("raylet.out", "gcs_server.out")
_LOOKED_AT = 500
"""Lines at the end of a log in which an error is looked for."""
_LOGGED_ERROR = re.compile(r" [CE] \d+ \d+\] (.+)")
"""`[2026-01-01 00:00:00,000 C 12 34] (raylet) ...`: what Ray logs as an error, or as its end."""
_ERROR_CHARACTERS = 500


@contextmanager
def workers(sweep: Sweep) -> Iterator[Site]:
    """Start or join Ray as long as a sweep's trials run.

    Of a cluster only the nodes take part that would give the same results as this one.

    Raises:
        InputError: see `ray_site`, and for nodes that differ.
    """
    options = sweep.options
    if options.address is None:
        keep_bytecode(sweep.settings)
    local = local_site(options.num_gpus, options.num_cpus)
    with ExitStack() as stack:
        if options.address is None and local.gpus:
            cards = leased(cards_here(local.gpus), local.gpus, sweep.config.name)
            local = _site_with(stack.enter_context(cards), local.cpus, local.memory)
        if options.address is None:
            stack.enter_context(ended_without_gcs(options.command))

        stopped = stack.enter_context(_interruptible())
        site = stack.enter_context(
            ray_site(options.address, local, insecure=options.insecure, ray_log=options.ray_log)
        )
        if stopped:  # and Ray's code caught what came of it
            raise KeyboardInterrupt
        stack.enter_context(_interruptible())
        yield _take_what_is_free(sweep) if options.address else site


def _take_what_is_free(sweep: Sweep) -> Site:
    """Take what a cluster has that nobody else uses, and wait where nothing is free.

    Raises:
        InputError: see `_fit_nodes`.
    """
    whole = site_of(_fit_nodes(sweep))
    free = _take_free(whole)
    is_whole = (free.gpus, free.cpus) == (whole.gpus, whole.cpus)
    if not is_whole:
        numbers = {"gpus": free.gpus, "all_gpus": whole.gpus}
        numbers |= {"cpus": free.cpus, "all_cpus": whole.cpus}
        key = "ray cluster taken" if _is_enough(free, whole) else "ray cluster waits"
        print(spoken(key, **numbers), flush=True)
    while not _is_enough(free, whole):
        time.sleep(_LOOK_SECONDS)
        free = _take_free(whole)
    return free


def _is_enough(free: Site, whole: Site) -> bool:
    """Tell whether trials can run with what is free."""
    return free.cpus > 0 and (free.gpus > 0 or not whole.gpus)


def _take_free(whole: Site) -> Site:
    """Take the GPUs that nobody uses of nodes that have CPUs for them."""
    fit = {node.id for node in whole.nodes}
    taken = []
    for node in nodes_of(with_what_is_free(living_nodes())):
        if node.id in fit and node.cpus:
            taken.append(take_gpus(node))
    return site_of(taken)


def _fit_nodes(sweep: Sweep) -> list[Node]:
    """Give the nodes of a cluster that are like this one.

    Raises:
        InputError: with what is wrong with each other node, unless missing cells may be skipped,
            and where no node is left.
    """
    unfit = check_nodes(sweep.plan, sweep.settings, sweep.folder)
    problems: list[str] = []
    for found in unfit.values():
        problems += found

    left_out = ids_of(unfit)
    fit = [node for node in nodes_of(living_nodes()) if node.id not in left_out]
    said = "; ".join(problems)
    if problems and not sweep.options.skip_missing:
        raise InputError(Sentence.of("ray nodes skip", said=said))
    if not fit:
        raise InputError(Sentence.of("ray no node", said=said))
    for problem in problems:
        print(spoken("ray node left out", problem=problem), file=sys.stderr)
    return fit


@contextmanager
def _interruptible() -> Iterator[Sequence[bool]]:
    """Let SIGTERM and a line that is cut end the sweep as Ctrl-C does, a second one at once.

    What is given is empty until the first.

    It is entered before Ray starts, and once more after that, since Ray's own code sets handlers
    too. Ray's processes end with this one.
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
    yield stopped

    # Set back only here: while Ray shuts down after a first Ctrl-C, a second one must still find
    # its handler.
    for number, handler in previous.items():
        signal.signal(number, handler)


@contextmanager
def scratch_folder(sweep: Sweep) -> Iterator[Path]:
    """Make a folder for Tune's own files and throw it away afterwards.

    On a cluster one that every node reaches, else where Ray's files are: there is room.
    """
    if sweep.options.address:
        folder = tempfile.mkdtemp(prefix=".tune-", dir=sweep.folder)
    else:
        place, _ = find_ray_folder()
        folder = tempfile.mkdtemp(prefix="adray-tune-", dir=place)
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
def ray_site(
    address: str | None,
    local: Site,
    *,
    insecure: bool = False,
    ray_log: bool = False,
) -> Iterator[Site]:
    """Start a Ray of our own, or join one, and say what it has.

    Args:
        address: of a cluster to join, or None.
        local: what a Ray of our own may use.
        insecure: go on without token authentication.
        ray_log: show what Ray itself logs.

    Raises:
        InputError: for authentication that is switched off, and for a token that others can read.
    """
    check_token(insecure=insecure)
    os.environ.update(ray_environment())
    if address:
        check_address(address)
        keep_proxies_out(address.rpartition(":")[0])
    else:
        use_token_of_our_own()
        keep_proxies_out()
    import ray

    with ExitStack() as stack:
        if not address:
            stack.enter_context(orphans_ended())
        if not ray_log:
            # Ray prints the end of its own logs where one of its processes was killed.
            printer = "ray._private.worker.print_to_stdstream"
            stack.enter_context(mock.patch(printer, _print_nothing))
        # On SIGTERM it would leave with a code of its own, from within its start.
        stack.enter_context(mock.patch("ray._private.utils.set_sigterm_handler", _print_nothing))
        stack.callback(ray.shutdown)
        if address:
            _join(address, ray_log)
        else:
            _start(local, ray_log)

        # Ray prints a traceback for each trial that dies; ours becomes a row with one sentence.
        if not ray_log:
            for name in ("ray", "ray.tune"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        yield site_of(nodes_of(ray.nodes())) if address else local


def _join(address: str, ray_log: bool) -> None:
    """Join a cluster.

    Raises:
        InputError: where Ray cannot.
    """
    import ray

    check_token_file()
    try:
        with own_words_only(ray_log):
            ray.init(address=address, log_to_driver=ray_log, logging_level=_log_level(ray_log))
    except Exception as error:  # Ray raises many kinds
        raise InputError(
            Sentence.of("ray not joined", address=address, error=_first_line(error))
        ) from error


def _start(local: Site, ray_log: bool) -> None:
    """Start a Ray of our own on this machine, however long a busy machine needs for it.

    It knows of no GPU: see `adray.sweep.placement`.

    Raises:
        InputError: where Ray does not start.
    """
    import ray

    folder = choose_ray_folder()
    quick = 0
    for left in reversed(range(_STARTS)):
        try:
            with patient_start(), own_words_only(ray_log):
                ray.init(
                    address="local",
                    num_cpus=local.cpus,
                    num_gpus=0,
                    include_dashboard=False,
                    log_to_driver=ray_log,
                    logging_level=_log_level(ray_log),
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _memory=local.parts[0].memory,
                    _temp_dir=str(folder),
                )
        except Exception as error:  # Ray raises many kinds
            ray.shutdown()
            # A raylet gives up where its helpers are slow, and finds them in memory the next time.
            if left and _was_slow(error):
                print(spoken("ray slow again"), flush=True)
                continue
            quick += 1
            if left and isinstance(error, RayletEndedError) and quick < _QUICK_STARTS:
                continue
            last_words = _last_words(folder)
            raise InputError(
                Sentence.of("ray not started", error=_first_line(error), last_words=last_words)
            ) from error
        return


def _was_slow(error: Exception) -> bool:
    """Tell whether a start failed for want of time alone."""
    if isinstance(error, RayletEndedError):
        return error.seconds > _QUICK_SECONDS
    return _TOO_SLOW in str(error)


def _print_nothing(*_arguments: object, **_options: object) -> None:
    """Stand where Ray prints, or sets a handler."""


def _log_level(ray_log: bool) -> int:
    """Give the level from which on Ray's Python code logs to the terminal."""
    return logging.INFO if ray_log else logging.ERROR


@contextmanager
def own_words_only(ray_log: bool) -> Iterator[None]:
    """Keep what Ray's own code writes past Python from the terminal, unless it is asked for."""
    if ray_log:
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as lost:
        os.dup2(lost.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _last_words(folder: Path) -> str:
    """Give the last error in the logs of Ray's first processes, and say where these are.

    Where none logged an error it is the raylet's last line.
    """
    sessions = sorted(folder.glob(f"session_*_{os.getpid()}"))
    if not sessions:
        return ""
    logs = sessions[-1] / "logs"
    for name in _FIRST_LOGS:
        for line in reversed(log_tail(logs / name, _LOOKED_AT)):
            error = _LOGGED_ERROR.search(line)
            if error is not None:
                return f"; the last error in {logs / name}: {error[1][:_ERROR_CHARACTERS]}"
    raylet = logs / _FIRST_LOGS[0]
    for line in log_tail(raylet, 1):
        return f"; the last line in {raylet}: {line[:_ERROR_CHARACTERS]}"
    return f"; its logs are in {logs}"


def _first_line(error: Exception) -> str:
    """Give the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def site_of(nodes: Sequence[Node]) -> Site:
    """Join machines to a site."""
    return Site(
        gpus=sum(node.gpus for node in nodes),
        cpus=sum(node.cpus for node in nodes),
        memory=sum(node.memory for node in nodes),
        gpu_memory=max((max(node.cards, default=0) for node in nodes), default=0) * 10**9,
        nodes=tuple(nodes),
    )


def check_token(*, insecure: bool) -> None:
    """Refuse a Ray that anyone on the network could run code in.

    Raises:
        InputError: see `ray_site`.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" and not insecure:
        raise InputError(Sentence.of("ray auth disabled"))
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not named:
        return
    token = Path(os.path.expanduser(named))  # noqa: PTH111  a user that is not there stays as it is
    if os.path.isfile(token) and token.stat().st_mode & 0o077:  # noqa: PTH113  no error of a closed folder
        raise InputError(Sentence.of("ray token open", token=str(token)))


def local_site(num_gpus: int | None, num_cpus: int | None) -> Site:
    """Give GPUs, CPUs and memory of this machine, within the limits of the options.

    Raises:
        InputError: for more GPUs than this process may see.
    """
    check_visible_gpus(num_gpus)
    gpus = count_gpus() if num_gpus is None else num_gpus
    cards = cards_here(gpus)[:gpus] if gpus else []
    return _site_with(cards, num_cpus or available_cpus(), available_memory())


def _site_with(cards: Sequence[Card], cpus: int, memory: int) -> Site:
    """Give this machine with some of its GPUs.

    Args:
        cards: the GPUs.
        cpus: number of CPUs.
        memory: bytes of host memory in all, of which trials get a part.
    """
    node = Node(
        gpus=len(cards),
        cpus=cpus,
        memory=int(memory * _MEMORY_PART),
        cards=tuple(card.gb for card in cards),
        names=tuple(card.name for card in cards),
        host=platform.node(),
    )
    return replace(site_of([node]), memory=memory)
