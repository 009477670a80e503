"""VisA: ``<category>/Data/Images/{Normal,Anomaly}``, ``Data/Masks/Anomaly``, with its CSV files where they are.

Zou et al., ECCV 2022 (SPot-the-Difference). The official splits are ``split_csv/{1cls,2cls_highshot,2cls_fewshot}.csv``
with the columns object, split, label, image, mask, at the root or in each category; ``image_anno.csv`` in each
category names the defect types. Paths in them count from the root or from the category. Without a split file the
normal images are split 80/20 by seed.
"""

from __future__ import annotations

import csv
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
    """Whether some folder in `root` has an ``image_anno.csv`` or ``Data/Images``."""
    return bool(list_visa_categories(root))


def list_visa_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """Names of the folders in `root` that are VisA categories."""
    return [
        f.name
        for f in list_folders(root)
        if (f / "image_anno.csv").is_file() or (f / "Data" / "Images").is_dir()
    ]


def list_visa_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """Samples of one category, in natural order, normal images first.

    Raises:
        InputError: for an unknown split, a CSV without its columns or with a missing image, or no training images.
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
    """The CSV of a split, or None where the data set has none and `mode` is the default.

    Raises:
        InputError: for a mode that does not exist or whose file is not there.
    """
    if mode not in SPLIT_MODES:
        raise InputError(f"split: {mode!r} is not a split of VisA; {nearest(mode, SPLIT_MODES)}")
    places = [root / category / "split_csv", root / "split_csv"]
    for place in places:
        if (place / f"{mode}.csv").is_file():
            return place / f"{mode}.csv"
    present = sorted({path.stem for place in places for path in place.glob("*.csv")})
    if present or mode != "1cls":
        raise InputError(
            f"split: {places[1] / f'{mode}.csv'} does not exist for category {category!r}; "
            f"splits here: {', '.join(present) or 'none'}; name one of them or copy the file from the official VisA"
        )
    return None


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, each with all of `columns`.

    Raises:
        InputError: where a column is missing or the file is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}); save it as such") from None
    missing = [name for name in columns if name not in (reader.fieldnames or [])]
    if missing:
        raise InputError(
            f"{path}: column {missing[0]!r} is missing; the header must name {', '.join(columns)}"
        )
    return rows


def _samples_from_table(root: Path, category: str, table: Path, reading: Reading) -> list[Sample]:
    """Samples that the split file lists for the category."""
    defect_types = _defect_types(root, category)
    rows = read_table(table, ("object", "split", "label", "image", "mask"))
    return [
        _sample_from_row(root, category, table, row, defect_types, reading)
        for row in rows
        if row["object"].strip() == category
    ]


def _sample_from_row(
    root: Path,
    category: str,
    table: Path,
    row: dict[str, str],
    defect_types: dict[Path, str],
    reading: Reading,
) -> Sample:
    """The sample of one row.

    Raises:
        InputError: for a split other than train and test, or an image that is not there.
    """
    split = row["split"].strip().lower()
    if split not in ("train", "test"):
        raise InputError(
            f"{table}: split {row['split']!r} of {row['image']!r} is neither 'train' nor 'test'"
        )
    path = _locate(root, category, row["image"])
    if path is None:
        raise InputError(
            f"{table}: image {row['image']!r} is not below {root}; copy it there or remove its row"
        )
    anomalous = row["label"].strip().lower() != "normal"
    return Sample(
        path=path,
        mask_path=_locate(root, category, row["mask"]) if anomalous else None,
        label=int(anomalous),
        defect_type=defect_types.get(path, "anomaly") if anomalous else "good",
        dataset=reading.name or root.name,
        category=category,
        split=split,
        relative_path=relative_key(root, path),
    )


def _locate(root: Path, category: str, written: str) -> Path | None:
    """The file a CSV names, counted from the root or from the category, or None where there is none."""
    name = written.strip().replace("\\", "/")
    if not name or name.startswith("/") or ".." in name.split("/"):
        return None
    return next((path for path in (root / name, root / category / name) if path.is_file()), None)


def _defect_types(root: Path, category: str) -> dict[Path, str]:
    """Defect type by image, from ``image_anno.csv`` where it is."""
    table = root / category / "image_anno.csv"
    if not table.is_file():
        return {}
    found = [
        (_locate(root, category, row["image"]), row["label"])
        for row in read_table(table, ("image", "label"))
    ]
    return {path: label.strip() for path, label in found if path is not None}


def _samples_from_folders(root: Path, category: str, reading: Reading) -> list[Sample]:
    """All images of the category, matched with masks of the same relative stem; not split."""
    data = root / category / "Data"
    masks = {
        p.relative_to(data / "Masks").with_suffix(""): p for p in list_images_below(data / "Masks")
    }
    defect_types = _defect_types(root, category)
    return [
        Sample(
            path=path,
            mask_path=masks.get(path.relative_to(data / "Images").with_suffix(""))
            if label
            else None,
            label=label,
            defect_type=defect_types.get(path, "anomaly") if label else "good",
            dataset=reading.name or root.name,
            category=category,
            split="test",
            relative_path=relative_key(root, path),
        )
        for label, folder in enumerate(("Normal", "Anomaly"))
        for path in list_images_below(data / "Images" / folder)
    ]
