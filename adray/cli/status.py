"""`python -m adray status STORE`: say what a store holds."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence

from adray.results.leaderboard import format_summary, table, trial_row
from adray.results.store import read_store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
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
        others = len(found) - len(records)
        print(f"and {others} trials of searches, shown in the reports of their sweeps")
    if not records:
        return 0

    frame = table(trial_row(record) for record in records)
    print(format_summary(frame))
    for row in frame.itertuples():
        cell = f"{row.dataset}/{row.category}/{row.configuration}"
        outcome = row.reason
        if row.status == "done":
            outcome = "n/a" if math.isnan(row.image_auroc) else f"{row.image_auroc:.4f}"
            if row.evaluation.startswith("synthetic"):
                outcome += " on drawn defects"
        print(f"{row.status:10} {row.id[:8]} {cell} seed {row.seed}  {outcome}")
    return 0
