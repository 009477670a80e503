"""Predict in a process of its own: a line of JSON for each model that another line names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tiny  # noqa: F401  it tells open_clip of the narrow network
import torch

from adray.predict import DEFAULT_THRESHOLD, load_predictor
from adray.prediction_files import write_predictions
from adray.settings import set_globals


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        set_globals(backbone_dir=request["backbone_dir"])
        predictor = load_predictor(request["folder"], "cpu")
        outcomes = predictor.predict(request["pictures"], batch_size=7)
        threshold = predictor.thresholds[DEFAULT_THRESHOLD]
        rows = write_predictions(outcomes, Path(request["out"]), threshold, "none", None)
        print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
