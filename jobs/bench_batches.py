"""Whether batches pay on a CPU: images a second of a ResNet-18 by batch, workers and threads.

    python jobs/bench_batches.py [--side 128] [--rounds 8]

The ways take turns, since a busy machine is not the same from minute to minute.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from adray.components.feature_extractor import build_resnet

WAYS = ((1, 2, 1), (1, 1, 2), (4, 1, 2), (8, 1, 2), (4, 2, 1))
"""Batch, workers, and threads of each."""


class LastLayer(torch.nn.Module):
    """A ResNet-18 up to its third layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = build_resnet("resnet18", ["layer3"]).eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.backbone(image)
        return list(found.values())[-1] if isinstance(found, dict) else found[-1]


def rate(session: onnxruntime.InferenceSession, side: int, batch: int, workers: int) -> float:
    """Give images a second."""
    images = np.random.default_rng(0).random((batch, 3, side, side), dtype=np.float32)
    end = time.monotonic() + 1.5

    def work(_: int) -> int:
        count = 0
        while time.monotonic() < end:
            session.run(None, {"image": images})
            count += batch
        return count

    start = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        total = sum(pool.map(work, range(workers)))
    return total / (time.monotonic() - start)


def main() -> None:
    """Measure each way in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        example = torch.zeros(1, 3, options.side, options.side)
        axes = {"image": {0: "batch"}}
        names = ["image"]
        torch.onnx.export(
            LastLayer(), example, path, input_names=names, dynamic_axes=axes, dynamo=False
        )
        sessions = {}
        for threads in (1, 2):
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = threads
            sessions[threads] = onnxruntime.InferenceSession(path, settings)

    found: dict[tuple[int, int, int], list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for batch, workers, threads in WAYS:
            speed = rate(sessions[threads], options.side, batch, workers)
            found[batch, workers, threads].append(speed)
    for (batch, workers, threads), rates in found.items():
        median = statistics.median(rates)
        print(f"batch {batch}, {workers} workers of {threads} threads: {median:.1f} images/s")


if __name__ == "__main__":
    main()
