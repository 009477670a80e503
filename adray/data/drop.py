"""Normal images that somebody has looked at and leaves out, as `DataOptions.drop` names them.

They are named by their path from the data set's folder, as `python -m adray outliers` writes them.
A name that fits no normal image is refused: it would leave nothing out, and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adray.data.base import Sample
from adray.data.names import same_name
from adray.data.tables import TABLE_ENDINGS, read_header, read_table
from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of

IMAGE_COLUMNS = ("image", "image_path", "path")
"""Columns of a table of which the first that is there names the images."""
DROP_COLUMN = "drop"
"""Column of a table in which a person marks a row. Without it all rows count."""
_UNMARKED = ("", "0", "no", "n", "false", "-")


def dropped_names(root: Path, dataset: str, drop: str | Sequence[str]) -> tuple[str, ...]:
    """Give the names of the images that are left out of a data set, each once.

    Args:
        root: folder of the data set, from which a table's relative path counts.
        dataset: its name, for errors and for tables of several.
        drop: names, or the path of a table or of a text file with a name a line.

    Raises:
        InputError: for a file that cannot be read or marks nothing, and a name that is no file.
    """
    names = list(drop)
    if isinstance(drop, str):
        names = _read(root / Path(drop).expanduser(), dataset) if drop else []
    known = tuple(dict.fromkeys(Path(name).as_posix() for name in names))
    for name in known:
        if not name or not (root / name).is_file():
            raise InputError(
                Sentence.of("drop no file", dataset=dataset, name=repr(name), root=str(root))
            )
    return known


def _read(path: Path, dataset: str) -> list[str]:
    """Read the names in a table or a list.

    Raises:
        InputError: for a file that `read_list` refuses, and one that marks no image.
    """
    names = read_list(path, dataset)
    if not names:
        raise InputError(
            Sentence.of("drop no mark", dataset=dataset, path=str(path), drop_column=DROP_COLUMN)
        )
    return names


def read_list(path: Path, dataset: str) -> list[str]:
    """Read the names of a data set's images that a table or a list marks, perhaps none.

    Raises:
        InputError: for a file that is missing, is no text, or has no column of images.
    """
    if path.suffix.lower() in TABLE_ENDINGS and path.is_file():
        return _marked(path, dataset)

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InputError(
            Sentence.of("drop unreadable", dataset=dataset, path=str(path), reason=reason)
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line]


def _marked(path: Path, dataset: str) -> list[str]:
    """Give the names in the rows of a table that a person has marked.

    Raises:
        InputError: for a table that cannot be read, or without a column of images.
    """
    rows = read_table(path, (), (*IMAGE_COLUMNS, DROP_COLUMN, "dataset"))
    columns = list(rows[0].cells) if rows else read_header(path, IMAGE_COLUMNS)
    found = [name for name in IMAGE_COLUMNS if name in columns]
    if not found:
        said = Sentence.of(
            "drop columns",
            dataset=dataset,
            path=str(path),
            columns=str(columns),
            image_columns=IMAGE_COLUMNS[0],
        )
        raise InputError(said)

    names = []
    for row in rows:
        mark = row.cells.get(DROP_COLUMN, "x").lower()
        is_here = (row["dataset"] or dataset) == dataset
        if mark not in _UNMARKED and is_here:
            names.append(row[found[0]])
    return names


def without_dropped(
    samples: Sequence[Sample], names: Sequence[str], *, fixed_split: bool
) -> list[Sample]:
    """Leave images out of a data set.

    Args:
        samples: of some of its categories.
        names: of `dropped_names`, also of images in other categories.
        fixed_split: whether the data say which images test, which then stay.

    Raises:
        InputError: for a defective image, and for one of a test that is part of the data.
    """
    if not names:
        return list(samples)
    gone = set(map(same_name, names))
    kept = []
    for sample in samples:
        if same_name(sample.key) not in gone:
            kept.append(sample)
            continue
        what = f"data.{sample.dataset}.drop: {sample.key!r}"
        if sample.label:
            raise InputError(Sentence.of("drop defect", what=what))
        if fixed_split and sample.split == "test":
            raise InputError(Sentence.of("drop test", what=what))
    return kept


def check_dropped(dataset: str, names: Sequence[str], samples: Sequence[Sample]) -> None:
    """Refuse names of files that are no images of a data set.

    Args:
        dataset: its name.
        names: of `dropped_names`.
        samples: of all its categories.

    Raises:
        InputError: with the nearest image.
    """
    known = {same_name(sample.key): sample.key for sample in samples}
    for name in names:
        if same_name(name) not in known:
            raise InputError(
                Sentence.of(
                    "drop unused",
                    dataset=dataset,
                    name=repr(name),
                    nearest=nearest_of(name, list(known.values())),
                )
            )
