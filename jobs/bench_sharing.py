"""What sharing of frozen features and coresets saves: the same sweeps with it and without, as whole commands.

    python jobs/bench_sharing.py --backbone-dir backbones
    python jobs/bench_sharing.py --train 12 --test 8 --size 256 --img-size 128        (random weights, a minute or two)

models    padim, patchcore, dfm and dfkde with a ResNet-18 on one category of generated images: CPU seconds of the
          whole process tree, Ray and the workers' imports included, and the sums over the trials alone.
settings  20 PatchCore trials, 5 coreset ratios times 4 numbers of neighbours: CPU seconds of the first trial and of
          the other 19, how often the backbone and the selection ran, and the largest difference of a score to the
          same trial without sharing, relative to the range of its scores.

Without sharing means ``shared_feature_gb: 0``; images are decoded once in both cases, since the first command of each
pair leaves them in no cache of the second. The exit code is 1 where a score differs by more than 1e-5, or the settings
needed more than one pass or one selection.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from process_tree import run_measured

from adray.data.synthetic import write_synthetic
from adray.results.store import TrialRecord, all_trials

CATEGORY = "grain"
MODELS = ("padim", "patchcore-resnet18", "dfm-resnet18", "dfkde")
RATIOS, NEIGHBORS = (0.01, 0.02, 0.05, 0.1, 0.2), (1, 3, 5, 9)
ALLOWED = 1e-5


@dataclass(frozen=True)
class Run:
    """A whole command.

    Attributes:
        cpu: CPU seconds of its process tree.
        records: what its store holds.
    """

    cpu: float
    records: list[TrialRecord]

    def trial_cpu(self) -> list[float]:
        """CPU seconds of the trials alone, in the order in which they ended."""
        ordered = sorted(self.records, key=lambda r: (r.folder / "result.json").stat().st_mtime_ns)
        return [r.result["timings"]["cpu_seconds"] for r in ordered if r.result]

    def times_built(self) -> dict[str, int]:
        """How often each kind of shared work was done."""
        counts: dict[str, int] = defaultdict(int)
        for record in self.records:
            for work in (record.result or {})["shared_work"]:
                counts[work["kind"]] += work["built"]
        return dict(counts)


def models_config() -> dict[str, Any]:
    """A grid of four models."""
    return {"name": "models", "grid": {"models": list(MODELS)}}


def settings_config() -> dict[str, Any]:
    """A search over PatchCore's settings, all of them on the test set: the scores are to be compared, not the best."""
    space = {
        "model.coreset_ratio": {"choice": list(RATIOS)},
        "model.num_neighbors": {"choice": list(NEIGHBORS)},
    }
    count = len(RATIOS) * len(NEIGHBORS)
    search = {"space": space, "searcher": "grid", "num_samples": count, "objective": "test"}
    return {"name": "settings", "grid": {"models": ["patchcore-resnet18"]}, "search": search}


def run(root: Path, config: dict[str, Any], options: argparse.Namespace, *, share: bool) -> Run:
    """Run a sweep in folders of its own."""
    place = root / f"{config['name']}-{'shared' if share else 'alone'}"
    place.mkdir()
    settings = {"dataset_dir": str(root / "datasets"), "output_dir": str(place / "outputs")}
    settings |= {
        "cache_dir": str(place / "cache"),
        "backbone_dir": str(Path(options.backbone_dir or "none").absolute()),
    }
    train = {"img_size": options.img_size, "batch_size": 32}
    whole = {
        **config,
        "settings": {**settings, **({} if share else {"shared_feature_gb": 0})},
        "grid": {**config["grid"], "datasets": {"synthetic": [CATEGORY]}},
        "weights": "pretrained" if options.backbone_dir else "random",
        "overrides": {name: {"train": train} for name in config["grid"]["models"]},
    }
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(whole))
    usage = run_measured(
        [sys.executable, "-m", "adray.sweep", str(file), "--num-cpus", "1"], place / "output.txt"
    )
    return Run(usage.cpu, list(all_trials(place / "outputs")))


def largest_difference(one: Run, other: Run) -> float:
    """Of the scores of equal trials, relative to the range of a trial's scores."""
    twins = {record.id8: record for record in other.records}
    differences = [0.0]
    for record in one.records:
        mine, theirs = (
            pd.read_parquet(r.folder / "scores.parquet")["pred_score"]
            for r in (record, twins[record.id8])
        )
        differences.append(float(np.abs(mine - theirs).max() / np.ptp(theirs)))
    return max(differences)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print two tables; the exit code."""
    options = parse_options(argv)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("adray", "ray", "torch"))
    weights = "pretrained" if options.backbone_dir else "random weights"
    images = (
        f"{options.train} + {options.test} images of {options.size} px at {options.img_size} px"
    )
    print(f"{date.today()}, {versions}, ResNet-18 ({weights}), {images}\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        half = options.test // 2
        write_synthetic(
            root / "datasets" / "synthetic",
            train=options.train,
            good=half,
            defects=half,
            size=options.size,
        )
        report_models(
            *(run(root, models_config(), options, share=share) for share in (True, False))
        )
        return report_settings(
            *(run(root, settings_config(), options, share=share) for share in (True, False))
        )


def report_models(shared: Run, alone: Run) -> None:
    """Print the grid of models."""
    print("| four models | whole command, CPU s | trials alone, CPU s |\n|---|--:|--:|")
    for name, result in (("shared", shared), ("without", alone)):
        print(f"| {name} | {result.cpu:.1f} | {sum(result.trial_cpu()):.1f} |")
    print(f"\nlargest difference of a score: {largest_difference(shared, alone):.1e}\n", flush=True)


def report_settings(shared: Run, alone: Run) -> int:
    """Print the search; the exit code."""
    print(
        "| 20 PatchCore settings | whole command, CPU s | first trial, CPU s | other 19 |\n|---|--:|--:|--:|"
    )
    for name, result in (("shared", shared), ("without", alone)):
        first, *others = result.trial_cpu()
        print(f"| {name} | {result.cpu:.1f} | {first:.1f} | {sum(others):.1f} |")
    built, difference = shared.times_built(), largest_difference(shared, alone)
    print(f"\nbuilt: {json.dumps(built)}; largest difference of a score: {difference:.1e}")
    return int(difference > ALLOWED or built.get("features") != 1 or built.get("coreset") != 1)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone-dir", help="folder that holds resnet18.pth; without one the weights are random"
    )
    parser.add_argument("--train", type=int, default=60, help="training images (default: 60)")
    parser.add_argument(
        "--test", type=int, default=40, help="test images, half of them defective (default: 40)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=900,
        help="side of the generated images in pixels (default: 900)",
    )
    parser.add_argument(
        "--img-size", type=int, default=256, help="side that they are resized to (default: 256)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
