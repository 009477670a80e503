"""What the store does not hold of a search: what was proposed, and what was stopped early."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adray.types import Json


class Journal:
    """A file with one line per batch that was proposed, and per trial that was stopped.

    Args:
        path: the file; lines that a killed process left half-written are passed over.
        key: of the search; lines with another one are of an earlier search and do not count.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def asked(self) -> list[list[Json]]:
        """Read the batches of settings in the order in which they were proposed."""
        return [line["asked"] for line in self._lines() if "asked" in line]

    def stopped(self) -> set[str]:
        """Read the ids of the trials that the scheduler stopped."""
        return {line["stopped"] for line in self._lines() if "stopped" in line}

    def ask(self, batch: Sequence[Mapping[str, Any]]) -> None:
        """Note the settings of a batch, before they run."""
        if batch and list(batch) not in self.asked():
            self._append({"asked": list(batch)})

    def stop(self, id8: str, objective: float | None, percent: float | None) -> None:
        """Note a trial that was stopped, with its last report."""
        self._append({"stopped": id8, "objective": objective, "percent": percent})

    def _append(self, line: Mapping[str, Any]) -> None:
        """Append a line of its own, also after one that a killed process left half-written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        text = json.dumps({"search": self.key[:16], **line}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            if is_torn:
                file.write("\n")
            file.write(text + "\n")

    def _lines(self) -> Iterator[Json]:
        """Read the lines of this search. JSON."""
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and value.get("search") == self.key[:16]:
                yield value
