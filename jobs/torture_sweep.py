"""Kill workers of a sweep at random times and count what was lost: `python jobs/torture_sweep.py --kills 100`.

A toy model writes a line each time it begins, and of these processes every other one, drawn at random, is killed a
random while later: in the middle of the training, of the evaluation, or while the result is written. In the end each
trial must have a right result, and none may have begun again after its result was visible. The schedule follows --seed;
what is hit depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from adray.data.synthetic import write_synthetic

LONGEST_WAIT = 1.5  # seconds from a trial's beginning to its kill; a trial takes about as long
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


def begun(root: Path) -> list[tuple[int, float, int]]:
    """Seed, moment and process of each start of a trial."""
    marks = root / "marks"
    lines = marks.read_text().splitlines() if marks.exists() else []
    return [(int(seed), float(moment), int(pid)) for seed, moment, pid in map(str.split, lines)]


def write_site(root: Path, trials: int) -> Path:
    """Data, plug-in and sweep file of so many short trials."""
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


def torture(root: Path, file: Path, kills: int, rng: np.random.Generator) -> tuple[int, int]:
    """Run the sweep until it is done, killing workers; the kills that hit, and the times it had to be started."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    hit, runs = 0, 0
    while True:
        runs += 1
        with (root / "output.txt").open("a") as output:
            command = [sys.executable, "-m", "adray.sweep", str(file)]
            driver = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            seen = len(begun(root))
            while driver.poll() is None:
                time.sleep(0.05)
                starts = begun(root)
                if len(starts) > seen and hit < kills and rng.random() < 0.5:
                    time.sleep(float(rng.uniform(0, LONGEST_WAIT)))
                    hit += kill(starts[-1][2])
                seen = len(starts)
        if driver.returncode == 0 or runs == 10:
            return hit, runs


def kill(pid: int) -> bool:
    """End a process at once; whether it was still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def metrics_by_seed(store: Path) -> dict[int, dict[str, float]]:
    """Metrics of each visible result."""
    results = [p for p in store.rglob("result.json") if not p.parent.name.startswith(".")]
    return {
        json.loads((p.parent / "trial.json").read_text())["identity"]["seed"]: json.loads(
            p.read_text()
        )["metrics"]
        for p in results
    }


def count(root: Path) -> dict[str, int]:
    """What the store and the marks say in the end."""
    starts = begun(root)
    results = [
        p for p in (root / "outputs").rglob("result.json") if not p.parent.name.startswith(".")
    ]
    visible = {
        json.loads((p.parent / "trial.json").read_text())["identity"]["seed"]: p.stat().st_mtime
        for p in results
    }
    return {
        "results": len(results),
        "begun": len(starts),
        "begun again after the result was visible": sum(
            moment > visible.get(seed, float("inf")) + 1.0 for seed, moment, _ in starts
        ),
        "half-written folders left": len(list((root / "outputs").rglob("*.partial"))),
    }


def undisturbed(file: Path) -> Path:
    """The same sweep into another store."""
    config = yaml.safe_load(file.read_text())
    config["settings"]["output_dir"] = str(file.parent / "undisturbed")
    other = file.with_name("undisturbed.yaml")
    other.write_text(yaml.safe_dump(config))
    return other


def main(argv: Sequence[str] | None = None) -> int:
    """Run, count, print."""
    parser = argparse.ArgumentParser(
        description="Kill workers of a sweep at random and count what was lost."
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root, began = Path(folder), time.monotonic()
        file = write_site(root, options.trials)
        hit, runs = torture(root, file, options.kills, np.random.default_rng(options.seed))
        figures = {
            "trials": options.trials,
            "kills": hit,
            "runs of the command": runs,
            **count(root),
        }
        figures["seconds"] = round(time.monotonic() - began)
        disturbed = metrics_by_seed(root / "outputs")
        torture(root, undisturbed(file), 0, np.random.default_rng(0))
        figures["results that differ from an undisturbed sweep"] = sum(
            disturbed.get(seed) != metrics
            for seed, metrics in metrics_by_seed(root / "undisturbed").items()
        )
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))
    wrong = (
        "begun again after the result was visible",
        "results that differ from an undisturbed sweep",
    )
    whole = figures["results"] == options.trials and not any(figures[name] for name in wrong)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
