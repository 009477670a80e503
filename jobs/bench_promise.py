"""Hold promises of few false alarms against new normals of known laws, for many calibration sets.

    python jobs/bench_promise.py --sets 2000

Each row is one law of scores, number of calibration normals n and wanted rate. `alarms` is the mean
rate of false alarms over calibration sets, which may be at most `promised`. `sure` is how often the
rate of a set stays below its 95 % bound. With `--chosen k` the threshold is the lowest of k trials
whose scores do not depend on each other: the worst choice that calibration scores can make. The
promise then counts the k trials; `--uncounted` shows what comes of one that does not.
"""

from __future__ import annotations

import argparse
import math
from operator import attrgetter

import numpy as np

from adray.thresholds import make_promise

FRESH = 100_000
NORMALS = (6, 24, 99, 299, 1000)
RATES = (0.2, 0.05, 0.01)


def normal(rng, size):
    """Scores with light tails."""
    return rng.normal(size=size)


def heavy(rng, size):
    """Scores with heavy tails."""
    return rng.standard_t(1.5, size=size)


def ties(rng, size):
    """Scores of a model that gives few values."""
    return rng.poisson(2.0, size=size).astype(float)


def mixture(rng, size):
    """Scores of a production of which one part in fifty is odd."""
    return rng.normal(size=size) + 8.0 * (rng.random(size) < 0.02)


LAWS = {"normal": normal, "heavy tails": heavy, "ties": ties, "mixture": mixture}


def lowest_promise(law, rng, normals, rate, chosen, tried):
    """Draw the calibration scores of several trials, and give the promise with the lowest threshold."""
    promises = []
    for _ in range(chosen):
        promises.append(make_promise(law(rng, normals), rate, tried))
    return min(promises, key=attrgetter("score"))


def figures_of(law, normals, rate, sets, chosen, tried):
    """Give the mean rate of false alarms, its noise, what is promised and how often it is sure."""
    rng = np.random.default_rng([normals, round(1000 * rate), chosen])
    fresh = np.sort(law(rng, FRESH))
    alarms = np.empty(sets)
    bound = math.nan
    promised = math.nan
    for i in range(sets):
        promise = lowest_promise(law, rng, normals, rate, chosen, tried)
        above = FRESH - np.searchsorted(fresh, promise.score, side="right")
        alarms[i] = above / FRESH
        bound = promise.bound
        promised = promise.promised
    noise = 3 * (alarms.std() / math.sqrt(sets) + math.sqrt(promised / FRESH))
    sure = float(np.mean(alarms <= bound + 3 * math.sqrt(bound / FRESH)))
    return float(alarms.mean()), noise, promised, sure


def main():
    """Print a row for every law, number of normals and rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=2000, help="calibration sets of each row")
    parser.add_argument("--chosen", type=int, default=1, help="trials of which one is chosen")
    parser.add_argument(
        "--uncounted", action="store_true", help="promise as if one trial alone had been tried"
    )
    options = parser.parse_args()
    tried = 1 if options.uncounted else options.chosen

    print(f"{'law':12} {'n':>5} {'asked':>6} {'promised':>9} {'alarms':>7} {'sure':>6}")
    broken = 0
    for name, law in LAWS.items():
        for normals in NORMALS:
            for rate in RATES:
                alarms, noise, promised, sure = figures_of(
                    law, normals, rate, options.sets, options.chosen, tried
                )
                is_broken = alarms > promised + noise
                broken += is_broken
                mark = "  BROKEN" if is_broken else ""
                figures = f"{promised:9.4f} {alarms:7.4f} {sure:6.3f}"
                print(f"{name:12} {normals:5d} {rate:6.2f} {figures}{mark}")
    print(f"{broken} rows are above what was promised")


if __name__ == "__main__":
    main()
