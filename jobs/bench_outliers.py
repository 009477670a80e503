"""Plant defects among real training normals, and count how many of them stand on top of each list.

    python jobs/bench_outliers.py DATASETS BACKBONES --draws 3

Defective test images are put among the normals (`adray.conditions`, overlap), as `contamination`
does, and `adray outliers` ranks all of them. With k planted, precision is the part of the first k of
a list that was planted: of the list of all methods together, of each method alone, and at random,
where it is the planted share itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from adray import outliers
from adray.conditions import Condition
from adray.data.loaders import get_dataloaders
from adray.settings import get_globals, set_globals

CATEGORIES = ("screw", "grid", "hazelnut")
SHARES = (0.05, 0.1)


def planted_loaders(condition):
    """Give a function that opens a category as `outliers` does, with defects among its normals."""

    def open_planted(*names, **options):
        return get_dataloaders(*names, **options, condition=condition)

    return open_planted


def figures_of_draw(category, share, draw, names):
    """Rank one draw of planted defects.

    Returns:
        The number of defects, the number of images, and the precision of each list.
    """
    condition = Condition(contamination=share, test_defects="overlap", draw=draw)
    with mock.patch.object(outliers, "get_dataloaders", planted_loaders(condition)):
        lists = list(outliers.score_normals("mvtec", category, names, get_globals(), "cpu"))
    samples = lists[0].samples
    # A planted image lies in the folder of the tests.
    is_planted = np.array(["/test/" in f"/{sample.key}" for sample in samples])
    count = int(is_planted.sum())

    def precision(order):
        return float(is_planted[order[:count]].mean())

    together = outliers.ranked(lists)
    places = {id(sample): i for i, sample in enumerate(samples)}
    figures = {"all lists": precision([places[id(one.sample)] for one in together])}
    for one in lists:
        figures[one.name] = precision(np.argsort(-one.scores, kind="stable"))
    figures["random"] = count / len(samples)
    return count, len(samples), figures


def main():
    """Print a row for every category and share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("datasets", help="folder that holds mvtec/<category>")
    parser.add_argument("backbones", help="folder with resnet18.pth")
    parser.add_argument("--draws", type=int, default=3, help="draws of the planted defects")
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, help="default: %(default)s")
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        set_globals(
            dataset_dir=str(Path(options.datasets).resolve()),
            backbone_dir=options.backbones,
            cache_dir=str(Path(scratch) / "cache"),
        )
        names = outliers.methods_here(options.backbones)
        has_head = False
        for category in options.categories:
            for share in options.shares:
                started = time.process_time()
                draws = range(1, options.draws + 1)
                found = [figures_of_draw(category, share, draw, names) for draw in draws]
                lists = list(found[0][2])
                if not has_head:
                    print(f"{'category':9} {'share':>5} {'planted':>8}  {'  '.join(lists)}  CPU s")
                    has_head = True
                cells = []
                for name in lists:
                    values = [figures[name] for _, _, figures in found]
                    cells.append(f"{np.mean(values):{len(name)}.2f}")
                count, images, _ = found[0]
                spent = (time.process_time() - started) / options.draws
                planted = f"{count}/{images}"
                print(
                    f"{category:9} {share:5.2f} {planted:>8}  {'  '.join(cells)}  {spent:5.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
