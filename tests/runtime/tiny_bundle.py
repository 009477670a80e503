"""A bundle of a graph that a person can compute: the mean of a picture is its score."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

THRESHOLD = 100.0
REGION_THRESHOLD = 200.0
NORMALS = tuple(float(score) for score in range(10, 109))
"""99 calibration scores, nine of which are at or above the threshold, less one by their promise."""
NORMAL = 50
"""Grey level of a picture that is normal."""
ANOMALOUS = 150
"""Of one that is not."""


def graph(threshold: float = THRESHOLD) -> bytes:
    """The mean of all pixels as the score, the mean of the colors as the map."""
    number = helper.make_tensor
    constants = [
        number("limit", TensorProto.FLOAT, [], [threshold]),
        number("last", TensorProto.INT64, [1], [2]),
        number("half", TensorProto.DOUBLE, [], [0.5]),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["pred_score"], keepdims=0),
        helper.make_node("ReduceMean", ["values", "last"], ["anomaly_map"], keepdims=0),
        helper.make_node("GreaterOrEqual", ["pred_score", "limit"], ["above"]),
        helper.make_node("Cast", ["above"], ["verdict"], to=TensorProto.UINT8),
        helper.make_node("Identity", ["half"], ["p_value"]),
    ]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "mean",
        [value("image", TensorProto.UINT8, ["height", "width", 3])],
        [
            value("pred_score", TensorProto.FLOAT, []),
            value("verdict", TensorProto.UINT8, []),
            value("p_value", TensorProto.DOUBLE, []),
            value("anomaly_map", TensorProto.FLOAT, ["height", "width"]),
        ],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def picture(level: int = NORMAL, size: tuple[int, int] = (12, 9), kind: str = "PNG") -> bytes:
    """A grey picture as a file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(buffer, format=kind)
    return buffer.getvalue()


PROMISE = {"promised": 0.1, "tried": 1}


def write_tiny(path, threshold: float = THRESHOLD, promise=PROMISE, **more) -> None:
    """Write a bundle whose one golden image is normal, in one step."""
    golden = picture()
    pixels = np.full((9, 12, 3), NORMAL, np.uint8)
    members = {"model.onnx": graph(threshold), "golden/0.png": golden}
    files = {}
    for name, data in members.items():
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    row = {
        "file": "golden/0.png",
        "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "pred_score": float(NORMAL),
        "verdict": "normal" if threshold > NORMAL else "anomalous",
    }
    manifest = {
        "format": 1,
        "files": files,
        "threshold": {
            "value": threshold,
            "promise": promise,
            "sentences": {"en": "at most 10 % ring", "ko": "과검 10 % 이하"},
        },
        "regions": {"threshold": REGION_THRESHOLD},
        "calibration": {"scores": list(NORMALS)},
        "input": {"dtype": "uint8"},
        "golden": [row],
    }
    manifest.update(more)
    temporary = path.with_name(f"{path.name}.part")
    with zipfile.ZipFile(temporary, "w") as file:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), **members}.items():
            file.writestr(name, data)
    temporary.replace(path)
