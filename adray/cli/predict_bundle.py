"""`python -m adray predict FILE.adray IMAGES --out FOLDER`: judge images by a bundle.

Nothing here imports torch, which the machines of a line do not have.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from adray.bundle_predictions import make_folder, write_results
from adray.cli.bundle_file import loaded_bundle
from adray.cli.command_parser import CommandParser
from adray.cli.line_options import add_backend
from adray.found_images import find_images
from adray.language.catalogue import language_of, load_catalogue
from adray.runtime.model import UNREADABLE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: judge images and write what was found.

    Returns:
        The exit code, 1 where an image could not be judged.
    """
    options = _parser().parse_args(argv)
    images = find_images(options.images)
    bundle = loaded_bundle(options.bundle, options.threads, options.backend)
    out = Path(options.out)
    make_folder(out)
    for remark in images.remarks:
        print(remark)

    results = (bundle.predict(path, options.maps != "none") for path in images.paths)
    rows = write_results(results, out, bundle.threshold)
    counts = Counter(row["verdict"] for row in rows)
    say = load_catalogue(language_of(os.environ))
    said = say(
        "predict bundle",
        images=len(rows),
        anomalous=counts["anomalous"],
        threshold=f"{bundle.threshold:.9g}",
        unreadable=counts[UNREADABLE],
        table=out / "predictions.csv",
    )
    print(said)
    sentence = bundle.sentence(say.language)
    if sentence:
        print(sentence)
    return int(counts[UNREADABLE] > 0)


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray predict",
        description="Judge new images by a bundle, the file of a trained model. Its threshold is fixed.",
    )
    parser.add_argument("bundle", help="a file that `adray bundle` made (*.adray)")
    parser.add_argument(
        "images", nargs="+", help="image files, folders (with all below them) or glob patterns"
    )
    parser.add_argument(
        "--out", required=True, help="folder for predictions.csv, predictions.jsonl and maps"
    )
    parser.add_argument(
        "--maps",
        choices=("none", "values"),
        default="values",
        help="anomaly maps of the image's own size as 16-bit PNG, or none (default: values)",
    )
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: all)")
    add_backend(parser)
    return parser
