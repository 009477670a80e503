"""Devices that fail: a GPU on which models fail in a row, while others work, is put aside."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from adray.results.store import read_if_reachable
from adray.sweep.assignment import Assignment

_IN_A_ROW = 3
"""Different configurations that must fail on a device one after the other."""


class DeviceWatch:
    """Counts failures per device, as the trials' own files tell where they ran.

    Args:
        spare: devices that may be put aside at most, so that the largest trial still finds room.
    """

    def __init__(self, spare: int) -> None:
        self._spare = spare
        self._failed: dict[str, list[Assignment]] = defaultdict(list)
        self._worked: set[str] = set()
        self.aside: set[str] = set()
        """Devices put aside, as ``host GPU``."""

    def note(self, assignment: Assignment, *, worked: bool) -> None:
        """Take note of a trial that ended.

        Only its newest failures in a row count against a device.
        """
        place = _place(Path(assignment.folder))
        if place is None:
            return
        if worked:
            self._worked.add(place)
            self._failed[place].clear()
        else:
            self._failed[place].append(assignment)

    def put_aside(self) -> dict[str, list[Assignment]]:
        """Find devices that are bad, with the trials that failed there and deserve another device.

        A device is found bad only while another one works: what fails everywhere is no device's
        fault.
        """
        found = {}
        for place, failed in self._failed.items():
            different = {assignment.configuration for assignment in failed}
            is_full = len(self.aside) >= self._spare
            if place in self.aside or is_full or len(different) < _IN_A_ROW:
                continue

            if self._worked - {place} - self.aside:
                found[place] = list(failed)
                failed.clear()
                self.aside.add(place)
        return found


def _place(folder: Path) -> str | None:
    """Name the ``host GPU`` of a trial that had one GPU or a share of it, else None."""
    record = read_if_reachable(folder)
    environment = record.trial.get("environment", {}) if record is not None else {}
    visible = environment.get("visible_gpus", "")
    if not visible or "," in visible:
        return None
    return f"{environment.get('host', '')} {visible}"
