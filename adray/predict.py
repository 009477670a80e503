"""From a trained trial, or a team of them, and new images to scores, verdicts and maps.

    predictor = load_predictor("outputs/mvtec/bottle/padim/3fa9c1d2")
    for outcome in predictor.predict(["a.png", array]):
        print(outcome.name, outcome.pred_score, outcome.anomaly_map.max())

An image goes through the same decoding, resizing and normalisation as in the trial, so its score is
the same. The file of an ensemble (`python -m adray ensemble`) is one more thing to load: each of
its models reads the image in its own way, and their calibrated scores and maps are averaged.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch.nn import functional as F

from adray.checkpoints import read_checkpoint
from adray.components.tiler import tile, untile
from adray.config import TrainConfig, build
from adray.data.base import is_image_name, list_images_below
from adray.data.decode import (
    DecodedImage,
    Geometry,
    array_pixels,
    decode_file,
    decode_full,
    full_array,
)
from adray.data.normalization import normalize_images
from adray.ensembles.team import (
    MapPart,
    Member,
    combine_maps,
    combine_scores,
    member_folder,
    read_ensemble,
    widest_part,
)
from adray.errors import InputError, nearest
from adray.files import atomic_path, read_json, readable_name
from adray.registry import ModelRegistry
from adray.results.figures import overlay
from adray.results.trial_files import find_checkpoint, read_scores
from adray.thresholds import (
    FALSE_ALARMS,
    PROMISE,
    Promise,
    make_promise,
    p_values,
    promised_threshold,
)
from adray.types import EIGHT_BITS, Batch, Json, PixelRule, Prediction

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer


@dataclass(frozen=True)
class EightBitPixels:
    """Pixels that were read by a model's rule already, such as a tile of a larger image."""

    pixels: np.ndarray
    """(3, H, W) uint8."""


Source = str | Path | np.ndarray | torch.Tensor | EightBitPixels
DEFAULT_THRESHOLD = PROMISE
RECALIBRATION = "recalibration_"
"""Beginning of the names of the records that `adray audit --recalibrate` writes beside a trial."""
COLUMNS = (
    "image",
    "pred_score",
    "p_value",
    "verdict",
    "threshold",
    "map_low",
    "map_high",
    "map",
    "reason",
)
_MOST_STEM_BYTES = 200
"""What is left of the 255 bytes of a file's name for that of an image."""
_TINY = 1e-30


@dataclass(frozen=True)
class Outcome:
    """What a predictor says of one image."""

    name: str
    """The path, or ``image <position>`` for arrays."""
    pred_score: float | None = None
    """Higher is more anomalous; None where the image could not be read."""
    anomaly_map: np.ndarray | None = None
    """(S, S) float32 at the size that the model sees, or None."""
    image: np.ndarray | None = None
    """The (3, S, S) uint8 pixels that the model saw, or None."""
    reason: str = ""
    """Why there is no score; empty where there is one."""
    explanation: str | None = None
    """The model's own words; None where it writes none."""
    outside: float = 0.0
    """Part of the image's pixels that lay outside of the range that the model was trained with, and
    were clipped."""
    p_value: float | None = None
    """Part of normal images that score as high, see `adray.thresholds.p_values`; None where the
    model brings no calibration normals, and for an image in tiles."""


@dataclass(frozen=True)
class TrialModel:
    """One trained configuration: it reads images as its trial did, and scores them."""

    trainer: BaseTrainer
    """It holds the model, and how images are prepared for it."""

    @property
    def geometry(self) -> Geometry:
        """Give what happens to an image before the model sees it."""
        config = self.trainer.train_config
        return Geometry(config.img_size, config.crop_size)

    @property
    def batch_size(self) -> int:
        """Count the images per step in the trial."""
        config = self.trainer.train_config
        return config.eval_batch_size or config.batch_size

    @property
    def view(self) -> float:
        """Give the part of an image's side that the model sees, 1 without a crop."""
        return self.geometry.side / self.geometry.img_size

    @property
    def pixels(self) -> PixelRule:
        """Give how the numbers in an image become 8 bits."""
        return self.trainer.pixels

    def read(self, source: Source, number: int) -> Outcome:
        """Read the pixels of an image, or why there are none."""
        if isinstance(source, str | Path):
            name = str(source)
            try:
                decoded = decode_file(Path(source), self.geometry, self.pixels)
            except InputError as error:
                return Outcome(name, reason=str(error))
            return Outcome(name, image=decoded.pixels, outside=decoded.outside)

        if isinstance(source, EightBitPixels):
            array = rearrange(source.pixels, "c h w -> h w c")
            decoded = array_pixels(array, self.geometry, EIGHT_BITS)
        else:
            decoded = array_pixels(_as_array(source), self.geometry, self.pixels)
        return Outcome(f"image {number}", image=decoded.pixels, outside=decoded.outside)

    def score(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Add score and map to the outcomes that have pixels."""
        readable = [place for place, outcome in enumerate(outcomes) if outcome.image is not None]
        if not readable:
            return outcomes
        prediction = self._predict([outcomes[place].image for place in readable])

        scored = list(outcomes)
        for i, place in enumerate(readable):
            anomaly_map = prediction.anomaly_map
            explanation = prediction.explanation
            scored[place] = replace(
                outcomes[place],
                pred_score=float(prediction.pred_score[i]),
                anomaly_map=None if anomaly_map is None else anomaly_map[i, 0].numpy(),
                explanation=None if explanation is None else explanation[i],
            )
        return scored

    def _predict(self, images: Sequence[np.ndarray | None]) -> Prediction:
        """Predict images of one size, (3, S, S) uint8 each. The answer is float32 on the CPU."""
        trainer = self.trainer
        pixels = torch.from_numpy(np.stack([image for image in images if image is not None]))
        image = normalize_images(pixels.to(trainer.device), trainer.train_config.normalize)
        index = torch.arange(len(pixels), device=trainer.device)
        batch = Batch(image, torch.zeros_like(index), None, index)

        prediction = trainer.predict_batch(batch)
        anomaly_map = prediction.anomaly_map
        return replace(
            prediction,
            pred_score=prediction.pred_score.float().cpu(),
            anomaly_map=None if anomaly_map is None else anomaly_map.float().cpu(),
        )


@dataclass(frozen=True)
class Predictor:
    """A trained configuration, or a team of several."""

    models: tuple[TrialModel, ...]
    """One, or the members of a team."""
    thresholds: dict[str, float]
    """Value on `pred_score` by rule, of those that the trial or the team could compute."""
    map_range: tuple[float, float] | None = None
    """Smallest and almost largest value of the test set's maps, for pictures; None if unknown."""
    team: tuple[Member, ...] = ()
    """How the models' scores and maps are combined, one per model; empty for a single trial."""
    calibration: tuple[float, ...] = ()
    """Scores of normal images that no model trained on; empty where none are known."""
    rate: float = FALSE_ALARMS
    """Rate of false alarms that the threshold `adray.thresholds.PROMISE` was asked for."""

    @property
    def trainer(self) -> BaseTrainer:
        """Give the trainer of the one model, which holds it and how its images are prepared.

        Raises:
            InputError: for a team, which has several.
        """
        if len(self.models) != 1:
            raise InputError(
                f"an ensemble of {len(self.models)} models is no single trial; name one of its members"
            )
        return self.models[0].trainer

    def predict(self, images: Iterable[Source], batch_size: int | None = None) -> Iterator[Outcome]:
        """Score images in their order. One that cannot be read gives an outcome with its reason.

        Args:
            images: paths; arrays (H, W) or (H, W, 3); or tensors (3, H, W), of any size. They are
                uint8, or the numbers of deep images where the model was trained on such.
            batch_size: images per step, which does not change scores; None for the trial's, or a
                team's smallest.
        """
        size = batch_size or min(model.batch_size for model in self.models)
        numbered = enumerate(images)
        while chunk := list(islice(numbered, size)):
            yield from map(self._with_p_value, self._predict_batch(chunk))

    def _with_p_value(self, outcome: Outcome) -> Outcome:
        """Add how rare an image's score is among normals, where that is known."""
        if not self.calibration or outcome.pred_score is None or math.isnan(outcome.pred_score):
            return outcome
        calibration = np.array(self.calibration)
        value = p_values(np.array([outcome.pred_score]), calibration)
        return replace(outcome, p_value=float(value[0]))

    def promise(self, rate: float) -> Promise:
        """Say what the calibration normals promise at a rate of false alarms.

        Raises:
            InputError: for a rate outside (0, 1), and without calibration normals.
        """
        if not self.calibration:
            raise InputError(
                "no rate of false alarms can be promised: the model brings no scores of held-out "
                "normals; train it with train.holdout above 0, or give a number as --threshold"
            )
        return make_promise(np.array(self.calibration), rate)

    def predict_tiled(
        self, images: Iterable[Source], tile_size: int, overlap: float = 0.25
    ) -> Iterator[Outcome]:
        """Score large images piece by piece, for models trained on images at the pieces' scale.

        Each tile is scored as an image of its own. The score is the highest, the maps are laid side
        by side.

        Args:
            images: as for `predict`.
            tile_size: side of a tile in pixels of the image.
            overlap: part of a tile that its neighbour shares at least.

        Yields:
            Outcomes whose image and map have the size of the image. One that is smaller than a tile
            has a reason.

        Raises:
            InputError: for a model that sees only the middle of an image, models that read pixels
                in several ways, and an overlap out of range.
        """
        if any(model.view < 1 for model in self.models):
            raise InputError(
                "tiles do not suit a model with crop_size, which sees only the middle of each; predict whole"
            )
        rules = {model.pixels for model in self.models}
        if len(rules) > 1:
            raise InputError(
                "tiles are cut from pixels that all models read alike, but the models of this "
                "ensemble were trained with several ranges; predict whole"
            )
        rule = rules.pop()
        for number, source in enumerate(images):
            name = str(source) if isinstance(source, str | Path) else f"image {number}"
            try:
                yield self._predict_tiles(name, _full_image(source, rule), tile_size, overlap)
            except InputError as error:
                yield Outcome(name, reason=str(error))

    def _predict_tiles(
        self, name: str, whole_image: DecodedImage, tile_size: int, overlap: float
    ) -> Outcome:
        """Score the tiles of one image, which is decoded at its own size."""
        pixels = whole_image.pixels
        outside = whole_image.outside
        pieces = tile(torch.from_numpy(pixels), tile_size, overlap)
        outcomes = list(self.predict(EightBitPixels(piece.numpy()) for piece in pieces))
        score = max(_scores_of(outcomes))
        maps = [outcome.anomaly_map for outcome in outcomes if outcome.anomaly_map is not None]
        if not maps:
            return Outcome(name, score, image=pixels, outside=outside)

        small = torch.from_numpy(np.stack(maps)[:, None])  # (N, 1, S, S)
        size = (tile_size, tile_size)
        enlarged = F.interpolate(small, size, mode="bilinear", align_corners=False)
        whole = untile(enlarged, pixels.shape[1], pixels.shape[2], overlap)  # (1, H, W)
        return Outcome(name, score, whole[0].numpy(), pixels, outside=outside)

    def threshold(self, wanted: str) -> float:
        """Give the value of a rule's name, or of a number.

        Raises:
            InputError: for a rule that the trial could not compute.
        """
        try:
            return float(wanted)
        except ValueError:
            pass
        if wanted not in self.thresholds:
            known = nearest(wanted, self.thresholds) if self.thresholds else "give a number"
            raise InputError(f"threshold {wanted!r} is not known for this model; {known}")
        return self.thresholds[wanted]

    def _predict_batch(self, chunk: list[tuple[int, Source]]) -> list[Outcome]:
        """Score some numbered images with each model, and combine what a team says."""
        # Models that want the same pixels share them.
        readers = {(model.geometry, model.pixels): model for model in self.models}
        read = {}
        for key, model in readers.items():
            read[key] = [model.read(source, number) for number, source in chunk]

        by_model = [model.score(read[model.geometry, model.pixels]) for model in self.models]
        if not self.team:
            return by_model[0]
        return [self._combine(outcomes) for outcomes in zip(*by_model, strict=True)]

    def _combine(self, outcomes: tuple[Outcome, ...]) -> Outcome:
        """Combine what a team's members say of one image.

        The picture is that of the member that sees most of it.
        """
        for outcome in outcomes:
            if outcome.pred_score is None:
                return outcome
        score = float(combine_scores(_scores_of(outcomes), self.team))

        parts = []
        for i, (outcome, member) in enumerate(zip(outcomes, self.team, strict=True)):
            if outcome.anomaly_map is not None and member.map_range is not None:
                view = self.models[i].view
                parts.append(MapPart(i, outcome.anomaly_map, member.map_range, member.weight, view))
        if not parts:
            return replace(outcomes[0], pred_score=score, anomaly_map=None)
        shown = outcomes[widest_part(parts).position]
        return replace(shown, pred_score=score, anomaly_map=combine_maps(parts))


def _scores_of(outcomes: Iterable[Outcome]) -> list[float]:
    """List the scores of the images that have one."""
    return [outcome.pred_score for outcome in outcomes if outcome.pred_score is not None]


def _full_image(source: Source, rule: PixelRule) -> DecodedImage:
    """Read an image at its own size."""
    if isinstance(source, EightBitPixels):
        return DecodedImage(source.pixels, 0.0)
    if isinstance(source, str | Path):
        return decode_full(Path(source), rule)
    return full_array(_as_array(source), rule)


def _as_array(source: np.ndarray | torch.Tensor) -> np.ndarray:
    """Give an image in memory as an array, (H, W) or (H, W, 3)."""
    if isinstance(source, torch.Tensor):
        return rearrange(source, "c h w -> h w c").cpu().numpy()
    return source


# Loading


def load_predictor(path: str | Path, device: str | None = None) -> Predictor:
    """Load a trained model.

    Args:
        path: a trial's folder in a store, the folder of an export, a checkpoint file, or the file
            of an ensemble.
        device: ``cpu``, ``cuda``, ...; a GPU where there is one when None.

    Raises:
        InputError: for a folder without a checkpoint, a damaged file, an unknown trainer, missing
            weights, or an ensemble one of whose trials is not what it was.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    path = Path(path)
    if path.suffix == ".json" and not path.is_dir():
        return _load_ensemble(path, device)

    checkpoint = _checkpoint_of(path)
    about = read_json(checkpoint.parent / "result.json")
    about = about or read_json(checkpoint.parent / "export.json") or {}
    thresholds = {}
    for name, row in about.get("thresholds", {}).items():
        if row["value"] is not None:
            thresholds[name] = row["value"]
    trainer = _load_trainer(checkpoint, device)
    rate = about.get("thresholds", {}).get(PROMISE, {}).get("rate", FALSE_ALARMS)

    # An audit may have made a newer calibration, and trials of before have no promise at all.
    newer = _recalibration(checkpoint.parent)
    rate = rate if newer is None else newer["promise"]["rate"]
    calibration = calibration_scores(checkpoint.parent, newer or about) or trainer.calibration
    if calibration and (newer is not None or PROMISE not in thresholds):
        promise = promised_threshold(make_promise(np.array(calibration), rate))
        thresholds[PROMISE] = cast(float, promise.value)
    model = TrialModel(trainer)
    map_range = _pair(about.get("map_range"))
    return Predictor((model,), thresholds, map_range, calibration=calibration, rate=rate)


def _recalibration(folder: Path) -> Json | None:
    """Read the newest calibration that an audit made of a trial, None where there is none."""
    files = sorted(folder.glob(f"{RECALIBRATION}*.json"))
    return read_json(files[-1]) if files else None


def calibration_scores(folder: Path, about: Json) -> tuple[float, ...]:
    """Read the scores of the held-out normals of a trial, or of an export.

    Args:
        folder: of the checkpoint.
        about: what `result.json`, `export.json` or an audit's record holds there.

    Returns:
        Rising; nothing where there are none.
    """
    exported = about.get("calibration")
    if exported is not None:
        return tuple(exported["scores"])
    scores = read_scores(folder)
    if scores is None:
        return ()
    held_out = scores[scores["split"] == "holdout"]["pred_score"]
    return tuple(sorted(held_out.tolist()))


def _load_trainer(checkpoint: Path, device: str) -> BaseTrainer:
    """Build the trainer that wrote a checkpoint, and read that into it."""
    stored = read_checkpoint(checkpoint)
    name = _configuration_of(stored.trainer, checkpoint)
    trainer_class = ModelRegistry.trainer_class(name)
    config: Any = build(trainer_class.config_class, stored.config, f"{checkpoint.name}: config")
    train_config = build(TrainConfig, stored.train_config, f"{checkpoint.name}: train_config")
    trainer = trainer_class(config, train_config, device, stored.seed)
    trainer.load_model(checkpoint)
    return trainer


def _load_ensemble(path: Path, device: str) -> Predictor:
    """Load the members of a team. All of them are found before one is loaded."""
    ensemble = read_ensemble(path)
    folders = [member_folder(path, member) for member in ensemble.members]
    models = tuple(load_predictor(folder, device).models[0] for folder in folders)
    map_range = _pair(ensemble.map_range)
    return Predictor(models, ensemble.thresholds, map_range, ensemble.members, ensemble.calibration)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    """Make a pair of two values. None stays None."""
    return None if values is None else (values[0], values[1])


def _checkpoint_of(path: Path) -> Path:
    """Find the checkpoint in a trial's folder. A file is one itself."""
    if not path.is_dir():
        return path
    found = find_checkpoint(path)
    if found is None:
        raise InputError(
            f"{path} holds no checkpoint (model_*.pth); name the folder of a trial that kept one (keep: all in the "
            "sweep's file, or keep: best), or train it again"
        )
    return found


def _configuration_of(trainer: str, checkpoint: Path) -> str:
    """Find a configuration of the trainer class that wrote a checkpoint."""
    for name in ModelRegistry.list_models():
        if ModelRegistry.get(name).trainer.rpartition(".")[2] == trainer:
            return name
    raise InputError(
        f"checkpoint {checkpoint} is of {trainer}, which no model has; name its module in settings.plugins"
    )


# Files in, files out


def expand_images(names: Iterable[str]) -> Iterator[Path]:
    """Give the image files of folders, patterns and paths, each once, in their order.

    Raises:
        InputError: for a folder without images, and for a pattern that matches nothing.
    """
    seen: set[Path] = set()
    for name in names:
        found = _images_of(name)
        if not found:
            raise InputError(
                f"{name} holds no images; name image files, a folder of them or a pattern in quotes"
            )
        for image in found:
            if image not in seen:
                yield image
        seen.update(found)


def _images_of(name: str) -> list[Path]:
    """List the image files that one argument means."""
    path = Path(name)
    if path.is_dir():
        return list_images_below(path)
    is_pattern = any(sign in name for sign in "*?[")
    if is_pattern and not path.exists():
        matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return [match for match in sorted(matches) if is_image_name(match.name)]
    return [path]


def write_predictions(
    outcomes: Iterable[Outcome],
    out: Path,
    threshold: float | None,
    maps: str,
    map_range: tuple[float, float] | None,
    unsure: float | None = None,
) -> list[Json]:
    """Write `predictions.jsonl` line by line, `predictions.csv` at the end, and the maps.

    Args:
        outcomes: of a predictor.
        out: an existing folder.
        threshold: of the verdicts, None for none.
        maps: ``none``, ``values`` for 16-bit PNGs, or ``all`` for overlays too.
        map_range: of the trial's maps, for the colours of the overlays.
        unsure: below `threshold`; a score that reaches it alone is ``unsure``. None for none.

    Returns:
        The rows of the table, as JSON.
    """
    rows = []
    # What is not UTF-8 in a name becomes an escape that JSON reads back.
    with (out / "predictions.jsonl").open(
        "w", encoding="utf-8", errors="backslashreplace"
    ) as lines:
        for number, outcome in enumerate(outcomes):
            row = _row(outcome, _verdict(outcome, threshold, unsure), threshold)
            if maps != "none" and outcome.anomaly_map is not None:
                name = _map_name(number, outcome.name)
                row |= _save_map(outcome.anomaly_map, out, name)
                if maps == "all" and outcome.image is not None:
                    picture = _overlay(outcome.image, outcome.anomaly_map, map_range)
                    _save_png(out / "maps" / f"{name}_overlay.png", Image.fromarray(picture))
            rows.append(row)
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
    _write_csv(out / "predictions.csv", rows)
    return rows


def judge_together(rows: Sequence[Json], out: Path, rate: float) -> list[Json]:
    """Judge images as one batch, and write the table and its lines anew.

    Of those called anomalous at most `rate` are normal, on average (Y. Benjamini and Y. Hochberg
    1995; for these p-values S. Bates et al. 2023).

    Args:
        rows: what `write_predictions` gave.
        out: the folder where it wrote.
        rate: of false discoveries, in (0, 1).

    Returns:
        The rows with their verdicts. One without a p-value has none.
    """
    from scipy.stats import false_discovery_control

    known = [row for row in rows if row["p_value"] is not None]
    adjusted = false_discovery_control([row["p_value"] for row in known]) if known else []
    verdicts = {}
    for row, value in zip(known, adjusted, strict=True):
        verdicts[id(row)] = "anomalous" if value <= rate else "normal"

    judged = [row | {"verdict": verdicts.get(id(row), ""), "threshold": None} for row in rows]
    with atomic_path(out / "predictions.jsonl") as temporary:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in judged]
        temporary.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    _write_csv(out / "predictions.csv", judged)
    return judged


def _map_name(number: int, image: str) -> str:
    """Name the map of an image: by its number, and its stem as far as a file system takes it."""
    stem = readable_name(Path(image).stem)
    while len(stem.encode()) > _MOST_STEM_BYTES:
        stem = stem[:-1]
    return f"{number:06d}_{stem}"


def _verdict(outcome: Outcome, threshold: float | None, unsure: float | None) -> str:
    """Judge an image: ``anomalous``, ``normal``, ``unsure``, or nothing where it cannot be."""
    if outcome.pred_score is None or threshold is None:
        return ""
    if outcome.pred_score >= threshold:
        return "anomalous"
    if unsure is not None and outcome.pred_score >= unsure:
        return "unsure"
    return "normal"


def _row(outcome: Outcome, verdict: str, threshold: float | None) -> Json:
    """Give one line of the table, empty where there is nothing to say. JSON."""
    row: Json = {
        "image": outcome.name,
        "pred_score": outcome.pred_score,
        "p_value": outcome.p_value,
        "verdict": verdict,
        "threshold": threshold,
        "map_low": None,
        "map_high": None,
        "map": "",
        "reason": outcome.reason,
    }
    if outcome.explanation is not None:
        row["explanation"] = outcome.explanation
    return row


def _save_map(anomaly_map: np.ndarray, out: Path, name: str) -> Json:
    """Write a map as a 16-bit PNG, where 0 is its lowest value and 65535 its highest.

    Returns:
        The row's ``map_low``, ``map_high`` and ``map``.
    """
    (out / "maps").mkdir(exist_ok=True)
    low = float(anomaly_map.min())
    high = float(anomaly_map.max())
    scaled = (anomaly_map - low) / max(high - low, _TINY) * 65535
    _save_png(out / "maps" / f"{name}.png", Image.fromarray(np.round(scaled).astype(np.uint16)))
    return {"map_low": low, "map_high": high, "map": f"maps/{name}.png"}


def _overlay(
    image: np.ndarray, anomaly_map: np.ndarray, map_range: tuple[float, float] | None
) -> np.ndarray:
    """Draw a map over its image, on the trial's scale of colours where that is known."""
    low, high = map_range or (float(anomaly_map.min()), float(anomaly_map.max()))
    return overlay(image, (anomaly_map - low) / max(high - low, _TINY))


def _save_png(path: Path, picture: Image.Image) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _write_csv(path: Path, rows: list[Json]) -> None:
    """Write the table, with a column for explanations where a model wrote some."""
    columns = list(COLUMNS)
    if any("explanation" in row for row in rows):
        columns.append("explanation")
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(row | {"image": readable_name(row["image"])} for row in rows)
