"""A network's graph in float16 or in whole numbers of 8 bits: what it gains and what it moves.

Preparation and judgement stay as they are, so such a graph has scores of its own, and the promise is
made of them. It is kept only where no verdict on the trial's images is another and AUROC moves by
less than `AUROC_TOLERANCE`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import ModelProto

from adray.bundle_check import Comparison, JudgedImage
from adray.curves import auroc, curve
from adray.data.decode import first_seen
from adray.data.geometry import Geometry
from adray.data.normalization import normalize_images
from adray.data.synthetic_defects import draw_defective_copies
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.results.store import read_trial
from adray.training_images import training_samples
from adray.types import Json

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer

AUROC_TOLERANCE = 1e-3
CALIBRATION_IMAGES = 64
"""Training normals by which the ranges of an int8 network's numbers are found."""
_COPIES = 2
"""Copies with a synthetic defect of each of them, by which they are found, too."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that hold most of a network's work. The others are left in float32."""
_HALF = (
    *_LAYERS,
    "Add",
    "AveragePool",
    "BatchNormalization",
    "GlobalAveragePool",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Relu",
    "Sigmoid",
)
"""Operators that float16 is used in. Distances and norms would leave its range."""
_TIMED = 15
"""Timed calls of each of two graphs."""
_MOST_SECONDS = 10.0
"""No further pair of calls is timed after so long."""

Inputs = Mapping[str, np.ndarray]
"""Name of a network's input to its value for one image."""


# The network


def lower_network(
    network: ModelProto, trainer: BaseTrainer, trial: Path, known: Set[Path], precision: str
) -> ModelProto:
    """Give a network in a lower precision.

    Args:
        network: in float32.
        trainer: of the model.
        trial: its folder, whose training normals an int8 network is calibrated on.
        known: images that are left out of these, since they calibrate or test.
        precision: ``float16`` or ``int8``.

    Raises:
        InputError: where its training images are out of reach, or it cannot be converted.
    """
    images = _training_inputs(network, trainer, trial, known) if precision == "int8" else []
    try:
        return in_int8(network, images) if precision == "int8" else in_float16(network)
    except Exception as error:  # converters raise kinds of their own
        text = " ".join(str(error).split())[:200]
        raise InputError(Sentence.of("bundle no form", precision=precision, text=text)) from error


def _training_inputs(
    network: ModelProto, trainer: BaseTrainer, trial: Path, known: Set[Path]
) -> list[Inputs]:
    """Prepare some training normals as a network takes them, each also with a synthetic defect.

    Defects reach values that no normal does. In ranges of normals alone these are cut off, and a
    defect scores little more than a normal.

    Raises:
        InputError: where they are out of reach.
    """
    record = read_trial(trial)
    samples = (None if record is None else training_samples(record)) or ()
    normals = [sample.path for sample in samples if not sample.label and sample.path not in known]
    if not normals:
        raise InputError(Sentence.of("bundle no calibration", trial=str(trial)))
    taken = np.linspace(0, len(normals) - 1, min(len(normals), CALIBRATION_IMAGES)).astype(int)

    inputs: list[Inputs] = []
    names = {value.name for value in network.graph.input}
    geometry = Geometry.of(trainer.train_config, trainer.roi)
    for place in taken:
        path = normals[place]
        pixels, inside = first_seen(path, geometry, trainer.pixels)
        copies = draw_defective_copies(pixels, path.name, trainer.seed, _COPIES)
        for shown in (pixels, *[copy.image for copy in copies]):
            image = normalize_images(torch.from_numpy(shown[None]), trainer.train_config.normalize)
            values = {"image": image.numpy(), "inside": inside[None, None]}
            inputs.append({name: value for name, value in values.items() if name in names})
    return inputs


def in_float16(network: ModelProto) -> ModelProto:
    """Give a network whose layers count in float16. Its inputs and outputs stay float32."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kinds = {node.op_type for node in network.graph.node}
    made = ModelProto()
    made.CopyFrom(network)
    blocked = sorted(kinds - set(_HALF))
    half = ONNXModel(convert_float_to_float16(made, keep_io_types=True, op_block_list=blocked))
    half.topological_sort()  # it adds casts at the end
    return half.model


def in_int8(network: ModelProto, images: Sequence[Inputs]) -> ModelProto:
    """Give a network whose layers count in whole numbers of 8 bits.

    Weights have a scale per channel and 7 of the 8 bits, since sums of full ones overflow on CPUs
    without VNNI and give other scores there (onnxruntime's documentation of quantization). What
    layers give is rounded only where another layer takes it, so scores and maps are not.

    Args:
        network: in float32.
        images: training normals and copies with defects as it takes them, by which ranges are found.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(StringIO()):
        source = Path(scratch) / "network.onnx"
        plain = Path(scratch) / "plain.onnx"
        made = Path(scratch) / "int8.onnx"
        onnx.save(network, source)
        quant_pre_process(str(source), str(plain), skip_symbolic_shape=True)
        quantize_static(
            str(plain),
            str(made),
            _reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_LAYERS),
            nodes_to_exclude=_without_weights(onnx.load(plain)),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": list(_LAYERS)},
        )
        return _of_own_operators(onnx.load(made))


def _without_weights(network: ModelProto) -> list[str]:
    """Name the products of matrices that are no layer's, for a layer's weights are one constant matrix.

    onnxruntime 1.32 runs no other with a scale per channel.
    """
    sides = {tensor.name: len(tensor.dims) for tensor in network.graph.initializer}
    products = [node for node in network.graph.node if node.op_type == "MatMul"]
    return [node.name for node in products if sides.get(node.input[1]) != 2]


def _reader(images: Sequence[Inputs]) -> Any:
    """Hand out images one by one, as the quantizer takes them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[Inputs] = iter(images)

        def get_next(self) -> Inputs | None:
            return next(self._left, None)

    return Reader()


def _of_own_operators(network: ModelProto) -> ModelProto:
    """Drop sets of operators that a network names and does not use."""
    used = {node.domain for node in network.graph.node}
    kept = [entry for entry in network.opset_import if entry.domain in ("", *used)]
    del network.opset_import[:]
    network.opset_import.extend(kept)
    return network


# What it gains and what it moves


@dataclass(frozen=True)
class Gain:
    """A whole graph beside the same one in float32, on the machine that made it."""

    bytes: int
    """Of the graph."""
    float32_bytes: int
    """Of that in float32."""
    milliseconds: float
    """Median time of an image without its map."""
    float32_milliseconds: float
    """In float32."""


def measure_gain(
    graphs: tuple[bytes, bytes],
    scores: tuple[Callable[[np.ndarray], float], ...],
    pixels: np.ndarray,
) -> Gain:
    """Time both graphs in turn on one image.

    Args:
        graphs: the lower one, and that in float32.
        scores: of each.
        pixels: (H, W, 3) of an image.
    """
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + _MOST_SECONDS
    while len(times[0]) < _TIMED and time.perf_counter() < end:
        for taken, score in zip(times, scores, strict=True):
            start = time.perf_counter()
            score(pixels)
            taken.append(1000 * (time.perf_counter() - start))
    return Gain(
        len(graphs[0]), len(graphs[1]), statistics.median(times[0]), statistics.median(times[1])
    )


@dataclass(frozen=True)
class Lowered:
    """A lower precision as it was tried on the trial's images."""

    name: str
    """``float16`` or ``int8``."""
    found: Comparison
    """Its scores and verdicts beside the trial's."""
    gain: Gain
    """What it gains."""

    @property
    def aurocs(self) -> tuple[float | None, float | None]:
        """Give AUROC of the test images by its scores and by the trial's, None where all are alike."""
        test = [image for image in self.found.judged if image.split == "test"]
        labels = np.array([image.is_defect for image in test])
        if labels.all() or not labels.any():
            return None, None
        return _auroc(test, labels, "by_graph"), _auroc(test, labels, "by_trial")

    @property
    def facts(self) -> Json:
        """Say what it is, for the manifest. JSON."""
        own, of_trial = self.aurocs
        return {
            "name": self.name,
            "bytes": self.gain.bytes,
            "float32_bytes": self.gain.float32_bytes,
            "milliseconds": round(self.gain.milliseconds, 3),
            "float32_milliseconds": round(self.gain.float32_milliseconds, 3),
            "image_auroc": own,
            "trial_image_auroc": of_trial,
        }


def _auroc(images: Sequence[JudgedImage], labels: np.ndarray, which: str) -> float:
    """Give AUROC of images by one of their scores."""
    return auroc(curve(np.array([getattr(image, which) for image in images]), labels))


def refuse_worse(lowered: Lowered) -> None:
    """Refuse a precision that changes what the trial found.

    Raises:
        InputError: for another verdict or AUROC, with the figures and what there was to gain.
    """
    own, of_trial = lowered.aurocs
    flipped = [
        image
        for image, flips in zip(lowered.found.judged, lowered.found.flipped, strict=True)
        if flips
    ]
    problems = []
    if flipped:
        problems.append(
            f"{len(flipped)} of {len(lowered.found.judged)} images get another verdict, such as "
            f"{flipped[0].path}"
        )
    if own is not None and of_trial is not None and not abs(own - of_trial) < AUROC_TOLERANCE:
        problems.append(f"AUROC is {own:.4f}, the trial's {of_trial:.4f}")
    if not problems:
        return

    gain = lowered.gain
    raise InputError(
        Sentence.of(
            "bundle no gain",
            name=lowered.name,
            problems=" and ".join(problems),
            milliseconds=f"{gain.milliseconds:.1f}",
            float32_milliseconds=f"{gain.float32_milliseconds:.1f}",
            bytes=f"{gain.bytes / 2**20:.1f}",
            float32_bytes=f"{gain.float32_bytes / 2**20:.1f}",
        )
    )
