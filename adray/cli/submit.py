"""`python -m adray submit STORE TRIAL ... --to AD2`: what a benchmark's server takes, as one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adray.cli.command_parser import CommandParser
from adray.cli.options import add_accept, add_device, add_model_places, positive, use_model_places
from adray.language.catalogue import spoken

BENCHMARKS = ("AD2",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: check that nothing is missing, score the images and write the file."""
    options = _parser().parse_args(argv)
    use_model_places(options)
    store = Path(options.store)

    # Torch is not needed for `--help`.
    from adray.submit import plan_submission, write_submission

    data = Path(options.data) if options.data else None
    parts = plan_submission(store, options.trials, data)
    out = Path(options.out or store / f"submission_{options.to}.tar.gz")
    out.parent.mkdir(parents=True, exist_ok=True)
    written = write_submission(
        parts, out, options.device, options.map_side, options.accept_other_weights
    )
    for accepted in written.accepted:
        print(spoken("accepted", what=accepted))
    size = f"{out.stat().st_size / 1e6:.1f}"
    numbers = {"images": written.images, "categories": len(parts), "size": size}
    print(spoken("submit written", path=out, **numbers))
    return 0


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    parser = CommandParser(
        prog="python -m adray submit",
        description="Write what the server of MVTec AD 2 takes, as one tar.gz: anomaly maps of all "
        "private images as float16 TIFF and verdicts by pixel as PNG. Pixels above mean + 3 standard "
        "deviations of the held-out normals' maps are anomalous. A submission that is not complete "
        "is refused with all that is missing.",
    )
    parser.add_argument("store", metavar="STORE", help="the output_dir of sweeps")
    parser.add_argument(
        "trials",
        nargs="+",
        metavar="TRIAL",
        help="one for each category: ids as `python -m adray status STORE` prints them, or folders",
    )
    parser.add_argument("--to", choices=BENCHMARKS, required=True, help="the benchmark")
    parser.add_argument(
        "--data", help="folder of the data set; where the trials found it by default"
    )
    parser.add_argument("--out", help="the file; STORE/submission_AD2.tar.gz by default")
    parser.add_argument(
        "--map-side",
        type=positive,
        metavar="PIXELS",
        help="longer side of the maps, for a smaller file; that of the image by default",
    )
    add_device(parser)
    add_model_places(parser)
    add_accept(parser)
    return parser
