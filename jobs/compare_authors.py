"""Compare a method with a checkout of its authors' code: same weights, same inputs, on a CPU.

    python jobs/compare_authors.py dinomaly path/to/Dinomaly
    python jobs/compare_authors.py uflow path/to/uflow --seed 3

The checkout is brought by whoever runs this; nothing of it is part of the project. What the authors' code imports and
this machine lacks is replaced by a stand-in, unless what is compared uses it. The table has the largest value of both
sides and their largest difference as a part of the authors' largest value. Features are random numbers: a backbone is
no part of a comparison. What differs on purpose, such as the smoothing's border, is left out or has a tolerance of its
own, and stands in the method's docstring and in chapter 3. WinCLIP, VLM-AD and DFKDE have no such code, and there is no
reference of the autoencoders.

The exit code is 1 where a difference is beyond its tolerance, 2 where the checkout lacks what is compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from authors_code import distillation, flows, foundation, memory, reconstruction
from authors_code.common import MissingCodeError, Row

METHODS: dict[str, tuple[str, Callable[[Path], list[Row]]]] = {
    "cfa": ("sungwool/CFA_for_anomaly_localization", memory.compare_cfa),
    "cflow": ("gudovskiy/cflow-ad", flows.compare_cflow),
    "csflow": ("marco-rudolph/cs-flow", flows.compare_csflow),
    "dfm": ("open-edge-platform/anomalib", memory.compare_dfm),
    "dinomaly": ("guojiajeremy/Dinomaly", foundation.compare_dinomaly),
    "draem": ("VitjanZ/DRAEM", reconstruction.compare_draem),
    "dsr": ("VitjanZ/DSR_anomaly_detection", reconstruction.compare_dsr),
    "efficientad": ("nelson1425/EfficientAD", distillation.compare_efficientad),
    "fastflow": ("gathierry/FastFlow", flows.compare_fastflow),
    "fre": ("open-edge-platform/anomalib", memory.compare_fre),
    "ganomaly": ("samet-akcay/ganomaly", reconstruction.compare_ganomaly),
    "padim": (
        "xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master",
        memory.compare_padim,
    ),
    "patchcore": ("amazon-science/patchcore-inspection", memory.compare_patchcore),
    "reverse-distillation": ("hq-deng/RD4AD", distillation.compare_reverse_distillation),
    "stfpm": ("gdwang08/STFPM", distillation.compare_stfpm),
    "supersimplenet": ("blaz-r/SuperSimpleNet", foundation.compare_supersimplenet),
    "uflow": ("mtailanian/uflow", flows.compare_uflow),
    "uninet": ("pangdatangtt/UniNet", distillation.compare_uninet),
}
"""Where a method's code was published, and what compares it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("checkout", type=Path, help="folder of the authors' code")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    options = parser.parse_args(argv)
    origin, compare = METHODS[options.method]
    torch.manual_seed(options.seed)
    try:
        rows = compare(options.checkout.resolve())
    except MissingCodeError as missing:
        print(f"error: {missing}; give a checkout of {origin}", file=sys.stderr)
        return 2
    return print_table(rows)


def print_table(rows: Sequence[Row]) -> int:
    """Print what was compared, and give 1 where something does not hold."""
    print(f"{'':28} {'authors':>14} {'adray':>14} {'difference':>11} {'tolerance':>10}")
    for one in rows:
        verdict = "" if one.holds else "  DIFFERS"
        numbers = (
            f"{one.theirs:14.7g} {one.ours:14.7g} {one.difference:11.2g} {one.tolerance:10.2g}"
        )
        print(f"{one.what:28} {numbers}{verdict}")
    return 0 if all(one.holds for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
