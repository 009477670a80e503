"""Train every configuration, made small, on a GPU and on the CPU, and compare what they say.

    python jobs/gpu_agreement.py                      all configurations, on cuda
    python jobs/gpu_agreement.py padim stfpm --seconds 120
    python jobs/gpu_agreement.py padim stfpm --precision bfloat16

A line per configuration: whether scores are finite, whether the obvious defects outscore the normal images, and how far
the model that was trained on the GPU scores otherwise on the CPU, as a part of the largest score; half precision is not
compared. The exit code is 1 where any of these fails. What does not fit into the seconds is named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny import TINY, tiny_subject, write_site

from adray.registry import ModelRegistry
from adray.settings import use_settings

_TOLERANCE = 1e-4
"""Of the largest score: full precision on both, in another order of sums."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare all that was asked for, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(TINY), help="all by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="float32", help="of the training")
    parser.add_argument("--seconds", type=float, default=180.0, help="no further one after this")
    options = parser.parse_args(argv)

    until = time.monotonic() + options.seconds
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        use_settings(write_site(Path(folder)))
        for place, name in enumerate(options.names):
            if time.monotonic() > until:
                print("not run, out of time:", *options.names[place:])
                break
            try:
                problem = compare(name, options.device, options.precision)
            except Exception as error:  # one configuration's failure is a line, too
                problem = f"{type(error).__name__}: {error}"
            print(f"{name:28} {problem or 'ok'}", flush=True)
            if problem:
                failed.append(name)
    return int(bool(failed))


def compare(name: str, device: str, precision: str) -> str:
    """Say what is wrong with a configuration on a device, empty where nothing is."""
    subject = tiny_subject(name)
    trainer = subject.trainer(device=device, precision=precision)
    trainer.fit(subject.loaders(trainer))
    scores = trainer.predict(subject.loaders(trainer).test)
    if not np.isfinite(scores.pred_score).all():
        return "scores are not finite"
    anomalous = scores.pred_score[scores.label == 1].mean()
    normal = scores.pred_score[scores.label == 0].mean()
    may_miss = "an_obvious_defect_scores_higher" in ModelRegistry.get(name).exceptions
    if anomalous <= normal and not may_miss:
        return f"defects score {anomalous:.4g}, normal images {normal:.4g}"
    if precision != "float32":
        return ""

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        trainer.save_model(path)
        on_cpu = subject.trainer()
        on_cpu.load_model(path)
    again = on_cpu.predict(subject.loaders(on_cpu).test)
    largest = max(float(np.abs(scores.pred_score).max()), 1e-12)
    difference = float(np.abs(again.pred_score - scores.pred_score).max()) / largest
    if difference > _TOLERANCE:
        return f"scores differ from the CPU's by {difference:.2g} of the largest"
    return ""


if __name__ == "__main__":
    sys.exit(main())
