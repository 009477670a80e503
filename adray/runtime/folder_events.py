"""Hints of what changes in a folder, so that nobody has to wait for the next look at all of it."""

from __future__ import annotations

import logging
import os
import queue
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_MOST_HINTS = 100_000
"""More are dropped; the next look at the whole folder finds the files."""


class FolderEvents:
    """Paths that the system says changed.

    Args:
        folder: with all below it.
        is_polled: the system is not asked, as for a share of another machine.
    """

    def __init__(self, folder: Path, is_polled: bool) -> None:
        # A signal may wake a wait, so it must not need a lock that the wait holds.
        self._paths: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._observer: Any = None
        self.is_polled = is_polled or not self._observe(folder)

    def _observe(self, folder: Path) -> bool:
        """Ask the system, and tell whether it will say."""
        from watchdog.events import FileSystemEventHandler
        from watchdog.observers import Observer

        events = FileSystemEventHandler()
        events.on_any_event = self._take  # type: ignore[method-assign]
        observer = Observer()
        observer.schedule(events, str(folder), recursive=True)
        try:
            observer.start()
        except OSError as error:  # such as fs.inotify.max_user_watches
            logger.warning("the system does not tell of changes in %s (%s)", folder, error.strerror)
            return False
        self._observer = observer
        return True

    def _take(self, event: Any) -> None:
        """Keep the paths of an event."""
        for name in (event.src_path, getattr(event, "dest_path", "")):
            is_change = event.event_type in ("created", "modified", "moved", "closed")
            if name and is_change and self._paths.qsize() < _MOST_HINTS:
                self._paths.put(Path(os.fsdecode(name)))

    def wait(self, seconds: float) -> set[Path]:
        """Give the paths that changed, after waiting at most so long for the first."""
        found: set[Path] = set()
        try:
            found.add(self._paths.get(timeout=max(0.0, seconds)))
            while True:
                found.add(self._paths.get_nowait())
        except queue.Empty:
            return found

    def wake(self) -> None:
        """End a wait."""
        self._paths.put(Path())

    def close(self) -> None:
        """End."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(5)
