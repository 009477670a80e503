"""Kill the processes of a sweep at random moments and count what was lost: `python jobs/torture_sweep.py --kills 100`.

Each kill -9 hits a worker, the driver, Ray's raylet or its GCS, in turn. A toy model writes a line each time it starts.
Three kills of four wait for such a line and a random while, and so hit the training, the evaluation, or the writing of
a result. The fourth falls somewhere in the first half minute of a command: planning, the start of Ray, a round. Where
the command ends with an error it is given again, as a person would. In the end each trial must have the result of an
undisturbed sweep, none may have started again after its result was visible, and no process may be left. The schedule
follows --seed; what is hit depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from process_tree import SUBREAPER, descendants

from adray.data.synthetic import write_synthetic

TARGETS = ("worker", "driver", "raylet", "gcs_server")
LONGEST_WAIT = 1.5
"""Seconds from a trial's start to its kill; a trial takes about as long."""
START_SECONDS = 30.0
"""Of a command, in which the kills fall that wait for no trial."""
HANG_SECONDS = 600.0
"""After which a command that starts no trial counts as hung, and is ended."""
PLUGIN = """
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from adray.registry import ModelRegistry
from adray.trainer import BaseTrainer
from adray.types import Prediction


@dataclass(frozen=True)
class SlowMeanConfig:
    pause: float = 0.5
    marks: str = ""


class SlowMean(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, size, size))

    def forward(self, image, features=None):
        anomaly_map = (image - self.mean).abs().mean(1, keepdim=True)
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class SlowMeanTrainer(BaseTrainer):
    config_class = SlowMeanConfig
    single_pass = True

    def build_model(self):
        return SlowMean(self.train_config.input_size)

    def on_fit_start(self):
        self.images = []
        with Path(self.config.marks).open("a") as file:
            file.write(f"{self.seed} {time.time()} {os.getpid()}\\n")
        time.sleep(self.config.pause)

    def train_step(self, batch):
        self.images.append(batch.image)
        return {}

    def on_train_end(self):
        self.model.mean.copy_(torch.cat(self.images).mean(0))


ModelRegistry.register("slow-mean", "torture_plugin.SlowMeanTrainer", {}, {"img_size": 32, "normalize": "none"})
"""


@dataclass(frozen=True)
class Start:
    """A line that a trial wrote when it started."""

    seed: int
    """Of the trial; each has another."""
    moment: float
    """Seconds since the epoch."""
    pid: int
    """Its process."""


@dataclass
class Record:
    """What was done to a sweep."""

    kills: Counter[str] = field(default_factory=Counter)
    """Kills that hit, by target."""
    runs: int = 0
    """How often the command was given."""
    codes: Counter[int] = field(default_factory=Counter)
    """Exit codes of the command."""
    hung: int = 0
    """Commands that did nothing any more and were ended."""
    left: int = 0
    """Processes that were still there half a minute after their command."""


class Torture:
    """Runs a sweep again and again and kills its processes meanwhile.

    Args:
        root: folder of the site, with the lines that trials write.
        file: of the sweep.
        kills: how many have to hit.
        targets: what is killed in turn.
        rng: decides when.
    """

    def __init__(
        self, root: Path, file: Path, kills: int, targets: Sequence[str], rng: np.random.Generator
    ) -> None:
        self._root = root
        self._command = [sys.executable, "-m", "adray.sweep", str(file)]
        self._kills = kills
        self._targets = targets
        self._rng = rng
        self.record = Record()

    def run(self) -> Record:
        """Give the command until it succeeds."""
        while True:
            code = self._run_once()
            self.record.runs += 1
            self.record.codes[code] += 1
            self.record.left += count_left()
            self._say()
            if code == 0 or self.record.runs == 20 + self._kills:
                return self.record

    def _run_once(self) -> int:
        """Give the command once, and kill what is due."""
        python_path = [str(self._root), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path)}
        with (self._root / "output.txt").open("a") as output:
            driver = subprocess.Popen(self._command, stdout=output, stderr=output, env=environment)
            while driver.poll() is None and self._kills > self.record.kills.total():
                if not self._kill_next(driver):
                    break
        return self._wait(driver)

    def _kill_next(self, driver: subprocess.Popen[bytes]) -> bool:
        """Wait for the next moment and kill the next target, as long as the command runs."""
        target = self._targets[self.record.kills.total() % len(self._targets)]
        if self._rng.random() < 0.25:
            self._pause(driver, float(self._rng.uniform(0, START_SECONDS)))
            pid = None
        else:
            pid = self._next_start(driver)
            if pid is None:
                return False
            self._pause(driver, float(self._rng.uniform(0, LONGEST_WAIT)))
        if driver.poll() is None and kill(find_process(target, driver.pid, pid)):
            self.record.kills[target] += 1
        return True

    def _next_start(self, driver: subprocess.Popen[bytes]) -> int | None:
        """Wait for a trial to start and give its process, None where the command ends first."""
        seen = len(starts(self._root))
        deadline = time.monotonic() + HANG_SECONDS
        while driver.poll() is None and time.monotonic() < deadline:
            found = starts(self._root)
            if len(found) > seen:
                return found[-1].pid
            time.sleep(0.05)
        return None

    def _pause(self, driver: subprocess.Popen[bytes], seconds: float) -> None:
        """Wait so long, or until the command ends."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(seconds)

    def _wait(self, driver: subprocess.Popen[bytes]) -> int:
        """Wait for the end of a command, as long as it starts trials."""
        seen = -1
        while len(starts(self._root)) > seen:
            seen = len(starts(self._root))
            self._pause(driver, HANG_SECONDS)
            if driver.poll() is not None:
                return driver.returncode
        self.record.hung += 1
        driver.kill()
        return driver.wait()

    def _say(self) -> None:
        """Print how far it is."""
        done = len(results(self._root / "outputs"))
        kills = self.record.kills.total()
        print(f"command {self.record.runs}: {kills} kills, {done} results", flush=True)


# Processes


def find_process(target: str, driver: int, worker: int | None) -> int | None:
    """Find the process of a target below a driver, None where there is none now."""
    if target == "driver":
        return driver
    if target == "worker" and worker is not None:
        return worker
    marks = {"worker": "ray::", "raylet": "/raylet/raylet", "gcs_server": "/gcs/gcs_server"}
    for pid in sorted(descendants(driver)):
        if marks[target] in program_of(pid):
            return pid
    return None


def program_of(pid: int) -> str:
    """Read the program of a process, for a worker of Ray its title, empty where it has ended."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return text.decode(errors="replace").partition("\0")[0]


def kill(pid: int | None) -> bool:
    """End a process at once, and tell whether it was still there."""
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def count_left() -> int:
    """Give what a command left half a minute to end, count what remains, and end it."""
    deadline = time.monotonic() + 30
    while living() and time.monotonic() < deadline:
        time.sleep(0.2)
    left = living()
    for pid in left:
        kill(pid)
    return len(left)


def living() -> list[int]:
    """List the processes below this one that have not ended, after burying those that have."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return [pid for pid in descendants(os.getpid()) if program_of(pid)]


# What is left


def starts(root: Path) -> list[Start]:
    """Read the starts of trials so far."""
    marks = root / "marks"
    found = []
    for line in marks.read_text().splitlines() if marks.exists() else ():
        seed, moment, pid = line.split()
        found.append(Start(int(seed), float(moment), int(pid)))
    return found


def results(store: Path) -> list[Path]:
    """List the visible results."""
    return [path for path in store.rglob("result.json") if not path.parent.name.startswith(".")]


def seed_of(result: Path) -> int:
    """Read the seed of a result's trial."""
    return json.loads((result.parent / "trial.json").read_text())["identity"]["seed"]


def metrics_by_seed(store: Path) -> dict[int, dict[str, float]]:
    """Read the metrics of each visible result."""
    found = {}
    for path in results(store):
        found[seed_of(path)] = json.loads(path.read_text())["metrics"]
    return found


def count(root: Path) -> dict[str, int]:
    """Count what the store and the lines say in the end."""
    visible = {}
    for path in results(root / "outputs"):
        visible[seed_of(path)] = path.stat().st_mtime
    again = 0
    for start in starts(root):
        again += start.moment > visible.get(start.seed, float("inf")) + 1.0
    return {
        "results": len(visible),
        "starts of trials": len(starts(root)),
        "started again after the result was visible": again,
        "half-written folders left": len(list((root / "outputs").rglob("*.partial"))),
    }


# The site


def write_site(root: Path, trials: int) -> Path:
    """Write data, plug-in and sweep file of so many short trials."""
    write_synthetic(root / "datasets" / "synthetic", train=6, good=3, defects=4, size=32)
    (root / "torture_plugin.py").write_text(PLUGIN)
    config = {
        "name": "torture",
        "settings": {
            "dataset_dir": str(root / "datasets"),
            "output_dir": str(root / "outputs"),
            "cache_dir": str(root / "cache"),
            "plugins": ["torture_plugin"],
        },
        "grid": {
            "models": ["slow-mean"],
            "datasets": {"synthetic": ["grain"]},
            "seeds": list(range(trials)),
        },
        "overrides": {"slow-mean": {"model": {"marks": str(root / "marks")}}},
        "save_maps": 0,
        "keep": "none",
    }
    (root / "torture.yaml").write_text(yaml.safe_dump(config))
    return root / "torture.yaml"


def undisturbed(file: Path) -> Path:
    """Write the same sweep into another store."""
    config = yaml.safe_load(file.read_text())
    config["settings"]["output_dir"] = str(file.parent / "undisturbed")
    other = file.with_name("undisturbed.yaml")
    other.write_text(yaml.safe_dump(config))
    return other


def main(argv: Sequence[str] | None = None) -> int:
    """Run, count, print; the exit code is 1 where anything was lost."""
    options = parse_options(argv)
    # What outlives a driver comes to this process, which can then count it.
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        started = time.monotonic()
        file = write_site(root, options.trials)
        rng = np.random.default_rng(options.seed)
        record = Torture(root, file, options.kills, options.targets, rng).run()
        figures = {"trials": options.trials, **described(record), **count(root)}
        figures["seconds"] = round(time.monotonic() - started)

        disturbed = metrics_by_seed(root / "outputs")
        Torture(root, undisturbed(file), 0, options.targets, rng).run()
        differing = 0
        for seed, metrics in metrics_by_seed(root / "undisturbed").items():
            differing += disturbed.get(seed) != metrics
        figures["results that differ from an undisturbed sweep"] = differing
        end = (root / "output.txt").read_text()[-3000:]

    print("\n| what was counted | number |\n|---|--:|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    wrong = (
        "started again after the result was visible",
        "results that differ from an undisturbed sweep",
        "processes left",
        "commands that hung",
    )
    whole = figures["results"] == options.trials and not any(figures[name] for name in wrong)
    if not whole:
        print(end)
    return int(not whole)


def described(record: Record) -> dict[str, int]:
    """Give the figures of what was done."""
    figures = {f"kill -9 of {target}": number for target, number in record.kills.items()}
    codes = {f"commands that ended with {code}": n for code, n in sorted(record.codes.items())}
    return {
        **figures,
        "kills": record.kills.total(),
        "times the command was given": record.runs,
        **codes,
        "commands that hung": record.hung,
        "processes left": record.left,
    }


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
