"""Kaputt: parcels in parquet tables.

``query-train.parquet``, ``query-validation.parquet`` and ``query-test.parquet``, in the folder or in
``datasets``, name the pictures and say which are damaged. Pictures are the cropped ones, or the whole
trays with ``variant: image``. The masks show the parcel and not the damage, so none is read. The
pictures of reference are of other use and not read either.

Hoefer et al., ICCV 2025.
"""

from __future__ import annotations

from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    find_file,
    is_file,
    list_folders,
    regroup,
    relative_key,
    require_training_normals,
)
from adray.data.labels import read_label
from adray.data.tables import Row, read_table
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of

SPLITS = ("train", "validation", "test")
VARIANTS = ("crop", "image")
"""Kinds of pictures, the usual one first."""


def detect_kaputt(root: Path) -> bool:
    """Tell whether `root` or its folder ``datasets`` has the table of training pictures."""
    return _find_table(root, "train") is not None


def list_kaputt_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """Give the one category, which bears the data set's name."""
    return [reading.name_for(root)]


def list_kaputt_samples(
    root: Path, category: str, reading: Reading = DEFAULT_READING
) -> list[Sample]:
    """List the samples in the order of the tables.

    Raises:
        InputError: for a variant that does not exist, a table of another form, a picture that is
            missing, or no normal training pictures.
    """
    variant = reading.options.variant or VARIANTS[0]
    if variant not in VARIANTS:
        said = Sentence.of(
            "reader no_kind_of_picture",
            dataset=reading.name_for(root),
            value=repr(variant),
            nearest=nearest_of(variant, VARIANTS),
        )
        raise InputError(said)

    places = _picture_places(root, variant)
    samples = []
    for split in SPLITS:
        table = _find_table(root, split)
        if table is None:
            continue
        column = f"query_{variant}"
        for row in read_table(table, ("capture_id", "defect", column)):
            blank = Sample(Path(), (), 0, "good", reading.name_for(root), category, split)
            samples.append(_read_row(row, row[column], root, places, blank))
    return require_training_normals(regroup(samples, reading), root)


def _find_table(root: Path, split: str) -> Path | None:
    """Find the table of a split, or None."""
    places = (root / f"query-{split}.parquet", root / "datasets" / f"query-{split}.parquet")
    return next(filter(is_file, places), None)


def _picture_places(root: Path, variant: str) -> list[Path]:
    """List the folders from which the tables' paths may count, the likeliest first."""
    return [root / f"query-{variant}", root, *list_folders(root)]


def _read_row(row: Row, written: str, root: Path, places: list[Path], blank: Sample) -> Sample:
    """Make the sample of one row.

    Raises:
        InputError: for a label that is no yes or no, or a picture that is missing.
    """
    found = (find_file(place, written) for place in places)
    path = next(filter(None, found), None)
    if path is None:
        said = Sentence.of(
            "lines image_missing", where=row.place, value=repr(written), folder=str(root)
        )
        raise InputError(said)

    label = read_label(row["defect"], row.place)
    kind = row["defect_types"] or label.defect_type
    return Sample(
        path=path,
        mask_paths=(),
        label=label.value,
        defect_type=kind if label.value else "good",
        dataset=blank.dataset,
        category=blank.category,
        split=blank.split,
        relative_path=relative_key(root, path),
        group=row["item_identifier"],
        columns=tuple((name, row[name]) for name in ("item_material", "major_defect")),
    )
