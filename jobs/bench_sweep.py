"""What a sweep costs beside its trials: `python jobs/bench_sweep.py --trials 100 1000`.

Trials of a model that learns nothing, on six images: what remains is planning, starting, writing each trial's files and
the tables. Each size runs as a whole process, then once more to find everything done; beside it plain Ray Tune function
trials that report one number, as Ray's documentation shows them, which keep no result beyond Tune's own files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

import yaml

from adray.data.synthetic import write_synthetic

PLUGIN = """
from dataclasses import dataclass

import torch
from torch import nn

from adray.model_specs import ModelSpec
from adray.registry import ModelRegistry
from adray.trainer import BaseTrainer
from adray.types import Prediction


@dataclass(frozen=True)
class NothingConfig:
    number: int = 0


class Nothing(nn.Module):
    def forward(self, image, features=None):
        return Prediction(image.flatten(1).amax(1), None)


class NothingTrainer(BaseTrainer):
    config_class = NothingConfig
    single_pass = True

    def build_model(self):
        return Nothing()

    def train_step(self, batch):
        return {"loss": torch.zeros(())}


ModelRegistry.register(
    ModelSpec(
        "nothing", "nothing", "memory", "bench_plugin.NothingTrainer",
        train={"img_size": 32, "normalize": "none"}, tier="extra", memory_gb=0.5,
    )
)
"""
PEER = """
import sys, tempfile
from ray import tune


def nothing(config):
    tune.report({"image_auroc": 0.5})


count, cpus = int(sys.argv[1]), int(sys.argv[2])
import ray
ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
with tempfile.TemporaryDirectory() as folder:
    tune.Tuner(
        nothing,
        param_space={"number": tune.grid_search(list(range(count)))},
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()
"""


def write_site(root: Path, trials: int) -> Path:
    """Data, plug-in and sweep file of so many trials."""
    write_synthetic(root / "datasets" / "synthetic", train=2, good=2, defects=2, size=32)
    (root / "bench_plugin.py").write_text(PLUGIN)
    settings = {
        name: str(root / name.split("_")[0]) for name in ("output_dir", "cache_dir", "backbone_dir")
    }
    config = {
        "name": "bench",
        "settings": {
            **settings,
            "dataset_dir": str(root / "datasets"),
            "plugins": ["bench_plugin"],
        },
        "grid": {
            "models": ["nothing"],
            "datasets": {"synthetic": ["grain"]},
            "seeds": list(range(trials)),
        },
        "overrides": {"nothing": {"train": {"holdout": 0.0}}},
        "resources": [{"cpu": 1, "memory_gb": 0.5}],
        "save_maps": 0,
        "keep": "none",
    }
    (root / "bench.yaml").write_text(yaml.safe_dump(config))
    return root / "bench.yaml"


def run(command: Sequence[str], root: Path) -> dict[str, float]:
    """Wall seconds of a whole process, and its own memory in MB when trials began and at its largest."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    began, memory = time.monotonic(), list[float]()
    with (root / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        while process.poll() is None:
            time.sleep(0.2)
            memory.append(resident_mb(process.pid))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {(root / 'output.txt').read_text()[-2000:]}")
    return {"seconds": time.monotonic() - began, "largest": max(memory)}


def resident_mb(pid: int) -> float:
    """Resident memory of one process, 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def measure(trials: int, cpus: int, peer: bool) -> list[str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        command = [
            sys.executable,
            "-m",
            "adray.sweep",
            str(write_site(root, trials)),
            "--num-cpus",
            str(cpus),
        ]
        first, again = run(command, root), run(command, root)
        (root / "peer.py").write_text(PEER)
        other = (
            run([sys.executable, str(root / "peer.py"), str(trials), str(cpus)], root)
            if peer
            else None
        )
    ours = [
        f"{first['seconds']:.0f}",
        f"{first['seconds'] / trials:.3f}",
        f"{first['largest']:.0f}",
    ]
    ours.append(f"{again['seconds']:.1f}")
    if other is None:
        return [str(trials), *ours, "-", "-", "-"]
    theirs = [
        f"{other['seconds']:.0f}",
        f"{other['seconds'] / trials:.3f}",
        f"{other['largest']:.0f}",
    ]
    return [str(trials), *ours, *theirs]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description="The overhead of a sweep's trials beside plain Ray Tune's."
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument(
        "--peer-trials", type=int, default=1000, help="sizes above this run without the peer"
    )
    options = parser.parse_args(argv)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("adray", "ray", "torch"))
    print(f"{date.today()}, {options.cpus} CPUs, {versions}\n")
    head = [
        "trials",
        "sweep s",
        "s per trial",
        "driver MB",
        "again, all done, s",
        "Tune s",
        "s per trial",
        "driver MB",
    ]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for trials in options.trials:
        row = measure(trials, options.cpus, trials <= options.peer_trials)
        print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
