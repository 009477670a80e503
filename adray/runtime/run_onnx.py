"""Judge images by a bundle that was unzipped, with onnxruntime and Pillow alone.

    unzip part_a.adray -d part_a && cd part_a
    python run_onnx.py image.png ...

It reads 8-bit images. What it does is all that another language has to do: decode, turn upright,
give the pixels (height, width, 3) to the graph, and take the verdict.
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
    names = [output.name for output in session.get_outputs()]
    print("threshold", manifest["threshold"]["value"])
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        found = dict(zip(names, session.run(None, {"image": numpy.asarray(image)}), strict=True))
        print(path, float(found["pred_score"]), VERDICTS[int(found["verdict"])])


if __name__ == "__main__":
    main(sys.argv[1:])
