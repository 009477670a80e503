"""What server and watcher ask of a model, and how they hold one that may be replaced."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adray.runtime.archive import open_archive
from adray.runtime.errors import BundleError
from adray.runtime.loading import check_golden
from adray.runtime.model import Bundle, Result

_BLOCK = 2**20


class Judge(Protocol):
    """A trained model that gives verdicts: a bundle, or a trial."""

    threshold: float
    """Scores at or above it are anomalous."""
    promised: float | None
    """Part of new normal images that is called anomalous at most; None where nothing is promised."""

    tried: int
    """Number of trials of which the calibration normals chose this one, at least 1."""

    @property
    def calibration(self) -> tuple[float, ...]:
        """Give the scores of the calibration normals, empty where there are none."""

    def predict(
        self,
        source: bytes | np.ndarray,
        with_map: bool = True,
        with_regions: bool = False,
        most_pixels: int = ...,
    ) -> Result:
        """Judge an image, see `adray.runtime.model.Bundle.predict`."""

    def sentence(self, language: str) -> str:
        """Say what is promised of the verdicts, empty where nothing is."""


@dataclass(frozen=True)
class NamedModel:
    """A model, and what it is called in logs."""

    judge: Judge
    """Gives the verdicts."""
    name: str
    """The file or folder it came from."""
    sha256: str
    """Of the file of a bundle; of a trial its id."""


@dataclass(frozen=True)
class _Stamp:
    """What tells without reading whether a file is still the same."""

    size: int
    """In bytes."""
    changed: int
    """In nanoseconds."""
    inode: int
    """Number of the file."""


class HeldBundle:
    """A bundle that is used until its file is replaced by another that is whole.

    Args:
        path: of the file.
        threads: of the CPU for each image; 0 for all.
        backend: see `adray.runtime.load`.

    Raises:
        BundleError: for a file that is no bundle, was changed, cannot be run, or judges other than
            where it was made.

    Attributes:
        model: the one to use now. Who took it may use it on after it was replaced.
        failures: number of files that could not take its place.
        last_failure: why the last of them could not, empty for none.
    """

    def __init__(self, path: str | Path, threads: int = 0, backend: str = "") -> None:
        self.path = Path(path)
        self.threads = threads
        self.backend = backend
        self.failures = 0
        self.last_failure = ""
        self._looking = threading.Lock()
        self._seen = _stamp(self.path)
        self._unsettled: _Stamp | None = None
        self.model = load_checked(self.path, threads, backend)

    def look(self, must_load: bool = False) -> str:
        """Take the file anew where it was replaced since.

        A file is taken once two looks have found it the same, since it may be being copied.

        Args:
            must_load: take it at once, changed or not.

        Returns:
            What happened, a sentence; empty where nothing did.
        """
        with self._looking:
            now = _stamp(self.path)
            if not must_load and (now is None or now == self._seen):
                return ""
            if not must_load and now != self._unsettled:
                self._unsettled = now
                return ""

            self._seen = now
            return self._load()

    def _load(self) -> str:
        """Load the file, and keep what was there where that fails."""
        try:
            model = load_checked(self.path, self.threads, self.backend)
        except (BundleError, MemoryError) as error:
            self.failures += 1
            self.last_failure = " ".join(str(error).split())
            return f"the model in use stays, since {self.last_failure}"
        before = self.model.sha256
        self.model = model
        self.last_failure = ""
        return f"{self.path} was loaded anew: {before[:8]} became {model.sha256[:8]}"


class FixedModel:
    """A model that nothing replaces, such as a trial. It has the attributes of `HeldBundle`.

    Args:
        model: the model.
    """

    def __init__(self, model: NamedModel) -> None:
        self.model = model
        self.failures = 0
        self.last_failure = ""

    def look(self, must_load: bool = False) -> str:
        """Do nothing, and say why where somebody asked for it."""
        return "a trial is not loaded anew; start the server again" if must_load else ""


Held = HeldBundle | FixedModel
"""What server and watcher take the model of now from."""


def load_checked(path: Path, threads: int, backend: str) -> NamedModel:
    """Load a bundle that judges its golden images here as where it was made.

    Raises:
        BundleError: for any other.
    """
    before = _stamp(path)
    digest = _sha256(path)
    bundle = Bundle(open_archive(path), threads, backend)
    if _stamp(path) != before:
        raise BundleError(f"bundle {path} was replaced while it was read; wait for its copy to end")

    check_golden(bundle)
    return NamedModel(bundle, path.name, digest)


def threads_each(threads: int, workers: int) -> int:
    """Give the threads of an image where so many are judged at once; 0 is an equal share of all."""
    return threads or max(1, usable_cores() // workers)


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts_of(model: NamedModel) -> Mapping[str, Any]:
    """Say which model it is. JSON."""
    return {
        "name": model.name,
        "sha256": model.sha256,
        "threshold": model.judge.threshold,
        "promised_false_alarms": model.judge.promised,
    }


def _stamp(path: Path) -> _Stamp | None:
    """Look at a file, None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _Stamp(status.st_size, status.st_mtime_ns, status.st_ino)


def _sha256(path: Path) -> str:
    """Hash a file.

    Raises:
        BundleError: where it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise BundleError(f"bundle {path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()
