"""`python -m adray rerun ID --local`: run one trial again in this process, for a debugger."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adray.changed_data import present_fingerprint
from adray.cli.command_parser import CommandParser
from adray.data.checks import checked_fingerprint
from adray.job import job_samples
from adray.results.agreement import agreement, recorded_threads
from adray.results.current import data_of
from adray.results.store import TrialRecord, find_trial, read_trial
from adray.settings import get_globals, use_settings
from adray.sweep.assignment import Outcome, assignment_of_record
from adray.sweep.worker import run_assignment


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    record = find_trial(options.store, options.id)
    _check_images(record, options.accept)
    # Torch is loaded only once the rest is known to be right.
    from adray.components.device import choose_device

    device = choose_device(options.device)
    threads = options.threads or recorded_threads(record)
    if record.result is not None:
        return _compare(record, threads, device)

    outcome = _run(record, record.folder, threads, device)
    return 0 if outcome.status == "done" else 1


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray rerun",
        description="Run one trial of a store again in this process, without Ray, for a debugger. A trial that is done "
        "is compared with its stored result, bit for bit or within 1e-5, and left as it is; one that failed is "
        "replaced when it succeeds now.",
    )
    parser.add_argument(
        "id", help="the id or its beginning, as `python -m adray status STORE` prints it"
    )
    parser.add_argument(
        "--local", action="store_true", required=True, help="in this process; the only way there is"
    )
    parser.add_argument(
        "--store", default=get_globals().output_dir, help="the output_dir of the sweep"
    )
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, ...; a GPU where there is one by default"
    )
    parser.add_argument(
        "--accept",
        nargs="+",
        default=[],
        metavar="KIND",
        help="findings in the images that shall not stop it, beside those that its sweep accepted",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=None,
        help="CPU threads, as many as the trial had by default; with others scores differ in the last digits",
    )
    return parser


def _check_images(record: TrialRecord, accept: Sequence[str]) -> None:
    """Look at a trial's images as plan and `train` do.

    Args:
        record: of the trial.
        accept: kinds of findings that shall not stop it, beside those that its sweep accepted.

    Raises:
        InputError: for images that cannot be used, and for what would silently change the result.
    """
    assignment = assignment_of_record(record, record.folder)
    settings = assignment.settings
    # Plug-ins are looked up in the settings of this process.
    use_settings(settings)
    job = assignment.job()
    samples = job_samples(job, settings)

    said = dict(settings.data)
    for name in job.datasets:
        options = settings.options_of(name)
        said[name] = replace(options, accept=(*options.accept, *accept))
    settings = replace(settings, data=said)
    checked_fingerprint(job.place, samples, assignment.train.split_mode, settings)


def _run(record: TrialRecord, folder: Path, threads: int, device: str) -> Outcome:
    """Run a trial again into a folder, and say what came of it."""
    assignment = replace(assignment_of_record(record, folder), threads=threads)
    outcome = run_assignment(assignment, device)
    print(f"{outcome.status}: {outcome.reason or outcome.image_auroc}")
    return outcome


def _compare(record: TrialRecord, threads: int, device: str) -> int:
    """Run a done trial in a folder that is thrown away, and compare scores and metrics with the stored."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / record.folder.name
        outcome = _run(record, folder, threads, device)
        again = read_trial(folder)
        if again is not None and again.result is not None:
            print(agreement(record, again))

    remark = _remark_on_data(record)
    if remark:
        print(remark)
    stored = record.result or {}
    new = (again.result if again is not None else None) or {}
    for name, value in stored["metrics"].items():
        print(f"{name:16} stored {value}  now {new.get('metrics', {}).get(name)}")
    return 0 if outcome.status == "done" else 1


def _remark_on_data(record: TrialRecord) -> str:
    """Say that the images are no longer those of the stored trial, empty where they are."""
    today = present_fingerprint(record)
    if today is None or today == data_of(record):
        return ""
    return (
        "the images of the data set, or how they are read, have changed since this trial: these "
        f"figures are of other data (fingerprint {data_of(record)[:8]}, now {today[:8]})"
    )
