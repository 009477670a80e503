"""A bundle that is loaded: from an image to a verdict."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adray.runtime.archive import Archive
from adray.runtime.backends import BACKENDS, Backend, choose_backend
from adray.runtime.errors import BundleError
from adray.runtime.graph_check import check_graph
from adray.runtime.picture import MOST_PIXELS, picture_of, read_picture, three_channels
from adray.runtime.regions import Region, find_regions

GRAPH = "model.onnx"
UNREADABLE = "unreadable"
VERDICTS = ("normal", "anomalous", UNREADABLE)
"""By the number that the graph gives."""


@dataclass(frozen=True)
class Result:
    """What a bundle says of one image."""

    name: str
    """The path, or ``array``."""
    verdict: str
    """``normal``, ``anomalous``, or ``unreadable`` where there is no score to judge by."""
    pred_score: float | None = None
    """Higher is more anomalous; None where the image could not be judged."""
    p_value: float | None = None
    """Part of normal images that score as high; None without calibration normals."""
    anomaly_map: np.ndarray | None = None
    """(H, W) float32 of the image's own size, or None."""
    reason: str = ""
    """Why there is no score; empty where there is one."""
    regions: tuple[Region, ...] | None = None
    """Where the map stands out, in pixels of the image; None where that is not known or not asked
    for."""


class Bundle:
    """A trained model that is ready to judge images.

    Args:
        archive: the file, once it is known to be whole.
        threads: of the CPU; 0 for all.
        backend: see `adray.runtime.load`.

    Raises:
        BundleError: for a file that cannot be run, and a backend that cannot be had or that judged
            otherwise where the bundle was made.

    Attributes:
        manifest: what the file says of itself.
        backend: name of what runs the graph.
        threshold: scores at or above it are anomalous.
        dtype: of the pixels, ``uint8`` or ``uint16``.
        region_threshold: value of a map from which on a pixel belongs to a region, or None.
        promised: part of new normal images that is called anomalous at most, or None.
        tried: number of trials of which the calibration normals chose this one.
    """

    def __init__(self, archive: Archive, threads: int = 0, backend: str = "") -> None:
        self.archive = archive
        self.manifest = archive.manifest
        self.threshold = _number(archive, "threshold", "value")
        self.dtype = _input_type(archive)
        self.region_threshold = _optional_number(archive, "regions", "threshold")
        self.promised = _promised(archive)
        self.tried = _tried(archive)
        self.backend = choose_backend(backend)
        _check_offered(archive, self.backend)
        self._graph = _loaded_graph(archive, self.backend, threads)

    def predict(
        self,
        source: str | Path | bytes | np.ndarray,
        with_map: bool = True,
        with_regions: bool = False,
        most_pixels: int = MOST_PIXELS,
    ) -> Result:
        """Judge an image.

        Args:
            source: a path, the bytes of an image file, or an array (H, W) or (H, W, 3), red first,
                of any size. It is uint8 from 0 to 255, or uint16 where the model was trained on
                deep images.
            with_map: give the anomaly map too, where the model has one.
            with_regions: give the regions of the map too, where the bundle has a threshold of maps.
            most_pixels: of bytes; a larger picture is not unpacked.

        Returns:
            The verdict. Whatever is wrong with the image, it has a reason instead of a score.
        """
        name = str(source) if isinstance(source, str | Path) else "array"
        with_regions = with_regions and self.region_threshold is not None
        try:
            pixels = self._pixels(source, most_pixels)
            values = self._run(pixels, with_map or with_regions)
        except BundleError as error:
            return Result(name, UNREADABLE, reason=" ".join(str(error).split()))
        except Exception as error:  # whatever a graph does with one image, it costs no other
            text = " ".join(str(error).split())[:200]
            return Result(name, UNREADABLE, reason=f"the model fails on it: {text}")
        result = _result(name, values)
        if with_regions:
            result = replace(result, regions=self._regions(result.anomaly_map))
        return result if with_map else replace(result, anomaly_map=None)

    def _regions(self, anomaly_map: np.ndarray | None) -> tuple[Region, ...] | None:
        """Find the regions of a map, None without one."""
        if anomaly_map is None or self.region_threshold is None:
            return None
        return tuple(find_regions(anomaly_map, self.region_threshold))

    @property
    def is_tried(self) -> bool:
        """Tell whether the backend judged the trial's images where the bundle was made."""
        return self.backend in (_tries(self.archive) or (next(iter(BACKENDS)),))

    @property
    def precision(self) -> Mapping[str, Any]:
        """Give what the network counts in, and what a lower precision gained.

        Raises:
            BundleError: for what are no such figures.
        """
        facts = self.manifest.get("precision", {"name": "float32"})
        figures = (
            [value for key, value in facts.items() if key != "name"]
            if isinstance(facts, dict)
            else [""]
        )
        if not all(isinstance(value, int | float | None) for value in figures):
            raise BundleError(f"{self.archive.path}: precision has no figures; make it again")
        return facts

    @property
    def calibration(self) -> tuple[float, ...]:
        """Give the scores of the calibration normals, empty where there are none.

        Raises:
            BundleError: for what are no numbers.
        """
        scores = _value(self.archive, "calibration", "scores")
        try:
            return tuple(float(score) for score in scores or ())
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"{self.archive.path}: calibration.scores are no numbers; make it again"
            ) from error

    def sentence(self, language: str) -> str:
        """Say what is promised of the verdicts, empty where nothing is.

        Args:
            language: ``en`` or ``ko``.
        """
        sentences = _value(self.archive, "threshold", "sentences")
        return str(sentences.get(language, "")) if isinstance(sentences, dict) else ""

    def _pixels(self, source: str | Path | bytes | np.ndarray, most_pixels: int) -> np.ndarray:
        """Give the numbers of an image, (H, W, 3).

        Raises:
            BundleError: for what is no image, or does not suit the model.
        """
        if isinstance(source, bytes):
            return picture_of(source, self.dtype, most_pixels)
        if not isinstance(source, np.ndarray):
            return read_picture(source, self.dtype)
        if source.dtype != self.dtype:
            raise BundleError(f"array is {source.dtype}, but the model was trained on {self.dtype}")
        return three_channels(source)

    def _run(self, pixels: np.ndarray, with_map: bool) -> Mapping[str, np.ndarray]:
        """Run the graph for the outputs that are asked for."""
        wanted = [name for name in self._graph.outputs if with_map or name != "anomaly_map"]
        return self._graph.run(pixels, wanted)


def _check_offered(archive: Archive, backend: str) -> None:
    """Refuse a backend that judged other than the trial where the bundle was made.

    Raises:
        BundleError: with what was found then.
    """
    reason = _tries(archive).get(backend, {}).get("reason")
    if reason:
        raise BundleError(
            f"{archive.path} is not run by {backend}, since where it was made {reason}; take "
            "another --backend"
        )


def _tries(archive: Archive) -> Mapping[str, Any]:
    """Give what the manifest says of each backend that was tried on the trial's images.

    Raises:
        BundleError: for what is no such list.
    """
    found = _value(archive, "check", "backends")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise BundleError(f"{archive.path}: check.backends is no list of figures; make it again")
    return found


def _loaded_graph(archive: Archive, backend: str, threads: int) -> Backend:
    """Load the graph.

    Raises:
        BundleError: for a graph that is not checked to be harmless, or cannot be loaded.
    """
    # From a file, which costs no memory beside what the backend makes of it.
    with tempfile.TemporaryDirectory(prefix="adray-", ignore_cleanup_errors=True) as folder:
        graph = archive.unpack(GRAPH, Path(folder))
        check_graph(f"{archive.path}: {GRAPH}", graph.read_bytes())
        try:
            return BACKENDS[backend](graph, threads)
        except Exception as error:  # backends raise kinds of their own
            text = " ".join(str(error).split())[:200]
            raise BundleError(f"{archive.path}: {backend} refuses {GRAPH} ({text})") from error


def _number(archive: Archive, section: str, key: str) -> float:
    """Read a finite number of the manifest.

    Raises:
        BundleError: where there is none.
    """
    value = _value(archive, section, key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise BundleError(f"{archive.path}: {section}.{key} is {value!r}, but must be a number")
    return float(value)


def _optional_number(archive: Archive, section: str, key: str) -> float | None:
    """Read a finite number of the manifest, None where it says nothing.

    Raises:
        BundleError: for what is no number.
    """
    return None if _value(archive, section, key) is None else _number(archive, section, key)


def _promised(archive: Archive) -> float | None:
    """Read which part of new normals is called anomalous at most, None where nothing is promised.

    Raises:
        BundleError: for what is no such part.
    """
    promise = _value(archive, "threshold", "promise")
    if promise is None:
        return None
    value = promise.get("promised") if isinstance(promise, dict) else promise
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise BundleError(f"{archive.path}: threshold.promise says {value!r}, but must be a part")
    return float(value)


def _tried(archive: Archive) -> int:
    """Read among how many trials the calibration normals chose, 1 where it is not said."""
    promise = _value(archive, "threshold", "promise")
    tried = promise.get("tried") if isinstance(promise, dict) else None
    return tried if type(tried) is int and tried >= 1 else 1


def _input_type(archive: Archive) -> str:
    """Read the type of the pixels that the graph takes.

    Raises:
        BundleError: for one that is no image's.
    """
    value = _value(archive, "input", "dtype")
    if value not in ("uint8", "uint16"):
        raise BundleError(f"{archive.path}: input.dtype is {value!r}; allowed: uint8, uint16")
    return str(value)


def _value(archive: Archive, section: str, key: str) -> Any:
    """Read a value of the manifest, None where it is not there."""
    found = archive.manifest.get(section)
    return found.get(key) if isinstance(found, dict) else None


def _result(name: str, values: Mapping[str, np.ndarray]) -> Result:
    """Make a result of the graph's outputs."""
    score = float(values["pred_score"])
    anomaly_map = values.get("anomaly_map")
    if not math.isfinite(score):
        return Result(name, UNREADABLE, reason=f"its score is {score}, which is no number")
    verdict = VERDICTS[int(values["verdict"])]
    if verdict == UNREADABLE:
        return Result(name, UNREADABLE, reason="a pixel of its anomaly map is no number")

    p_value = values.get("p_value")
    return Result(
        name=name,
        verdict=verdict,
        pred_score=score,
        p_value=None if p_value is None else float(p_value),
        anomaly_map=anomaly_map,
    )
