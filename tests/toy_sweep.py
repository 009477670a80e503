"""What tests of whole sweeps of toy models have in common: where everything lies, and what has become visible."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def toy_settings(root: Path) -> dict[str, Any]:
    """Settings of a sweep with all of its folders below `root`, which knows the toy models."""
    return {
        "dataset_dir": str(root / "datasets"),
        "output_dir": str(root / "outputs"),
        "cache_dir": str(root / "cache"),
        "plugins": ["toy_plugin"],
    }


def results(root: Path) -> dict[Path, float]:
    """Folders of visible results, with the time at which they became so."""
    found = {}
    # A sweep makes and removes folders meanwhile, at which `walk` does not fail.
    for folder, _, names in os.walk(root / "outputs"):
        path = Path(folder)
        if "result.json" in names and path.name[0] != ".":
            found[path] = (path / "result.json").stat().st_mtime
    return found


def wait_for(root: Path, count: int, seconds: float = 300.0) -> None:
    """Wait until there are so many visible results."""
    deadline = time.monotonic() + seconds
    while len(results(root)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(results(root)) >= count
