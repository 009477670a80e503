"""How long each command takes to its first line, and in all: `python jobs/bench_start.py`.

Two short trials run, so that there is a store. Each command is a whole process, imports included. Compiled modules are
kept in a folder of this benchmark, as an installer leaves them beside the packages; `--compile-anew` keeps none.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import yaml
from process_tree import run_measured

from adray.data.synthetic import write_synthetic

COMMANDS = (
    "sweep --help",
    "predict --help",
    "start --help",
    "sweep nowhere.yaml",
    "start nowhere",
    "sweep sweep.yaml --set overrides.padim.model.sigma=-1",
    "predict nowhere datasets --out found",
    "models padim",
    "check sweep.yaml",
    "sweep sweep.yaml --dry-run",
    "data datasets/parts",
    "start datasets/parts --minutes 0",
    "status outputs",
    "report outputs",
    "diff outputs outputs",
    "clean outputs",
)
"""What is measured, in a folder with images and a store."""
HEAVY = "adray.train, matplotlib.figure, pandas, ray.tune, scipy.optimize, torch"
"""What a sweep imports, compiled before the first is measured."""


@dataclass(frozen=True)
class Start:
    """What a command took."""

    first_line: float
    """Seconds to the first line that it printed, anywhere."""
    wall: float
    """Seconds to its end."""
    cpu: float
    """CPU seconds of its process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each command and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument(
        "--compile-anew", action="store_true", help="let every process compile what it imports"
    )
    options = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        env = environment(root, options.compile_anew)
        write_site(root)
        subprocess.run([sys.executable, "-c", f"import {HEAVY}"], env=env, check=True)
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("adray", "torch"))
        print(
            f"{date.today()}, {versions}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}\n"
        )

        sweep = [sys.executable, "-m", "adray.sweep", str(root / "sweep.yaml")]
        usage = run_measured(sweep, root / "log.txt", env)
        print("| command | first line s | wall s | CPU s |")
        print("|---|--:|--:|--:|")
        print(f"| a sweep of two trials | | {usage.wall:.1f} | {usage.cpu:.1f} |", flush=True)
        for words in COMMANDS:
            run(words, root, env)  # what it imports is compiled now
            took = run(words, root, env)
            figures = f"{took.first_line:.2f} | {took.wall:.2f} | {took.cpu:.2f}"
            print(f"| `{words}` | {figures} |", flush=True)
    return 0


def environment(root: Path, compile_anew: bool) -> dict[str, str]:
    """Give the environment of the commands, which says where compiled modules are kept."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    if compile_anew:
        env["PYTHONDONTWRITEBYTECODE"] = "1"
    else:
        env["PYTHONPYCACHEPREFIX"] = str(root / "bytecode")
    return env


def write_site(root: Path) -> None:
    """Write small images and a sweep of two trials of PaDiM."""
    write_synthetic(root / "datasets" / "parts", train=12, good=4, defects=4, size=64)
    settings = {}
    for name, place in (("dataset", "datasets"), ("output", "outputs"), ("cache", "cache")):
        settings[f"{name}_dir"] = str(root / place)
    sweep = {
        "name": "start",
        "weights": "random",
        "settings": settings,
        "grid": {"models": ["padim"], "datasets": {"parts": ["grain", "weave"]}},
        "overrides": {"padim": {"train": {"img_size": 64}}},
        "keep": "none",
        "save_maps": 2,
    }
    (root / "sweep.yaml").write_text(yaml.safe_dump(sweep))


def run(words: str, folder: Path, env: Mapping[str, str]) -> Start:
    """Run a command of adray, whatever its exit code."""
    command = [sys.executable, "-m", "adray", *shlex.split(words)]
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    process.stdout.readline()
    first_line = time.monotonic() - started

    process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # it was waited for already
    return Start(first_line, time.monotonic() - started, usage.ru_utime + usage.ru_stime)


if __name__ == "__main__":
    sys.exit(main())
