"""`python -m adray export TRIAL --out FOLDER`: a trained trial as files that stand alone."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adray.cli.command_parser import CommandParser
from adray.cli.model_path import check_model_path
from adray.cli.options import (
    add_accept,
    add_model_places,
    add_store,
    model_path,
    use_model_places,
)
from adray.export_formats import FORMATS, ONNX_SINGLE, ONNX_UNSUPPORTED, TOLERANCE
from adray.language.catalogue import language_of, load_catalogue, spoken


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: export a trial and say what was written."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_model_places(options)
    model = model_path(options.model, options.store)
    check_model_path(model)

    # Torch takes seconds, and nothing before needs it.
    from adray.export import export_trial

    about = export_trial(model, options.out, options.format, options.accept_other_weights)
    out = Path(options.out)
    for name, file in about["files"].items():
        print(f"{out / name}  {file['bytes'] / 2**20:.1f} MB")
    print(out / "export.json")
    for accepted in about["accepted"]:
        print(spoken("accepted", what=accepted))
    if about.get("onnx") is not None:
        print(_verdict(about["onnx"]))
    return 0


def _verdict(onnx: Mapping[str, Any]) -> str:
    """Say what became of the ONNX graph."""
    if not onnx["exact"]:
        return spoken("export no graph", reason=onnx["reason"])
    key = "export graph" if onnx["batch"] == "any" else "export graph single"
    return spoken(key, error=f"{onnx['largest_error']:.1e}")


def _parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    say = load_catalogue(language_of(os.environ))
    never = ", ".join(ONNX_UNSUPPORTED) or "-"
    parser = CommandParser(
        prog="python -m adray export",
        description="Write a trained trial into a folder that stands alone: model.safetensors with the frozen "
        "backbone, export.json with sizes, normalisation, thresholds and versions, and model.onnx where onnxruntime "
        f"reproduces the trial to {TOLERANCE:g}, which is measured at every export.",
        epilog=say("export unsupported", never=never, single=", ".join(ONNX_SINGLE)),
    )
    parser.add_argument(
        "model",
        help="a trial's folder in a store, its part and configuration (screw/padim), or a checkpoint "
        "file (model_*.pth)",
    )
    parser.add_argument("--out", required=True, help="the folder, which must not exist or be empty")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="all",
        help="safetensors; onnx, which is an error where the graph is not exact; or all, which then says why there is "
        "none (default: all)",
    )
    add_accept(parser)
    add_store(parser)
    add_model_places(parser)
    return parser
