"""What the server of MVTec AD 2 takes: anomaly maps and verdicts by pixel of its private images.

L. Heckler-Kram et al., "The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised Anomaly
Detection", 2025 (https://arxiv.org/abs/2503.21622); server: https://benchmark.mvtec.com.

One tar.gz holds two trees, in which each file is called as its image:

    anomaly_images/<category>/test_private/NNN_regular.tiff              (H, W) float16
    anomaly_images/<category>/test_private_mixed/NNN_mixed.tiff
    anomaly_images_thresholded/<category>/test_private/NNN_regular.png   (H, W) 0 or 255
    anomaly_images_thresholded/<category>/test_private_mixed/NNN_mixed.png

Known are the numbers of private images, the trees, float16, and 0 and 255 in files of the image's
size: without the second tree the server's SegF1 is 0. Assumed is that maps are judged by category
and by the order of their values alone, as AUPRO is. So maps are shifted and scaled by category,
which lets float16 keep the digits that matter. They have the size of their image, which makes a
file of some 30 GB. Smaller ones of the same shape are said to be taken too, see `map_side`. The
program `check_and_prepare_data_for_upload.py`, which comes with the data set, has the last word.
"""

from __future__ import annotations

import io
import re
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from adray.changed_data import settings_of
from adray.data.base import list_images
from adray.data.readers import resolve_dataset
from adray.errors import InputError
from adray.files import atomic_path
from adray.language.sentence import Sentence
from adray.predict import load_predictor
from adray.predictor import Outcome, Predictor, map_over_image
from adray.results.store import TrialRecord, find_trial, read_trial
from adray.results.trial_files import find_checkpoint, read_scores
from adray.settings import get_globals
from adray.thresholds import PIXEL_DEVIATIONS, PixelScale, pixel_scale

PRIVATE_IMAGES: dict[str, int] = {
    "can": 321,
    "fabric": 314,
    "fruit_jelly": 255,
    "rice": 277,
    "sheet_metal": 142,
    "vial": 276,
    "wallplugs": 232,
    "walnuts": 228,
}
"""Categories, and the published number of images in each private set."""
PRIVATE_SETS: dict[str, str] = {"test_private": "regular", "test_private_mixed": "mixed"}
"""Folders of the private sets, and how the names of their images end."""
_LARGEST = float(np.finfo(np.float16).max)
_SHOWN = 3

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """One category of a submission."""

    category: str
    """Its name."""
    trial: TrialRecord
    """The trial whose model scores it."""
    images: tuple[Path, ...]
    """All private images, of one set after the other."""
    held_out: tuple[Path, ...]
    """Normal images that the model was not trained on, which decide the threshold."""


# What is submitted


def plan_submission(store: Path, trials: Sequence[str], data: Path | None = None) -> list[Part]:
    """Find trial and images of every category, and look for all that is missing.

    Args:
        store: the output_dir of sweeps.
        trials: ids or their beginnings, or folders of trials.
        data: folder of the data set; where the trials found it when None.

    Raises:
        InputError: with all that is missing, and all that is there twice.
    """
    problems: list[str] = []
    by_category = _trials_by_category(store, trials, problems)

    parts = []
    for category in PRIVATE_IMAGES:
        if category in by_category:
            record = by_category[category]
            root = data or _root_of(record)
            images = _private_images(root, category, problems)
            held_out = _held_out_images(record, root, category, problems)
            parts.append(Part(category, record, images, held_out))

    if problems:
        raise InputError(Sentence.of("submit incomplete", problems="; ".join(problems)))
    return parts


def _trials_by_category(
    store: Path, trials: Sequence[str], problems: list[str]
) -> dict[str, TrialRecord]:
    """Give the one trial of each category. What is wrong with them is added to `problems`."""
    found = defaultdict(list)
    for name in dict.fromkeys(trials):
        record = _trial_of(store, name)
        if record.result is None:
            problems.append(f"trial {record.id8} has no result ({record.status})")
        elif find_checkpoint(record.folder) is None:
            problems.append(f"trial {record.id8} kept no checkpoint (keep: all)")
        for category in _categories_of(record, problems):
            found[category].append(record)

    lacking = [category for category in PRIVATE_IMAGES if category not in found]
    if lacking:
        problems.append(f"no trial of {', '.join(lacking)}; name one for each category")
    for category, records in found.items():
        if len(records) > 1:
            ids = ", ".join(record.id8 for record in records)
            problems.append(f"several trials of {category}: {ids}; name one")
    return {category: records[0] for category, records in found.items()}


def _trial_of(store: Path, name: str) -> TrialRecord:
    """Read a trial by its folder or the beginning of its id.

    Raises:
        InputError: for none, and for several.
    """
    record = read_trial(Path(name)) if Path(name).is_dir() else None
    return record or find_trial(store, name)


def _categories_of(record: TrialRecord, problems: list[str]) -> list[str]:
    """List the categories of a trial, all of them for a merged one."""
    names = record.identity["categories"]
    if list(names) == ["all"]:
        return list(PRIVATE_IMAGES)
    for name in names:
        if name not in PRIVATE_IMAGES:
            known = ", ".join(PRIVATE_IMAGES)
            problems.append(
                f"trial {record.id8} is of {name}, which MVTec AD 2 does not have; it has {known}"
            )
    return [name for name in names if name in PRIVATE_IMAGES]


def _root_of(record: TrialRecord) -> Path:
    """Find the folder of a trial's data set.

    Raises:
        InputError: where it is not there any more.
    """
    (dataset, *_) = record.identity["datasets"]
    return resolve_dataset(dataset, settings_of(record) or get_globals()).root


def _private_images(root: Path, category: str, problems: list[str]) -> tuple[Path, ...]:
    """List the private images of a category, whose number and names must be the published ones."""
    found: list[Path] = []
    for folder, ending in PRIVATE_SETS.items():
        images = list_images(root / category / folder)
        strange = [p.name for p in images if not re.fullmatch(rf"\d{{3}}_{ending}\.png", p.name)]
        if strange:
            problems.append(
                f"{root / category / folder} has {_few(strange)}, "
                f"but its images are called 000_{ending}.png and so on"
            )
        elif len(images) != PRIVATE_IMAGES[category]:
            problems.append(_wrong_number(root / category / folder, ending, images, category))
        found += images

    for path in found:
        problem = _damage(path)
        if problem:
            problems.append(problem)
    return tuple(found)


def _wrong_number(folder: Path, ending: str, images: Sequence[Path], category: str) -> str:
    """Say how many images of a private set are there, and which are missing."""
    wanted = PRIVATE_IMAGES[category]
    present = set(map(attrgetter("name"), images))
    missing = []
    for number in range(wanted):
        name = f"{number:03d}_{ending}.png"
        if name not in present:
            missing.append(name)
    which = f", missing {_few(missing)}" if images and missing else ""
    return f"{folder} has {len(images)} of {wanted} images{which}"


def _damage(path: Path) -> str:
    """Say whether an image cannot be opened. Empty where it can."""
    try:
        with Image.open(path):
            return ""
    except (OSError, UnidentifiedImageError) as error:
        return f"{path} cannot be read ({error})"


def _held_out_images(
    record: TrialRecord, root: Path, category: str, problems: list[str]
) -> tuple[Path, ...]:
    """Find the held-out normals of a category, also where the data set has moved since."""
    scores = read_scores(record.folder)
    if scores is None:
        problems.append(f"scores.parquet of trial {record.id8} cannot be read")
        return ()
    rows = scores[(scores["split"] == "holdout") & (scores["category"] == category)]
    if rows.empty:
        problems.append(
            f"trial {record.id8} held no normal images of {category} out, from which the threshold "
            "comes; run it with train: {holdout: 0.1, calibration: holdout}"
        )
        return ()

    paths = []
    missing = []
    for written in rows["path"]:
        path = _moved(Path(written), root, category)
        paths.append(path)
        if not path.is_file():
            missing.append(str(path))
    if missing:
        problems.append(f"held-out images of {category} are not there: {_few(missing)}")
    return tuple(paths)


def _moved(path: Path, root: Path, category: str) -> Path:
    """Give the place of an image below another root, if it is no longer where it was."""
    if path.is_file() or category not in path.parts:
        return path
    place = len(path.parts) - 1 - path.parts[::-1].index(category)
    return root.joinpath(*path.parts[place:])


def _few(names: Sequence[str]) -> str:
    """Join the first names, and count the others."""
    shown = ", ".join(names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


# Maps


def normal_scale(predictor: Predictor, part: Part) -> PixelScale:
    """Take mean and deviation of the maps' pixels over the held-out normals of a category.

    Raises:
        InputError: where the model gives no maps, and where all their pixels are equal.
    """
    maps = _maps(predictor, part.held_out, part)
    scale = pixel_scale(_counted(anomaly_map, outcome) for outcome, anomaly_map in maps)
    if not scale.deviation > 0:
        raise InputError(
            Sentence.of(
                "submit flat maps",
                id8=part.trial.id8,
                category=part.category,
                mean=f"{scale.mean:g}",
            )
        )
    return scale


def in_deviations(anomaly_map: Floats, scale: PixelScale) -> Floats:
    """Give how many deviations each pixel lies above the mean, within the range of float16."""
    distance = (anomaly_map - scale.mean) / scale.deviation
    return np.clip(distance, -_LARGEST, _LARGEST).astype(np.float32)


def _counted(anomaly_map: Floats, outcome: Outcome) -> Floats:
    """Give the pixels of a map (S, S) that count."""
    if outcome.inside is None:
        return anomaly_map
    return anomaly_map[outcome.inside]


def _maps(
    predictor: Predictor, paths: Sequence[Path], part: Part
) -> Iterator[tuple[Outcome, Floats]]:
    """Give what is said of each image, and its map, (S, S).

    Raises:
        InputError: for an image that cannot be read, and a map that is missing or not finite.
    """
    for path, outcome in zip(paths, predictor.predict(paths), strict=True):
        if outcome.reason:
            raise InputError(outcome.reason)
        trial = f"trial {part.trial.id8} ({part.trial.identity['configuration']})"
        if outcome.anomaly_map is None:
            raise InputError(Sentence.of("submit no maps", trial=trial))
        if not np.isfinite(outcome.anomaly_map).all():
            raise InputError(Sentence.of("submit map nan", trial=trial, path=str(path)))
        yield outcome, outcome.anomaly_map


# The file


@dataclass(frozen=True)
class Submission:
    """What was written."""

    images: int
    """Number of images."""
    accepted: tuple[str, ...]
    """What is not as the models were trained, each with its category."""


def write_submission(
    parts: Sequence[Part],
    out: Path,
    device: str | None = None,
    map_side: int | None = None,
    accept_other_weights: bool = False,
) -> Submission:
    """Score the private images and write the file, one image at a time.

    It appears under its name when it is whole, so that an interrupted one leaves nothing.

    Args:
        parts: of `plan_submission`.
        out: the file.
        device: ``cpu``, ``cuda``, ..., or None for a GPU where there is one.
        map_side: longer side of the maps in pixels; that of the image where None. Verdicts always
            have the size of the image.
        accept_other_weights: go on where something is not as it was trained, see `load_predictor`.

    Raises:
        InputError: see `normal_scale`, and for a model that cannot be loaded.
    """
    total = sum(len(part.images) + len(part.held_out) for part in parts)
    accepted = []
    with (
        atomic_path(out) as temporary,
        tarfile.open(temporary, "w:gz", compresslevel=1) as archive,
        tqdm(total=total, unit="image", file=sys.stderr, disable=None, leave=False) as bar,
    ):
        for part in parts:
            bar.set_description(part.category)
            predictor = load_predictor(
                part.trial.folder, device, accept_other_weights=accept_other_weights
            )
            accepted += [f"{part.category}: {text}" for text in predictor.accepted]
            scale = normal_scale(predictor, part)
            bar.update(len(part.held_out))

            for path, (outcome, anomaly_map) in zip(
                part.images, _maps(predictor, part.images, part), strict=True
            ):
                distance = in_deviations(anomaly_map, scale)
                maps = _image_maps(path, replace(outcome, anomaly_map=distance), map_side)
                _add_maps(archive, f"{part.category}/{path.parent.name}/{path.stem}", maps)
                bar.update()
    return Submission(sum(len(part.images) for part in parts), tuple(accepted))


@dataclass(frozen=True)
class ImageMaps:
    """What is submitted of one image."""

    distance: NDArray[np.float16]
    """Deviations above the mean of normal pixels, (h, w)."""
    verdicts: NDArray[np.uint8]
    """255 where a pixel is anomalous, else 0, (H, W) of the image."""


def _image_maps(path: Path, outcome: Outcome, map_side: int | None) -> ImageMaps:
    """Bring an image's map, (S, S) in deviations, to the sizes that are submitted."""
    with Image.open(path) as image:
        width, height = image.size
    whole = map_over_image(outcome, width, height).astype(np.float16)
    verdicts = np.where(whole > PIXEL_DEVIATIONS, 255, 0).astype(np.uint8)

    longer = max(width, height)
    if map_side is None or map_side >= longer:
        return ImageMaps(whole, verdicts)
    small_width = max(1, round(width * map_side / longer))
    small_height = max(1, round(height * map_side / longer))
    small = map_over_image(outcome, small_width, small_height).astype(np.float16)
    return ImageMaps(small, verdicts)


def _add_maps(archive: tarfile.TarFile, place: str, maps: ImageMaps) -> None:
    """Add what is submitted of one image under its place in both trees."""
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, maps.distance)
    _add_file(archive, f"anomaly_images/{place}.tiff", tiff.getvalue())

    png = io.BytesIO()
    Image.fromarray(maps.verdicts).save(png, "PNG")
    _add_file(archive, f"anomaly_images_thresholded/{place}.png", png.getvalue())


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o644
    archive.addfile(entry, io.BytesIO(content))
