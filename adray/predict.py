"""From a trained trial, or a team of them, and new images to scores, verdicts and maps; `python -m adray predict`.

    predictor = load_predictor("outputs/mvtec/bottle/padim/3fa9c1d2")
    for outcome in predictor.predict(["a.png", array]):
        print(outcome.name, outcome.pred_score, outcome.anomaly_map.max())

An image goes through the same decoding, resizing and normalisation as in the trial, so its score is the same. The file
of an ensemble (`python -m adray ensemble`) is one more thing to load: each of its models reads the image in its own
way, and their calibrated scores and maps are averaged.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from adray.checkpoints import read_checkpoint
from adray.components.tiler import tile, untile
from adray.config import TrainConfig, build
from adray.data.base import is_image_name, list_images_below
from adray.data.decode import Geometry, array_pixels, decode_full, decode_image
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
from adray.files import atomic_path, read_json
from adray.registry import ModelRegistry
from adray.results.figures import overlay
from adray.results.trial_files import find_checkpoint
from adray.settings import get_globals, use_settings
from adray.types import Batch

if TYPE_CHECKING:
    from adray.trainer import BaseTrainer

logger = logging.getLogger(__name__)

Source = str | Path | np.ndarray | torch.Tensor
DEFAULT_THRESHOLD = "percentile_95"
COLUMNS = ("image", "pred_score", "verdict", "threshold", "map_low", "map_high", "map", "reason")


@dataclass(frozen=True)
class Outcome:
    """What a predictor says of one image.

    Attributes:
        name: the path, or ``image <position>`` for arrays.
        pred_score: higher is more anomalous; None where the image could not be read.
        anomaly_map: (S, S) float32 at the size that the model sees, or None.
        image: the (3, S, S) uint8 pixels that the model saw, or None.
        reason: why there is no score; empty where there is one.
        explanation: the model's own words; None where it writes none.
    """

    name: str
    pred_score: float | None = None
    anomaly_map: np.ndarray | None = None
    image: np.ndarray | None = None
    reason: str = ""
    explanation: str | None = None


@dataclass(frozen=True)
class TrialModel:
    """One trained configuration: it reads images as its trial did, and scores them."""

    trainer: BaseTrainer

    @property
    def geometry(self) -> Geometry:
        """What happens to an image before the model sees it."""
        config = self.trainer.train_config
        return Geometry(config.img_size, config.crop_size)

    @property
    def batch_size(self) -> int:
        """Images per step in the trial."""
        config = self.trainer.train_config
        return config.eval_batch_size or config.batch_size

    @property
    def view(self) -> float:
        """Side of the part of an image that the model sees over the side of the image, 1 without a crop."""
        return self.geometry.side / self.geometry.img_size

    def read(self, source: Source, number: int) -> Outcome:
        """The pixels of an image, or why there are none."""
        geometry = self.geometry
        if isinstance(source, str | Path):
            try:
                return Outcome(
                    str(source),
                    image=decode_image(Path(source), geometry.img_size, geometry.crop_size),
                )
            except InputError as error:
                return Outcome(str(source), reason=str(error))
        array = source.movedim(0, -1).cpu().numpy() if isinstance(source, torch.Tensor) else source
        return Outcome(f"image {number}", image=array_pixels(array, geometry))

    def score(self, outcomes: list[Outcome]) -> list[Outcome]:
        """The same outcomes with score and map, where there are pixels."""
        readable = [outcome.image for outcome in outcomes if outcome.image is not None]
        if not readable:
            return outcomes
        trainer = self.trainer
        pixels = torch.from_numpy(np.stack(readable)).to(trainer.device)
        count = torch.arange(len(readable), device=trainer.device)
        batch = Batch(
            normalize_images(pixels, trainer.train_config.normalize),
            torch.zeros_like(count),
            None,
            count,
        )
        prediction = trainer.predict_batch(batch)
        scores = iter(prediction.pred_score.float().tolist())
        maps = iter([None] * len(readable))  # type: Iterator[Any]
        if prediction.anomaly_map is not None:
            maps = iter(prediction.anomaly_map[:, 0].float().cpu().numpy())
        texts = iter(prediction.explanation or [None] * len(readable))
        return [
            outcome
            if outcome.image is None
            else replace(
                outcome, pred_score=next(scores), anomaly_map=next(maps), explanation=next(texts)
            )
            for outcome in outcomes
        ]


@dataclass(frozen=True)
class Predictor:
    """A trained configuration, or a team of several.

    Attributes:
        models: one, or the members of a team.
        thresholds: value on `pred_score` by rule, of those that the trial or the team could compute.
        map_range: smallest and almost largest value of the test set's anomaly maps, for pictures; None if unknown.
        team: how the models' scores and maps are combined, one per model; empty for a single trial.
    """

    models: tuple[TrialModel, ...]
    thresholds: dict[str, float]
    map_range: tuple[float, float] | None = None
    team: tuple[Member, ...] = ()

    @property
    def trainer(self) -> BaseTrainer:
        """The trainer of the one model, which holds it and how its images are prepared.

        Raises:
            InputError: for a team, which has several.
        """
        if len(self.models) != 1:
            raise InputError(
                f"an ensemble of {len(self.models)} models is no single trial; name one of its members"
            )
        return self.models[0].trainer

    def predict(self, images: Iterable[Source], batch_size: int | None = None) -> Iterator[Outcome]:
        """Score images in their order; one that cannot be read gives an outcome with its reason.

        Args:
            images: paths; uint8 arrays (H, W) or (H, W, 3); or uint8 tensors (3, H, W), of any size.
            batch_size: images per step, which does not change scores; None for the trial's, or a team's smallest.
        """
        size = batch_size or min(model.batch_size for model in self.models)
        numbered = enumerate(images)
        while chunk := list(islice(numbered, size)):
            yield from self._predict_batch(chunk)

    def predict_tiled(
        self, images: Iterable[Source], tile_size: int, overlap: float = 0.25
    ) -> Iterator[Outcome]:
        """Score large images piece by piece, for models that were trained on images at the scale of the pieces.

        Each tile is scored as an image of its own; the score is the highest, the maps are laid side by side.

        Args:
            images: as for `predict`.
            tile_size: side of a tile in pixels of the image.
            overlap: part of a tile that its neighbour shares at least.

        Yields:
            Outcomes whose image and map have the size of the image; one that is smaller than a tile has a reason.

        Raises:
            InputError: for a model that sees only the middle of an image, and an overlap out of range.
        """
        if any(model.view < 1 for model in self.models):
            raise InputError(
                "tiles do not suit a model with crop_size, which sees only the middle of each; predict whole"
            )
        for number, source in enumerate(images):
            name = str(source) if isinstance(source, str | Path) else f"image {number}"
            try:
                yield self._predict_tiles(name, _full_pixels(source), tile_size, overlap)
            except InputError as error:
                yield Outcome(name, reason=str(error))

    def _predict_tiles(
        self, name: str, pixels: np.ndarray, tile_size: int, overlap: float
    ) -> Outcome:
        pieces = tile(torch.from_numpy(pixels), tile_size, overlap)
        outcomes = list(self.predict(pieces))
        score = max(outcome.pred_score for outcome in outcomes if outcome.pred_score is not None)
        maps = [outcome.anomaly_map for outcome in outcomes if outcome.anomaly_map is not None]
        if not maps:
            return Outcome(name, score, image=pixels)
        small = torch.from_numpy(np.stack(maps))[:, None]  # (N, S, S) -> (N, 1, S, S)
        enlarged = F.interpolate(
            small, (tile_size, tile_size), mode="bilinear", align_corners=False
        )
        whole = untile(enlarged, pixels.shape[1], pixels.shape[2], overlap)
        return Outcome(name, score, whole[0].numpy(), pixels)

    def threshold(self, wanted: str) -> float:
        """The value of a rule's name, or of a number.

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
        readers = {
            model.geometry: model for model in self.models
        }  # those that want the same pixels share them
        read = {
            key: [model.read(source, number) for number, source in chunk]
            for key, model in readers.items()
        }
        by_model = [model.score(read[model.geometry]) for model in self.models]
        if not self.team:
            return by_model[0]
        return [self._combine(outcomes) for outcomes in zip(*by_model, strict=True)]

    def _combine(self, outcomes: tuple[Outcome, ...]) -> Outcome:
        """What the team says of one image; the picture is that of the member that sees most of it."""
        if outcomes[0].pred_score is None:
            return outcomes[0]
        score = float(
            combine_scores([o.pred_score for o in outcomes if o.pred_score is not None], self.team)
        )
        parts = [
            MapPart(i, outcome.anomaly_map, member.map_range, member.weight, self.models[i].view)
            for i, (outcome, member) in enumerate(zip(outcomes, self.team, strict=True))
            if outcome.anomaly_map is not None and member.map_range is not None
        ]
        if not parts:
            return replace(outcomes[0], pred_score=score, anomaly_map=None)
        shown = outcomes[widest_part(parts).position]
        return replace(shown, pred_score=score, anomaly_map=combine_maps(parts))


def _full_pixels(source: Source) -> np.ndarray:
    """An image at its own size, (3, H, W) uint8."""
    if isinstance(source, str | Path):
        return decode_full(Path(source))
    if isinstance(source, torch.Tensor):
        return source.cpu().numpy()
    return (
        np.repeat(source[None], 3, axis=0) if source.ndim == 2 else source.transpose(2, 0, 1).copy()
    )


def load_predictor(path: str | Path, device: str | None = None) -> Predictor:
    """Load a trained model.

    Args:
        path: a trial's folder in a store, the folder of an export, a checkpoint file, or the file of an ensemble.
        device: ``cpu``, ``cuda``, ...; a GPU where there is one when None.

    Raises:
        InputError: for a folder without a checkpoint, a damaged file, an unknown trainer, missing weights, or an
            ensemble one of whose trials is not what it was.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    path = Path(path)
    if path.suffix == ".json" and not path.is_dir():
        return _load_ensemble(path, device)
    checkpoint = _checkpoint_of(path)
    stored = read_checkpoint(checkpoint)
    spec = _spec_of(stored.trainer, checkpoint)
    trainer_class = ModelRegistry.trainer_class(spec)
    config: Any = build(trainer_class.config_class, stored.config, f"{checkpoint.name}: config")
    train_config = build(TrainConfig, stored.train_config, f"{checkpoint.name}: train_config")
    trainer = trainer_class(config, train_config, device, stored.seed)
    trainer.load_model(checkpoint)
    result = (
        read_json(checkpoint.parent / "result.json")
        or read_json(checkpoint.parent / "export.json")
        or {}
    )
    thresholds = {
        name: row["value"]
        for name, row in result.get("thresholds", {}).items()
        if row["value"] is not None
    }
    map_range = result.get("map_range")
    return Predictor(
        (TrialModel(trainer),), thresholds, (map_range[0], map_range[1]) if map_range else None
    )


def _load_ensemble(path: Path, device: str) -> Predictor:
    ensemble = read_ensemble(path)
    folders = [
        member_folder(path, member) for member in ensemble.members
    ]  # all are checked before one is loaded
    models = tuple(load_predictor(folder, device).models[0] for folder in folders)
    map_range = ensemble.map_range
    return Predictor(
        models,
        ensemble.thresholds,
        (map_range[0], map_range[1]) if map_range else None,
        ensemble.members,
    )


def _checkpoint_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = find_checkpoint(path)
    if found is None:
        raise InputError(
            f"{path} holds no checkpoint (model_*.pth); name the folder of a trial that kept one (keep: all in the "
            "sweep's file, or keep: best), or train it again"
        )
    return found


def _spec_of(trainer: str, checkpoint: Path) -> str:
    """A configuration of the trainer class that wrote a checkpoint."""
    for name in ModelRegistry.list_models():
        if ModelRegistry.get(name).trainer.rpartition(".")[2] == trainer:
            return name
    raise InputError(
        f"checkpoint {checkpoint} is of {trainer}, which no model has; name its module in settings.plugins"
    )


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Score images and write what was found; the exit code is 1 where an image could not be read."""
    options = parse_options(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_settings(
        replace(get_globals(), backbone_dir=options.backbone_dir, plugins=tuple(options.plugins))
    )
    paths = list(expand_images(options.images))
    predictor = load_predictor(options.model, options.device)
    threshold = _chosen_threshold(predictor, options.threshold)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with (out / "predictions.jsonl").open("w", encoding="utf-8") as lines:
        for number, outcome in enumerate(_outcomes(predictor, paths, options)):
            rows.append(
                _row(outcome, threshold) | _save_maps(outcome, number, predictor, out, options.maps)
            )
            lines.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
            lines.flush()
    _write_csv(out / "predictions.csv", rows)
    unread = [row for row in rows if row["reason"]]
    found = sum(row["verdict"] == "anomalous" for row in rows)
    words = f", {found} anomalous at {threshold:.6g}" if threshold is not None else ""
    print(
        f"{len(rows)} images{words}, {len(unread)} could not be read; see {out / 'predictions.csv'}"
    )
    return int(bool(unread))


def _outcomes(
    predictor: Predictor, paths: list[Path], options: argparse.Namespace
) -> Iterator[Outcome]:
    if options.tile:
        return predictor.predict_tiled(paths, options.tile, options.tile_overlap)
    return predictor.predict(paths, options.batch_size)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m adray predict",
        description="Score new images with a trained trial or an ensemble.",
    )
    parser.add_argument(
        "model",
        help="a trial's folder in a store, a checkpoint file (model_*.pth), or an ensemble's file (*.json)",
    )
    parser.add_argument(
        "images", nargs="+", help="image files, folders (with all below them) or glob patterns"
    )
    parser.add_argument(
        "--out", required=True, help="folder for predictions.csv, predictions.jsonl and maps"
    )
    parser.add_argument(
        "--threshold",
        help=f"a rule's name or a number; scores at or above it are anomalous (default: {DEFAULT_THRESHOLD}, where the "
        "trial held images out)",
    )
    parser.add_argument(
        "--maps", choices=("none", "values", "all"), default="all",
        help="anomaly maps: none, 16-bit PNG of values, or also an overlay on the image (default: all)",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda, ...; a GPU where there is one by default")
    parser.add_argument("--batch-size", type=int, help="images per step; it does not change scores")
    parser.add_argument(
        "--tile", type=int, metavar="PIXELS",
        help="cut large images into tiles of this side, for models trained on images at that scale",
    )  # fmt: skip
    parser.add_argument(
        "--tile-overlap", type=float, default=0.25, help="of neighbouring tiles (default: 0.25)"
    )
    parser.add_argument(
        "--backbone-dir", default=get_globals().backbone_dir, help="folder of pretrained weights"
    )
    parser.add_argument(
        "--plugins", nargs="*", default=[], help="modules that register models of your own"
    )
    options = parser.parse_args(argv)
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(
            f"--batch-size is {options.batch_size}; give a whole number of images, at least 1"
        )
    if options.tile is not None and options.tile < 1:
        raise InputError(
            f"--tile is {options.tile}; give the side of a tile in pixels, such as 256"
        )
    return options


def expand_images(names: Iterable[str]) -> Iterator[Path]:
    """Image files of folders, patterns and paths, each once, in their order.

    Raises:
        InputError: for a folder without images, and for a pattern that matches nothing.
    """
    seen: set[Path] = set()
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = list_images_below(path)
        elif any(sign in name for sign in "*?[") and not path.exists():
            matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            found = [match for match in sorted(matches) if is_image_name(match.name)]
        else:
            found = [path]
        if not found:
            raise InputError(
                f"{name} holds no images; name image files, a folder of them or a pattern in quotes"
            )
        yield from (image for image in found if image not in seen)
        seen.update(found)


def _chosen_threshold(predictor: Predictor, wanted: str | None) -> float | None:
    if wanted is not None:
        return predictor.threshold(wanted)
    if DEFAULT_THRESHOLD in predictor.thresholds:
        return predictor.thresholds[DEFAULT_THRESHOLD]
    logger.warning(
        "no verdicts: the trial held no normal images out; give --threshold a number%s",
        f" or one of {', '.join(predictor.thresholds)}" if predictor.thresholds else "",
    )
    return None


def _row(outcome: Outcome, threshold: float | None) -> dict[str, Any]:
    """One line of the table; empty where there is nothing to say."""
    verdict = ""
    if outcome.pred_score is not None and threshold is not None:
        verdict = "anomalous" if outcome.pred_score >= threshold else "normal"
    values = (outcome.name, outcome.pred_score, verdict, threshold, None, None, "", outcome.reason)
    row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    return row if outcome.explanation is None else row | {"explanation": outcome.explanation}


def _save_maps(
    outcome: Outcome, number: int, predictor: Predictor, out: Path, which: str
) -> dict[str, Any]:
    """Write the map as a 16-bit PNG, where 0 is `map_low` and 65535 `map_high`, and the overlay."""
    if which == "none" or outcome.anomaly_map is None:
        return {}
    low, high = float(outcome.anomaly_map.min()), float(outcome.anomaly_map.max())
    name = f"{number:06d}_{Path(outcome.name).stem}"
    folder = out / "maps"
    folder.mkdir(exist_ok=True)
    scaled = np.round((outcome.anomaly_map - low) / max(high - low, 1e-30) * 65535).astype(
        np.uint16
    )
    _save_png(folder / f"{name}.png", Image.fromarray(scaled))
    if which == "all" and outcome.image is not None:
        bottom, top = predictor.map_range or (low, high)
        picture = overlay(outcome.image, (outcome.anomaly_map - bottom) / max(top - bottom, 1e-30))
        _save_png(folder / f"{name}_overlay.png", Image.fromarray(picture))
    return {"map_low": low, "map_high": high, "map": f"maps/{name}.png"}


def _save_png(path: Path, picture: Image.Image) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        explained = ("explanation",) if any("explanation" in row for row in rows) else ()
        writer = csv.DictWriter(file, (*COLUMNS, *explained))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    from adray.__main__ import run_command

    sys.exit(run_command(main))
