"""Judge 8-bit images by a bundle that was unzipped: python part_a/run_onnx.py image.png ...

Another language does the same: decode, turn upright, give pixels (height, width, 3) to the graph.
"""

import json
import sys
from pathlib import Path

import numpy
import onnxruntime
from PIL import Image, ImageOps

VERDICTS = ("normal", "anomalous", "unreadable")


def main(paths: list[str]) -> None:
    """Print score and verdict of each image."""
    here = Path(__file__).parent
    manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(here / "model.onnx")
    print("threshold", manifest["threshold"]["value"])
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        score, verdict = session.run(["pred_score", "verdict"], {"image": numpy.asarray(image)})
        print(path, float(score), VERDICTS[int(verdict)])


if __name__ == "__main__":
    main(sys.argv[1:])
