"""The log of a server or a watcher, held against the promise of the bundle that judged.

No torch here: the scores are in the log, and the calibration normals in the bundle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adray.errors import InputError
from adray.files import file_sha256
from adray.language.sentence import Sentence
from adray.runtime.archive import open_archive
from adray.runtime.errors import BundleError
from adray.runtime.model import VERDICTS
from adray.runtime.result_log import read_rows
from adray.runtime.rows import Row
from adray.thresholds import Promise


@dataclass(frozen=True)
class LoggedScores:
    """Scores of a log that one bundle gave."""

    scores: tuple[float, ...]
    """In the order of production."""
    others: int
    """Rows of another bundle, which are left out."""
    unreadable: int
    """Rows without a score."""
    defects: int
    """Rows of images that are known to be defective, which are left out."""


def read_log(paths: Iterable[Path], sha256: str, defects: frozenset[str]) -> LoggedScores:
    """Read the scores of a log.

    Args:
        paths: of its files.
        sha256: of the bundle.
        defects: names of images that people found to be defective.

    Raises:
        InputError: for a file that cannot be read.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            rows += read_rows(path)
        except OSError as error:
            raise InputError(
                Sentence.of("audit log file", path=str(path), error=str(error.strerror))
            ) from error
    rows.sort(key=lambda row: str(row.get("time")))

    own = [row for row in rows if row.get("model") == sha256]
    readable = [row for row in own if _has_score(row)]
    kept = [row for row in readable if row.get("image") not in defects]
    return LoggedScores(
        scores=tuple(float(row["pred_score"]) for row in kept),
        others=len(rows) - len(own),
        unreadable=len(own) - len(readable),
        defects=len(readable) - len(kept),
    )


def _has_score(row: Row) -> bool:
    """Tell whether a row has a verdict and the score that it rests on."""
    score = row.get("pred_score")
    return row.get("verdict") in VERDICTS[:2] and type(score) in (int, float)


@dataclass(frozen=True)
class BundlePromise:
    """What a bundle promised, and by what."""

    promise: Promise
    """Of its threshold."""
    calibration: tuple[float, ...]
    """Scores of the calibration normals."""
    sha256: str
    """Of the file."""


def read_promise(path: Path) -> BundlePromise:
    """Read what a bundle promised.

    Raises:
        InputError: for a file that is no bundle, and one that promises nothing.
    """
    try:
        manifest = open_archive(path).manifest
    except BundleError as error:
        raise InputError(str(error)) from error
    stored = manifest.get("threshold", {}).get("promise")
    if stored is None:
        raise InputError(Sentence.of("audit bundle no promise", path=str(path)))
    try:
        promise = Promise(**stored)
        calibration = tuple(map(float, manifest["calibration"]["scores"]))
        assert promise.score is None or isinstance(promise.score, float)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise InputError(Sentence.of("audit bundle promise", path=str(path))) from error
    return BundlePromise(promise, calibration, file_sha256(path))


def read_names(path: str | None) -> frozenset[str]:
    """Read a list of names, one a line; None for none.

    Raises:
        InputError: for a file that cannot be read.
    """
    if path is None:
        return frozenset()
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Sentence.of("audit defects", path=path)) from error
    return frozenset(filter(None, map(str.strip, text.splitlines())))


def find_logs(names: Sequence[str]) -> list[Path]:
    """List the files of a log: files themselves, and the logs in folders.

    Raises:
        InputError: for a name that leads to none.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise InputError(Sentence.of("audit no log", name=name))
        found += files
    return found
