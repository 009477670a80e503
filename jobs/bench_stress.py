"""What scores under corruptions cost beside the forward passes that they are made of.

    python jobs/bench_stress.py outputs/mvtec/screw/padim/3fa9c1d2 --repeats 3

The trial's test images are scored as they are, as the trial itself scores them: pixels from the
cache, normalisation, the model. Then they are scored under each corruption. The two take turns, so
that a machine that does other work meanwhile slows both alike, and each figure is the median of the
ratios. Processor time stands beside wall time, since threads corrupt the next batch while the model
looks at this one.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from adray.changed_data import settings_of
from adray.conditions import KINDS, Corruption
from adray.data.loader import Loader
from adray.predict import load_predictor
from adray.settings import use_settings
from adray.stress import TiledImages, open_test_images, score_corrupted, stressable


@dataclass(frozen=True)
class Took:
    """What a pass took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of all threads."""


def timed(work: Callable[[], object]) -> Took:
    """Run some work, and say what it took."""
    wall = time.perf_counter()
    processor = time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Took(time.perf_counter() - wall, time.process_time() - processor)


def main() -> None:
    """Print a row for each kind, and the ratio over all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trial", type=Path, help="folder of a finished trial with its checkpoint")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of passes for each kind")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    record = stressable(options.trial)
    settings = settings_of(record)
    if settings is not None:
        use_settings(settings)
    trainer = load_predictor(options.trial, options.device).trainer
    images = open_test_images(record, trainer)
    print(f"{options.trial}: {len(images.samples)} images of {images.geometry.side} px")

    if isinstance(images, TiledImages) or images.geometry.crop_size is not None:
        raise SystemExit("a model with tiles or a centre crop reads other pixels; take another")
    config = trainer.train_config
    loader = Loader(
        images.samples,
        images.store,
        config.eval_batch_size or config.batch_size,
        device=options.device,
        normalize=config.normalize,
    )

    def plain() -> object:
        return trainer.predict(loader, keep_maps=False)

    plain()
    walls = []
    processors = []
    print("| kind | wall | processor time |")
    print("|---|--:|--:|")
    for kind in KINDS:
        corruption = Corruption(kind, options.severity)
        of_kind = []
        for _ in range(options.repeats):
            before = timed(plain)
            under = timed(functools.partial(score_corrupted, trainer, images, corruption))
            after = timed(plain)
            wall = 2 * under.wall / (before.wall + after.wall)
            processor = 2 * under.processor / (before.processor + after.processor)
            of_kind.append((wall, processor))
        walls.append(statistics.median(wall for wall, _ in of_kind))
        processors.append(statistics.median(processor for _, processor in of_kind))
        print(f"| `{kind}` | {walls[-1]:.2f} | {processors[-1]:.2f} |", flush=True)
    print(f"| all | {statistics.mean(walls):.2f} | {statistics.mean(processors):.2f} |")


if __name__ == "__main__":
    main()
