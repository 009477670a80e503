"""The custom layout: ``data_rgb/normal`` and defect folders.

Files are named ``{category} {freq} {dimming}[_extra].png``; the folder is what counts.
``data_info.csv`` beside it is a table for people, written when it is missing or no longer says what
the folder holds; its full paths may be out of date after a move and are never read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from pathlib import Path
from typing import TypedDict

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    group_of,
    holds_masks,
    is_image_name,
    list_folders,
    list_images_below,
    regroup,
    relative_key,
    require_training_normals,
    sounds_bad,
)
from adray.data.names import is_normal_name, natural_key
from adray.data.splits import split_normals
from adray.errors import InputError
from adray.files import atomic_path, spreadsheet_text
from adray.language.sentence import Sentence

logger = logging.getLogger(__name__)

CSV_COLUMNS = (
    "filename",
    "category",
    "freq",
    "dimming",
    "image_path",
    "dataset_type",
    "defect_type",
    "label",
)
"""Columns of ``data_info.csv``."""

# The category may hold inner spaces: freq and dimming are the last two numbers before the
# underscore.
_NAME = re.compile(
    r"(?P<category>\S|\S.*\S) (?P<freq>[0-9]+) (?P<dimming>[0-9]+)(?:_(?P<extra>.+))?"
)


class DataInfo(TypedDict):
    """What the name of a file in ``data_rgb`` says, a mapping as the specification has it."""

    filename: str
    """The name itself."""
    category: str
    """Name of the product."""
    freq: int
    """Second part of the name."""
    dimming: int
    """Third part of the name."""
    extra: str | None
    """What follows the underscore, None where there is none."""


def detect_custom(root: Path) -> bool:
    """Tell whether `root` has a folder ``data_rgb``."""
    return (root / "data_rgb").is_dir()


def list_custom_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the categories that the file names in ``data_rgb`` speak of.

    Raises:
        InputError: for a file name of another form.
    """
    categories = {get_data_info(path.name)["category"] for path in _list_files(root)}
    return sorted(categories, key=natural_key)


def list_custom_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category, split 80/20 by seed, and bring `data_info.csv` up to date.

    Images with the same freq and dimming (repeats that differ in `extra`) stay on one side.

    Raises:
        InputError: for a file name of another form, or where there are no normal images.
    """
    refresh_csv(root, reading.cache_dir)

    unsplit = []
    for path in _list_files(root):
        if get_data_info(path.name)["category"] != category:
            continue
        folder = _kind_folder(root, path)
        anomalous = not is_normal_name(folder.name)
        sample = Sample(
            path=path,
            mask_paths=(),
            label=int(anomalous),
            defect_type=folder.name if anomalous else "good",
            dataset=reading.name_for(root),
            category=category,
            split="test",
            relative_path=relative_key(root, path),
            group=group_of(folder, path.parent),
        )
        unsplit.append(sample)

    samples = split_normals(
        regroup(unsplit, reading),
        seed=reading.seed,
        train_defects=reading.train_defects,
        group=lambda sample: sample.group or _same_shot(sample),
    )
    return require_training_normals(samples, root / "data_rgb" / "normal")


def _kind_folder(root: Path, path: Path) -> Path:
    """Give the folder in ``data_rgb`` that says what an image shows."""
    data = root / "data_rgb"
    return data / path.relative_to(data).parts[0]


def get_data_info(filename: str) -> DataInfo:
    """Read what a file name says: ``{category} {freq} {dimming}[_extra].png``.

    Raises:
        InputError: for a name of another form.
    """
    name = Path(filename).name
    match = _NAME.fullmatch(Path(name).stem)
    if match is None or not is_image_name(name):
        raise InputError(Sentence.of("reader other_name", name=filename))

    return DataInfo(
        filename=name,
        category=match["category"],
        freq=int(match["freq"]),
        dimming=int(match["dimming"]),
        extra=match["extra"],
    )


def create_csv(root: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Write ``data_info.csv`` into ``data_rgb``, or into the cache if that cannot be written.

    Args:
        root: folder of the data set, the one that holds ``data_rgb``.
        cache_dir: where the table goes when ``data_rgb`` is read-only.

    Returns:
        The file written.

    Raises:
        InputError: for a file name of another form, or where neither place can be written.
    """
    data = _csv_bytes(_table(Path(root)))
    for path in _csv_places(Path(root), cache_dir):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            logger.info("%s is not written: %s", path, error)
        else:
            return path

    folder = str(Path(root) / "data_rgb")
    raise InputError(Sentence.of("reader table_not_written", folder=folder))


def refresh_csv(root: Path, cache_dir: Path | None = None) -> None:
    """Write ``data_info.csv`` where it is missing or stale.

    A place that cannot be written stops nothing.
    """
    rows = _table(root)
    if any(_is_current(path, rows) for path in _csv_places(root, cache_dir)):
        return
    try:
        create_csv(root, cache_dir)
    except InputError as error:
        logger.info("%s", error)


def _list_files(root: Path) -> list[Path]:
    """List the images of ``data_rgb``, the normal ones first.

    Folders in that of the normal ones which sound like defects are left out.
    """
    folders = list_folders(root / "data_rgb")
    folders.sort(key=lambda folder: not is_normal_name(folder.name))
    paths = []
    for folder in folders:
        normal = is_normal_name(folder.name)
        paths += list_images_below(folder, sounds_bad if normal else holds_masks)
    return paths


def _table(root: Path) -> list[dict[str, str]]:
    """Make the rows of ``data_info.csv``."""
    root = root.absolute()
    rows = []
    for path in _list_files(root):
        info = get_data_info(path.name)
        folder = _kind_folder(root, path)
        normal = is_normal_name(folder.name)

        row = {
            "filename": spreadsheet_text(info["filename"]),
            "category": spreadsheet_text(info["category"]),
            "freq": str(info["freq"]),
            "dimming": str(info["dimming"]),
            "image_path": str(path),
            "dataset_type": spreadsheet_text(root.name),
            "defect_type": spreadsheet_text(folder.name),
            "label": str(int(not normal)),
        }
        rows.append(row)
    return rows


def _csv_places(root: Path, cache_dir: str | Path | None) -> list[Path]:
    """List where ``data_info.csv`` may lie, the preferred place first."""
    places = [root / "data_rgb" / "data_info.csv"]
    if cache_dir is not None:
        # Two data sets of one name share a cache: the hash of the whole path tells them apart.
        place = str(root.absolute()).encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(place, digest_size=6).hexdigest()
        places.append(Path(cache_dir) / "custom" / f"{root.name}-{digest}" / "data_info.csv")
    return places


def _csv_bytes(rows: list[dict[str, str]]) -> bytes:
    """Write the table as UTF-8 with a byte order mark.

    Without the mark, Excel garbles names that are not ASCII.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig", "surrogateescape")


def _is_current(path: Path, rows: list[dict[str, str]]) -> bool:
    """Tell whether the file says what the folder holds."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            written = list(csv.DictReader(file))
    except (OSError, csv.Error):
        return False

    # Full paths do not count: nodes may mount the folder elsewhere.
    return _without_paths(written) == _without_paths(rows)


def _without_paths(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Blank the full paths of a table."""
    return [row | {"image_path": ""} for row in rows]


def _same_shot(sample: Sample) -> str:
    """Give a name that images of one motif under one light share."""
    info = get_data_info(sample.path.name)
    return f"{info['category']} {info['freq']} {info['dimming']}"
