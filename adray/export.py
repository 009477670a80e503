"""A trained trial as files that stand alone: safetensors, JSON and ONNX; `python -m adray export`.

`model.safetensors` holds every tensor that prediction needs, the frozen backbone too, so that
`adray.predict.load_predictor(folder)` needs no other weight file. `model.onnx` is the same network
for other programs: from `image`, prepared as `export.json` says, to `pred_score` and `anomaly_map`.
It is written only where onnxruntime gives the trial's own outputs to `TOLERANCE`, which is measured
at every export.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from adray.checkpoints import can_be_whole, read_checkpoint
from adray.config import to_plain
from adray.data.decode import first_seen
from adray.data.geometry import Geometry
from adray.data.normalization import normalize_images
from adray.data.preprocessing import describe_preprocessing
from adray.errors import InputError
from adray.export_formats import TOLERANCE
from adray.files import file_sha256, read_json, sync, write_json
from adray.language.sentence import Sentence, sentence_of
from adray.machine import environment
from adray.needs import needs_of
from adray.predict import Predictor, load_predictor
from adray.progress_lines import stage
from adray.results.trial_files import (
    find_checkpoint,
    newest_recalibration,
    stored_test_images,
)
from adray.results.trial_report import threshold_json
from adray.source_code import class_name
from adray.thresholds import CONFIDENCE, PROMISE, promised_pixels, promised_threshold
from adray.types import Batch, Json

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer

logger = logging.getLogger(__name__)

Outputs = Callable[..., Sequence[Any]]
"""From prepared images, and which of their pixels count where not all do, to the outputs."""
Inputs = tuple[Tensor, ...]
"""Images (N, 3, H, W), and which of their pixels count, (N, 1, H, W), where not all do."""

_STANDALONE_TOLERANCE = 1e-5
_CHECKED_IMAGES = 8
_NOISE_SIZE = (480, 640)
"""Height and width that images of noise are taken to have."""
_LARGEST_ONNX_BYTES = 1.9e9  # protobuf ends at 2 GiB
_OPSET = 18


@dataclass(frozen=True)
class Reference:
    """Images and what the trial makes of them."""

    image: Tensor
    """(N, 3, H, W) float32, prepared."""
    outputs: tuple[Tensor, ...]
    """`pred_score` (N,) and, where the model has maps, `anomaly_map` (N, 1, H, W), both float32."""
    inside: Tensor | None = None
    """(N, 1, H, W) bool, the pixels that count; None where all do."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Give what a graph takes."""
        return (self.image,) if self.inside is None else (self.image, self.inside)


class OnnxError(Exception):
    """Why there is no exact ONNX graph of a model, in one sentence."""


def export_trial(
    trial: str | Path, out: str | Path, formats: str = "all", accept_other_weights: bool = False
) -> Json:
    """Write a trained trial into a new folder, which appears whole or not at all.

    Args:
        trial: a trial's folder in a store, or a checkpoint file.
        out: the folder, which must not exist or be empty.
        formats: ``safetensors``; ``onnx``, which fails where the graph is not exact; or ``all`` for
            both, where `export.json` says why there is no ONNX graph.
        accept_other_weights: see `load_predictor`; `export.json` then says what is accepted.

    Returns:
        What `export.json` holds.

    Raises:
        InputError: for a trial that cannot be loaded, a folder that holds something, a model that
            cannot stand alone, and for ``onnx`` where the graph is not exact, or the optional
            packages are missing.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(Sentence.of("export out", out=str(out)))
    with stage("loading the model"):
        predictor = load_predictor(trial, "cpu", accept_other_weights=accept_other_weights)
    trainer = predictor.trainer
    if trainer.train_config.tile_model == "position":
        raise InputError(Sentence.of("export tile_model", trial=str(trial)))
    trainer.model.requires_grad_(False)
    references = reference_outputs(trainer, stored_test_images(Path(trial), _CHECKED_IMAGES))

    with _whole_folder(out) as folder:
        about = describe(Path(trial), predictor)
        if formats in ("all", "safetensors"):
            path = folder / "model.safetensors"
            about["safetensors"] = _write_safetensors(trainer, path, references)
        with stage("writing and checking the ONNX graph"):
            if formats == "onnx":
                about["onnx"] = _required_onnx(trainer, folder / "model.onnx", references)
            elif formats == "all":
                about["onnx"] = _onnx_or_reason(trainer, folder / "model.onnx", references)

        about["needs"] = needs_of(
            find_checkpoint(folder),
            trainer.train_config,
            trainer.pixels,
            about["thresholds"],
            predictor.calibration,
            predictor.calibration_peaks,
            trainer.roi,
        )
        files = sorted(folder.iterdir())
        about["files"] = {file.name: _file_facts(file) for file in files}
        write_json(folder / "export.json", about)
    return about


def _file_facts(file: Path) -> Json:
    """Give size and hash of a written file. JSON."""
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


@contextlib.contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside `out` that takes its place on success and is gone on an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    working = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    working.mkdir()
    try:
        yield working
        for file in working.iterdir():
            sync(file)
        working.rename(out)
    finally:
        shutil.rmtree(working, ignore_errors=True)


# What a program needs besides the network


def describe(trial: Path, predictor: Predictor) -> Json:
    """Say all that prediction needs besides tensors, and where these come from. JSON."""
    trainer = predictor.trainer
    folder = trial if trial.is_dir() else trial.parent
    checkpoint = find_checkpoint(trial) if trial.is_dir() else trial
    assert checkpoint is not None, "the predictor was loaded from it"

    size = trainer.train_config.input_shape
    result = read_json(folder / "result.json") or {}
    promises = _promises(folder, result, predictor)
    return {
        "format": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threshold": _threshold(promises["thresholds"]),
        "trainer": class_name(type(trainer)),
        "model": to_plain(trainer.config),
        "train": to_plain(trainer.train_config),
        "seed": trainer.seed,
        "preprocessing": describe_preprocessing(trainer.train_config, trainer.pixels, trainer.roi),
        "input": {"name": "image", "shape": ["batch", 3, *size], "dtype": "float32"},
        **_describe_inside(trainer, size),
        "outputs": _describe_outputs(trainer, size),
        "verdict": "an image is anomalous where pred_score >= the value of the threshold",
        **promises,
        "map_range": result.get("map_range"),
        "accepted": list(predictor.accepted),
        "source": _source(folder, checkpoint),
        "versions": environment("cpu"),
    }


def _threshold(thresholds: Json) -> Json | None:
    """Give the threshold to judge by, with its promise; None without calibration normals. JSON.

    The other thresholds promise nothing, and most of them have seen the test labels.
    """
    promised = thresholds.get(PROMISE)
    if promised is None or promised["value"] is None:
        return None
    return {"rule": PROMISE, **promised}


def _describe_inside(trainer: BaseTrainer, size: tuple[int, int]) -> Json:
    """Say what a graph takes beside images where not all of their pixels count. JSON."""
    if not Geometry.of(trainer.train_config, trainer.roi).hides:
        return {}
    meaning = (
        "true for pixels that are of the image, and whose middle lies in the roi; the others count "
        "neither for the score nor for the map, where they have the lowest value of what counts"
    )
    shape = ["batch", 1, *size]
    return {"inside": {"name": "inside", "shape": shape, "dtype": "bool", "meaning": meaning}}


def _promises(folder: Path, result: Json, predictor: Predictor) -> Json:
    """Give thresholds and what is promised of them, by the calibration that holds now. JSON."""
    thresholds = result.get("thresholds", {})
    verdict = result.get("verdict")
    calibration = {
        "kind": (verdict or {}).get("calibration", "holdout"),
        "scores": list(predictor.calibration),
        "peaks": list(predictor.calibration_peaks),
    }
    pixel_promise = result.get("pixel_promise")

    newer = newest_recalibration(folder)
    if newer is not None:
        promise = predictor.promise(predictor.rate)
        thresholds = thresholds | {PROMISE: threshold_json(promised_threshold(promise))}
        calibration = newer["calibration"]
        of_regions = promised_pixels(predictor.peaks, predictor.rate, predictor.tried)
        pixel_promise = threshold_json(of_regions)
        verdict = {
            "calibration": calibration["kind"],
            "confidence": CONFIDENCE,
            "promises": [asdict(promise)],
            "pixel_promises": [] if of_regions.promise is None else [asdict(of_regions.promise)],
            "notes": [],
        }
    return {
        "thresholds": thresholds,
        "pixel_promise": pixel_promise,
        "promise": verdict,
        "calibration": calibration,
    }


def _describe_outputs(trainer: BaseTrainer, size: tuple[int, int]) -> Json:
    """Say shape and meaning of each output. JSON."""
    meaning = "higher is more anomalous"
    outputs: Json = {"pred_score": {"shape": ["batch"], "meaning": meaning}}
    has_map = len(_outputs(trainer, torch.zeros(1, 3, *size))) > 1
    if has_map:
        outputs["anomaly_map"] = {"shape": ["batch", 1, *size], "meaning": meaning}
    return outputs


def _source(folder: Path, checkpoint: Path) -> Json:
    """Say which trial was exported. JSON."""
    trial = read_json(folder / "trial.json") or {}
    identity = trial.get("identity", {})
    asked = ("configuration", "datasets", "categories", "data", "versions")
    return {
        "trial": trial.get("id"),
        **{key: identity.get(key) for key in asked},
        "checkpoint": {"file": checkpoint.name, "sha256": file_sha256(checkpoint)},
        "backbones": read_checkpoint(checkpoint).backbones,
    }


# What the exported files must reproduce


def reference_outputs(trainer: BaseTrainer, paths: Sequence[Path]) -> list[Reference]:
    """Give the trial's outputs for noise, which takes other paths, and for test images."""
    config = trainer.train_config
    generator = torch.Generator().manual_seed(0)
    shape = (_CHECKED_IMAGES, 3, *config.input_shape)
    geometry = Geometry.of(config, trainer.roi)
    sets = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)]
    counts = np.ones(geometry.frame, bool)
    if geometry.tiling is None:
        counts = geometry.inside(*_NOISE_SIZE)
    shown = [[counts] * _CHECKED_IMAGES]
    if paths:
        seen = [first_seen(path, geometry, trainer.pixels) for path in paths]
        sets.append(torch.from_numpy(np.stack([pixels for pixels, _ in seen])))
        shown.append([inside for _, inside in seen])

    references = []
    for pixels, of_set in zip(sets, shown, strict=True):
        image = normalize_images(pixels, config.normalize)
        inside = None
        if geometry.hides:
            inside = torch.from_numpy(np.stack(of_set)[:, None])
        references.append(Reference(image, _outputs(trainer, image, inside), inside))
    return references


def _outputs(
    trainer: BaseTrainer, image: Tensor, inside: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Give score and map of prepared images (B, 3, H, W), as a graph would."""
    prediction = trainer.predict_batch(_batch(image, inside))
    maps = () if prediction.anomaly_map is None else (prediction.anomaly_map.float(),)
    return prediction.pred_score.float(), *maps


def _batch(image: Tensor, inside: Tensor | None = None) -> Batch:
    nothing = torch.zeros(image.shape[0], dtype=torch.long)
    return Batch(image, nothing, None, nothing, inside=inside)


def largest_error(references: Sequence[Reference], outputs: Outputs, batch_size: int) -> float:
    """Measure how far other outputs are from the trial's, as a part of each output's largest value.

    Args:
        references: sets of images; a part is taken in each set apart.
        outputs: from (B, 3, H, W), and what counts of it, to the outputs in the order of the
            reference.
        batch_size: images per call.
    """
    errors = []
    for reference in references:
        batches = zip(*[values.split(batch_size) for values in reference.inputs], strict=True)
        parts = [outputs(*inputs) for inputs in batches]
        by_output = zip(*parts, strict=True)  # the batches of each output together
        for wanted, found in zip(reference.outputs, by_output, strict=True):
            difference = torch.cat([torch.as_tensor(part) for part in found]) - wanted
            errors.append(float(difference.abs().max() / wanted.abs().max().clamp(min=1e-30)))
    return float(np.max(errors))  # NaN stays NaN


# safetensors


def _write_safetensors(trainer: BaseTrainer, path: Path, references: Sequence[Reference]) -> Json:
    """Write all tensors, and say how exact the model is that they make. JSON.

    Raises:
        InputError: for a model that scores otherwise without its weight files.
    """
    alone = standalone(trainer)
    error = largest_error(references, functools.partial(_outputs, alone), _CHECKED_IMAGES)
    if not error <= _STANDALONE_TOLERANCE:
        raise InputError(
            Sentence.of("export not alone", trainer=type(trainer).__name__, error=f"{error:.1e}")
        )
    alone.save_model(path)
    return {"largest_error": error, "tolerance": _STANDALONE_TOLERANCE}


def standalone(trainer: BaseTrainer) -> BaseTrainer:
    """Build the same model without weight files, so that its checkpoint holds all tensors.

    Its hyperparameter `weights` is ``random``: built like that nothing is read, and then every
    tensor is filled in.

    Raises:
        InputError: for a model that reads weight files whatever its hyperparameters say.
    """
    config: Any = trainer.config
    if not any(getattr(module, "weight_file", None) for module in trainer.model.modules()):
        return trainer
    if not can_be_whole(config):
        raise InputError(Sentence.of("export reads files", trainer=type(trainer).__name__))

    untrained = replace(config, weights="random")
    alone = type(trainer)(untrained, trainer.train_config, "cpu", trainer.seed)
    alone.model.load_state_dict(trainer.model.state_dict())
    alone.pixels = trainer.pixels
    alone.roi = trainer.roi
    alone.calibration = trainer.calibration
    alone.calibration_peaks = trainer.calibration_peaks
    alone.false_alarms = trainer.false_alarms
    alone.tried = trainer.tried
    return alone


# ONNX


class _Graph(nn.Module):
    """A trainer's prediction as a module from an image to a tuple."""

    def __init__(self, trainer: BaseTrainer) -> None:
        super().__init__()
        self.model = trainer.model.eval()
        self.predict = trainer.validation_step
        self.only_inside = trainer.only_inside

    def forward(self, image: Tensor, inside: Tensor | None = None) -> tuple[Tensor, ...]:
        prediction = self.predict(_batch(image))
        if inside is not None:
            prediction = self.only_inside(prediction, inside)
        maps = () if prediction.anomaly_map is None else (prediction.anomaly_map,)
        return prediction.pred_score, *maps


def _required_onnx(trainer: BaseTrainer, path: Path, references: Sequence[Reference]) -> Json:
    """Write a graph that was asked for.

    Raises:
        InputError: where there is none that is exact.
    """
    try:
        return write_onnx(trainer, path, references)
    except OnnxError as error:
        raise InputError(Sentence.of("export graph failed", error=sentence_of(error))) from error


def _onnx_or_reason(trainer: BaseTrainer, path: Path, references: Sequence[Reference]) -> Json:
    """Write a graph where there is one that is exact, else say why there is none. JSON."""
    try:
        return write_onnx(trainer, path, references)
    except OnnxError as error:
        return {"exact": False, "reason": str(error)}


def write_onnx(trainer: BaseTrainer, path: Path, references: Sequence[Reference]) -> Json:
    """Write the first graph that gives the trial's outputs, if possible for any number of images.

    Returns:
        ``exact``, ``batch`` (``any`` or 1), ``exporter``, ``largest_error``, ``tolerance``,
        ``reasons`` why exporters before it failed, and the graph's own ``inputs`` and ``outputs``.

    Raises:
        OnnxError: where there is none; nothing is left at `path`.
    """
    _check_onnx_is_possible(trainer)
    graph = _Graph(trainer)
    reasons = []
    for exporter in _EXPORTERS:
        try:
            error = _write_graph(exporter, graph, path, references)
        except Exception as failure:  # exporters and the runtime raise kinds of their own
            reasons.append(f"{exporter.name}, batch {exporter.batch}: {_root_cause(failure)}")
            continue

        if error <= TOLERANCE:
            return {
                "exact": True,
                "batch": exporter.batch,
                "exporter": exporter.name,
                "largest_error": error,
                "tolerance": TOLERANCE,
                "reasons": reasons,
                **_shapes(path),
            }
        reasons.append(
            f"{exporter.name}, batch {exporter.batch}: outputs differ by {error:.1e} of the largest value"
        )
    path.unlink(missing_ok=True)
    raise OnnxError("; ".join(reasons))


def _shapes(path: Path) -> Json:
    """Give the shapes of a graph's own inputs and outputs, where any number of images may stand. JSON."""
    import onnx

    graph = onnx.load(path).graph
    found: Json = {}
    for side, values in (("inputs", graph.input), ("outputs", graph.output)):
        shapes = {}
        for value in values:
            sides = value.type.tensor_type.shape.dim
            shapes[value.name] = [one.dim_value or "batch" for one in sides]
        found[side] = shapes
    return found


def _write_graph(
    exporter: _Exporter, graph: _Graph, path: Path, references: Sequence[Reference]
) -> float:
    """Write a graph and measure its largest error over the batch sizes that it should take."""
    sizes = (1, 3, 8) if exporter.batch == "any" else (1,)
    with _quiet(), torch.no_grad():
        exporter.write(graph, references[0].inputs, path)
        run = _session(path)
        return max(largest_error(references, run, size) for size in sizes)


def _check_onnx_is_possible(trainer: BaseTrainer) -> None:
    """Look for the optional packages and at the network's size.

    Raises:
        OnnxError: for a package that is missing, and for a network beyond what one file holds.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise OnnxError(f"the package {package} is not installed; pip install 'adray[onnx]'")
    tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
    size = sum(tensor.nbytes for tensor in tensors)
    if size > _LARGEST_ONNX_BYTES:
        raise OnnxError(
            f"the network has {size / 1e9:.1f} GB, but one ONNX file holds at most 2 GB"
        )


def _export_program(graph: nn.Module, inputs: Inputs, path: Path) -> None:
    """Export by torch.export for any number of images.

    It may settle for the number it was shown, which the check finds.
    """
    torch.onnx.export(
        graph,
        tuple(values[:2] for values in inputs),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},) * len(inputs),
        input_names=_input_names(inputs),
        output_names=_output_names(graph, inputs),
        opset_version=_OPSET,
    )


def _export_single(graph: nn.Module, inputs: Inputs, path: Path) -> None:
    """Export by torch.export for one image."""
    torch.onnx.export(
        graph,
        tuple(values[:1] for values in inputs),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=_input_names(inputs),
        output_names=_output_names(graph, inputs),
        opset_version=_OPSET,
    )


def _export_trace(graph: nn.Module, inputs: Inputs, path: Path) -> None:
    """Export by the older tracer for any number of images.

    It passes over some control flow that torch.export does not.
    """
    names = _output_names(graph, inputs)
    torch.onnx.export(
        graph,
        tuple(values[:2] for values in inputs),
        str(path),
        dynamo=False,
        dynamic_axes={name: {0: "batch"} for name in (*_input_names(inputs), *names)},
        input_names=_input_names(inputs),
        output_names=names,
        opset_version=_OPSET,
    )


@dataclass(frozen=True)
class _Exporter:
    """One way to make a graph."""

    name: str
    """As `export.json` says it."""
    batch: str | int
    """Images per call: ``any`` or 1."""
    write: Callable[[nn.Module, Inputs, Path], None]
    """Called with the network, `Reference.inputs` and the file."""


_EXPORTERS = (
    _Exporter("torch.export", "any", _export_program),
    _Exporter("trace", "any", _export_trace),
    _Exporter("torch.export", 1, _export_single),
)
"""In the order in which they are tried."""


def _input_names(inputs: Inputs) -> list[str]:
    """Name the inputs that a network has."""
    return ["image", "inside"][: len(inputs)]


def _output_names(graph: nn.Module, inputs: Inputs) -> list[str]:
    """Name the outputs that a network has."""
    return ["pred_score", "anomaly_map"][: len(graph(*[values[:1] for values in inputs]))]


def _session(path: Path) -> Outputs:
    """Load a graph into onnxruntime on the CPU, as a function from its inputs to its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised, too
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    # A network without maps does not ask what counts.
    known = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Sequence[np.ndarray]:
        arrays = dict(zip(_input_names(inputs), inputs, strict=True))
        return session.run(None, {name: arrays[name].numpy() for name in known})

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep whole graphs out of the terminal, which exporters print when they fail."""
    before = logging.root.manager.disable
    unread = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(unread),
            contextlib.redirect_stderr(unread),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _root_cause(error: BaseException) -> str:
    """Give the first line of the innermost cause, without terminal colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    line = next(iter(text.splitlines()), "")
    return f"{type(error).__name__}: {line[:200]}"
