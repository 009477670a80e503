"""Measure how fast every configuration trains and predicts, beside anomalib's where that is installed.

    python jobs/bench_models.py --models stfpm patchcore-resnet18
    python jobs/bench_models.py --models all --images 64 --device cuda --json speed.json

Each measurement is a process of its own, ours and the peer's in turn, --repeats times; the table gives medians. Both
get the same generated images, decoded beforehand, at the size and batch of our registry's row (or --img-size and
--batch-size), with untrained backbones, since weights do not change the speed. The peer trains with Lightning's
barebones trainer: no validation, logging, checkpoint or metrics, which is its fastest way.

Columns: images per second of the first epoch (in which a frozen stage runs, and one-pass methods do all they do), of
the later ones, and of prediction with maps; the ratio of ours to the peer's, `fit` for all epochs together; peak memory
in MB (of the device; on a CPU of the process, its libraries included); MB of what is stored of the trained model.
`cached` is an epoch of ours on cached features against its training steps alone, on features that lie ready; `floor`
is our prediction against the bare forward pass of the frozen backbone. The exit code is 1 where ours is below 0.9 of
the peer's in `fit` or `predict`, `cached` is above 1.1, our memory above 1.1 of the peer's, or ours fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adray.data.loader import Loader
from adray.data.loaders import Loaders, get_dataloaders
from adray.data.synthetic import write_synthetic
from adray.registry import ModelRegistry
from adray.settings import Settings, use_settings
from adray.trainer import BaseTrainer

SLOWEST, CACHED, MEMORY = 0.9, 1.1, 1.1
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "padim": ("Padim", {"backbone": "resnet18"}),
    "patchcore": ("Patchcore", {"backbone": "wide_resnet50_2"}),
    "patchcore-resnet18": ("Patchcore", {"backbone": "resnet18"}),
    "dfkde": ("Dfkde", {"backbone": "resnet18"}),
    "cflow-resnet18": ("Cflow", {"backbone": "resnet18"}),
    "cflow-wide-resnet50": ("Cflow", {"backbone": "wide_resnet50_2"}),
    "fastflow-resnet18": ("Fastflow", {"backbone": "resnet18", "conv3x3_only": True}),
    "fastflow-wide-resnet50": ("Fastflow", {"backbone": "wide_resnet50_2"}),
    "fastflow-deit": (
        "Fastflow",
        {"backbone": "deit_base_distilled_patch16_384", "flow_steps": 20, "hidden_ratio": 0.16},
    ),
    "csflow": ("Csflow", {}),
    "uflow-wide-resnet50": ("Uflow", {"backbone": "wide_resnet50_2"}),
    "stfpm": ("Stfpm", {"backbone": "resnet18"}),
    "fre": ("Fre", {"backbone": "resnet50"}),
    "reverse-distillation": ("ReverseDistillation", {"backbone": "wide_resnet50_2"}),
    "reverse-distillation-resnet18": ("ReverseDistillation", {"backbone": "resnet18"}),
    "efficientad-small": ("EfficientAd", {"model_size": "small"}),
    "efficientad-medium": ("EfficientAd", {"model_size": "medium"}),
    "ganomaly": ("Ganomaly", {}),
    "draem": ("Draem", {"dtd_dir": None}),
    "dsr": ("Dsr", {}),
    "dfm": ("Dfm", {"backbone": "resnet50"}),
    "dfm-resnet18": ("Dfm", {"backbone": "resnet18", "pooling_kernel_size": 2}),
    "dfm-wide-resnet50": ("Dfm", {"backbone": "wide_resnet50_2"}),
    "cfa": ("Cfa", {"backbone": "wide_resnet50_2"}),
    "cfa-resnet18": ("Cfa", {"backbone": "resnet18"}),
    "dinomaly-small-224": ("Dinomaly", {"encoder_name": "vit_small_patch14_reg4_dinov2"}),
    "dinomaly-small-392": ("Dinomaly", {"encoder_name": "vit_small_patch14_reg4_dinov2"}),
    "dinomaly-base-224": ("Dinomaly", {"encoder_name": "vit_base_patch14_reg4_dinov2"}),
    "dinomaly-base-392": ("Dinomaly", {"encoder_name": "vit_base_patch14_reg4_dinov2"}),
    "supersimplenet": ("Supersimplenet", {}),
    "uninet": ("UniNet", {}),
}
"""The peer's class and arguments that make it the same network; configurations without a twin are measured alone."""


def main() -> int:
    """Measure in processes, print the table; the exit code."""
    options = parse_options()
    if options.worker:
        print(json.dumps(run_worker(options)))
        return 0
    has_peer = importlib.util.find_spec("anomalib") is not None
    print(HEADER)
    rows = []
    for name in ModelRegistry.select(options.models):
        rows.append(
            measure_row(
                name, ("ours", "peer") if has_peer and name in PEERS else ("ours",), options.repeats
            )
        )
        print(format_row(rows[-1]), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps({"command": sys.argv, "rows": rows}, indent=1))
    slow = [row["name"] for row in rows if misses_target(row)]
    print(f"below a target: {', '.join(slow) or 'none'}")
    return int(bool(slow))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["all"], help="names or patterns (default: all)"
    )
    parser.add_argument(
        "--images", type=int, default=32, help="training images, and test images (default: 32)"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs of trained models (default: 3)"
    )
    parser.add_argument("--img-size", type=int, help="in place of each configuration's own")
    parser.add_argument("--batch-size", type=int, help="in place of each configuration's own")
    parser.add_argument("--repeats", type=int, default=1, help="measurements of each (default: 1)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch on a CPU (default: 1)"
    )
    parser.add_argument(
        "--precision", default="float32", help="of ours; the peer stays float32 (default: float32)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", help="also write all figures to this file")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images < 2 or min(options.epochs, options.repeats, options.threads) < 1:
        parser.error("--images must be at least 2, --epochs, --repeats and --threads at least 1")
    return options


def measure_row(name: str, sides: Sequence[str], repeats: int) -> dict[str, Any]:
    """The medians of one configuration, its sides measured in turn."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            runs[side].append(measure(side, name))
    return {"name": name, **{side: median(measured) for side, measured in runs.items()}}


def measure(side: str, name: str) -> dict[str, Any]:
    """One measurement in a fresh process; what went wrong under ``"error"``."""
    # the last value of an option counts
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", side, "--models", name]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, or the first error."""
    failed = next((run for run in runs if "error" in run), None)
    return failed or {key: statistics.median(run[key] for run in runs) for key in runs[0]}


HEADER = (
    f"{'':30} {'first epoch':^17} {'later epochs':^17} {'fit':>5} {'predict':^17} {'':>5} {'memory MB':^13} "
    f"{'stored MB':^13} {'':>6} {'':>5}\n"
    f"{'images per second':30} {'ours':>8} {'peer':>8} {'ours':>8} {'peer':>8} {'ratio':>5} {'ours':>8} {'peer':>8} "
    f"{'ratio':>5} {'ours':>6} {'peer':>6} {'ours':>6} {'peer':>6} {'cached':>6} {'floor':>5}"
)


PARTS = {"cached": 6, "floor": 5}
"""Ratios of ours alone, and their width in the table."""


def format_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    ours, peer = row["ours"], row.get("peer", {})
    if "error" in ours:
        return f"{row['name']:30} error: {ours['error']}"

    def both(key: str, width: int, digits: int) -> str:
        return " ".join(
            f"{side[key]:{width}.{digits}f}" if key in side else f"{'-':>{width}}"
            for side in (ours, peer)
        )

    def ratio(key: str) -> str:
        return f"{ours[key] / peer[key]:5.2f}" if key in peer else f"{'-':>5}"

    parts = " ".join(
        f"{ours[key]:{width}.2f}" if key in ours else f"{'-':>{width}}"
        for key, width in PARTS.items()
    )
    speeds = f"{both('first', 8, 2)} {both('later', 8, 2)} {ratio('fit')} {both('predict', 8, 2)} {ratio('predict')}"
    failed = f"  peer: {peer['error']}" if "error" in peer else ""
    return f"{row['name']:30} {speeds} {both('memory_mb', 6, 0)} {both('stored_mb', 6, 1)} {parts}{failed}"


def misses_target(row: dict[str, Any]) -> bool:
    """Whether a row is below what was promised, or could not be measured."""
    ours, peer = row["ours"], row.get("peer", {})
    if "error" in ours:
        return True
    slower = any(key in peer and ours[key] < SLOWEST * peer[key] for key in ("fit", "predict"))
    larger = ours["memory_mb"] > MEMORY * peer.get("memory_mb", math.inf)
    return slower or larger or ours.get("cached", 0.0) > CACHED


# In the process of one measurement


def run_worker(options: argparse.Namespace) -> dict[str, float]:
    """Figures of one side, on images generated and decoded here."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer, loaders = make_trial(options, Path(folder))
        if options.worker == "ours":
            return run_ours(trainer, loaders, Path(folder))
        return run_peer(*PEERS[options.models[0]], trainer, loaders, Path(folder))


def make_trial(options: argparse.Namespace, folder: Path) -> tuple[BaseTrainer, Loaders]:
    """Our trainer with untrained weights, and the images that both sides get."""
    good = options.images // 2
    write_synthetic(
        folder / "parts", train=options.images, good=good, defects=options.images - good, size=256
    )
    use_settings(Settings(str(folder), str(folder), str(folder), cache_dir=str(folder / "cache")))
    name = options.models[0]
    train: dict[str, Any] = {
        "holdout": 0.0,
        "num_epochs": options.epochs,
        "precision": options.precision,
    }
    if options.img_size:
        train |= {"img_size": options.img_size, "crop_size": None}
    if options.batch_size:
        train["batch_size"] = options.batch_size
    model = {"auxiliary": "parts/weave/train"} if ModelRegistry.resolve(name).auxiliary else None
    trainer = ModelRegistry.get_trainer(
        name, train=train, model=model, weights="random", device=options.device
    )
    config = trainer.train_config
    loaders = get_dataloaders(
        "parts", "weave", img_size=config.img_size, crop_size=config.crop_size, batch_size=config.batch_size,
        normalize=config.normalize, holdout=0.0, device=options.device, supervised=trainer.supervised,
    )  # fmt: skip
    return trainer, loaders


def run_ours(trainer: BaseTrainer, loaders: Loaders, folder: Path) -> dict[str, float]:
    """Train and predict; where a stage is frozen, also run it alone, and train on features that lie ready."""
    device = trainer.device
    marks = [now(device)]
    trainer.fit(loaders, report=lambda _step, _row: marks.append(now(device)))
    figures = fit_figures(marks, now(device), len(loaders.train.samples))
    for _ in range(2):  # once to warm up
        started = now(device)
        trainer.predict(loaders.test)
    seconds = now(device) - started
    figures["predict"] = len(loaders.test.samples) / seconds
    figures["memory_mb"] = peak_memory(device)
    trainer.save_model(folder / "model.pth")
    figures["stored_mb"] = (folder / "model.pth").stat().st_size / 1e6
    if trainer.shares_features:
        figures["floor"] = seconds / forward_seconds(trainer.model.extractor, loaders.test)
    if len(marks) > 2 and hasattr(trainer.model, "features"):
        later = (marks[-1] - marks[1]) / (len(marks) - 2)
        figures["cached"] = later / trainable_seconds(trainer, loaders.train)
    return figures


@torch.no_grad()
def forward_seconds(backbone: nn.Module, loader: Loader) -> float:
    """One pass of a backbone over batches that lie on the device."""
    images = [batch.image for batch in loader]
    seconds = []
    for _ in range(3):  # once to warm up
        started = now(loader.device)
        for image in images:
            backbone(image)
        seconds.append(now(loader.device) - started)
    return min(seconds)


def trainable_seconds(trainer: BaseTrainer, loader: Loader) -> float:
    """One epoch of training steps on batches and features that lie on the device."""
    batches = [trainer.with_features(batch) for batch in loader]
    trainer.model.train()
    seconds = []
    for _ in range(2):
        started = now(trainer.device)
        for batch in batches:
            trainer.train_step(batch)
        seconds.append(now(trainer.device) - started)
    return min(seconds)


def run_peer(
    cls: str, arguments: dict[str, Any], trainer: BaseTrainer, loaders: Loaders, folder: Path
) -> dict[str, float]:
    """The same with anomalib's network."""
    import anomalib_peer

    device, config = trainer.device, trainer.train_config
    epochs = 1 if trainer.single_pass else config.num_epochs
    train, test = list(loaders.train), list(loaders.test)
    module = anomalib_peer.make_module(cls, arguments, config.input_size, config.batch_size, folder)
    marks = [now(device)]
    anomalib_peer.fit(module, train, epochs, device, lambda: marks.append(now(device)))
    figures = fit_figures(marks, now(device), len(loaders.train.samples))
    for _ in range(2):  # once to warm up
        started = now(device)
        anomalib_peer.predict(module, test, device)
    figures["predict"] = len(loaders.test.samples) / (now(device) - started)
    figures["memory_mb"] = peak_memory(device)
    torch.save(module.state_dict(), folder / "model.pth")
    return figures | {"stored_mb": (folder / "model.pth").stat().st_size / 1e6}


def fit_figures(marks: list[float], end: float, images: int) -> dict[str, float]:
    """Images per second from the start, the end of each epoch, and the end of all."""
    epochs = len(marks) - 1
    figures = {"fit": images * epochs / (end - marks[0])}
    if epochs == 1:
        return figures | {"first": figures["fit"]}
    return figures | {
        "first": images / (marks[1] - marks[0]),
        "later": images * (epochs - 1) / (marks[-1] - marks[1]),
    }


def now(device: torch.device) -> float:
    """Seconds, once the device is done; CPU seconds of the process where that is the device, as machines are shared."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in MB: of the device, or on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
