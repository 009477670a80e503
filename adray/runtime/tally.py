"""Counts of what was judged, and what the last images say of the promise; as Prometheus reads it."""

from __future__ import annotations

import math
import resource
import sys
import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator, Mapping

from adray.runtime.alarm_chance import alarm_chance
from adray.runtime.judge import NamedModel
from adray.runtime.model import VERDICTS

WINDOW = 1000
"""Last images that are held against the promise."""
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the classes of seconds."""
_KINDS = {
    "adray_images": "counter",
    "adray_requests": "counter",
    "adray_predict_seconds": "histogram",
    "adray_recent_images": "gauge",
    "adray_recent_alarms": "gauge",
    "adray_promised_false_alarms": "gauge",
    "adray_recent_chance": "gauge",
    "adray_model_info": "gauge",
    "adray_model_failures": "counter",
    "adray_in_flight": "gauge",
    "adray_waiting": "gauge",
    "process_resident_memory_bytes": "gauge",
}
_HELP = {
    "adray_images": "Judged images by verdict.",
    "adray_requests": "Answered requests by status.",
    "adray_predict_seconds": "Seconds to judge an image, without waiting.",
    "adray_recent_images": f"Images with a verdict among the last {WINDOW} of this model.",
    "adray_recent_alarms": "How many of them are anomalous, defective parts included.",
    "adray_promised_false_alarms": "Part of normal images that is anomalous at most, on average.",
    "adray_recent_chance": "Chance of so many alarms or more if all of these images were normal.",
    "adray_model_info": "The model in use.",
    "adray_model_failures": "Files that could not replace the model in use.",
    "adray_in_flight": "Requests that are being worked on or wait.",
    "adray_waiting": "Images that were judged and are not delivered yet.",
    "process_resident_memory_bytes": "Memory of the process.",
}


class Tally:
    """Counts images. Several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdicts: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._classes = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._model = ""

    def add_image(self, verdict: str, seconds: float, model: str) -> None:
        """Count an image.

        Args:
            verdict: of it.
            seconds: that it took.
            model: that judged it. The last images are those of one model.
        """
        with self._lock:
            self._verdicts[verdict] += 1
            self._seconds += seconds
            self._classes[bisect_left(_BOUNDS, seconds)] += 1
            self._note(verdict, model)

    def remember(self, verdict: str, model: str) -> None:
        """Take an image that an earlier process judged for one of the last."""
        with self._lock:
            self._note(verdict, model)

    def _note(self, verdict: str, model: str) -> None:
        """Add an image to the last ones, which begin anew with another model."""
        if model != self._model:
            self._recent.clear()
            self._model = model
        if verdict in VERDICTS[:2]:
            self._recent.append(verdict == VERDICTS[1])

    def verdicts(self) -> dict[str, int]:
        """Give the number of images of each verdict."""
        with self._lock:
            return {verdict: self._verdicts[verdict] for verdict in VERDICTS}

    def add_request(self, status: int) -> None:
        """Count an answer."""
        with self._lock:
            self._statuses[status] += 1

    def recent(self, model: str) -> tuple[int, int]:
        """Count the last images of a model, and how many of them are anomalous."""
        with self._lock:
            if model != self._model:
                return 0, 0
            return len(self._recent), sum(self._recent)

    def text(self, model: NamedModel, **more: float) -> str:
        """Write all counts in the text format of Prometheus.

        Args:
            model: in use.
            more: further gauges and counters by their name without ``adray_``.
        """
        lines: list[str] = []
        written: set[str] = set()
        for name, labels, value in self._samples(model, more):
            family = _family(name)
            if family not in written:
                written.add(family)
                total = "_total" if _KINDS[family] == "counter" else ""
                lines.append(f"# HELP {family}{total} {_HELP[family]}")
                lines.append(f"# TYPE {family}{total} {_KINDS[family]}")
            lines.append(f"{name}{_label_text(labels)} {value:.10g}")
        return "\n".join(lines) + "\n"

    def _samples(
        self, model: NamedModel, more: Mapping[str, float]
    ) -> Iterator[tuple[str, dict[str, str], float]]:
        """Give name, labels and value of each sample, those of a family together."""
        images, alarms = self.recent(model.sha256)
        with self._lock:
            verdicts = dict(self._verdicts)
            statuses = sorted(self._statuses.items())
            classes = list(self._classes)
            seconds = self._seconds

        for verdict in VERDICTS:
            yield "adray_images_total", {"verdict": verdict}, verdicts.get(verdict, 0)
        for status, count in statuses:
            yield "adray_requests_total", {"status": str(status)}, count
        below = 0
        for bound, count in zip((*_BOUNDS, math.inf), classes, strict=True):
            below += count
            label = "+Inf" if math.isinf(bound) else f"{bound:g}"
            yield "adray_predict_seconds_bucket", {"le": label}, below
        yield "adray_predict_seconds_sum", {}, seconds
        yield "adray_predict_seconds_count", {}, below

        yield "adray_recent_images", {}, images
        yield "adray_recent_alarms", {}, alarms
        promised = model.judge.promised
        if promised is not None:
            yield "adray_promised_false_alarms", {}, promised
            yield "adray_recent_chance", {}, chance_of_alarms(images, alarms, model)
        yield "adray_model_info", {"name": model.name, "sha256": model.sha256}, 1
        for name, value in more.items():
            total = "_total" if _KINDS[f"adray_{name}"] == "counter" else ""
            yield f"adray_{name}{total}", {}, value
        yield "process_resident_memory_bytes", {}, resident_bytes()


def chance_of_alarms(images: int, alarms: int, model: NamedModel) -> float:
    """Give the chance of so many alarms or more if all images were normal, as calibrated.

    Args:
        images: number of them.
        alarms: among them.
        model: whose calibration it is.
    """
    normals = model.judge.calibration
    if not normals:
        return 1.0
    above = 1 + sum(score >= model.judge.threshold for score in normals)
    chance = alarm_chance(alarms, images, above, len(normals) + 1 - above)
    # Of several models that the same normals chose among, the chance of any is at most the sum.
    return min(1.0, model.judge.tried * chance)


def _family(name: str) -> str:
    """Give the name of the family that a sample belongs to."""
    for end in ("_total", "_bucket", "_sum", "_count"):
        if name.removesuffix(end) in _KINDS:
            return name.removesuffix(end)
    return name


def _label_text(labels: Mapping[str, str]) -> str:
    """Write labels, whose values may hold anything."""
    if not labels:
        return ""
    parts = []
    for name, value in labels.items():
        plain = value.encode("utf-8", "backslashreplace").decode("utf-8")
        escaped = plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        parts.append(f'{name}="{escaped}"')
    return "{" + ",".join(parts) + "}"


def resident_bytes() -> float:
    """Give the memory that this process has now, or its peak where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
