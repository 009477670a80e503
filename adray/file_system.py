"""What the file system below a folder can do, tried out in a moment.

Stores and caches lie on whatever a site has: NFS, CIFS, exFAT, overlays, FUSE. Most of what one of
them lacks is an error that says so, and is met where it comes up (`adray.files.REFUSALS`). The rest
has to be tried out, before a night's results depend on it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import struct
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from adray.files import REFUSALS

_QUOTA_OF_USER = 0x80000700 - 2**32
"""Q_GETQUOTA << 8 | USRQUOTA, as the C compiler's signed int."""
_QUOTA_LAYOUT = "@QQQQQQQQI"
"""The kernel's `if_dqblk`: hard and soft limit in KiB, used bytes, the same of files, two times,
and which of these are known."""
_ACUTE_E = "\N{LATIN SMALL LETTER E WITH ACUTE}"


@dataclass(frozen=True)
class FileSystem:
    """What was found out about one."""

    kind: str
    """As the kernel calls it, such as ``ext4``, ``nfs4``, ``cifs``, ``exfat``, ``fuse.sshfs``."""
    moves_folders: bool
    """Whether a folder gets another name in one step, and never the place of a full one."""
    replaces_files: bool
    """Whether a file takes another one's place in one step."""
    links: bool
    """Whether a file can have two names."""
    locks: bool
    """Whether flock keeps processes apart."""
    syncs_files: bool
    """Whether a file can be flushed to the disk."""
    syncs_folders: bool
    """Whether a folder's list of names can."""
    tells_case: bool
    """Whether ``Bolt`` and ``bolt`` are two names."""
    tells_accents: bool
    """Whether a letter with its accent and the two in a row are two names."""
    time_grain: float
    """Seconds below which two times of change look the same."""
    free_bytes: int
    """Bytes that this user may still write, as the disk and the quota say at this moment."""


ORDINARY = FileSystem(
    kind="",
    moves_folders=True,
    replaces_files=True,
    links=True,
    locks=True,
    syncs_files=True,
    syncs_folders=True,
    tells_case=True,
    tells_accents=True,
    time_grain=0.0,
    free_bytes=0,
)
"""What a local disk of Linux can do."""


_known: dict[int, FileSystem] = {}


def file_system_of(folder: Path) -> FileSystem:
    """Give what `probe` finds, which this process tries out once on each mount."""
    device = folder.stat().st_dev
    if device not in _known:
        _known[device] = probe(folder)
    return _known[device]


def probe(folder: Path) -> FileSystem:
    """Try out what the file system of a folder can do. It takes a moment and leaves nothing behind.

    Raises:
        OSError: where files cannot be written there, or where an operation that every result needs
            fails for another reason than that the file system does not know it.
    """
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".adray-probe-"))
    try:
        return FileSystem(
            kind=kind_of(folder),
            syncs_files=_knows(_sync_file, scratch),
            replaces_files=_knows(_replace_file, scratch),
            moves_folders=_knows(_move_folder, scratch) and not _replaces_full_folders(scratch),
            links=_can(_link, scratch),
            locks=_can(_lock, scratch),
            syncs_folders=_can(_sync_folder, scratch),
            tells_case=_are_two(scratch, "Name", "name"),
            tells_accents=_are_two(scratch, *_both_spellings()),
            time_grain=_time_grain(scratch),
            free_bytes=free_bytes(folder),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _knows(step: Callable[[Path], object], scratch: Path) -> bool:
    """Tell whether an operation is known, and let any other trouble with it through."""
    try:
        step(scratch)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return False
    return True


def _can(step: Callable[[Path], object], scratch: Path) -> bool:
    """Tell whether an operation succeeds that results can do without."""
    try:
        step(scratch)
    except OSError:
        return False
    return True


# Operations that every result needs


def _sync_file(scratch: Path) -> None:
    file = scratch / "written"
    file.write_bytes(b"x" * 4096)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _replace_file(scratch: Path) -> None:
    old = scratch / "old"
    new = scratch / "new"
    old.write_text("old")
    new.write_text("new")
    new.replace(old)


def _move_folder(scratch: Path) -> None:
    folder = scratch / "folder"
    folder.mkdir()
    (folder / "file").write_text("whole")
    folder.rename(scratch / "moved")


def _replaces_full_folders(scratch: Path) -> bool:
    """Tell whether a folder takes the place of a full one, which may be another sweep's result."""
    first = scratch / "first"
    second = scratch / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    return _can(lambda _: second.rename(first), scratch)


# Operations that results can do without


def _link(scratch: Path) -> None:
    file = scratch / "one"
    file.write_text("x")
    (scratch / "two").hardlink_to(file)


def _lock(scratch: Path) -> None:
    """Lock a file, and see that another open of it is kept out.

    Raises:
        OSError: where there are no locks, or where they keep nobody out.
    """
    file = scratch / "lock"
    # Both are open for writing: NFS locks no file else.
    with file.open("w") as first, file.open("r+") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _sync_folder(scratch: Path) -> None:
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _are_two(scratch: Path, one: str, other: str) -> bool:
    """Tell whether two names are two files. True where they cannot be written at all."""
    try:
        (scratch / one).write_text("x")
        return not (scratch / other).exists()
    except OSError:
        return True


def _both_spellings() -> tuple[str, str]:
    """Give a name with an accent in both of Unicode's normal forms."""
    return unicodedata.normalize("NFC", _ACUTE_E), unicodedata.normalize("NFD", _ACUTE_E)


def _time_grain(scratch: Path) -> float:
    """Measure how coarsely times of change are kept, in seconds.

    A time with all digits is written, and what comes back was cut. 0 where it cannot be told.
    """
    file = scratch / "time"
    written = 1_700_000_001_987_654_321  # odd seconds, since FAT keeps even ones only
    try:
        file.write_text("x")
        os.utime(file, ns=(written, written))
        kept = file.stat().st_mtime_ns
    except OSError:
        return 0.0
    return _grain_of(abs(written - kept))


def _grain_of(lost_ns: int) -> float:
    """Give the least usual grain in seconds that loses at most so much of a time."""
    for grain_ns in (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000):
        if lost_ns < grain_ns:
            return grain_ns / 10**9
    return 2.0


# What the kernel says


def kind_of(folder: Path) -> str:
    """Give the kernel's name of a folder's file system, empty where it does not say."""
    mount = _mount_of(folder)
    return mount[1] if mount is not None else ""


def _mount_of(folder: Path) -> tuple[str, str] | None:
    """Give the source and kind of the mount that a folder is on, None where it is not known."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None

    # `36 35 98:0 /root /where options - ext4 /dev/sda1 more`
    above = {str(path) for path in (folder.resolve(), *folder.resolve().parents)}
    found = None
    longest = ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4].replace(r"\040", " ")
        # Of several mounts on one place the last one is seen.
        if place in above and len(place) >= len(longest):
            longest = place
            kind, source, *_ = after.split()
            found = (source, kind)
    return found


def free_bytes(folder: Path) -> int:
    """Count the bytes that this user may still write: what the disk has, and the quota allows."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    left = _quota_left(folder)
    return free if left is None else min(free, left)


def _quota_left(folder: Path) -> int | None:
    """Count the bytes that the quota of this user leaves.

    None where there is no quota, and where only a server knows it.
    """
    mount = _mount_of(folder)
    if mount is None:
        return None
    answer = ctypes.create_string_buffer(struct.calcsize(_QUOTA_LAYOUT))
    refused = ctypes.CDLL(None).quotactl(
        ctypes.c_int(_QUOTA_OF_USER), os.fsencode(mount[0]), os.getuid(), answer
    )
    if refused:
        return None

    hard_kib, soft_kib, used, *_ = struct.unpack(_QUOTA_LAYOUT, answer.raw)
    limit = (hard_kib or soft_kib) * 1024
    return max(0, limit - used) if limit else None


# Names


def colliding(names: Iterable[str], file_system: FileSystem) -> list[list[str]]:
    """List the names that are one on a file system, those of one file together."""
    same = defaultdict(list)
    for name in dict.fromkeys(names):
        same[_as_kept(name, file_system)].append(name)
    return [group for group in same.values() if len(group) > 1]


def _as_kept(name: str, file_system: FileSystem) -> str:
    """Write a name so that it is equal to those that the file system takes for it."""
    if not file_system.tells_accents:
        name = unicodedata.normalize("NFC", name)
    return name if file_system.tells_case else name.casefold()
