"""Measure what the pixel metrics cost, ours together against one call each of scikit-learn and of anomalib.

    python jobs/bench_metrics.py                     # 115 maps of 256 x 256 pixels
    python jobs/bench_metrics.py --maps 40 --size 512

Each line runs in a process of its own and gives the CPU seconds of the best of --repeat runs, the memory it took
beyond the maps and masks, and the values. Without anomalib installed its line is left out. With it, the exit code is 1
when ours costs more than a tenth of its CPU time.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from adray.curves import aupr, aupro, auroc, error_bound, f1_max
from adray.metrics import pixel_metrics
from adray.pixel_curves import binned_curve

ALLOWED_SHARE = 0.1
PEER_BATCH = 32


def main() -> int:
    """Print the table; the exit code."""
    options = parse_options()
    maps, masks = make_maps(options.maps, options.size, options.seed)
    pixels, megabytes = maps.size / 1e6, (maps.nbytes + masks.nbytes) / 2**20
    print(
        f"{options.maps} maps of {options.size} px: {pixels:.1f} M pixels, {megabytes:.0f} MiB with their masks"
    )
    print(f"{'':34s}{'CPU s':>8s}{'+MiB':>7s}   auroc     aupr      f1_max    aupro     aupro_05")
    ours = measure(
        "adray, all five (default)",
        lambda: list(pixel_metrics(maps, masks).values()),
        options.repeat,
    )
    measure(
        "adray, exact=True",
        lambda: list(pixel_metrics(maps, masks, exact=True).values()),
        options.repeat,
    )
    measure(
        "adray, histogram whatever its bound", lambda: histogram_values(maps, masks), options.repeat
    )
    measure("scikit-learn, auroc + aupr only", lambda: sklearn_values(maps, masks), options.repeat)
    print(f"error bound stated by the histogram: {error_bound(binned_curve(maps, masks)):.1e}")
    if importlib.util.find_spec("anomalib") is None:
        print("anomalib is not installed: no comparison with it")
        return 0
    peer = measure("anomalib, four calls", lambda: anomalib_values(maps, masks), options.repeat)
    print(
        f"ours costs {ours / peer:.3f} of anomalib's CPU time; at most {ALLOWED_SHARE} is allowed"
    )
    return int(ours > ALLOWED_SHARE * peer)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--maps",
        type=int,
        default=115,
        help="number of anomaly maps (default: 115, MVTec AD's mean)",
    )
    parser.add_argument(
        "--size", type=int, default=256, help="side of a map in pixels, at least 96 (default: 256)"
    )
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs per line, the best one counts (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the made-up maps (default: 0)")
    options = parser.parse_args()
    if options.maps < 2 or options.size < 96 or options.repeat < 1:
        parser.error("--maps must be at least 2, --size at least 96, --repeat at least 1")
    return options


def make_maps(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth made-up maps and masks (N, H, W): three images of four have one to three rectangular defects."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), dtype=bool)
    for i in range(count):
        for _ in range(rng.integers(1, 4) if i % 4 else 0):
            top, left = rng.integers(0, size - 60, 2)
            height, width = rng.integers(8, 40, 2)
            masks[i, top : top + height, left : left + width] = True
    maps = np.stack([ndimage.gaussian_filter(mask.astype(np.float32), 6) for mask in masks])
    for one in maps:
        one += 2 * ndimage.gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), 4)
    return maps, masks


def measure(title: str, run: Callable[[], list[float]], repeat: int) -> float:
    """Print a line of the table; CPU seconds of the best run."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_measure_here, args=(run, repeat, sender)
    )
    child.start()
    sender.close()
    try:
        seconds, megabytes, values = receiver.recv()
    except EOFError:
        raise SystemExit(f"{title}: the run failed, see above") from None
    child.join()
    print(
        f"{title:34s}{seconds:8.3f}{megabytes:7.0f}   {'  '.join(f'{value:.6f}' for value in values)}",
        flush=True,
    )
    return seconds


def _measure_here(run: Callable[[], list[float]], repeat: int, sender) -> None:
    run()  # imports and first touches, so that they count neither as time nor as memory of the metric
    seconds = []
    before = reset_peak()
    for _ in range(repeat):
        start = time.process_time()
        values = run()
        seconds.append(time.process_time() - start)
    sender.send((min(seconds), memory_mib("VmHWM") - before, values))


def reset_peak() -> float:
    """Start the peak of this process's memory anew; MiB in use now (Linux, proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mib("VmRSS")


def memory_mib(field: str) -> float:
    """A figure of /proc/self/status in MiB."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def histogram_values(maps: np.ndarray, masks: np.ndarray) -> list[float]:
    """The four metrics off the histogram."""
    curve = binned_curve(maps, masks)
    return [auroc(curve), aupr(curve), f1_max(curve)[0], aupro(curve)]


def sklearn_values(maps: np.ndarray, masks: np.ndarray) -> list[float]:
    """AUROC and average precision of scikit-learn, which has no fast F1 max and no AUPRO."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, scores = masks.ravel(), maps.ravel()
    return [float(roc_auc_score(labels, scores)), float(average_precision_score(labels, scores))]


def anomalib_values(maps: np.ndarray, masks: np.ndarray) -> list[float]:
    """The four metric classes of anomalib 2.7, fed in batches as its engine does; F1's is the threshold, not the F1."""
    import torch
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
    from anomalib.metrics.threshold.f1_adaptive_threshold import _F1AdaptiveThreshold

    scores, labels = torch.from_numpy(maps), torch.from_numpy(masks).int()
    values = []
    for make in (_AUROC, _AUPR, _F1AdaptiveThreshold, _AUPRO):
        metric = make()
        for score, label in zip(scores.split(PEER_BATCH), labels.split(PEER_BATCH), strict=True):
            metric.update(score, label)
        values.append(float(metric.compute()))
    return values


if __name__ == "__main__":
    raise SystemExit(main())
