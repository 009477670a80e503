"""VisA: ``<category>/Data/Images/{Normal,Anomaly}``, ``Data/Masks/Anomaly`` and CSV files.

Zou et al., ECCV 2022 (SPot-the-Difference). The official splits are
``split_csv/{1cls,2cls_highshot,2cls_fewshot}.csv`` with the columns object, split, label, image,
mask, at the root or in each category; ``image_anno.csv`` in each category names the defect types.
Paths in them count from the root or from the category. Without a split file the normal images are
split 80/20 by seed.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    list_folders,
    list_images_below,
    natural_key,
    relative_key,
    require_training_normals,
)
from adray.data.splits import split_normals
from adray.errors import InputError, nearest

SPLIT_MODES = ("1cls", "2cls_highshot", "2cls_fewshot", "2cls")
"""Official splits; ``2cls`` is the name some copies use."""


def detect_visa(root: Path) -> bool:
    """Tell whether some folder in `root` has an ``image_anno.csv`` or ``Data/Images``."""
    return bool(list_visa_categories(root))


def list_visa_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the folders in `root` that are VisA categories."""
    names = []
    for folder in list_folders(root):
        annotated = (folder / "image_anno.csv").is_file()
        if annotated or (folder / "Data" / "Images").is_dir():
            names.append(folder.name)
    return names


def list_visa_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples of one category, in natural order, normal images first.

    Raises:
        InputError: for an unknown split, a CSV without its columns or with a missing image, or no
            training images.
    """
    table = find_split(root, category, reading.split_mode)
    if table is None:
        unsplit = _samples_from_folders(root, category, reading)
        samples = split_normals(unsplit, seed=reading.seed, train_defects=reading.train_defects)
    else:
        samples = _samples_from_table(root, category, table, reading)

    samples.sort(key=lambda s: (s.split != "train", s.label, natural_key(s.key)))
    return require_training_normals(samples, root / category / "Data" / "Images" / "Normal")


def find_split(root: Path, category: str, mode: str) -> Path | None:
    """Find the CSV of a split, or None where the data set has none and `mode` is the default.

    Raises:
        InputError: for a mode that does not exist or whose file is not there.
    """
    if mode not in SPLIT_MODES:
        raise InputError(f"split: {mode!r} is not a split of VisA; {nearest(mode, SPLIT_MODES)}")

    present = set()
    for place in (root / category / "split_csv", root / "split_csv"):
        if (place / f"{mode}.csv").is_file():
            return place / f"{mode}.csv"
        present |= {path.stem for path in place.glob("*.csv")}

    # Without any split file the images are split by seed, unless a split was asked for.
    if present or mode != "1cls":
        raise InputError(
            f"split: {root / 'split_csv' / mode}.csv does not exist for category {category!r}; "
            f"splits here: {', '.join(sorted(present)) or 'none'}; "
            "name one of them or copy the file from the official VisA"
        )
    return None


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header, each with all of `columns`.

    Raises:
        InputError: where a column is missing or the file is not UTF-8.
    """
    try:
        # Excel begins UTF-8 with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}); save it as such") from None

    for name in columns:
        if name not in (reader.fieldnames or []):
            raise InputError(
                f"{path}: column {name!r} is missing; the header must name {', '.join(columns)}"
            )
    return rows


def _samples_from_table(root: Path, category: str, table: Path, reading: Reading) -> list[Sample]:
    """List the images that the split file names for the category.

    Raises:
        InputError: for a split other than train and test, or an image that is not there.
    """
    defect_types = _defect_types(root, category)
    samples = []
    for row in read_table(table, ("object", "split", "label", "image", "mask")):
        if row["object"].strip() != category:
            continue

        path = _locate(root, category, row["image"])
        split = row["split"].strip().lower()
        if split not in ("train", "test"):
            raise InputError(
                f"{table}: split {row['split']!r} of {row['image']!r} is neither 'train' nor 'test'"
            )
        if path is None:
            raise InputError(
                f"{table}: image {row['image']!r} is not below {root}; "
                "copy it there or remove its row"
            )

        anomalous = row["label"].strip().lower() != "normal"
        mask = _locate(root, category, row["mask"])
        sample = Sample(
            path=path,
            mask_paths=() if mask is None or not anomalous else (mask,),
            label=int(anomalous),
            defect_type=defect_types.get(path, "anomaly") if anomalous else "good",
            dataset=reading.name_for(root),
            category=category,
            split=split,
            relative_path=relative_key(root, path),
        )
        samples.append(sample)
    return samples


def _locate(root: Path, category: str, written: str) -> Path | None:
    """Find the file a CSV names, counted from the root or from the category, or None."""
    name = written.strip().replace("\\", "/")
    # A table must not lead out of the data set.
    if not name or name.startswith("/") or ".." in name.split("/"):
        return None
    return next(filter(Path.is_file, (root / name, root / category / name)), None)


def _defect_types(root: Path, category: str) -> dict[Path, str]:
    """Read the defect type of each image from ``image_anno.csv``, where that is there."""
    table = root / category / "image_anno.csv"
    if not table.is_file():
        return {}

    found = {}
    for row in read_table(table, ("image", "label")):
        path = _locate(root, category, row["image"])
        if path is not None:
            found[path] = row["label"].strip()
    return found


def _samples_from_folders(root: Path, category: str, reading: Reading) -> list[Sample]:
    """List all images of the category with their masks, not split yet."""
    # The masks mirror the images: Masks/Anomaly/000.png is that of Images/Anomaly/000.JPG.
    data = root / category / "Data"
    masks = {}
    for path in list_images_below(data / "Masks"):
        masks[path.relative_to(data / "Masks").with_suffix("")] = (path,)

    defect_types = _defect_types(root, category)
    blank = Sample(Path(), (), 0, "good", reading.name_for(root), category, "test")
    samples = []
    for path in list_images_below(data / "Images" / "Normal"):
        samples.append(replace(blank, path=path, relative_path=relative_key(root, path)))
    for path in list_images_below(data / "Images" / "Anomaly"):
        sample = replace(
            blank,
            path=path,
            mask_paths=masks.get(path.relative_to(data / "Images").with_suffix(""), ()),
            label=1,
            defect_type=defect_types.get(path, "anomaly"),
            relative_path=relative_key(root, path),
        )
        samples.append(sample)
    return samples
