"""Run a bundle by TensorRT on a machine that has it: whether it judges the same, and how fast.

    pip install onnxruntime-gpu tensorrt
    python jobs/tensorrt_bundle.py part_a.adray [images/] --cache engines [--half]

onnxruntime gives TensorRT the parts of the graph that it can take, and runs the others on the GPU or
the CPU. Golden images, and those that are named, are judged by it and by the CPU. The exit code is 1
where a verdict is another, or, without --half, a score is further off than a bundle may be. Engines
are kept in the folder of --cache, for one size of image each, so that the next start is fast.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adray.runtime.archive import open_archive
from adray.runtime.golden import TOLERANCE, decode_golden, golden_images
from adray.runtime.graph_check import check_graph
from adray.runtime.model import GRAPH, VERDICTS, Bundle
from adray.runtime.picture import read_picture

TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = (TENSORRT, "CUDAExecutionProvider", "CPUExecutionProvider")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TIMED = 50


@dataclass(frozen=True)
class Judged:
    """What two ways to run a graph say of one image."""

    name: str
    """Of the image."""
    by_cpu: tuple[float, str]
    """Score and verdict."""
    by_other: tuple[float, str]
    """Score and verdict."""


def session(graph: bytes, providers: Sequence[str], cache: str, half: bool):
    """Load a graph.

    Args:
        graph: bytes of it.
        providers: of onnxruntime, the one that is preferred first.
        cache: folder of TensorRT's engines.
        half: let TensorRT count in float16.
    """
    import onnxruntime

    settings = {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": cache,
        "trt_fp16_enable": half,
    }
    with_settings = []
    for name in providers:
        with_settings.append((name, settings) if name == TENSORRT else name)
    return onnxruntime.InferenceSession(graph, providers=with_settings)


def judge(run, pixels: np.ndarray) -> tuple[float, str]:
    """Give score and verdict of an image."""
    score, verdict = run(["pred_score", "verdict"], {"image": pixels})
    return float(score), VERDICTS[int(verdict)]


def pictures_of(bundle: Bundle, place: Path | None) -> dict[str, np.ndarray]:
    """Decode the golden images, and those of a folder."""
    pictures = {image.file: decode_golden(bundle, image) for image in golden_images(bundle)}
    if place is None:
        return pictures
    for path in sorted(place.rglob("*")):
        if path.suffix.lower() in ENDINGS:
            pictures[str(path)] = read_picture(path, bundle.dtype)
    return pictures


def milliseconds(run, pixels: np.ndarray) -> float:
    """Take the median time of an image."""
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        judge(run, pixels)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def problems_of(judged: Sequence[Judged], half: bool) -> list[str]:
    """Say what is judged otherwise, a line each."""
    largest = max(abs(one.by_cpu[0]) for one in judged)
    lines = []
    for one in judged:
        error = abs(one.by_cpu[0] - one.by_other[0]) / max(largest, 1e-30)
        is_far = not half and not error <= TOLERANCE
        if one.by_cpu[1] != one.by_other[1] or is_far:
            lines.append(f"{one.name}: {one.by_cpu} by the CPU, {one.by_other} by the other")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Judge images by both, and print what differs and how long an image takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--cache", default="engines")
    parser.add_argument("--half", action="store_true", help="let TensorRT count in float16")
    parser.add_argument("--providers", nargs="+", default=PROVIDERS, help="of onnxruntime")
    options = parser.parse_args(argv)

    # TF32 has ten bits of a number where float32 has 23.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    import onnxruntime

    missing = set(options.providers) - set(onnxruntime.get_available_providers())
    if missing:
        print(f"this onnxruntime lacks {', '.join(sorted(missing))}; pip install onnxruntime-gpu")
        return 2

    archive = open_archive(options.bundle)
    graph = archive.read(GRAPH)
    check_graph(f"{options.bundle}: {GRAPH}", graph)
    pictures = pictures_of(Bundle(archive, 0, "onnxruntime"), options.images)
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    other = session(graph, options.providers, options.cache, options.half).run
    cpu = session(graph, PROVIDERS[-1:], options.cache, False).run
    judged = [Judged(name, judge(cpu, one), judge(other, one)) for name, one in pictures.items()]
    print(f"{len(judged)} images, loaded and judged in {time.perf_counter() - start:.1f} s")

    first = next(iter(pictures.values()))
    print(f"an image: {milliseconds(other, first):.2f} ms, CPU {milliseconds(cpu, first):.2f} ms")
    problems = problems_of(judged, options.half)
    for line in problems:
        print(f"PROBLEM: {line}")
    print("do not use it so" if problems else "each image gets the verdict of the CPU")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
