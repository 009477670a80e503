"""What the tables of a large store cost: `python jobs/bench_store.py --trials 10000`.

One short trial runs. Its files are then written again under other configurations, categories and seeds, with other
figures, as often as asked. Each command runs as a whole process, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from process_tree import run_measured

from adray.data.synthetic import write_synthetic
from adray.files import canonical_hash
from adray.registry import ModelRegistry
from adray.results.store import TrialRecord, all_trials
from adray.results.summaries import FILE as SUMMARIES

CATEGORIES = 20
CONFIGURATIONS = 20
ASKED = ("rate", "confidence")
"""Figures of a result that were asked for."""
COMMANDS = (("status", "the first time", 2.0), ("status", "again", 2.0), ("report", "", 10.0))
"""Commands, and the seconds that are wanted for ten thousand trials."""
MOST_BYTES = 10e6
"""Wanted size of their report."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a Markdown table; the exit code is 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="folder that keeps the store for another look")
    options = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder)
        root.mkdir(exist_ok=True)
        if not (root / "many").is_dir():
            multiply(run_one_trial(root), root / "many", options.trials)
        return measure(root, options.trials)


def run_one_trial(root: Path) -> TrialRecord:
    """Run PaDiM on a few small images."""
    write_synthetic(root / "datasets" / "parts", train=12, good=8, defects=8, size=64)
    settings = {
        "dataset_dir": str(root / "datasets"),
        "output_dir": str(root / "one"),
        "cache_dir": str(root / "cache"),
    }
    config = {
        "name": "one",
        "weights": "random",
        "settings": settings,
        "grid": {"models": ["padim"], "datasets": {"parts": ["grain"]}},
        "overrides": {"padim": {"train": {"img_size": 64}}},
        "keep": "none",
    }
    file = root / "one.yaml"
    file.write_text(yaml.safe_dump(config))
    subprocess.run([sys.executable, "-m", "adray.sweep", str(file)], check=True)
    (record,) = all_trials(root / "one")
    return record


def multiply(record: TrialRecord, store: Path, trials: int) -> None:
    """Write a trial's files as those of so many trials."""
    rng = np.random.default_rng(0)
    for identity in identities(record, trials):
        trial_id = canonical_hash(identity)
        cell = store / "parts" / identity["categories"][0] / identity["configuration"]
        folder = cell / trial_id[:8]
        folder.mkdir(parents=True)
        trial = {**record.trial, "id": trial_id, "identity": identity}
        result = changed(record.result, rng)
        for name, value in (("trial", trial), ("result", result)):
            (folder / f"{name}.json").write_text(json.dumps(value, indent=2))
        for file in record.folder.iterdir():
            if file.suffix in (".parquet", ".png", ".txt", ".csv"):
                os.link(file, folder / file.name)


def identities(record: TrialRecord, trials: int) -> Iterator[dict[str, Any]]:
    """Yield so many identities: seeds go round last."""
    names = ModelRegistry.list_models()[:CONFIGURATIONS]
    for number in range(trials):
        seed, cell = divmod(number, CATEGORIES * CONFIGURATIONS)
        category, configuration = divmod(cell, CONFIGURATIONS)
        yield {
            **record.identity,
            "configuration": names[configuration],
            "categories": [f"part{category:02}"],
            "seed": seed,
        }


def changed(value: Any, rng: np.random.Generator) -> Any:
    """Draw other values for all figures, as trials differ; counts, names and what was asked stay."""
    if isinstance(value, dict):
        return {
            name: inner if name in ASKED else changed(inner, rng) for name, inner in value.items()
        }
    if isinstance(value, list):
        return [changed(inner, rng) for inner in value]
    return value * float(rng.uniform(0.5, 1.0)) if isinstance(value, float) else value


def measure(root: Path, trials: int) -> int:
    """Run the commands on the store and print what they took."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("adray", "pandas"))
    print(f"{date.today()}, {versions}; {os.cpu_count()} cores, {trials} trials\n")
    print("| command | wall s | CPU s | peak memory MB | wanted s |")
    print("|---|--:|--:|--:|--:|")

    slow = []
    page = root / "report.html"
    (root / "many" / SUMMARIES).unlink(missing_ok=True)
    arguments = {"status": [], "report": ["--out", str(page)]}
    for command, when, limit in COMMANDS:
        line = [sys.executable, "-m", "adray", command, str(root / "many"), *arguments[command]]
        usage = run_measured(line, root / f"{command}.txt")
        figures = f"{usage.wall:.1f} | {usage.cpu:.1f} | {usage.peak_mb:.0f}"
        name = f"`{command}` {when}".strip()
        print(f"| {name} | {figures} | {limit:.0f} |", flush=True)
        if usage.wall > limit:
            slow.append(name)

    size = page.stat().st_size
    print(f"\nthe page has {size / 1e6:.1f} MB; slower than wanted: {', '.join(slow) or 'none'}")
    return int(bool(slow) or size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
