"""A verdict for each new image of a folder: judged once, and its result never lost.

The order in which a result becomes safe: its map is written, then its row is committed to the
journal, from which moment the image is judged. The lines of the result files, the sorted copy and
the messages follow, each noted when done. A kill at any moment leaves what the next start completes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from adray.runtime.arrivals import MOST_BYTES, Arrivals, ChangedError, is_missing, read_whole
from adray.runtime.errors import BundleError
from adray.runtime.folder_events import FolderEvents
from adray.runtime.journal import (
    FILE,
    NOT_ASKED,
    PENDING,
    Followers,
    Identity,
    Journal,
    JudgedFile,
)
from adray.runtime.judge import Held, Judge
from adray.runtime.model import UNREADABLE, Result
from adray.runtime.outbox import Outbox, Send
from adray.runtime.result_files import LINES, TABLE, ResultFiles
from adray.runtime.result_log import claimed, sync_file
from adray.runtime.rows import Row, map_picture, row_of, short
from adray.runtime.sorting import Sorter
from adray.runtime.tally import WINDOW, Tally

logger = logging.getLogger(__name__)

MAPS = "maps"
_ODD_LETTERS = re.compile(r"[^\w.-]")
_MOST_LETTERS = 30
"""Of an image's name in that of its map."""
_TROUBLE_SECONDS = 5.0
"""Pause after the disk or the folder failed."""
_MODEL_SECONDS = 2.0
"""Between two looks at the file of the model."""
_METRICS_SECONDS = 5.0


@dataclass(frozen=True)
class WatchPlan:
    """What is watched, and what is done with a verdict."""

    folder: Path
    """Of the images, with all below it."""
    out: Path
    """Of the journal and the results."""
    settle: float = 0.5
    """Seconds for which a file must have stayed the same."""
    patience: float = 10.0
    """Seconds after which a file that cannot be decoded is taken for damaged."""
    scan_seconds: float = 30.0
    """Between two looks at the whole folder."""
    is_polled: bool = False
    """The folder is another machine's, whose changes the system does not tell."""
    with_maps: bool = True
    """Write anomaly maps, too."""
    sort_into: Path | None = None
    """Folder with a folder for each verdict, None for none."""
    moves: bool = False
    """Delete an image once its sorted copy is whole."""
    metrics: Path | None = None
    """File of counts for Prometheus, None for none."""
    channels: dict[str, Send] = field(default_factory=dict)
    """Of the journal, to the way by which results are sent."""


class Watcher:
    """Watches a folder.

    Args:
        plan: what is done.
        held: the model.

    Raises:
        BundleError: for folders that cannot be used together or at all.
    """

    def __init__(self, plan: WatchPlan, held: Held) -> None:
        check_plan(plan)
        _check_fresh(plan.out)
        self.plan = plan
        self.held = held
        self.tally = Tally()
        self.judged = 0
        try:
            plan.out.mkdir(parents=True, exist_ok=True)
            self._claim = claimed(plan.out)
        except OSError as error:
            raise BundleError(
                f"results cannot be written into {plan.out} ({error.strerror}); name another folder"
            ) from error

        self.journal = Journal(plan.out / FILE)
        self._files = ResultFiles(plan.out, self.journal)
        self._arrivals = Arrivals(plan.folder, plan.settle)
        self._found: set[Path] | None = None
        self._first_seen: dict[Path, tuple[Identity, float]] = {}
        self._sorter = None
        if plan.sort_into is not None:
            self._sorter = Sorter(plan.sort_into, plan.folder, self.journal, plan.moves)
        self._outboxes = []
        for channel, send in plan.channels.items():
            self._outboxes.append(Outbox(channel, self.journal, send))
        self._stop_asked = threading.Event()
        self._events: FolderEvents | None = None
        self._in_trouble = False
        self._next_scan = 0.0
        self._next_model = 0.0
        self._next_metrics = 0.0

    def stop(self) -> None:
        """Ask the watcher to end after the image in work."""
        self._stop_asked.set()
        if self._events is not None:
            self._events.wake()

    def run(self, once: bool = False) -> dict[str, int]:
        """Watch until asked to stop.

        Args:
            once: end when all that lies there is judged.

        Returns:
            Number of results that each channel has not delivered, where there are any.
        """
        self._complete_earlier_work()
        self._events = FolderEvents(self.plan.folder, self.plan.is_polled or once)
        for outbox in self._outboxes:
            outbox.start()
        try:
            while not self._stop_asked.is_set():
                self._step()
                is_idle = self._arrivals.next_due() is None and not self._in_trouble
                if once and is_idle:
                    break
        finally:
            self._events.close()
            waiting = self._end()
        return waiting

    def _complete_earlier_work(self) -> None:
        """Do what an earlier process did not come to."""
        last = self.journal.last_number
        for row in self.journal.rows_after(last - WINDOW):
            self.tally.remember(row["verdict"], row["model"])
        for path in (self.plan.out / MAPS).glob("*.png"):
            number = path.name.split("_")[0]
            if number.isdecimal() and int(number) > last:
                path.unlink(missing_ok=True)  # its row was never committed
        if self._sorter is not None:
            self._sorter.clean()
        self._follow()

    def _end(self) -> dict[str, int]:
        """Write what can be written, let go, and count what is not delivered."""
        self._follow()
        for outbox in self._outboxes:
            outbox.stop(15)
        self._write_metrics(time.monotonic(), must_write=True)
        with contextlib.suppress(sqlite3.Error):
            self._files.note()
        waiting = {}
        for channel in self.plan.channels:
            waiting[channel] = self.journal.count_pending(channel)
        self.journal.close()
        os.close(self._claim)
        return {channel: count for channel, count in waiting.items() if count}

    # One step

    def _step(self) -> None:
        """Wait for something to happen, and do what is due."""
        assert self._events is not None
        paths = self._events.wait(self._pause(time.monotonic()))
        now = time.monotonic()
        try:
            if now >= self._next_scan:
                self._scan(now)
            else:
                self._arrivals.look(filter(self._is_inside, paths), now)
            due = self._arrivals.due(now)
            for path, identity in due:
                if self._stop_asked.is_set():
                    break
                self._take(path, identity)
            if not due:
                self._files.note()
            self._in_trouble = False
        except (OSError, sqlite3.Error) as error:
            self._note_trouble(error)
        self._look_at_model(now)
        self._follow()
        self._write_metrics(now)

    def _pause(self, now: float) -> float:
        """Give the seconds until something is due, at most one."""
        if self._in_trouble:
            return _TROUBLE_SECONDS
        due = self._arrivals.next_due()
        times = [1.0, self._next_scan - now]
        if due is not None:
            times.append(due - now)
        return max(0.0, min(times))

    def _is_inside(self, path: Path) -> bool:
        """Tell whether a path lies in the watched folder."""
        return path.is_relative_to(self.plan.folder)

    def _note_trouble(self, error: Exception) -> None:
        """Say once that something failed that may come right by itself, such as a full disk."""
        if not self._in_trouble:
            logger.warning("work waits, since %s", error)
        self._in_trouble = True
        self._next_scan = 0.0

    def _scan(self, now: float) -> None:
        """Look at the whole folder, and note which judged files are gone from it.

        Raises:
            OSError: where it cannot be listed.
        """
        found = self._arrivals.look_all(now)
        before = self.journal.present_paths() if self._found is None else self._found
        gone = [path for path in before if path not in found]
        if gone:
            self.journal.set_gone(gone)
        self._found = found
        for path in [path for path in self._first_seen if path not in found]:
            del self._first_seen[path]
        self._next_scan = time.monotonic() + self.plan.scan_seconds

    def _look_at_model(self, now: float) -> None:
        """Take a newer model where its file changed."""
        if now >= self._next_model:
            said = self.held.look()
            if said:
                logger.warning("%s", said)
            self._next_model = now + _MODEL_SECONDS

    # One image

    def _take(self, path: Path, identity: Identity) -> None:
        """Judge a file, unless it was.

        Raises:
            OSError: where the disk or the share fails.
            sqlite3.Error: where the journal cannot be written.
        """
        known = self.journal.at_path(path)
        if known is not None and not known.is_gone and known.identity == identity:
            self._arrivals.done(path, identity)
            return

        data = self._read(path, identity)
        if data is None:
            return
        sha256 = hashlib.sha256(data).hexdigest()
        same = self._same_file(path, identity, sha256, known)
        if same is not None:
            self.journal.set_place(same.number, path, identity)
            self._arrivals.done(path, identity)
            return
        self._judge(path, identity, data, sha256)

    def _read(self, path: Path, identity: Identity) -> bytes | None:
        """Read a file, None for one that has to be looked at again.

        Raises:
            OSError: where the share fails.
        """
        now = time.monotonic()
        if identity.size > MOST_BYTES:
            return b""  # judged as what it is: too large
        try:
            return read_whole(path, identity)
        except ChangedError:
            self._arrivals.settle_again(path, now)
        except OSError as error:
            if not is_missing(error) and not isinstance(error, PermissionError):
                raise
            if is_missing(error):
                self._arrivals.settle_again(path, now)
            elif self._waited(path, identity, now) < self.plan.patience:
                self._arrivals.put_off(path, self.plan.settle + 0.5, now)
            else:
                return b""
        return None

    def _same_file(
        self, path: Path, identity: Identity, sha256: str, known: JudgedFile | None
    ) -> JudgedFile | None:
        """Find the judged file that this one is, None where it is new.

        It is one that was touched, or one that was renamed, or one of a share that was away.
        """
        if known is not None and known.sha256 == sha256:
            is_same_time = known.identity.changed == identity.changed
            if not known.is_gone or is_same_time:
                return known
        for other in self.journal.of_inode(identity):
            if other.sha256 == sha256 and not os.path.lexists(other.path):
                return other
        return None

    def _judge(self, path: Path, identity: Identity, data: bytes, sha256: str) -> None:
        """Judge a file, and note its result.

        Raises:
            OSError: where the map cannot be written.
            sqlite3.Error: where the journal cannot be written.
        """
        model = self.held.model
        start = time.perf_counter()
        result = _judged(model.judge, data, identity, self.plan.with_maps)
        now = time.monotonic()

        # A file that cannot be decoded may be one whose writer pauses.
        if result.verdict == UNREADABLE and self._waited(path, identity, now) < self.plan.patience:
            self._arrivals.put_off(path, max(0.5, self.plan.settle), now)
            return

        number = self.journal.last_number + 1
        name = path.relative_to(self.plan.folder).as_posix()
        row: Row = {"number": number, **row_of(result, name, sha256, model)}
        row |= self._write_map(result, number, path)
        self.journal.add(row, path, identity, self._followers(), self._files.facts)
        self._arrivals.done(path, identity)
        self._first_seen.pop(path, None)
        self.judged += 1
        self.tally.add_image(row["verdict"], time.perf_counter() - start, model.sha256)
        self._follow()

    def _waited(self, path: Path, identity: Identity, now: float) -> float:
        """Give the seconds since a file was first tried as it is."""
        first = self._first_seen.get(path)
        if first is None or first[0] != identity:
            self._first_seen[path] = (identity, now)
            return 0.0
        return now - first[1]

    def _write_map(self, result: Result, number: int, path: Path) -> Row:
        """Write a map, and give what its row says of it. JSON.

        Raises:
            OSError: where it cannot be written.
        """
        if result.anomaly_map is None:
            return {"map": "", "map_low": None, "map_high": None}
        data, low, high = map_picture(result.anomaly_map)
        readable = os.fsencode(path.stem).decode("utf-8", "backslashreplace")
        stem = _ODD_LETTERS.sub("_", readable)[:_MOST_LETTERS]
        folder = self.plan.out / MAPS
        folder.mkdir(exist_ok=True)
        target = folder / f"{number:06d}_{stem}.png"
        part = folder / f".{number:06d}.part"
        part.write_bytes(data)
        sync_file(part)
        part.replace(target)
        return {
            "map": f"{MAPS}/{target.name}",
            "map_low": short(low),
            "map_high": short(high),
        }

    # What follows

    def _followers(self) -> Followers:
        """Say what is to be done with a result."""
        channels = self.plan.channels
        return Followers(
            sorted=NOT_ASKED if self._sorter is None else PENDING,
            posted=PENDING if "posted" in channels else NOT_ASKED,
            published=PENDING if "published" in channels else NOT_ASKED,
        )

    def _follow(self) -> None:
        """Do what follows the results, as far as it can be done now."""
        try:
            self._files.write()
            if self._sorter is not None:
                self._sorter.work()
        except sqlite3.Error as error:
            self._note_trouble(error)
        for outbox in self._outboxes:
            outbox.wake()

    def _write_metrics(self, now: float, must_write: bool = False) -> None:
        """Write the counts where they are old."""
        path = self.plan.metrics
        if path is None or (now < self._next_metrics and not must_write):
            return
        self._next_metrics = now + _METRICS_SECONDS
        waiting = 0
        for channel in self.plan.channels:
            waiting += self.journal.count_pending(channel)
        text = self.tally.text(self.held.model, waiting=waiting, model_failures=self.held.failures)
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        except OSError as error:
            logger.warning("--metrics %s cannot be written (%s)", path, error.strerror)


def check_plan(plan: WatchPlan) -> None:
    """Refuse folders that cannot be used together.

    Raises:
        BundleError: with the remedy.
    """
    if not plan.folder.is_dir():
        raise BundleError(f"{plan.folder} is no folder; name the one that images come into")
    watched = Path(os.path.realpath(plan.folder))
    for option, path in (("--out", plan.out), ("--sort-into", plan.sort_into)):
        if path is not None and Path(os.path.realpath(path)).is_relative_to(watched):
            raise BundleError(
                f"{option} {path} lies in {plan.folder}, where each image would be taken for a new "
                "one; name a folder elsewhere"
            )
    if plan.moves and plan.sort_into is None:
        raise BundleError("--move says how --sort-into sorts; give --sort-into FOLDER, too")


def _check_fresh(out: Path) -> None:
    """Refuse results whose journal is gone, since numbers would begin anew.

    Raises:
        BundleError: with the remedy.
    """
    for name in (LINES, TABLE):
        if not (out / FILE).exists() and (out / name).exists():
            raise BundleError(
                f"--out {out} holds {name} but not the journal that belongs to it; name another "
                "folder"
            )


def _judged(judge: Judge, data: bytes, identity: Identity, with_maps: bool) -> Result:
    """Judge the bytes of a file."""
    if identity.size > MOST_BYTES:
        reason = f"the file has {identity.size} bytes, at most {MOST_BYTES} are read"
        return Result("", UNREADABLE, reason=reason)
    if not data:
        reason = "the file is empty" if not identity.size else "the file may not be read"
        return Result("", UNREADABLE, reason=reason)
    return judge.predict(data, with_map=with_maps, with_regions=True)
