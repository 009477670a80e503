"""Compare a method with a checkout of its authors' code: same weights, same inputs, on a CPU.

    python jobs/compare_authors.py dinomaly path/to/Dinomaly
    python jobs/compare_authors.py uflow path/to/uflow --seed 3
    python jobs/compare_authors.py uflow path/to/uflow --record docs/compared.csv

The checkout is brought by whoever runs this; nothing of it is part of the project. What the authors' code imports and
this machine lacks is replaced by a stand-in, unless what is compared uses it. The table has the largest value of both
sides and their largest difference as a part of the authors' largest value. Features are random numbers: a backbone is
no part of a comparison, but that of SubspaceAD and AnomalyDINO. What differs on purpose, such as the smoothing's
border, is left out or has a tolerance of its own, and stands in the method's docstring and in chapter 3. DFKDE, DFM and
FRE were published in anomalib. The licence of L2BT's code is non-commercial, and anomalib's port stands for it. WinCLIP
has no code by its authors and is compared with anomalib in `tests/models/test_winclip.py`. VLM-AD differs on purpose,
and there is no reference of the autoencoders.

`--record` puts the largest difference of each kind into a table, of which chapter 8 has all lines.

The exit code is 1 where a difference is beyond its tolerance, 2 where the checkout lacks what is compared.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from authors_code import (
    distillation,
    few_shot,
    flows,
    foundation,
    memory,
    reconstruction,
    transformers,
)
from authors_code.common import KINDS, MissingCodeError, Row

from adray.files import atomic_path

METHODS: dict[str, tuple[str, Callable[[Path], list[Row]]]] = {
    "anomalydino": ("dammsi/AnomalyDINO", few_shot.compare_anomalydino),
    "cfa": ("sungwool/CFA_for_anomaly_localization", memory.compare_cfa),
    "cflow": ("gudovskiy/cflow-ad", flows.compare_cflow),
    "csflow": ("marco-rudolph/cs-flow", flows.compare_csflow),
    "dfkde": ("open-edge-platform/anomalib", memory.compare_dfkde),
    "dfm": ("open-edge-platform/anomalib", memory.compare_dfm),
    "dinomaly": ("guojiajeremy/Dinomaly", foundation.compare_dinomaly),
    "draem": ("VitjanZ/DRAEM", reconstruction.compare_draem),
    "dsr": ("VitjanZ/DSR_anomaly_detection", reconstruction.compare_dsr),
    "efficientad": ("nelson1425/EfficientAD", distillation.compare_efficientad),
    "fastflow": ("gathierry/FastFlow", flows.compare_fastflow),
    "fre": ("open-edge-platform/anomalib", memory.compare_fre),
    "ganomaly": ("samet-akcay/ganomaly", reconstruction.compare_ganomaly),
    "generalad": ("LucStrater/GeneralAD", transformers.compare_generalad),
    "glass": ("cqylunlun/GLASS", foundation.compare_glass),
    "inpformer": ("luow23/INP-Former", foundation.compare_inpformer),
    "l2bt": ("open-edge-platform/anomalib", transformers.compare_l2bt),
    "musc": ("xrli-U/MuSc", foundation.compare_musc),
    "padim": (
        "xiahaifeng1995/PaDiM-Anomaly-Detection-Localization-master",
        memory.compare_padim,
    ),
    "patchcore": ("amazon-science/patchcore-inspection", memory.compare_patchcore),
    "rad": ("longkukuhi/RAD", foundation.compare_rad),
    "reverse-distillation": ("hq-deng/RD4AD", distillation.compare_reverse_distillation),
    "softpatch": (
        "TencentYoutuResearch/AnomalyDetection-SoftPatch",
        memory.compare_softpatch,
    ),
    "stfpm": ("gdwang08/STFPM", distillation.compare_stfpm),
    "subspacead": ("CLendering/SubspaceAD", few_shot.compare_subspacead),
    "superad": ("Summerdayhurricane/SuperAD", foundation.compare_superad),
    "supersimplenet": ("blaz-r/SuperSimpleNet", foundation.compare_supersimplenet),
    "uflow": ("mtailanian/uflow", flows.compare_uflow),
    "uninet": ("pangdatangtt/UniNet", distillation.compare_uninet),
}
"""Where a method's code was published, and what compares it."""
HEADINGS = ("method", "code", "commit", *KINDS)
"""Of the recorded table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("checkout", type=Path, help="folder of the authors' code")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument("--record", type=Path, help="CSV whose line of this method is replaced")
    options = parser.parse_args(argv)
    origin, compare = METHODS[options.method]
    torch.manual_seed(options.seed)
    try:
        rows = compare(options.checkout.resolve())
    except MissingCodeError as missing:
        print(f"error: {missing}; give a checkout of {origin}", file=sys.stderr)
        return 2

    code = print_table(rows)
    if options.record and code == 0:
        line = [options.method, origin, commit_of(options.checkout), *largest(rows)]
        record(options.record, line)
    return code


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


def largest(rows: Sequence[Row]) -> list[str]:
    """Give the largest difference of each kind, empty where none was compared."""
    cells = []
    for kind in KINDS:
        differences = [one.difference for one in rows if one.kind == kind]
        cells.append(f"{max(differences):.0e}" if differences else "")
    return cells


def commit_of(checkout: Path) -> str:
    """Name the commit of a checkout, empty where git knows none."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def record(path: Path, line: Sequence[str]) -> None:
    """Put a line into a table in place of the method's older one, ordered by method."""
    lines = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            lines = {older[0]: older for older in list(csv.reader(file))[1:]}
    lines[line[0]] = list(line)

    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADINGS)
        for method in sorted(lines):
            writer.writerow(lines[method])


if __name__ == "__main__":
    sys.exit(main())
