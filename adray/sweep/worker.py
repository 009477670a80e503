"""One trial in a worker, or in this process for a debugger: settings, log, watchdog, publishing.

No ray here.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from adray.errors import InputError
from adray.file_system import file_system_of
from adray.files import write_json
from adray.job import Job, trial_record
from adray.language.sentence import Sentence
from adray.machine import environment
from adray.registry import ModelRegistry
from adray.results.store import (
    TrialRecord,
    is_taken,
    partial_folder,
    partials_of,
    progress_file,
    publish,
    read_if_reachable,
    read_trial,
)
from adray.settings import get_globals, use_settings
from adray.source_code import source_hash
from adray.sweep.assignment import Assignment, Outcome
from adray.trial import run_job
from adray.types import Json

logger = logging.getLogger(__name__)

Report = Callable[[int, dict[str, float]], None]

_AWAY = "EIO", "EROFS", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH"
_TRANSIENT = {getattr(errno, name) for name in _AWAY}
"""What a network mount says while it is away, or read-only after errors."""
_LOG_TAIL_LINES = 30
"""Lines that a failure keeps of its log."""
_REASON_LINES = 1000
"""Lines from the end in which a reason is looked for: all threads of a process may follow it."""
_REASON_CHARACTERS = 2000
_TRACEBACK_CHARACTERS = 8000


def run_assignment(assignment: Assignment, device: str, report: Report | None = None) -> Outcome:
    """Run a trial and publish its folder, whatever happens short of the process's end.

    One that has a result is scored under the corruptions that it lacks.

    Args:
        assignment: what to run.
        device: where the model runs.
        report: called after each epoch with the step and its values.
    """
    import torch

    torch.set_num_threads(assignment.threads)
    use_settings(assignment.settings)
    outcome = _train(assignment, device, report)
    if outcome.status != "done" or not assignment.corruptions:
        return outcome
    return replace(outcome, reason=_score_corrupted(assignment, device))


def _train(assignment: Assignment, device: str, report: Report | None) -> Outcome:
    """Run a trial unless it is done."""
    final = Path(assignment.folder)
    try:
        record = read_trial(final)
        if record is not None and record.status == "done":
            return outcome_of(record)
        if is_taken(final, assignment.driver):
            return Outcome("taken", reason="another sweep works on it")
        return _run_and_publish(assignment, device, report)
    except Exception as error:  # the store cannot be read or written; only the driver hears of it
        record = read_if_reachable(final)
        if record is not None and record.status == "done":
            return outcome_of(record)  # it was visible before the error
        failure = failure_of(error, assignment.attempts + 1)
        return Outcome("failed", failure["kind"], failure["reason"])


def _score_corrupted(assignment: Assignment, device: str) -> str:
    """Score a trial under its corruptions, beside a result that is published and stays.

    Returns:
        Why some of the scores are not there, empty where all are.
    """
    log = Path(assignment.folder) / "log.txt"
    limit = assignment.limit_seconds * (1 + len(assignment.corruptions))
    try:
        with _log_to(log), _watchdog(limit, log):
            return _stress(assignment, device)
    except OSError as error:  # the log cannot be written
        return _not_scored(error)


def _stress(assignment: Assignment, device: str) -> str:
    """Score a trial under its corruptions, and say why not where that fails."""
    from adray.stress import stress_trial

    folder = Path(assignment.folder)
    try:
        stress_trial(folder, assignment.corruptions, device, settings=assignment.settings)
    except Exception as error:  # whatever happens here, the trial has its result
        logger.exception("not scored under all corruptions")
        return _not_scored(error)
    return ""


def _not_scored(error: Exception) -> str:
    """Say why a trial is not scored under all corruptions."""
    return f"not scored under all corruptions: {failure_of(error, 1)['reason']}"


def _run_and_publish(assignment: Assignment, device: str, report: Report | None) -> Outcome:
    """Run a trial in a working folder and publish that, with a result or a failure."""
    final = Path(assignment.folder)
    partial = partial_folder(final)
    file_system = file_system_of(final.parent)  # now: it may refuse, and a trial takes hours
    log = partial / "log.txt"
    write_json(partial / "trial.json", _stored_trial(assignment, environment(device)))

    failure = None
    with _log_to(log), _watchdog(assignment.limit_seconds, log):
        try:
            _run(assignment, partial, device, report)
        except Exception as error:
            logger.exception("trial failed")
            failure = failure_of(error, assignment.attempts + 1)

    if failure is not None:
        failure["log_tail"] = log_tail(log)
        _remove_products(partial)
        write_json(partial / "failure.json", failure)
    publish(partial, final, file_system)
    return _published_outcome(final)


def _published_outcome(final: Path) -> Outcome:
    """Read what came of a trial from what is visible now, be it of this process or another."""
    record = read_trial(final)
    if record is None or record.status == "unfinished":
        return Outcome("taken", reason="another sweep publishes it")

    outcome = outcome_of(record)
    if outcome.status == "done":
        progress_file(final).unlink(missing_ok=True)
    return outcome


def _stored_trial(assignment: Assignment, recorded: Json) -> Json:
    """Give what `trial.json` holds in a store: also the assignment, to run the trial again."""
    return {
        **trial_record(assignment.identity, recorded),
        "assignment": assignment.stored(),
    }


def _run(assignment: Assignment, partial: Path, device: str, report: Report | None) -> None:
    """Run the job of an assignment.

    Raises:
        InputError: see `_check_source`.
        RuntimeError: where the job leaves no result.
    """
    logger.info("trial %s %s on %s", assignment.id8, assignment.cell, device)
    job = assignment.job()
    _check_source(assignment, job)
    run_job(
        job,
        partial,
        device=device,
        progress_path=progress_file(Path(assignment.folder)),
        save_maps=assignment.save_maps,
        checkpoint=assignment.checkpoint,
        report=report,
        sharing=assignment.sharing,
    )
    if not (partial / "result.json").is_file():
        raise RuntimeError("the trial ended without a result")


def _check_source(assignment: Assignment, job: Job) -> None:
    """Refuse code of a plug-in that is not the one for which the trial's id stands.

    Raises:
        InputError: where it has changed since the plan.
    """
    module = ModelRegistry.trainer_class(job.configuration).__module__
    present = source_hash(module)
    planned = assignment.identity.get("source", present)
    if planned != present:
        raise InputError(
            Sentence.of(
                "sweep code changed", module=module, planned=planned[:8], present=present[:8]
            )
        )


def outcome_of(record: TrialRecord | None) -> Outcome:
    """Read what came of a trial from what it left."""
    if record is None or record.result is None:
        return Outcome(
            "failed",
            record.failure_kind if record is not None else "",
            record.reason if record is not None else "",
        )
    return Outcome(
        "done",
        image_auroc=record.result["metrics"].get("image_auroc"),
        seconds=record.result["timings"]["total_seconds"],
    )


# Failures


def failure_of(error: BaseException, attempts: int) -> Json:
    """Give what `failure.json` holds for an exception."""
    kind = "error"
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, InputError):
        kind = "input"
        reason = str(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        kind = "out_of_memory"
        first_line = str(error).partition("\n")[0]
        reason = f"out of memory: {first_line or 'host memory'}"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = "disk_full"
        reason = f"no space left on the disk: {error}"
    elif isinstance(error, OSError) and _is_away(error):
        kind = "io"
        reason = f"the store or the data could not be reached: {error}"
    return failure_record(kind, reason, attempts, traceback.format_exception(error))


def _is_away(error: OSError) -> bool:
    """Tell whether a file could not be reached because a mount is away."""
    return error.errno in _TRANSIENT or not store_is_there(get_globals().output_dir)


def store_is_there(output_dir: str) -> bool:
    """Tell whether the folder that a sweep made in its store is there and can be written.

    Below a mount that is gone it is not. A disk that had errors, or a mount, may have turned
    read-only.
    """
    return os.access(Path(output_dir) / "sweeps", os.W_OK | os.X_OK)


def failure_record(kind: str, reason: str, attempts: int, trace: Sequence[str]) -> Json:
    """Give the content of a `failure.json`."""
    return {
        "kind": kind,
        "reason": " ".join(reason.split())[:_REASON_CHARACTERS],
        "attempts": attempts,
        "traceback": "".join(trace)[-_TRACEBACK_CHARACTERS:],
        "log_tail": [],
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def record_crash(assignment: Assignment, fallback: str) -> str:
    """Write the failure of a trial whose process is gone, from what it left behind.

    Args:
        assignment: of the trial.
        fallback: reason where the log does not say.

    Returns:
        The reason, also when the failure could not be written.
    """
    final = Path(assignment.folder)
    left = partials_of(final)
    end = log_tail(left[-1] / "log.txt", _REASON_LINES) if left else []
    tail = end[-_LOG_TAIL_LINES:]
    kind, reason = _logged_reason(end, assignment.limit_seconds) or ("crash", fallback)
    failure = failure_record(kind, reason, assignment.attempts + 1, [])
    failure["log_tail"] = tail
    if not store_is_there(assignment.settings.output_dir):
        return failure["reason"]

    with suppress(OSError):
        own = partial_folder(final)
        for name in ("trial.json", "log.txt"):
            if left and (left[-1] / name).is_file():
                shutil.copyfile(left[-1] / name, own / name)
        if not (own / "trial.json").is_file():
            write_json(own / "trial.json", _stored_trial(assignment, {}))
        write_json(own / "failure.json", failure)
        publish(own, final, file_system_of(final.parent))
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
    return failure["reason"]


def log_explains(assignment: Assignment) -> bool:
    """Tell whether a crashed trial's log says why it crashed."""
    left: list[Path] = []
    with suppress(OSError):  # the store cannot be read
        left = partials_of(Path(assignment.folder))
    if not left:
        return False
    end = log_tail(left[-1] / "log.txt", _REASON_LINES)
    return _logged_reason(end, assignment.limit_seconds) is not None


def _logged_reason(tail: Sequence[str], limit_seconds: float) -> tuple[str, str] | None:
    """Find kind and reason of a crash in what the watchdog or Python wrote into the log."""
    text = "\n".join(tail)
    if "Timeout (" in text:
        why = "trial_hours, or five times what such trials take here"
        reason = f"took longer than {limit_seconds:.0f} s ({why}) and was stopped; its log says where it hung"
        return "timeout", reason
    if "Fatal Python error: " in text:
        signal = text.split("Fatal Python error: ")[-1].splitlines()[0]
        return "crash", f"the process crashed: {signal}"
    return None


def log_tail(path: Path, count: int = _LOG_TAIL_LINES) -> list[str]:
    """Read the last lines of a log file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return lines[-count:]


def _remove_products(partial: Path) -> None:
    """Leave of a failed trial what was asked and its log, not half of its results."""
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
    """End this process when it hangs past the limit, with a traceback in the log.

    Also on a fatal signal.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    faulthandler.enable(descriptor)
    faulthandler.dump_traceback_later(limit_seconds, exit=True, file=descriptor)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        os.close(descriptor)
