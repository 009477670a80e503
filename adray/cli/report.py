"""`python -m adray report STORE`: what a store holds, as a page to read or a table."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adray.changed_data import present_fingerprints
from adray.config import to_plain
from adray.errors import InputError
from adray.files import atomic_path
from adray.registry import ModelRegistry
from adray.results.current import mark_outdated, mark_settings
from adray.results.leaderboard import table, trial_row
from adray.results.markdown import format_markdown
from adray.results.report import report_data, write_report
from adray.results.store import TrialRecord, read_store, without_searches

_TRAIN_FIELDS = (
    "num_epochs",
    "max_steps",
    "batch_size",
    "img_size",
    "crop_size",
    "normalize",
    "patience",
)
"""Of `TrainConfig`, those that count as hyperparameters."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m adray report",
        description="What a store holds, to decide by: trials with their configuration's default hyperparameters, "
        "unless none has them or --all asks for the others too, each setting by itself. Trials whose images have "
        "changed since stand apart. A sweep writes the same page of its own trials.",
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
    return parser


def _shown(records: list[TrialRecord], *, everything: bool) -> list[TrialRecord]:
    """Choose the trials with default hyperparameters. All where nothing else is asked for or there.

    Those of a search are never among them. Settings are told apart, and outdated trials marked.

    Raises:
        InputError: where nothing is left.
    """
    ordinary = without_searches(records)
    searched = len(records) - len(ordinary)
    if not ordinary:
        searches = ""
        if searched:
            searches = " but those of searches, which the reports of their sweeps show"
        raise InputError(f"the store holds no trials{searches}; run a sweep first")
    if searched:
        print(
            f"{searched} trials of searches are left out; the reports of their sweeps show them",
            file=sys.stderr,
        )
    marked = mark_outdated(ordinary, present_fingerprints(ordinary))
    return mark_settings(marked if everything else _with_defaults(marked))


def _with_defaults(records: list[TrialRecord]) -> list[TrialRecord]:
    """Choose the trials with default hyperparameters, all where none of today's images has them."""
    default = [record for record in records if not _is_changed(record)]
    has_default = any(not record.outdated for record in default)
    changed = len(records) - len(default)
    if changed:
        what = "left out; --all shows them" if has_default else "shown, since there are no others"
        print(f"{changed} trials with changed hyperparameters are {what}", file=sys.stderr)
    return default if has_default else records


def _is_changed(record: TrialRecord) -> bool:
    """Tell whether a trial's hyperparameters differ from its row's in either budget."""
    identity = record.identity
    defaults = _defaults(identity["configuration"])
    train = identity.get("train", {})
    asked = (identity.get("model"), {key: train.get(key) for key in _TRAIN_FIELDS})
    return bool(defaults) and asked not in defaults


@functools.lru_cache(maxsize=256)
def _defaults(configuration: str) -> tuple[tuple[Any, Any], ...]:
    """Give the hyperparameters of a configuration in its budgets, also with random backbones.

    Returns:
        For each the model's and the training's as plain values; nothing for an unknown
        configuration.
    """
    if configuration not in ModelRegistry.list_models():
        return ()
    found = []
    for budget in ("paper", "quick"):
        for weights in ("pretrained", "random"):
            resolved = ModelRegistry.resolve(configuration, budget=budget, weights=weights)
            train = to_plain(resolved.train_config)
            of_train = {key: train[key] for key in _TRAIN_FIELDS}
            found.append((to_plain(resolved.config), of_train))
    return tuple(found)
