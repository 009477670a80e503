"""What a trial says of its test images under corruptions, a file for each beside its result.

A file is written in one step once all its images are scored. So whoever finds it finds all of it,
and a run that was stopped goes on with the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adray.conditions import CORRUPTION_VERSION, KINDS, SEVERITIES, Corruption, corruptions_of
from adray.files import atomic_path, readable_name
from adray.results.store import TrialRecord

STRESS_FOLDER = "stress"
"""Name of the folder in that of a trial."""
CONTACT_SHEET = f"{STRESS_FOLDER}/contact_sheet.jpg"
"""One test image under every corruption."""
_ABOUT = b"adray_stress"
_COLUMNS = ("dataset", "category", "path", "label", "defect_type", "pred_score", "is_gone")


@dataclass(frozen=True)
class CorruptedRow:
    """One test image under a corruption."""

    dataset: str
    """Name of the data set."""
    category: str
    """Name of the product."""
    path: str
    """The image file."""
    label: int
    """0 normal, 1 anomalous."""
    defect_type: str
    """Name of the defect's folder or kind, ``good`` for normal images."""
    pred_score: float
    """Higher is more anomalous."""
    is_gone: bool
    """Whether its whole defect was moved out of the image, which then counts for nothing."""


@dataclass(frozen=True)
class CorruptedScores:
    """What a trial says of N test images under a corruption."""

    paths: tuple[str, ...]
    """The image files."""
    positive: NDArray[np.bool_]
    """(N,) true for anomalous."""
    scores: NDArray[np.float64]
    """(N,) higher is more anomalous."""
    gone: NDArray[np.bool_]
    """(N,) true where the whole defect was moved out of the image."""


def corrupted_file(folder: Path, corruption: Corruption) -> Path:
    """Name the file of a corruption.

    Args:
        folder: of the trial.
        corruption: what happens to the images.
    """
    return folder / STRESS_FOLDER / f"{corruption.kind}_{corruption.severity}.parquet"


def write_corrupted(
    record: TrialRecord, corruption: Corruption, rows: Sequence[CorruptedRow]
) -> None:
    """Write what a trial says under a corruption, in one step."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {}
    for name in _COLUMNS:
        values = list(map(attrgetter(name), rows))
        is_text = isinstance(values[0], str)
        columns[name] = list(map(readable_name, values)) if is_text else values
    table = pa.table(columns).replace_schema_metadata({_ABOUT: _about(record)})
    with atomic_path(corrupted_file(record.folder, corruption)) as temporary:
        parquet.write_table(table, temporary)


def _about(record: TrialRecord) -> bytes:
    """Say of which pixels and of which trial scores are, since a folder may be trained again."""
    return f"{CORRUPTION_VERSION} {record.trial.get('id', '')}".encode()


def read_corrupted(record: TrialRecord, corruption: Corruption) -> CorruptedScores | None:
    """Read what a trial says under a corruption.

    Returns:
        None where there is nothing, where the file is damaged or of another trial, where a score is
        no finite number, and where an older version made other pixels.
    """
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(corrupted_file(record.folder, corruption)) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(_ABOUT) != _about(record):
                return None
            table = file.read(list(_COLUMNS))
        # By lists, since `to_numpy` of pyarrow imports pandas.
        found = CorruptedScores(
            paths=tuple(table["path"].to_pylist()),
            positive=np.array(table["label"].to_pylist(), dtype=np.int64) == 1,
            scores=np.array(table["pred_score"].to_pylist(), dtype=np.float64),
            gone=np.array(table["is_gone"].to_pylist(), dtype=bool),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if np.isfinite(found.scores).all() else None


def stored_corruptions(folder: Path) -> list[Corruption]:
    """List the corruptions of which there is a file, in the order of their kinds."""
    names: set[str] = set()
    with contextlib.suppress(OSError):
        names.update(map(attrgetter("name"), (folder / STRESS_FOLDER).iterdir()))
    if not names:
        return []
    everything = corruptions_of(KINDS, SEVERITIES)
    return [one for one in everything if corrupted_file(folder, one).name in names]


def lacking_corruptions(
    record: TrialRecord, wanted: Iterable[Corruption]
) -> tuple[Corruption, ...]:
    """Choose the corruptions under which a trial has no scores."""
    stored = set(stored_corruptions(record.folder))
    lacking = []
    for corruption in wanted:
        if corruption not in stored or read_corrupted(record, corruption) is None:
            lacking.append(corruption)
    return tuple(lacking)
