"""How much decoding once saves: images per second and per CPU second, from files, into the cache and from it.

    python jobs/bench_data.py /data/mvtec/grid

plain   a torch DataLoader over PIL: decode, resize, float, normalise, each time anew
cold    first use: contents hashed, images decoded, cache file built, one pass through our loader
open    next use: contents known, cache file mapped and its checksum verified, no pass
warm    one pass after another through our loader
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adray.data.base import Sample, is_image_name
from adray.data.decode import Geometry
from adray.data.loader import Loader
from adray.data.pixels import PixelStore
from adray.settings import Settings

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class PlainDataset(Dataset[Tensor]):
    """What most training scripts do for each image of each epoch."""

    def __init__(self, paths: Sequence[Path], img_size: int) -> None:
        self.paths, self.img_size = list(paths), img_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            small = image.convert("RGB").resize(
                (self.img_size, self.img_size), Image.Resampling.BILINEAR
            )
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        return (pixels.float().div(255) - MEAN) / STD


def measure(images: int, work: Callable[[], None], repeats: int) -> dict[str, float]:
    """Run `work` `repeats` times; rates over all of them, and the median rate of one."""
    wall, cpu = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return {
        "images_per_s": images * repeats / sum(wall),
        "images_per_cpu_s": images * repeats / sum(cpu),
        "median_images_per_cpu_s": images / float(np.median(cpu)),
    }


def exhaust(batches: Loader | DataLoader[Tensor]) -> None:
    """Read every batch once."""
    for _ in batches:
        pass


def find_samples(folder: Path) -> list[Sample]:
    """All images below a folder, masks aside, as samples of one category."""
    paths = sorted(
        p for p in folder.rglob("*") if is_image_name(p.name) and "ground_truth" not in p.parts
    )
    return [
        Sample(p, (), 0, "good", folder.parent.name, folder.name, "train", str(p)) for p in paths
    ]


def main() -> None:
    """Measure and print one JSON line per row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with images, searched with all below it")
    parser.add_argument("--img-size", type=int, default=256, help="pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--plain-repeats", type=int, default=3)
    parser.add_argument("--warm-repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    samples = find_samples(arguments.folder)
    if not samples:
        parser.error(f"{arguments.folder} holds no images")
    with contextlib.ExitStack() as stack:
        rows = run(samples, arguments, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    for name, row in rows.items():
        print(
            json.dumps(
                {
                    "row": name,
                    "images": len(samples),
                    **{key: round(value, 1) for key, value in row.items()},
                }
            )
        )
    ratio = rows["warm"]["images_per_cpu_s"] / rows["plain"]["images_per_cpu_s"]
    print(json.dumps({"warm_over_plain_per_cpu_s": round(ratio, 1)}))


def run(
    samples: Sequence[Sample], arguments: argparse.Namespace, cache: Path
) -> dict[str, dict[str, float]]:
    """The four rows, plain first so that the files are in the page cache for all."""
    settings, geometry = Settings(cache_dir=str(cache)), Geometry(arguments.img_size)
    count, paths = len(samples), [sample.path for sample in samples]

    def open_loader() -> Loader:
        store = PixelStore.open(samples, geometry, settings)
        return Loader(samples, store, arguments.batch_size, device=arguments.device, shuffle_seed=0)

    plain = DataLoader(
        PlainDataset(paths, arguments.img_size), batch_size=arguments.batch_size, shuffle=True
    )
    exhaust(plain)
    rows = {"plain": measure(count, lambda: exhaust(plain), arguments.plain_repeats)}
    rows["cold"] = measure(count, lambda: exhaust(open_loader()), 1)
    rows["open"] = measure(count, lambda: open_loader() and None, 5)
    loader = open_loader()
    exhaust(loader)
    rows["warm"] = measure(count, lambda: exhaust(loader), arguments.warm_repeats)
    return rows


if __name__ == "__main__":
    main()
