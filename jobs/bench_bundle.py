"""How long a bundle takes from a cold start to its first verdict, and how much memory.

    python jobs/bench_bundle.py part_a.adray image.png [--repeats 5] [--threads 1]

Each start is a process of its own. `load` is the time to import, check and load, `first` that of the
first image, `cpu` the CPU seconds of both and of the start of Python, which a busy machine does not
stretch, `later` that of an image after it. The files may be in the machine's cache already: for a
machine that was just switched on, run it once after that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

START = """
import json, resource, sys, time
start = time.perf_counter()
from adray.runtime import load
model = load(sys.argv[1], int(sys.argv[3]))
loaded = time.perf_counter()
first = model.predict(sys.argv[2])
judged = time.perf_counter()
cpu = time.process_time()
times = []
while len(times) < 20:
    before = time.perf_counter()
    model.predict(sys.argv[2], with_map=False)
    times.append(time.perf_counter() - before)
print(json.dumps({
    "verdict": first.verdict,
    "load": loaded - start,
    "first": judged - loaded,
    "cpu": cpu,
    "later": sorted(times)[len(times) // 2],
    "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "torch": "torch" in sys.modules,
}))
"""


def first_image(path: Path) -> Path:
    """Give the image, or the first one below a folder."""
    return path if path.is_file() else next(p for p in sorted(path.rglob("*.*")) if p.is_file())


def main() -> None:
    """Start the runtime some times and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("image", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    command = [sys.executable, "-c", START, options.bundle, str(first_image(options.image))]
    rows = []
    for _ in range(options.repeats):
        done = subprocess.run(
            [*command, str(options.threads)], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout))
    for name in ("load", "first", "cpu", "later"):
        values = [row[name] for row in rows]
        print(f"{name:10} median {statistics.median(values):.3f} s, worst {max(values):.3f} s")
    print(f"memory     worst {max(row['megabytes'] for row in rows):.0f} MB")
    print(f"verdict    {rows[0]['verdict']}, torch loaded: {rows[0]['torch']}")


if __name__ == "__main__":
    main()
