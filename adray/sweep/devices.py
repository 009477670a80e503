"""Devices that fail: a GPU on which different models fail in a row, while others work, is put aside."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

from adray.results.store import read_trial

_IN_A_ROW = 3
"""Different configurations that must fail on a device one after the other."""


class DeviceWatch:
    """Counts failures per device, as the trials' own files tell where they ran."""

    def __init__(self) -> None:
        self._failed: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._worked: set[str] = set()
        self.aside: set[str] = set()
        """Devices put aside, as ``host GPU``."""

    def note(self, message: dict[str, Any], *, worked: bool) -> None:
        """Take note of a trial that ended; only its newest failures in a row count against a device."""
        place = _place(Path(message["folder"]))
        if place is None:
            return
        if worked:
            self._worked.add(place)
            self._failed[place].clear()
        else:
            self._failed[place].append(message)

    def put_aside(self) -> dict[str, list[dict[str, Any]]]:
        """Devices that are found bad now, with the trials that failed there and deserve another device.

        A device is only suspected while another one works: what fails everywhere is no device's fault.
        """
        found = {}
        for place, messages in self._failed.items():
            different = {message["identity"]["configuration"] for message in messages}
            if place not in self.aside and len(different) >= _IN_A_ROW and self._worked - {place} - self.aside:
                found[place] = list(messages)
                messages.clear()
        self.aside |= set(found)
        return found


def _place(folder: Path) -> str | None:
    """``host GPU`` of a trial that had one GPU or a share of it, else None."""
    record = read_trial(folder)
    environment = record.trial.get("environment", {}) if record is not None else {}
    visible = environment.get("visible_gpus", "")
    return f"{environment.get('host', '')} {visible}" if visible and "," not in visible else None


def hold(aside: set[str], gpus: int) -> list[Any]:
    """Occupy the GPUs put aside, so that Ray places nothing there; call it while no trial runs.

    Args:
        aside: see `DeviceWatch.aside`.
        gpus: of the whole site.

    Returns:
        Actors that hold one GPU each, as long as they are referred to.
    """
    import ray

    holder: Any = ray.remote(num_gpus=1, num_cpus=0)(_Holder)
    holders = [holder.remote() for _ in range(gpus)]
    places = ray.get([actor.place.remote() for actor in holders])
    for actor, place in zip(holders, places, strict=True):
        if place not in aside:
            ray.kill(actor)
    return [actor for actor, place in zip(holders, places, strict=True) if place in aside]


class _Holder:
    """An actor that does nothing but occupy its GPU."""

    def place(self) -> str:
        """Where it is, as `DeviceWatch` names devices."""
        return f"{platform.node()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
