"""A list of one's own: a table with ``image_path`` and ``label``, in CSV, TSV, Excel or parquet.

It may also have ``mask_path``, ``split``, ``category``, ``group`` and ``part``. Any further column
is kept to the results. Paths count from the folder of the list. Without ``split`` the normal images
are split 80/20 by seed. It is named under ``settings.data.<name>.list``, or lies by itself in the
data set's folder.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from adray.data.base import (
    DEFAULT_READING,
    Reading,
    Sample,
    find_file,
    is_file,
    list_files,
    normals_of,
    regroup,
    relative_key,
    split_of,
)
from adray.data.labels import read_label, read_split
from adray.data.names import natural_key
from adray.data.splits import split_normals
from adray.data.tables import Row, read_header, read_table
from adray.errors import InputError
from adray.language.sentence import Sentence

REQUIRED = ("image_path", "label")
"""Columns that a list must have."""

OPTIONAL = ("mask_path", "split", "category", "group", "part")
"""Columns that a list may have, and that mean something."""


def detect_list(root: Path) -> bool:
    """Tell whether `root` has a CSV or TSV table with the columns of a list."""
    return bool(_lists_in(root))


def list_own_categories(root: Path, reading: Reading = DEFAULT_READING) -> list[str]:
    """List the categories that the list names, or the data set's name.

    Raises:
        InputError: for a list that cannot be read.
    """
    rows = read_table(_find_list(root, reading), REQUIRED, OPTIONAL)
    names = {_category_of(row, root, reading) for row in rows}
    return sorted(names, key=natural_key)


def list_own_samples(root: Path, category: str, reading: Reading = DEFAULT_READING) -> list[Sample]:
    """List the samples of one category, in the order of the list.

    Raises:
        InputError: for a list that cannot be read, a value that is empty or strange, an image or
            mask that is missing, an image that is listed twice, or no normal training images.
    """
    table = _find_list(root, reading)
    rows = []
    for row in read_table(table, REQUIRED, OPTIONAL):
        if _category_of(row, root, reading) == category:
            rows.append(row)
    _check_splits(rows)

    samples = []
    seen: dict[Path, Row] = {}
    for row in rows:
        sample = _read_row(row, root, category, reading)
        if sample.path in seen:
            earlier = seen[sample.path].number
            raise row.refused("twice", value=repr(row["image_path"]), earlier=earlier)
        seen[sample.path] = row
        samples.append(sample)

    samples = regroup(samples, reading)
    if not any(sample.split for sample in samples):
        samples = split_normals(samples, seed=reading.seed, train_defects=reading.train_defects)
    if not normals_of(split_of(samples, "train")):
        raise InputError(
            Sentence.of("list no_normals", table=str(table), category=category),
        )
    return samples


def _lists_in(root: Path) -> list[Path]:
    """List the text tables in a folder that have the columns of a list."""
    found = []
    for path in list_files(root):
        is_text = path.suffix.lower() in (".csv", ".tsv")
        if is_text and set(REQUIRED) <= set(read_header(path, REQUIRED)):
            found.append(path)
    return found


def _find_list(root: Path, reading: Reading) -> Path:
    """Find the list of a data set: the one named, else the one that is there.

    Raises:
        InputError: where it is not there, or several are.
    """
    where = f"data.{reading.name_for(root)}.list"
    if reading.options.list:
        path = root / Path(reading.options.list).expanduser()
        if not is_file(path):
            raise InputError(Sentence.of("list missing", where=where, path=str(path)))
        return path

    found = _lists_in(root)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "-"
        raise InputError(Sentence.of("list ambiguous", where=where, names=names, folder=str(root)))
    return found[0]


def _category_of(row: Row, root: Path, reading: Reading) -> str:
    """Give the category of a row.

    Raises:
        InputError: for a name that no folder can have.
    """
    name = row["category"] or reading.name_for(root)
    if "/" in name or name in (".", ".."):
        raise row.refused("category", value=repr(name))
    return name


def _check_splits(rows: Sequence[Row]) -> None:
    """Refuse a list of which some rows have a split and others do not.

    Raises:
        InputError: names the first without.
    """
    bare = [row for row in rows if not row["split"]]
    if bare and len(bare) < len(rows):
        raise bare[0].refused("split_empty")


def _read_row(row: Row, root: Path, category: str, reading: Reading) -> Sample:
    """Make the sample of one row.

    Raises:
        InputError: for a value that is empty or strange, or a file that is missing.
    """
    path = _locate(row, "image_path", row["image_path"], root)
    label = read_label(row["label"], row.place)
    masks = _masks_of(row, root)
    if masks and not label.value:
        raise row.refused("normal_with_mask", value=repr(row["mask_path"]))

    further = []
    for name, value in row.cells.items():
        if name and name not in REQUIRED + OPTIONAL:
            further.append((name, value))
    return Sample(
        path=path,
        mask_paths=masks,
        label=label.value,
        defect_type=label.defect_type,
        dataset=reading.name_for(root),
        category=category,
        split=read_split(row["split"], row.place) if row["split"] else "",
        relative_path=_key_of(path, root),
        group=row["group"],
        part=row["part"],
        columns=tuple(further),
    )


def _masks_of(row: Row, root: Path) -> tuple[Path, ...]:
    """Find the masks of a row, several with semicolons between them."""
    written = [name for name in row["mask_path"].split(";") if name.strip()]
    return tuple(_locate(row, "mask_path", name, root) for name in written)


def _locate(row: Row, column: str, written: str, root: Path) -> Path:
    """Find a file that a row names.

    Raises:
        InputError: where the cell is empty or there is no such file.
    """
    if not written.strip():
        raise row.refused("cell_empty", column=column, folder=str(row.table.parent))

    # Lists of one's own may name files anywhere, those that lie elsewhere by their full path.
    path = Path(written.strip())
    found = path if path.is_absolute() and is_file(path) else None
    for folder in (row.table.parent, root):
        found = found or find_file(folder, written)
    found = found or find_file(root, _from_root(row, written, root))
    if found is None:
        place = str(row.table.parent)
        raise row.refused("file_missing", column=column, value=repr(written), folder=place)
    return found


def _from_root(row: Row, written: str, root: Path) -> str:
    """Write a path that leads up from the folder of a list, such as ``../a.png``, from `root`."""
    place = row.table.parent / written.strip().replace("\\", "/")
    return os.path.relpath(os.path.normpath(place), root)


def _key_of(path: Path, root: Path) -> str:
    """Give the name of an image, from `root` where it lies there."""
    if path.is_relative_to(root):
        return relative_key(root, path)
    return unicodedata.normalize("NFC", path.as_posix().lstrip("/"))
