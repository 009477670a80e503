"""A trained model as one file for the line; `python -m adray bundle`.

A bundle is a zip with the graph from raw pixels to a verdict, and a manifest that says what it is:
threshold and promise, the weights in it, hashes of all members, and images with their scores by
which another machine can check itself. `adray.runtime` reads it, without torch.

It is written only where the graph judges as the trial does. Each calibration and test image is put
through both, and one other verdict, or a score beyond `adray.export.TOLERANCE`, refuses it.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import platform
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from adray.bundle_check import (
    CheckedImage,
    Comparison,
    Cut,
    JudgedImage,
    Score,
    Wanted,
    checked_images,
    choose_cut,
    clear_of_threshold,
    compare,
    judged_images,
    refuse_other,
    score_by_graph,
    score_by_trial,
    team_images,
)
from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.ensembles.team import member_folder
from adray.errors import InputError
from adray.export import OnnxError, describe, reference_outputs, write_onnx
from adray.export_formats import PRECISIONS, TOLERANCE
from adray.files import atomic_path
from adray.language.catalogue import LANGUAGES, load_catalogue
from adray.language.sentence import Sentence, sentence_of
from adray.predict import load_predictor
from adray.predictor import Predictor, own_map
from adray.promises import promise_text
from adray.results.trial_files import newest_recalibration
from adray.runtime.archive import ENDING, FORMAT, MANIFEST, open_archive
from adray.runtime.backends import BACKENDS, installed_backends
from adray.runtime.errors import BundleError
from adray.runtime.model import GRAPH, VERDICTS, Bundle
from adray.runtime.picture import read_picture
from adray.thresholds import promised_pixels
from adray.types import Json

if TYPE_CHECKING:
    import onnx

    from adray.trainer import BaseTrainer

_REFERENCES = 8
"""Images by which the network's graph is compared with torch."""
_MOST_GOLDEN = 5
_MOST_GOLDEN_BYTES = 32_000_000
"""Of all golden images together."""
_MAP = "anomaly_map"
_CLEAR = 1e-3
"""Distance of a golden image from the threshold, as a part of it."""
_PACKAGES = ("adray", "torch", "numpy", "PIL", "onnx", "onnxscript", "onnxruntime")
_MAIN_BACKEND = "onnxruntime"
"""By its scores the threshold is chosen."""
_RUNNER = "run_onnx.py"
_FILE_MODE = 0o100644 << 16
"""A plain file that its owner may write, as a zip notes it."""


def write_bundle(
    trial: str | Path, out: str | Path, wanted: Wanted, accept_other_weights: bool = False
) -> Json:
    """Write a trained trial or a team into one file, which appears whole or not at all.

    Args:
        trial: a trial's folder in a store, or the file of an ensemble.
        out: the file, whose name ends in ``.adray``. It must not exist.
        wanted: how images are to be judged.
        accept_other_weights: see `load_predictor`; the manifest then says what is accepted.

    Returns:
        The manifest.

    Raises:
        InputError: for a trial that cannot be loaded, whose images are out of reach, that cannot
            become an exact graph, or that its graph judges otherwise.
    """
    out = Path(out)
    trial = Path(trial)
    _check_name(out)
    predictor = load_predictor(
        trial, "cpu", accept_other_weights=accept_other_weights
    ).chosen_among(wanted.tried)
    is_holdout = not predictor.team and newest_recalibration(trial) is None
    _check_models(predictor)
    _check_calibration(predictor, wanted)
    _check_precision(wanted, is_holdout)
    dtype = _input_dtype(predictor)
    images = team_images(trial) if predictor.team else checked_images(trial)

    # The graph is first made without a threshold, which its own scores decide. A team's calibration
    # normals were each scored by scales that do not know it, which the graph cannot do again.
    graphs = _make_graphs(predictor, trial, images, wanted)
    bare = graphs.make(np.inf, ())
    by_trial = score_by_trial(predictor, images)
    by_graph = _own_scores(bare, images, dtype)
    _check_numbers(wanted, by_graph)
    judged = judged_images(images, by_trial, by_graph)
    cut = choose_cut(predictor, judged, wanted, is_holdout)
    found = compare(judged, cut)
    precision = _checked_precision(wanted, found, graphs, dtype)

    backends = {_MAIN_BACKEND: _version_of(_MAIN_BACKEND) | found.facts}
    for backend in installed_backends():
        if backend != _MAIN_BACKEND:
            backends[backend] = _try(backend, bare, images, by_graph, cut, dtype)

    golden = _golden_images(judged, cut, dtype)
    members = {GRAPH: graphs.make(cut.of_graph, cut.calibration), _RUNNER: _runner()}
    peaks = predictor.peaks if wanted.is_exact else _own_peaks(members[GRAPH], images, dtype)
    about = _about(trial, predictor, cut, _regions(predictor, wanted, peaks))
    check = found.facts | {"backends": backends}
    if not wanted.is_exact:
        check["tolerance"] = None  # its scores are its own
    about |= {"check": check, "precision": precision}
    members |= {image.file: image.data for image in golden}
    return _write(out, about, members, golden, predictor)


# What is refused before anything long starts


def _check_name(out: Path) -> None:
    """Refuse a name that is no bundle's, or taken.

    Raises:
        InputError: with the remedy.
    """
    if out.suffix != ENDING:
        raise InputError(Sentence.of("bundle ending", out=str(out), ending=ENDING))
    if out.exists():
        raise InputError(Sentence.of("bundle exists", out=str(out)))
    if not out.parent.is_dir():
        raise InputError(Sentence.of("bundle no folder", out=str(out), parent=str(out.parent)))


def _check_models(predictor: Predictor) -> None:
    """Refuse a model, or a member of a team, that has no graph from an image's own pixels.

    Raises:
        InputError: with what to do instead.
    """
    for model in predictor.models:
        _check_pixels(model.trainer)
        _check_tiles(model.trainer, bool(predictor.team))


def _check_precision(wanted: Wanted, is_holdout: bool) -> None:
    """Refuse a precision whose scores nobody could promise anything of.

    Args:
        wanted: how images are to be judged.
        is_holdout: tells that the held-out images calibrate, which the graph can score anew.

    Raises:
        InputError: with the remedy.
    """
    if not wanted.is_exact and not is_holdout:
        raise InputError(
            Sentence.of("bundle precision", precision=wanted.precision, precisions=PRECISIONS[0])
        )


def _check_numbers(wanted: Wanted, scores: Sequence[float]) -> None:
    """Refuse a lower precision whose range the network's values leave.

    Raises:
        InputError: for scores that are no numbers.
    """
    strange = int((~np.isfinite(scores)).sum())
    if strange and not wanted.is_exact:
        raise InputError(
            Sentence.of(
                "bundle not finite",
                precision=wanted.precision,
                strange=strange,
                number=len(scores),
                precisions=PRECISIONS[0],
            )
        )


def _check_pixels(trainer: BaseTrainer) -> None:
    """Refuse a model whose images a graph cannot take as they are.

    Raises:
        InputError: for floating-point images, and for chosen channels.
    """
    rule = trainer.pixels
    if rule.depth == "float" or not isinstance(rule.channels, str):
        raise InputError(
            Sentence.of("bundle pixels", depth=rule.depth, channels=str(rule.channels))
        )


def _check_tiles(trainer: BaseTrainer, is_member: bool) -> None:
    """Refuse a model whose tiles a graph cannot take.

    Args:
        trainer: of the model.
        is_member: tells that it is one of a team.

    Raises:
        InputError: for a member of a team, and for a model of each place; with what to do instead.
    """
    config = trainer.train_config
    if config.tile is None:
        return
    if is_member:
        raise InputError(Sentence.of("bundle tiles of member", tile=config.tile))
    if config.tile_model == "position":
        raise InputError(Sentence.of("bundle tile_model"))


def _check_calibration(predictor: Predictor, wanted: Wanted) -> None:
    """Refuse a model that has nothing to judge by.

    Raises:
        InputError: without calibration normals and without a threshold.
    """
    if not predictor.calibration and wanted.threshold is None:
        raise InputError(Sentence.of("bundle no threshold"))


# The graph


@dataclass(frozen=True)
class _Graphs:
    """What a bundle's graph may be."""

    make: Callable[[float, tuple[float, ...]], bytes]
    """From a threshold and calibration scores to the graph, in the precision that was asked for."""
    make_exact: Callable[[float, tuple[float, ...]], bytes]
    """Likewise, in float32."""


def _make_graphs(
    predictor: Predictor, trial: Path, images: Sequence[CheckedImage], wanted: Wanted
) -> _Graphs:
    """Make the networks' graphs and all around them.

    Raises:
        InputError: where there is none that is exact, or none in the precision that was asked for.
    """
    networks = []
    for model in predictor.models:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "network.onnx"
            networks.append(_write_network(model.trainer, images, path))
    make_exact = _graph_maker(predictor, networks)
    if wanted.is_exact:
        return _Graphs(make_exact, make_exact)

    from adray.bundle_precision import lower_network

    known = frozenset(image.path for image in images)
    lower = lower_network(networks[0], predictor.trainer, trial, known, wanted.precision)
    return _Graphs(_graph_maker(predictor, [lower]), make_exact)


def _checked_precision(wanted: Wanted, found: Comparison, graphs: _Graphs, dtype: str) -> Json:
    """Refuse a graph that judges other than the trial, by the rule of its precision.

    Args:
        wanted: how images are to be judged.
        found: the graph's scores beside the trial's.
        graphs: that of the precision, and that in float32.
        dtype: of the pixels that they take.

    Returns:
        The precision, and what a lower one gains. JSON.

    Raises:
        InputError: with what is other.
    """
    if wanted.is_exact:
        refuse_other(found)
        return {"name": wanted.precision}

    from adray.bundle_precision import Lowered, measure_gain, refuse_worse

    pair = (graphs.make(np.inf, ()), graphs.make_exact(np.inf, ()))
    scores = (_scorer(pair[0], _MAIN_BACKEND), _scorer(pair[1], _MAIN_BACKEND))
    gain = measure_gain(pair, scores, read_picture(found.judged[0].path, dtype))
    lowered = Lowered(wanted.precision, found, gain)
    refuse_worse(lowered)
    return lowered.facts


def _write_network(
    trainer: BaseTrainer, images: Sequence[CheckedImage], path: Path
) -> onnx.ModelProto:
    """Make the network's graph, and compare it with torch.

    Raises:
        InputError: where there is none that is exact.
    """
    trainer.model.requires_grad_(False)

    # Some of all images, evenly.
    places = np.linspace(0, len(images) - 1, min(len(images), _REFERENCES)).astype(int)
    references = reference_outputs(trainer, [images[place].path for place in places])
    try:
        write_onnx(trainer, path, references)
    except OnnxError as error:
        raise InputError(Sentence.of("bundle no graph", error=sentence_of(error))) from error
    import onnx

    return onnx.load(path)


def _graph_maker(
    predictor: Predictor, networks: Sequence[onnx.ModelProto]
) -> Callable[[float, tuple[float, ...]], bytes]:
    """Give a function from a threshold and calibration scores to a whole graph's bytes."""
    from adray.bundle_graph import Judge, whole_graph
    from adray.bundle_team_graph import MemberGraph, team_graph
    from adray.bundle_tiles import tiled_graph

    def make(threshold: float, calibration: tuple[float, ...]) -> bytes:
        judge = Judge(threshold, calibration, predictor.tried)
        if not predictor.team:
            trainer = predictor.trainer
            config = trainer.train_config
            build = whole_graph if config.tile is None else tiled_graph
            graph = build(networks[0], config, trainer.pixels, judge, trainer.roi)
            return graph.SerializeToString()

        members = []
        for model, network, member in zip(predictor.models, networks, predictor.team, strict=True):
            trainer = model.trainer
            config = trainer.train_config
            members.append(MemberGraph(network, config, model.pixels, member, trainer.roi))
        return team_graph(members, judge).SerializeToString()

    return make


def _input_dtype(predictor: Predictor) -> str:
    """Give the type of the pixels that the graph takes.

    Raises:
        InputError: for a team whose members were trained on several.
    """
    from adray.bundle_graph import input_dtype

    dtypes = {input_dtype(model.pixels) for model in predictor.models}
    if len(dtypes) > 1:
        raise InputError(Sentence.of("bundle mixed depths"))
    return dtypes.pop()


def _scorer(graph: bytes, backend: str) -> Score:
    """Give a function from an image's pixels (H, W, 3) to the graph's score.

    Raises:
        Exception: what the backend raises for a graph that it cannot run.
    """
    ready = BACKENDS[backend](graph, torch.get_num_threads())
    return lambda pixels: float(ready.run(pixels, ["pred_score"])["pred_score"])


def _own_scores(graph: bytes, images: Sequence[CheckedImage], dtype: str) -> list[float]:
    """Score images by the graph.

    Raises:
        InputError: for an image that no bundle can read, and a graph that cannot be run.
    """
    try:
        return score_by_graph(_scorer(graph, _MAIN_BACKEND), images, dtype)
    except InputError:
        raise
    except Exception as error:  # onnxruntime raises kinds of its own
        text = " ".join(str(error).split())[:200]
        raise InputError(
            Sentence.of(
                "bundle graph fails",
                main_backend=_MAIN_BACKEND,
                text=text,
                precisions=PRECISIONS[0],
            )
        ) from error


def _try(
    backend: str,
    graph: bytes,
    images: Sequence[CheckedImage],
    by_graph: Sequence[float],
    cut: Cut,
    dtype: str,
) -> Json:
    """Judge all images by another backend, and hold it against the one that the bundle goes by.

    Args:
        backend: its name.
        graph: of the bundle, without a threshold.
        images: of the trial.
        by_graph: their scores by `_MAIN_BACKEND`.
        cut: the threshold.
        dtype: of the pixels that the graph takes.

    Returns:
        Its version, and figures, or the reason why it is not to be used. JSON.
    """
    about = _version_of(backend)
    try:
        by_backend = score_by_graph(_scorer(graph, backend), images, dtype)
    except Exception as error:  # backends raise kinds of their own
        text = " ".join(str(error).split())[:200]
        return about | {"reason": f"it could not run the graph ({text})"}

    same = replace(cut, of_trial=cut.of_graph)
    found = compare(judged_images(images, by_graph, by_backend), same)
    return about | ({"reason": found.reason} if found.reason else found.facts)


def _version_of(package: str) -> Json:
    """Give the version of a package. JSON."""
    return {"version": str(importlib.import_module(package).__version__)}


# Golden images


@dataclass(frozen=True)
class GoldenImage:
    """An image by which a machine checks itself."""

    judged: JudgedImage
    """Where it comes from."""
    file: str
    """Its name in the bundle."""
    data: bytes
    """Of the file: a JPEG as it was, any other picture as a PNG of its upright pixels."""
    pixels_sha256: str
    """Of its decoded pixels (H, W, 3)."""


def _golden_images(judged: Sequence[JudgedImage], cut: Cut, dtype: str) -> list[GoldenImage]:
    """Choose images from the lowest score to the highest, as far as they are small enough."""
    clear = [image for image in judged if clear_of_threshold(image, cut, _CLEAR)]
    clear.sort(key=lambda image: image.by_graph)
    places = np.linspace(0, len(clear) - 1, min(len(clear), _MOST_GOLDEN)).round().astype(int)

    golden: list[GoldenImage] = []
    left = _MOST_GOLDEN_BYTES

    # From the lowest score to the highest, as far as there is room.
    for place in places:
        image = _golden_image(clear[place], f"golden/{len(golden)}", dtype)
        if len(image.data) <= left:
            golden.append(image)
            left -= len(image.data)
    return golden


def _golden_image(image: JudgedImage, stem: str, dtype: str) -> GoldenImage:
    """Make a golden image. A JPEG stays one, since machines differ in how they decode it."""
    pixels = read_picture(image.path, dtype)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    data = image.path.read_bytes()
    is_jpeg = data.startswith(b"\xff\xd8")
    if is_jpeg:
        return GoldenImage(image, f"{stem}.jpg", data, digest)

    buffer = io.BytesIO()
    shown = pixels if dtype == "uint8" else pixels[..., 0]
    Image.fromarray(shown).save(buffer, format="PNG")
    return GoldenImage(image, f"{stem}.png", buffer.getvalue(), digest)


def _golden_rows(golden: Sequence[GoldenImage], bundle: Bundle, predictor: Predictor) -> list[Json]:
    """Say of each golden image what the bundle gives, as it will be read. JSON.

    Raises:
        InputError: for a map in float32 that is not the trial's.
    """
    results = [bundle.predict(image.judged.path) for image in golden]
    pairs = [(image, result.anomaly_map) for image, result in zip(golden, results, strict=True)]
    map_errors = _map_errors(pairs, predictor)

    rows = []
    for image, result, map_error in zip(golden, results, map_errors, strict=True):
        if bundle.precision["name"] == PRECISIONS[0] and not map_error <= TOLERANCE:
            raise InputError(
                Sentence.of(
                    "bundle map off",
                    path=str(image.judged.path),
                    map_error=f"{map_error:.1e}",
                    tolerance=f"{TOLERANCE:g}",
                )
            )
        rows.append(
            {
                "file": image.file,
                "pixels_sha256": image.pixels_sha256,
                "split": image.judged.split,
                "pred_score": result.pred_score,
                "p_value": result.p_value,
                "verdict": result.verdict,
                "map_error": map_error,
            }
        )
    return rows


def _map_errors(
    found: Sequence[tuple[GoldenImage, np.ndarray | None]], predictor: Predictor
) -> list[float]:
    """Measure how far maps are from the trial's at the size of the images.

    A map may be nearly 0 all over, so each error is a part of the largest value of all of them.

    Args:
        found: golden images, and the graph's map of each, None without maps.
        predictor: of the trial.
    """
    errors = []
    largest = 1e-30
    for image, of_graph in found:
        if of_graph is None:
            errors.append(0.0)
            continue
        (outcome,) = predictor.predict([image.judged.path])
        whole = own_map(outcome)
        largest = max(largest, float(np.abs(whole).max()))
        errors.append(float(np.abs(whole - of_graph).max()))
    return [error / largest for error in errors]


# The manifest


def _about(trial: Path, predictor: Predictor, cut: Cut, regions: Json | None) -> Json:
    """Say all that a bundle is, but for what its members decide. JSON."""
    described = _described(trial, predictor)
    return {
        "format": FORMAT,
        "kind": "adray bundle",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": described["source"],
        "class_names": list(VERDICTS[:2]),
        "threshold": _threshold(cut),
        "regions": regions if described["has_map"] else None,
        "calibration": {"scores": list(cut.calibration)},
        "input": {
            "name": "image",
            "dtype": _input_dtype(predictor),
            "shape": ["height", "width", 3],
            "meaning": "the image's own pixels, upright, red first, grey repeated",
            "pixels": described["pixels"],
        },
        "outputs": _outputs(cut, described["has_map"]),
        "preprocessing": described["preprocessing"],
        "map_range": described["map_range"],
        "accepted": described["accepted"],
        "weights": _weights(described["backbones"]),
        "versions": _versions(),
    }


def _described(trial: Path, predictor: Predictor) -> Json:
    """Say what the model or the models of a bundle are. JSON."""
    if not predictor.team:
        one = describe(trial, predictor)
        return one | {
            "pixels": one["preprocessing"]["pixels"],
            "backbones": list(one["source"]["backbones"].values()),
            "has_map": "anomaly_map" in one["outputs"],
        }

    members = []
    backbones: list[Json] = []
    has_map = False
    for model, member in zip(predictor.models, predictor.team, strict=True):
        one = describe(member_folder(trial, member), Predictor((model,), {}))
        has_map = has_map or ("anomaly_map" in one["outputs"] and member.map_range is not None)
        for identity in one["source"]["backbones"].values():
            if identity not in backbones:
                backbones.append(identity)
        members.append({"configuration": member.configuration, "weight": member.weight, **one})
    return {
        "source": {"ensemble": trial.name, "members": [one["source"] for one in members]},
        "preprocessing": [one["preprocessing"] for one in members],
        "pixels": [one["preprocessing"]["pixels"] for one in members],
        "map_range": predictor.map_range,
        "accepted": list(predictor.accepted),
        "backbones": backbones,
        "has_map": has_map,
    }


def _threshold(cut: Cut) -> Json:
    """Say where the bundle cuts, and what is promised, in each language. JSON."""
    sentences = {}
    if cut.promise is not None:
        for language in LANGUAGES:
            sentences[language] = promise_text(cut.promise, load_catalogue(language))
    return {
        "value": cut.of_graph,
        "rule": cut.rule,
        "meaning": "an image is anomalous where pred_score >= value",
        "promise": None if cut.promise is None else asdict(cut.promise),
        "sentences": sentences,
    }


def _own_peaks(graph: bytes, images: Sequence[CheckedImage], dtype: str) -> np.ndarray | None:
    """Give the highest value of the graph's map of each calibration normal, None without maps.

    Args:
        graph: of the bundle.
        images: of the trial.
        dtype: of the pixels that the graph takes.
    """
    ready = BACKENDS[_MAIN_BACKEND](graph, torch.get_num_threads())
    held_out = [image.path for image in images if image.split == "holdout"]
    if _MAP not in ready.outputs or not held_out:
        return None
    return np.array([ready.run(read_picture(path, dtype), [_MAP])[_MAP].max() for path in held_out])


def _regions(predictor: Predictor, wanted: Wanted, peaks: np.ndarray | None) -> Json | None:
    """Say from which value of a map on a pixel belongs to a region. JSON, None where nobody knows.

    The highest values of the calibration normals' maps may be torch's. The graph's maps differ by
    `TOLERANCE` of the largest at most, so the threshold lies that much above.
    """
    if peaks is None:
        return None
    rate = predictor.rate if wanted.false_alarms is None else wanted.false_alarms
    found = promised_pixels(peaks, rate, predictor.tried)
    assert found.value is not None, "there are maps of calibration normals"
    return {
        "threshold": float(found.value + TOLERANCE * np.abs(peaks).max()),
        "meaning": "pixels of the anomaly map at or above it, which touch at a side or a corner",
        "promise": None if found.promise is None else asdict(found.promise),
    }


def _outputs(cut: Cut, has_map: bool) -> Json:
    """Say what the graph gives. JSON."""
    outputs = {
        "pred_score": "higher is more anomalous",
        "verdict": "0 normal, 1 anomalous, 2 no verdict, since the score or a pixel of the map is no number",
    }
    if cut.calibration:
        outputs["p_value"] = "part of normal images that score as high"
    if has_map:
        outputs["anomaly_map"] = "(height, width), higher is more anomalous"
    return outputs


def _weights(backbones: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Name the pretrained weights in the graph, each with its publisher, whose licence holds. JSON."""
    rows = []
    for identity in backbones:
        known = BACKBONE_WEIGHT_FILES.get(str(identity.get("backbone")))
        if identity.get("file") is None:
            continue
        source = "unknown" if known is None else known.source
        rows.append(
            {
                **identity,
                "source": source,
                "licence": "these weights are inside of this file; the licence is that of their "
                f"publisher ({source}), and goes with every copy",
            }
        )
    return rows


def _versions() -> Json:
    """Name the versions of what made a bundle, but not the machine, for a bundle travels. JSON."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        versions[name] = importlib.import_module(name).__version__
    return versions


# The file


def _runner() -> bytes:
    """Give the program that shows how to judge images without this package."""
    return resources.files("adray.runtime").joinpath(_RUNNER).read_bytes()


def _write(
    out: Path,
    about: Json,
    members: Mapping[str, bytes],
    golden: Sequence[GoldenImage],
    predictor: Predictor,
) -> Json:
    """Write the file, read it as the line will, and note what it says of the golden images.

    Returns:
        The manifest.
    """
    files = {}
    for name, data in members.items():
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = about | {"files": files}

    # Written once to be read as on the line, and again with what was read of the golden images.
    with atomic_path(out) as temporary:
        _write_zip(temporary, manifest, members)
        rows = _golden_rows(golden, _opened(temporary), predictor)
        manifest |= {"golden": rows}
        _write_zip(temporary, manifest, members)
    return manifest


def _opened(path: Path) -> Bundle:
    """Load a bundle as the line does.

    Raises:
        InputError: for one that the line would refuse.
    """
    try:
        return Bundle(open_archive(path), torch.get_num_threads(), _MAIN_BACKEND)
    except BundleError as error:
        raise InputError(Sentence.of("bundle line refuses", error=sentence_of(error))) from error


def _write_zip(path: Path, manifest: Json, members: Mapping[str, bytes]) -> None:
    """Write members, the manifest first. The same members make the same bytes."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {MANIFEST: text.encode("utf-8", "backslashreplace"), **members}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = _FILE_MODE
            info.compress_type = zipfile.ZIP_STORED
            file.writestr(info, data)
