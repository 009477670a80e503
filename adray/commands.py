"""The small commands: models, status, rerun."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adray.config import build
from adray.errors import InputError
from adray.registry import FAMILIES, ModelRegistry
from adray.settings import Settings, get_globals, use_settings

if TYPE_CHECKING:
    from adray.results.store import TrialRecord


def models(argv: Sequence[str]) -> int:
    """List the configurations by family and tier."""
    parser = argparse.ArgumentParser(prog="python -m adray models", description="List the configurations by family.")
    parser.add_argument("--tier", choices=("core", "extra"), help="only one tier")
    options = parser.parse_args(argv)
    specs = [ModelRegistry.get(name) for name in ModelRegistry.list_models(options.tier)]
    for family in FAMILIES:
        rows = [spec for spec in specs if spec.family == family]
        if rows:
            print(f"{family}:")
        for spec in rows:
            aliases = f"  (also {', '.join(spec.aliases)})" if spec.aliases else ""
            print(f"  {spec.name:24} {spec.tier:6} {spec.title}{aliases}")
    return 0


def status(argv: Sequence[str]) -> int:
    """Print what a store holds."""
    from adray.results.leaderboard import format_summary, table, trial_row
    from adray.results.store import all_trials

    parser = argparse.ArgumentParser(
        prog="python -m adray status", description="What a store holds: done, failed with reasons, means, the best."
    )
    parser.add_argument("store", help="the output_dir of a sweep")
    options = parser.parse_args(argv)
    if not Path(options.store).is_dir():
        raise InputError(f"store {options.store} does not exist; name the output_dir of a sweep")
    records = list(all_trials(options.store))
    counts = Counter(record.status for record in records)
    print(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no trials")
    if not records:
        return 0
    frame = table(trial_row(record) for record in records)
    print(format_summary(frame))
    for row in frame.itertuples():
        cell = f"{row.id[:8]} {row.dataset}/{row.category}/{row.configuration} seed {row.seed}"
        score = "n/a" if row.image_auroc != row.image_auroc else f"{row.image_auroc:.4f}"
        print(f"{row.status:10} {cell}  {score if row.status == 'done' else row.reason}")
    return 0


def rerun(argv: Sequence[str]) -> int:
    """Run one trial of a store again in this process."""
    from adray.results.store import find_trial
    from adray.sweep.trial import message_of_record, run_trial
    from adray.train import default_device

    parser = argparse.ArgumentParser(
        prog="python -m adray rerun",
        description="Run one trial of a store again in this process, without Ray, for a debugger. A trial that is done "
        "is compared with its stored result and left as it is; one that failed is replaced when it succeeds now.",
    )
    parser.add_argument("id", help="the id or its beginning, as `python -m adray status STORE` prints it")
    parser.add_argument("--local", action="store_true", required=True, help="in this process; the only way there is")
    parser.add_argument("--store", default=get_globals().output_dir, help="the output_dir of the sweep")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; a GPU where there is one by default")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads (the stored scores depend on it in the last digits)"
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    record = find_trial(options.store, options.id)
    device = options.device or default_device()
    if record.result is not None:
        return _compare(record, options.threads, device)
    message = message_of_record(record, record.folder)
    use_settings(build(Settings, message["settings"], "settings"))
    outcome = run_trial(message, options.threads, device)
    print(f"{outcome['status']}: {outcome['reason'] or outcome['image_auroc']}")
    return 0 if outcome["status"] == "done" else 1


def _compare(record: TrialRecord, threads: int, device: str) -> int:
    """Run a done trial in a folder that is thrown away, and print its metrics beside the stored ones."""
    from adray.results.store import read_trial
    from adray.sweep.trial import message_of_record, run_trial

    with tempfile.TemporaryDirectory() as scratch:
        message = message_of_record(record, Path(scratch) / record.folder.name)
        use_settings(build(Settings, message["settings"], "settings"))
        outcome = run_trial(message, threads, device)
        again = read_trial(Path(scratch) / record.folder.name)
    print(f"{outcome['status']}: {outcome['reason'] or outcome['image_auroc']}")
    stored = (record.result or {})["metrics"]
    new = (again.result or {}).get("metrics", {}) if again else {}
    for name, value in stored.items():
        print(f"{name:16} stored {value}  now {new.get(name)}")
    return 0 if outcome["status"] == "done" else 1
