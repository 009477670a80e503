"""The same grid as a whole process through anomalib's engine and through adray's sweep.

    python jobs/bench_peer.py
    python jobs/bench_peer.py --ours                                                         (adray alone)
    python jobs/bench_peer.py --ours --num-cpus 1                                            (a trial at a time)
    python jobs/bench_peer.py --train 12 --test 8 --size 256 --img-size 64 --epochs 1        (a trial run)

Three categories of generated images; ResNet-18 with untrained weights, since weights do not change what is measured;
equal image size, batch, epochs and coreset ratio; one thread of torch per process. Two groups: models that look at the
training images once (padim, patchcore, dfm, dfkde), and trained ones (stfpm, fastflow). CPU seconds and memory are of
the whole process tree, imports and Ray included; *written* are results, checkpoints and caches.

What is not comparable: the peer scores the test set twice (it validates on it), draws every test image and stores a
checkpoint per trial. adray draws 8 images of a trial, stores a checkpoint too, computes AUPRO, AP, confidence
intervals and five thresholds besides, and writes a report. ``lean`` is the peer without its pictures.
The peer's trials run one after the other in one process, which is its fastest way on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from process_tree import Usage, bytes_below, run_measured

from adray.data.synthetic import write_synthetic
from adray.results.store import all_trials

CATEGORIES = ("weave", "grain", "gasket")
GROUPS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "one pass": {
        "padim": ("Padim", {"backbone": "resnet18"}),
        "patchcore-resnet18": ("Patchcore", {"backbone": "resnet18"}),
        "dfm-resnet18": ("Dfm", {"backbone": "resnet18", "pooling_kernel_size": 2}),
        "dfkde": ("Dfkde", {"backbone": "resnet18"}),
    },
    "trained": {
        "stfpm": ("Stfpm", {"backbone": "resnet18"}),
        "fastflow-resnet18": ("Fastflow", {"backbone": "resnet18", "conv3x3_only": True}),
    },
}
"""Our configuration, and the peer's class and arguments that make it the same network."""
WANTED = {"one pass": 5.0, "trained": 1.2}
"""How many times less CPU adray has to take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; the exit code is 1 where adray does not take as much less as is wanted."""
    options = parse_options(argv)
    if options.worker:
        run_peer(options)
        return 0
    programs = ["adray", "ray", "torch"]
    if not options.ours:
        if importlib.util.find_spec("anomalib") is None:
            raise SystemExit(
                "anomalib is not installed here: pip install anomalib, in an environment of its own; "
                "--ours measures adray alone"
            )
        programs.insert(1, "anomalib")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in programs)
    images = (
        f"{options.train} + {options.test} images of {options.size} px at {options.img_size} px"
    )
    print(f"{date.today()}, {versions}; {len(CATEGORIES)} categories of {images};")
    print(
        f"{options.epochs} epochs where trained, coreset ratio {options.coreset_ratio}; {os.cpu_count()} cores\n"
    )
    print("| models | | CPU s | wall s | peak memory MB | written MB | CPU, times adray's |")
    print("|---|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        half = options.test // 2
        write_synthetic(
            root / "datasets" / "parts",
            train=options.train,
            good=half,
            defects=half,
            size=options.size,
        )
        ratios = {group: measure_group(root, group, options) for group in options.groups}
    if options.ours:
        return 0
    missed = [group for group, ratio in ratios.items() if ratio < WANTED[group]]
    print(f"\nwanted: {WANTED}; missed: {', '.join(missed) or 'none'}")
    return int(bool(missed))


def measure_group(root: Path, group: str, options: argparse.Namespace) -> float:
    """Print the rows of a group; how many times adray's CPU seconds the peer took as it comes."""
    ours, written = measure_ours(root, group, options)
    print(format_row(group, "adray", ours, written, 1.0), flush=True)
    if options.ours:
        return 1.0
    ratios = []
    for side, lean in (("anomalib", False), ("anomalib, lean", True)):
        place = root / f"peer-{group.replace(' ', '-')}-{lean}"
        place.mkdir()
        command = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--worker",
            group,
            "--root",
            str(root),
            "--out",
            str(place),
        ]
        usage = run_measured(
            [*command, *(["--lean"] if lean else [])], place / "output.txt", environment()
        )
        ratios.append(usage.cpu / ours.cpu)
        print(format_row("", side, usage, bytes_below(place), ratios[-1]), flush=True)
    return ratios[0]


def measure_ours(root: Path, group: str, options: argparse.Namespace) -> tuple[Usage, int]:
    """The grid as a sweep, and the bytes that it left."""
    place = root / f"ours-{group.replace(' ', '-')}"
    place.mkdir()
    train = {"img_size": options.img_size, "batch_size": 32, "holdout": 0.0}
    overrides: dict[str, Any] = {name: {"train": train} for name in GROUPS[group]}
    if group == "trained":
        overrides = {
            name: {"train": {**train, "num_epochs": options.epochs}} for name in GROUPS[group]
        }
    else:
        overrides["patchcore-resnet18"]["model"] = {"coreset_ratio": options.coreset_ratio}
    settings = {
        "dataset_dir": root / "datasets",
        "output_dir": place / "outputs",
        "cache_dir": place / "cache",
    }
    config = {
        "name": "peer",
        "weights": "random",
        "settings": {name: str(path) for name, path in settings.items()},
        "grid": {"models": list(GROUPS[group]), "datasets": {"parts": list(CATEGORIES)}},
        "overrides": overrides,
    }
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "adray.sweep", str(file)]
    if options.num_cpus is not None:
        command += ["--num-cpus", str(options.num_cpus)]
    usage = run_measured(command, place / "output.txt", environment())
    done = [record for record in all_trials(place / "outputs") if record.result]
    if len(done) != len(GROUPS[group]) * len(CATEGORIES):
        raise SystemExit(
            f"only {len(done)} trials of the sweep have a result:\n{(place / 'output.txt').read_text()}"
        )
    return usage, bytes_below(place)


def environment() -> dict[str, str]:
    """Of both sides: one thread, no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def format_row(group: str, side: str, usage: Usage, written: int, ratio: float) -> str:
    """One line of the table."""
    figures = f"{usage.cpu:.1f} | {usage.wall:.1f} | {usage.peak_mb:.0f} | {written / 1e6:.0f} | {ratio:.1f}"
    return f"| {group} | {side} | {figures} |"


def run_peer(options: argparse.Namespace) -> None:
    """The grid through the peer's engine: fit and test of each model on each category."""
    import anomalib_peer
    import torch

    torch.set_num_threads(1)
    for name, (cls, arguments) in GROUPS[options.worker].items():
        if cls == "Patchcore":
            arguments = {**arguments, "coreset_sampling_ratio": options.coreset_ratio}
        epochs = options.epochs if options.worker == "trained" else None
        for category in CATEGORIES:
            found = anomalib_peer.run_engine(
                cls, arguments, Path(options.root) / "datasets" / "parts", category, options.img_size, epochs,
                Path(options.out), options.lean,
            )  # fmt: skip
            print(json.dumps({"model": name, "category": category, **found}), flush=True)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train", type=int, default=60, help="training images of a category (default: 60)"
    )
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
    parser.add_argument(
        "--epochs", type=int, default=4, help="epochs of the trained models (default: 4)"
    )
    parser.add_argument(
        "--coreset-ratio", type=float, default=0.02, help="of PatchCore (default: 0.02)"
    )
    parser.add_argument(
        "--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="(default: all)"
    )
    parser.add_argument("--ours", action="store_true", help="measure adray alone")
    parser.add_argument(
        "--num-cpus", type=int, help="of adray's sweep; with 1 it runs a trial at a time"
    )
    for hidden in ("--worker", "--root", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--lean", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
