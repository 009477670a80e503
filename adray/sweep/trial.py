"""One trial in a worker, or in this process for a debugger: settings, log, watchdog, publishing. No ray here."""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.config import build, to_plain
from adray.errors import InputError
from adray.files import write_json
from adray.job import Job, run_job, trial_record
from adray.machine import environment
from adray.registry import ModelRegistry
from adray.results.store import (
    TrialRecord,
    has_rival,
    partial_folder,
    partials_of,
    progress_file,
    publish,
    read_trial,
)
from adray.settings import Settings, get_globals, use_settings
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import RUNGS
from adray.types import Sharing

if TYPE_CHECKING:
    from adray.trainer import Report

logger = logging.getLogger(__name__)

TAKEN = "taken"
"""Status of a trial that another sweep works on; the first result wins."""
_AWAY = "EIO", "EROFS", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH"
_TRANSIENT = {getattr(errno, name) for name in _AWAY}
"""What a network mount says while it is away, or read-only after errors."""
KILLED = "the process ended without a word: it exited, was killed, or ran out of memory"
LOST_NODE = "the node that it ran on is gone"
_LOG_TAIL_LINES = 30


def trial_message(
    trial: PlannedTrial,
    settings: Settings,
    *,
    save_maps: int,
    keep: bool,
    limit_seconds: float,
    sharing: Sharing | None = None,
) -> dict[str, Any]:
    """A planned trial as plain values that travel to a worker, settings included."""
    return {
        "id8": trial.id8,
        "cell": trial.cell,
        "folder": str(trial.folder),
        "identity": trial.identity,
        "train": to_plain(trial.job.resolved.train_config),
        "settings": to_plain(settings),
        "attempts": trial.attempts,
        "rung": 0,
        "save_maps": save_maps,
        "keep_checkpoint": keep,
        "limit_seconds": limit_seconds,
        "watched": trial.watched,
        "sharing": None if sharing is None else to_plain(sharing),
        **({"search": trial.search, "leaky": trial.leaky} if trial.search else {}),
    }


def on_rung(message: dict[str, Any], rung: int) -> dict[str, Any]:
    """The message of a trial that starts on one of `RUNGS`, whose evaluation batch is smaller."""
    train = dict(message["train"])
    batch = train["eval_batch_size"] or train["batch_size"]
    if RUNGS[rung].eval_divisor > 1:
        train["eval_batch_size"] = max(1, batch // RUNGS[rung].eval_divisor)
    return {**message, "train": train, "rung": rung}


def message_of_record(record: TrialRecord, folder: Path) -> dict[str, Any]:
    """The message that ran a trial of the store, for a run into `folder`."""
    attempts = (record.failure or {}).get("attempts", 0)
    message = {**record.trial["message"], "identity": record.trial["identity"]}
    return {**message, "attempts": attempts, "folder": str(folder), "sharing": None}


def job_of(message: dict[str, Any]) -> Job:
    """The job of a message; every hyperparameter is in it, so nothing depends on this process's defaults."""
    identity = message["identity"]
    resolved = ModelRegistry.resolve(
        identity["configuration"], train=message["train"], model=identity["model"]
    )
    data = tuple(identity["datasets"]), tuple(identity["categories"])
    return Job(resolved, *data, identity["seed"], identity.get("evaluation", "test"))


def run_trial(
    message: dict[str, Any], threads: int, device: str, report: Report | None = None
) -> dict[str, Any]:
    """Run a trial and publish its folder, whatever happens short of the process's end.

    Args:
        message: see `trial_message`.
        threads: CPU threads.
        device: where the model runs.
        report: called after each epoch with the step and its values.

    Returns:
        ``status`` (``done`` or ``failed``), ``reason``, ``image_auroc`` and ``seconds`` for the progress line.
    """
    import torch

    torch.set_num_threads(threads)
    use_settings(build(Settings, message["settings"], "settings"))
    record = read_trial(Path(message["folder"]))
    if record is not None and record.status == "done":
        return outcome(record.result, None)
    if has_rival(Path(message["folder"]), message.get("driver", "")):
        return {
            "status": TAKEN,
            "kind": "",
            "reason": "another sweep works on it",
            "image_auroc": None,
            "seconds": 0.0,
        }
    try:
        return _run_and_publish(message, device, report)
    except Exception as error:  # the store cannot be written; only the driver hears of it
        return outcome(None, failure_of(error, message["attempts"] + 1))


def _run_and_publish(message: dict[str, Any], device: str, report: Report | None) -> dict[str, Any]:
    final = Path(message["folder"])
    partial = partial_folder(final)
    write_json(partial / "trial.json", _stored_trial(message, environment(device)))
    result = failure = None
    with _log_to(partial / "log.txt"), _watchdog(message["limit_seconds"], partial / "log.txt"):
        try:
            result = _run(message, partial, device, report)
        except Exception as error:
            logger.exception("trial failed")
            failure = failure_of(error, message["attempts"] + 1)
    if failure is not None:
        failure["log_tail"] = log_tail(partial / "log.txt")
        _remove_products(partial)
        write_json(partial / "failure.json", failure)
    publish(partial, final)
    if result is not None:
        progress_file(final).unlink(missing_ok=True)
    return outcome(result, failure)


def _stored_trial(message: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """What `trial.json` holds in a store: also the message, so that the trial can be run again."""
    plain = {key: value for key, value in message.items() if key not in ("identity", "folder")}
    return {**trial_record(message["identity"], recorded), "message": plain}


def _run(
    message: dict[str, Any], partial: Path, device: str, report: Report | None
) -> dict[str, Any]:
    logger.info("trial %s %s on %s", message["id8"], message["cell"], device)
    result = run_job(
        job_of(message),
        partial,
        device=device,
        progress_path=progress_file(Path(message["folder"])),
        save_maps=message["save_maps"],
        keep_checkpoint=message["keep_checkpoint"],
        report=report,
        sharing=build(Sharing, message["sharing"], "sharing") if message.get("sharing") else None,
    )
    if not isinstance(result, dict) or not (partial / "result.json").is_file():
        raise RuntimeError("the trial ended without a result")
    return result


def outcome(result: dict[str, Any] | None, failure: dict[str, Any] | None) -> dict[str, Any]:
    """What the driver's progress line needs."""
    if result is None:
        why = {key: (failure or {}).get(key, "") for key in ("kind", "reason")}
        return {"status": "failed", **why, "image_auroc": None, "seconds": 0.0}
    seconds = result["timings"]["total_seconds"]
    return {
        "status": "done",
        "reason": "",
        "image_auroc": result["metrics"].get("image_auroc"),
        "seconds": seconds,
    }


def failure_of(error: BaseException, attempts: int) -> dict[str, Any]:
    """What `failure.json` holds for an exception."""
    kind, reason = "error", f"{type(error).__name__}: {error}"
    if isinstance(error, InputError):
        kind, reason = "input", str(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        kind, reason = (
            "out_of_memory",
            f"out of memory: {str(error).splitlines()[0] if str(error) else 'host memory'}",
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind, reason = "disk_full", f"no space left on the disk: {error}"
    elif isinstance(error, OSError) and (
        error.errno in _TRANSIENT or not store_is_there(get_globals().output_dir)
    ):
        kind, reason = "io", f"the store or the data could not be reached: {error}"
    return failure_record(kind, reason, attempts, traceback.format_exception(error))


def store_is_there(output_dir: str) -> bool:
    """Whether the folder that a sweep made in its store is there and can be written.

    Below a mount that is gone it is not; a disk that had errors, or a mount, may have turned read-only.
    """
    return os.access(Path(output_dir) / "sweeps", os.W_OK | os.X_OK)


def failure_record(kind: str, reason: str, attempts: int, trace: list[str]) -> dict[str, Any]:
    """A `failure.json`."""
    return {
        "kind": kind,
        "reason": " ".join(reason.split())[:2000],
        "attempts": attempts,
        "traceback": "".join(trace)[-8000:],
        "log_tail": [],
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def record_crash(message: dict[str, Any], fallback: str) -> dict[str, Any]:
    """Write the failure of a trial whose process is gone, from what it left behind.

    Args:
        message: of the trial.
        fallback: reason where the log does not say.

    Returns:
        The failure, also when it could not be written.
    """
    final = Path(message["folder"])
    left = partials_of(final)
    tail = log_tail(left[-1] / "log.txt") if left else []
    kind, reason = _last_words(tail, message["limit_seconds"]) or ("crash", fallback)
    failure = failure_record(kind, reason, message["attempts"] + 1, [])
    failure["log_tail"] = tail
    if not store_is_there(message["settings"]["output_dir"]):
        return failure
    with suppress(OSError):
        own = partial_folder(final)
        for name in ("trial.json", "log.txt"):
            if left and (left[-1] / name).is_file():
                shutil.copyfile(left[-1] / name, own / name)
        if not (own / "trial.json").is_file():
            write_json(own / "trial.json", _stored_trial(message, {}))
        write_json(own / "failure.json", failure)
        publish(own, final)
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
    return failure


def left_word(message: dict[str, Any]) -> bool:
    """Whether a dead trial's log says why it died."""
    left = partials_of(Path(message["folder"]))
    return (
        bool(left)
        and _last_words(log_tail(left[-1] / "log.txt"), message["limit_seconds"]) is not None
    )


def _last_words(tail: list[str], limit_seconds: float) -> tuple[str, str] | None:
    """Kind and reason of a crash that the watchdog wrote into the log."""
    text = "\n".join(tail)
    if "Timeout (" in text:
        why = "trial_hours, or five times what such trials take here"
        return (
            "timeout",
            f"took longer than {limit_seconds:.0f} s ({why}) and was stopped; its log says where it hung",
        )
    if "Fatal Python error: " in text:
        return "crash", "the process crashed: " + text.split("Fatal Python error: ")[
            -1
        ].splitlines()[0]
    return None


def log_tail(path: Path) -> list[str]:
    """The last lines of a log file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    except OSError:
        return []


def _remove_products(partial: Path) -> None:
    """A failed trial keeps what was asked and its log, not half of its results."""
    for file in partial.iterdir():
        if file.name not in ("trial.json", "log.txt"):
            file.unlink()


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send the package's log lines to a file as well."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("adray")
    previous = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(previous)
        handler.close()


@contextmanager
def _watchdog(limit_seconds: float, log: Path) -> Iterator[None]:
    """End this process when it hangs past the limit, and leave a traceback in the log; also on a fatal signal."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    faulthandler.enable(descriptor)
    faulthandler.dump_traceback_later(limit_seconds, exit=True, file=descriptor)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        os.close(descriptor)
