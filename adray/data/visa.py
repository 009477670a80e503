"""VisA: ``<category>/Data/Images/{Normal,Anomaly}``, ``Data/Masks/Anomaly`` and CSV files.

Zou et al., ECCV 2022 (SPot-the-Difference). The official splits are
``split_csv/{1cls,2cls_highshot,2cls_fewshot}.csv`` with the columns object, split, label, image,
mask, at the root or in each category; ``image_anno.csv`` in each category names the defect types.
Paths in them count from the root or from the category. Without a split file the normal images are
split 80/20 by seed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    find_file,
    group_of,
    list_folders,
    list_images_below,
    regroup,
    relative_key,
    require_training_normals,
)
from adray.data.labels import read_label, read_split
from adray.data.mask_files import read_mask_folder
from adray.data.names import natural_key, same_name
from adray.data.splits import split_normals
from adray.data.tables import read_table
from adray.errors import InputError
from adray.language.sentence import Sentence, Term, nearest_of

SPLIT_MODES = ("1cls", "2cls_highshot", "2cls_fewshot", "2cls")
"""Official splits; ``2cls`` is the name some copies use."""

MISSING_MASKS = "missing_masks"
"""Finding that a user may accept: the table names masks that are not there."""


def detect_visa(root: Path) -> bool:
    """Tell whether some folder in `root` has an ``image_anno.csv`` or ``Data/Images``."""
    return bool(list_visa_categories(root))


def list_visa_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the folders in `root` that are VisA categories, or `root` itself."""
    if _is_category(root):
        return [reading.name_for(root)]
    return [folder.name for folder in list_folders(root) if _is_category(folder)]


def _is_category(folder: Path) -> bool:
    """Tell whether a folder is a VisA category."""
    return (folder / "image_anno.csv").is_file() or (folder / "Data" / "Images").is_dir()


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
    return require_training_normals(samples, _home(root, category) / "Data" / "Images" / "Normal")


def find_split(root: Path, category: str, mode: str) -> Path | None:
    """Find the CSV of a split, or None where the data set has none and `mode` is the default.

    Raises:
        InputError: for a mode that does not exist or whose file is not there.
    """
    if mode not in SPLIT_MODES:
        said = Sentence.of("visa no_split", value=repr(mode), nearest=nearest_of(mode, SPLIT_MODES))
        raise InputError(said)

    present = set()
    for place in (_home(root, category) / "split_csv", root / "split_csv"):
        if (place / f"{mode}.csv").is_file():
            return place / f"{mode}.csv"
        present |= {path.stem for path in place.glob("*.csv")}

    # Without any split file the images are split by seed, unless a split was asked for.
    if present or mode != "1cls":
        said = Sentence.of(
            "visa no_table",
            table=f"{root / 'split_csv' / mode}.csv",
            category=repr(category),
            present=", ".join(sorted(present)) or Term("none"),
        )
        raise InputError(said)
    return None


def _samples_from_table(root: Path, category: str, table: Path, reading: Reading) -> list[Sample]:
    """List the images that the split file names for the category.

    Raises:
        InputError: for a category that it does not name, an odd label or split, or an image or mask
            that is not there.
    """
    rows = read_table(table, ("object", "split", "label", "image", "mask"))
    own = [row for row in rows if same_name(row["object"]) == same_name(category)]
    if not own:
        known = {row["object"] for row in rows}
        said = Sentence.of(
            "visa no_rows",
            table=str(table),
            category=repr(category),
            nearest=nearest_of(category, known),
        )
        raise InputError(said)

    defect_types = _defect_types(root, category)
    samples = []
    lost = []
    for row in own:
        label = read_label(row["label"], row.place)
        path = _locate(root, category, row["image"])
        if path is None:
            said = Sentence.of(
                "visa image_missing", table=str(table), value=repr(row["image"]), root=str(root)
            )
            raise InputError(said)

        mask = _locate(root, category, row["mask"]) if label.value else None
        if label.value and row["mask"] and mask is None:
            lost.append(row["mask"])
        sample = Sample(
            path=path,
            mask_paths=() if mask is None else (mask,),
            label=label.value,
            defect_type=defect_types.get(path, "anomaly") if label.value else "good",
            dataset=reading.name_for(root),
            category=category,
            split=read_split(row["split"], row.place),
            relative_path=relative_key(root, path),
        )
        samples.append(sample)

    if lost and MISSING_MASKS not in reading.options.accept:
        settings = f"{{data: {{{reading.name_for(root)}: {{accept: [{MISSING_MASKS}]}}}}}}"
        said = Sentence.of(
            "reader masks_of_table_lost",
            table=str(table),
            number=len(lost),
            category=category,
            root=str(root),
            first=lost[0],
            settings=settings,
        )
        raise InputError(said)
    return regroup(samples, reading)


def _home(root: Path, category: str) -> Path:
    """Give the folder of a category, `root` itself where the data set is a single one."""
    return root if _is_category(root) else root / category


def _locate(root: Path, category: str, written: str) -> Path | None:
    """Find the file a CSV names, counted from the root or from the category, or None."""
    return find_file(root, written) or find_file(root / category, written)


def _defect_types(root: Path, category: str) -> dict[Path, str]:
    """Read the defect type of each image from ``image_anno.csv``, where that is there."""
    table = _home(root, category) / "image_anno.csv"
    if not table.is_file():
        return {}

    found = {}
    for row in read_table(table, ("image", "label")):
        path = _locate(root, category, row["image"])
        if path is not None:
            found[path] = row["label"]
    return found


def _samples_from_folders(root: Path, category: str, reading: Reading) -> list[Sample]:
    """List all images of the category with their masks, not split yet."""
    # The masks mirror the images: Masks/Anomaly/000.png is that of Images/Anomaly/000.JPG.
    data = _home(root, category) / "Data"
    masks = read_mask_folder(data / "Masks")

    defect_types = _defect_types(root, category)
    blank = Sample(Path(), (), 0, "good", reading.name_for(root), category, "test")
    samples = []
    for kind in ("Normal", "Anomaly"):
        folder = data / "Images" / kind
        for path in list_images_below(folder):
            sample = replace(
                blank,
                path=path,
                relative_path=relative_key(root, path),
                group=group_of(folder, path.parent),
            )
            if kind == "Anomaly":
                place = path.parent.relative_to(data / "Images").as_posix()
                sample = replace(
                    sample,
                    mask_paths=masks.find(place, path.stem),
                    label=1,
                    defect_type=defect_types.get(path, "anomaly"),
                )
            samples.append(sample)
    return regroup(samples, reading)
