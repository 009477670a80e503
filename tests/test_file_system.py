"""What file systems can do: this machine's own, others that are mounted, and calls that fail."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from failing_calls import CALLS, CODES, fail

from adray import file_system
from adray.file_system import FileSystem, colliding, file_system_of, free_bytes, kind_of, probe
from adray.files import REFUSALS, read_json, write_json

FIELD = {
    "rename": "replaces_files",
    "link": "links",
    "flock": "locks",
    "fsync of files": "syncs_files",
    "fsync of folders": "syncs_folders",
}


@pytest.fixture
def mounted(tmp_path):
    """Mount a file system, in a place that is given back; skip where that is not allowed."""
    places: list[Path] = []

    def mount(kind: str, options: str = "", source: str = "none") -> Path:
        place = tmp_path / f"mount{len(places)}"
        place.mkdir()
        words = ["mount", "-t", kind, *(["-o", options] if options else []), source, str(place)]
        if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
            pytest.skip(f"{kind} cannot be mounted here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_an_ordinary_disk_can_do_everything_and_nothing_is_left_behind(tmp_path):
    found = probe(tmp_path)
    assert all(getattr(found, name) for name in FIELD.values())
    assert found.moves_folders
    assert found.tells_case
    assert found.tells_accents
    assert 0 < found.time_grain <= 1.0
    assert list(tmp_path.iterdir()) == []


def test_the_kind_is_that_of_the_mount_that_a_folder_is_on(tmp_path):
    said = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE", "-T", str(tmp_path)], capture_output=True, text=True
    )
    assert kind_of(tmp_path) == said.stdout.split()[-1]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("code", CODES)
def test_what_is_refused_is_known_and_trouble_with_what_results_need_is_an_error(
    call, code, tmp_path, monkeypatch
):
    fail(monkeypatch, call, code)
    is_refusal = getattr(errno, code) in REFUSALS
    is_needed = call in ("rename", "fsync of files")
    if is_needed and not is_refusal:
        with pytest.raises(OSError, match=os.strerror(getattr(errno, code))):
            probe(tmp_path)
    else:
        found = probe(tmp_path)
        assert [name for name in FIELD.values() if not getattr(found, name)] == [FIELD[call]]
        assert found.moves_folders == (call != "rename")
    assert list(tmp_path.iterdir()) == []


def test_locks_that_keep_nobody_out_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert not probe(tmp_path).locks


def test_a_folder_that_takes_the_place_of_a_full_one_is_not_moved(tmp_path, monkeypatch):
    rename = os.rename

    def replacing(source, target):
        if Path(target).is_dir():
            shutil.rmtree(target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", replacing)
    assert not probe(tmp_path).moves_folders


def test_a_file_system_is_tried_once_by_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr(file_system, "_known", {})
    first = file_system_of(tmp_path)
    fail(monkeypatch, "link", "EPERM")
    assert file_system_of(tmp_path) is first


@pytest.mark.parametrize(
    ("kept", "grain"),
    [
        (1_700_000_001_987_654_321, 1e-9),
        (1_700_000_001_987_654_300, 1e-7),
        (1_700_000_001_987_654_000, 1e-6),
        (1_700_000_001_980_000_000, 0.01),  # exFAT
        (1_700_000_001_000_000_000, 1.0),  # NFS 2, ext3
        (1_700_000_000_000_000_000, 2.0),  # FAT
    ],
)
def test_the_grain_of_times_is_told_by_what_is_cut_off(kept, grain, tmp_path, monkeypatch):
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda path, ns: utime(path, ns=(kept, kept)))
    assert probe(tmp_path).time_grain == grain


def test_names_collide_only_where_the_file_system_takes_them_for_one():
    names = ["a/Bolt", "a/bolt", "caf\u00e9", "cafe\u0301", "straight"]

    def found(case: bool, accents: bool) -> list[list[str]]:
        base = file_system.ORDINARY
        return colliding(
            names, FileSystem(**{**vars(base), "tells_case": case, "tells_accents": accents})
        )

    assert found(True, True) == []
    assert found(False, True) == [["a/Bolt", "a/bolt"]]
    assert found(True, False) == [["caf\u00e9", "cafe\u0301"]]


def test_a_file_is_written_where_renaming_is_not_known(tmp_path, monkeypatch):
    fail(monkeypatch, "rename", "ENOSYS")
    for value in (1, 2):
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_free_bytes_are_those_of_the_disk(tmp_path, mounted):
    place = mounted("tmpfs", "size=10m")
    (place / "file").write_bytes(b"x" * 2**20)
    assert free_bytes(place) == shutil.disk_usage(place).free
    assert 8 * 2**20 < free_bytes(place) < 10 * 2**20


def test_an_overlay_can_do_everything_with_what_is_new(tmp_path, mounted):
    base = mounted("tmpfs")
    for name in ("lower", "upper", "work"):
        (base / name).mkdir()
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    found = probe(mounted("overlay", options))
    assert found.kind == "overlay"
    assert found.moves_folders
    assert found.locks


@pytest.mark.parametrize(
    ("hard_kib", "soft_kib", "left"),
    [(3000, 2000, 3000 - 1024), (0, 2000, 2000 - 1024), (100, 0, 0)],
)
def test_the_hard_limit_of_a_quota_counts_and_else_the_soft_one(
    hard_kib, soft_kib, left, tmp_path, monkeypatch
):
    """As the kernel's `if_dqblk` says it: limits in KiB, the space in use in bytes."""
    answer = struct.pack("@QQQQQQQQI", hard_kib, soft_kib, 1024**2, 0, 0, 0, 0, 0, 0x3F)

    class Library:
        @staticmethod
        def quotactl(command, device, user, buffer):
            assert command.value & 0xFFFFFFFF == 0x800007 << 8
            buffer.raw = answer
            return 0

    monkeypatch.setattr("ctypes.CDLL", lambda _: Library)
    assert free_bytes(tmp_path) == left * 1024


def test_the_quota_of_a_user_counts_where_it_is_less_than_the_disk(tmp_path, mounted):
    if not shutil.which("mkfs.ext4"):
        pytest.skip("mkfs.ext4 is not installed")
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    os.truncate(disk, 32 * 2**20)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "quota", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("this mkfs.ext4 knows no quota")
    place = mounted("ext4", "loop,usrquota", str(disk))
    everything = free_bytes(place)
    _set_quota(place, kib=2048)
    assert free_bytes(place) < 2048 * 1024 < everything
    assert free_bytes(place) > 1024 * 1024


def _set_quota(place: Path, kib: int) -> None:
    """Limit the blocks of this user, by the kernel's Q_SETQUOTA."""
    device = file_system._mount_of(place)[0]
    limits = struct.pack(file_system._QUOTA_LAYOUT, kib, 0, 0, 0, 0, 0, 0, 0, 1)
    set_quota = ctypes.c_int(0x80000800 - 2**32)
    call = ctypes.CDLL(None, use_errno=True).quotactl
    if call(set_quota, os.fsencode(device), os.getuid(), limits):
        pytest.skip(f"quotas cannot be set here: {os.strerror(ctypes.get_errno())}")
