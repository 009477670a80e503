"""The small commands: models, status, report, rerun."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adray.config import build, to_plain
from adray.errors import InputError
from adray.files import atomic_path
from adray.registry import FAMILIES, ModelRegistry
from adray.settings import Settings, get_globals, use_settings

if TYPE_CHECKING:
    from adray.results.store import TrialRecord


def models(argv: Sequence[str]) -> int:
    """List the configurations by family and tier."""
    parser = argparse.ArgumentParser(
        prog="python -m adray models", description="List the configurations by family."
    )
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
    from adray.results.store import read_store

    parser = argparse.ArgumentParser(
        prog="python -m adray status",
        description="What a store holds: done, failed with reasons, means, the best.",
    )
    parser.add_argument("store", help="the output_dir of a sweep")
    options = parser.parse_args(argv)
    found = read_store(options.store)
    records = [record for record in found if not record.searched]
    counts = Counter(record.status for record in records)
    print(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no trials")
    if len(records) < len(found):
        print(
            f"and {len(found) - len(records)} trials of searches, shown in the reports of their sweeps"
        )
    if not records:
        return 0
    frame = table(trial_row(record) for record in records)
    print(format_summary(frame))
    for row in frame.itertuples():
        cell = f"{row.id[:8]} {row.dataset}/{row.category}/{row.configuration} seed {row.seed}"
        score = "n/a" if row.image_auroc != row.image_auroc else f"{row.image_auroc:.4f}"
        print(f"{row.status:10} {cell}  {score if row.status == 'done' else row.reason}")
    return 0


def report(argv: Sequence[str]) -> int:
    """Write what a store holds as a page to read, or print it as a table."""
    from adray.results.leaderboard import table, trial_row
    from adray.results.markdown import format_markdown
    from adray.results.report import report_data, write_report
    from adray.results.store import read_store

    parser = argparse.ArgumentParser(
        prog="python -m adray report",
        description="What a store holds, to decide by: trials with their configuration's default hyperparameters, "
        "unless none has them or --all asks for the others too. A sweep writes the same page of its own trials.",
    )
    parser.add_argument("store", help="the output_dir of sweeps")
    parser.add_argument(
        "--format", choices=("html", "csv", "markdown"), default="html", help="default: %(default)s"
    )
    parser.add_argument(
        "--out", help="the file; STORE/report.html by default, standard output for csv and markdown"
    )
    parser.add_argument(
        "--all", action="store_true", help="also trials with changed hyperparameters"
    )
    options = parser.parse_args(argv)
    store = Path(options.store)
    records = _shown(read_store(store), everything=options.all)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    if options.format == "html":
        out = Path(options.out or store / "report.html")
        write_report(out, report_data(store.resolve().name, records, base=out.parent))
        print(out)
        return 0
    frame = table(trial_row(record) for record in records)
    text = frame.to_csv(index=False) if options.format == "csv" else format_markdown(frame, records)
    if not options.out:
        print(text, end="")
        return 0
    with atomic_path(options.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


def _shown(records: list[TrialRecord], *, everything: bool) -> list[TrialRecord]:
    """The trials with default hyperparameters; all where nothing else is asked for or there, but none of a search."""
    searched = sum(record.searched for record in records)
    records = [record for record in records if not record.searched]
    if not records:
        searches = (
            " but those of searches, which the reports of their sweeps show" if searched else ""
        )
        raise InputError(f"the store holds no trials{searches}; run a sweep first")
    if searched:
        print(
            f"{searched} trials of searches are left out; the reports of their sweeps show them",
            file=sys.stderr,
        )
    default = records if everything else [record for record in records if not _is_changed(record)]
    if len(default) < len(records):
        left_out = len(records) - len(default)
        what = "shown, since there are no others" if not default else "left out; --all shows them"
        print(f"{left_out} trials with changed hyperparameters are {what}", file=sys.stderr)
    return default or records


def _is_changed(record: TrialRecord) -> bool:
    """Whether a trial's hyperparameters differ from its row's, in the long and in the short budget."""
    identity = record.trial["identity"]
    defaults = _defaults(identity["configuration"])
    asked = (
        identity.get("model"),
        {key: identity.get("train", {}).get(key) for key in _HYPERPARAMETERS},
    )
    return bool(defaults) and asked not in defaults


_HYPERPARAMETERS = (
    "num_epochs",
    "max_steps",
    "batch_size",
    "img_size",
    "crop_size",
    "normalize",
    "patience",
)


@functools.lru_cache(maxsize=256)
def _defaults(configuration: str) -> tuple[tuple[dict[str, Any], dict[str, Any]], ...]:
    """Hyperparameters of a configuration in its two budgets, with and without trained backbones; none if unknown."""
    if configuration not in ModelRegistry.list_models():
        return ()
    resolved = [
        ModelRegistry.resolve(configuration, budget=budget, weights=weights)
        for budget in ("paper", "quick")
        for weights in ("pretrained", "random")
    ]
    return tuple(
        (to_plain(r.config), {key: to_plain(r.train_config)[key] for key in _HYPERPARAMETERS})
        for r in resolved
    )


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
        "--threads",
        type=int,
        default=1,
        help="CPU threads (the stored scores depend on it in the last digits)",
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
