"""A bundle as a file: a zip whose members are listed, with their hashes, in its manifest.

A bundle may come from anywhere, so nothing of it is believed before it is checked. Only the graph is
ever unpacked to the disk, to a folder of this process alone and for as long as it is loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import stat
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from adray.runtime.errors import BundleError

FORMAT = 1
"""Of the manifest. A change that an older program would misread raises it."""
ENDING = ".adray"
MANIFEST = "manifest.json"
MOST_MEMBERS = 64
MOST_BYTES = 4 * 2**30
"""Of all members, unpacked."""
_MOST_MANIFEST_BYTES = 64 * 2**20
_PART = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_-])?"
_NAME = re.compile(f"{_PART}(/{_PART})*")
"""Plain relative paths. No part begins or ends with a dot."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that are no files on Windows."""
_BLOCK = 2**20
_START = b"PK\x03\x04"
_END = b"PK\x05\x06"
_END_BYTES = 22
"""Of the record that ends a zip, without a comment."""
_HEADER_BYTES = 30
"""In front of a member's name and its data."""
_ENCRYPTED = 0x1
"""Bit of a member's flags."""
_UTF8_NAME = 0x800
"""Bit of a member's flags, the only one besides that programs read alike."""
_MOST_TIMES = 500
"""That a member may be larger than it is packed, where it is larger than `_LARGE_BYTES`."""
_LARGE_BYTES = 16 * 2**20
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_REMEDY = "copy it again from where it was made"


@dataclass(frozen=True)
class Archive:
    """A bundle all of whose members are those that its manifest lists."""

    path: Path
    """The file."""
    manifest: Mapping[str, Any]
    """What `manifest.json` holds."""

    def read(self, name: str) -> bytes:
        """Read a member.

        Raises:
            BundleError: where it is not there, or no longer what the manifest says.
        """
        data = io.BytesIO()
        for block in self._blocks_of(name):
            data.write(block)
        return data.getvalue()

    def unpack(self, name: str, folder: Path) -> Path:
        """Write a member into a folder, a block at a time, and give its path.

        Raises:
            BundleError: as `read` does, and where it cannot be written.
        """
        blocks = self._blocks_of(name)
        target = folder / name
        try:
            with target.open("wb") as file:
                for block in blocks:
                    file.write(block)
        except OSError as error:
            megabytes = math.ceil(self.manifest["files"][name]["bytes"] / 1e6)
            raise BundleError(
                f"{self.path}: {name} takes {megabytes} MB in {folder} while it is loaded, which cannot "
                f"be written ({error.strerror}); set TMPDIR to a folder with room"
            ) from error
        return target

    def _blocks_of(self, name: str) -> Iterator[bytes]:
        """Yield a member piece by piece, see `read`; the last is not to be believed without an end."""
        if name not in self.manifest["files"]:
            raise BundleError(f"{self.path}: {name!r} is not in the bundle; {_REMEDY}")

        # The file may have been replaced since it was opened, so the hash is taken again.
        facts = self.manifest["files"][name]
        digest = hashlib.sha256()
        with _opened(self.path) as file:
            for block in _blocks(file, name, facts["bytes"]):
                digest.update(block)
                yield block
        _check_hash(self.path, name, digest.hexdigest(), facts["sha256"])


def open_archive(path: str | Path) -> Archive:
    """Open a bundle, once it is known to be whole and harmless.

    Raises:
        BundleError: for what is no bundle, was changed, or would do more than hold files.
    """
    path = Path(path)
    with _opened(path) as file:
        # The list of members comes first: nothing is unpacked before its size and path are known.
        _check_frame(path, file)
        sizes = _checked_sizes(path, file.infolist())
        manifest = _read_manifest(path, file, sizes)
        _check_members(path, sizes, manifest["files"])
        for name, facts in manifest["files"].items():
            _check_member(path, file, name, facts)
    return Archive(path, manifest)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file, and say in one sentence what is wrong with it.

    Raises:
        BundleError: for a file that is missing, damaged or no zip.
    """
    try:
        with path.open("rb") as start:
            if start.read(len(_START)) != _START:
                raise BundleError(f"{path} is no bundle; name a file of `adray bundle`")
        with zipfile.ZipFile(path) as file:
            yield file
    except OSError as error:
        raise BundleError(f"bundle {path} cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"bundle {path} is damaged ({error}); {_REMEDY}") from error


# The list of members


def _check_frame(path: Path, file: zipfile.ZipFile) -> None:
    """Refuse a zip that holds more than its members, or of which other programs list others.

    Raises:
        BundleError: for a comment, bytes in front or behind, and members that overlap.
    """
    with path.open("rb") as plain:
        plain.seek(0, 2)
        plain.seek(max(0, plain.tell() - _END_BYTES))
        has_end = plain.read(len(_END)) == _END
    if file.comment or not has_end:
        _refuse(path, "it has a comment, or goes on behind its end")

    end = 0
    for member in sorted(file.infolist(), key=lambda one: one.header_offset):
        if member.header_offset < end or (not end and member.header_offset):
            _refuse(
                path, f"its member {member.orig_filename!r} lies over another, or not at the start"
            )
        name = len(member.orig_filename.encode("utf-8", "replace"))
        end = member.header_offset + _HEADER_BYTES + name + member.compress_size


def _checked_sizes(path: Path, members: Sequence[zipfile.ZipInfo]) -> dict[str, int]:
    """Give the unpacked size of each member, by its name, of a list without tricks.

    Raises:
        BundleError: for the first member that is not a plain file of bearable size.
    """
    if len(members) > MOST_MEMBERS:
        _refuse(path, f"it has {len(members)} members, at most {MOST_MEMBERS} are allowed")

    sizes: dict[str, int] = {}
    for member in members:
        name = member.orig_filename
        problem = _problem(member)
        if problem:
            _refuse(path, f"its member {name!r} {problem}")
        if name in sizes:
            _refuse(path, f"it has two members {name!r}")
        sizes[name] = member.file_size
    _check_places(path, sizes)
    if sum(sizes.values()) > MOST_BYTES:
        total = f"{sum(sizes.values()) / 2**30:.1f} GB"
        _refuse(path, f"unpacked it has {total}, at most {MOST_BYTES / 2**30:.0f} GB are allowed")
    return sizes


def _check_places(path: Path, names: Collection[str]) -> None:
    """Refuse members that would lie at one place where they are unpacked.

    Raises:
        BundleError: for names that differ by capitals alone, or of which one is another's folder.
    """
    taken: dict[str, str] = {}
    for name in names:
        same = taken.setdefault(name.casefold(), name)
        if same != name:
            _refuse(path, f"its members {same!r} and {name!r} are one file on some machines")
    for name in names:
        parts = name.casefold().split("/")
        for count in range(1, len(parts)):
            folder = "/".join(parts[:count])
            if folder in taken:
                _refuse(path, f"its member {taken[folder]!r} is a file and the folder of {name!r}")


def _problem(member: zipfile.ZipInfo) -> str:
    """Say what is wrong with a member, empty for nothing."""
    # The upper half of the attributes is the mode of a file on Unix, 0 from other systems.
    kind = stat.S_IFMT(member.external_attr >> 16)
    if not _NAME.fullmatch(member.orig_filename):
        return "has a path that leads out of the bundle, or no plain name"
    if any(_DEVICES.fullmatch(part) for part in member.orig_filename.split("/")):
        return "has the name of a device"
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in _PACKINGS:
        return f"is packed in an unknown way ({member.compress_type})"
    if member.flag_bits & ~_UTF8_NAME or member.extra:
        return "has a size or a name that programs read in several ways"
    if member.file_size > max(_LARGE_BYTES, _MOST_TIMES * member.compress_size):
        return f"has {member.compress_size} bytes that unpack to {member.file_size}"
    return ""


def _check_members(path: Path, sizes: Mapping[str, int], files: Mapping[str, Any]) -> None:
    """Refuse a bundle whose members are not exactly those that the manifest lists.

    Raises:
        BundleError: with the first that is missing, unknown, or of another size.
    """
    for name in sizes:
        if name != MANIFEST and name not in files:
            _refuse(path, f"its member {name!r} has no hash in the manifest")

    for name, facts in files.items():
        if name not in sizes:
            _refuse(path, f"{name!r} is in the manifest, but not in the bundle")
        if sizes[name] != facts["bytes"]:
            _refuse(path, f"{name!r} has {sizes[name]} bytes, the manifest says {facts['bytes']}")


def _check_member(path: Path, file: zipfile.ZipFile, name: str, facts: Mapping[str, Any]) -> None:
    """Refuse a member that is not what the manifest says.

    Raises:
        BundleError: with its name.
    """
    digest = hashlib.sha256()
    for block in _blocks(file, name, facts["bytes"]):
        digest.update(block)
    _check_hash(path, name, digest.hexdigest(), facts["sha256"])


def _check_hash(path: Path, name: str, found: str, wanted: str) -> None:
    """Refuse a hash that is not the wanted one.

    Raises:
        BundleError: with the member's name.
    """
    if found != wanted:
        _refuse(path, f"{name!r} was changed: its sha256 is {found}, the manifest says {wanted}")


def _blocks(file: zipfile.ZipFile, name: str, size: int) -> Iterator[bytes]:
    """Unpack a member piece by piece, and no more of it than its size.

    Raises:
        BundleError: for a member that is longer or shorter than it says.
    """
    # One byte more than the size is asked for, so that a longer member is noticed.
    left = size
    with file.open(name) as member:
        while block := member.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                break
            yield block
    if left:
        _refuse(Path(file.filename or name), f"{name!r} does not have the {size} bytes it claims")


# The manifest


def _read_manifest(path: Path, file: zipfile.ZipFile, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Read the manifest, of this format and with a hash for each member.

    Raises:
        BundleError: for one that is missing, too large, no JSON, or of another format.
    """
    size = sizes.get(MANIFEST)
    if size is None:
        raise BundleError(f"{path} has no {MANIFEST}; name a file of `adray bundle`")
    if size > _MOST_MANIFEST_BYTES:
        _refuse(path, f"its {MANIFEST} has {size} bytes, which no manifest needs")

    # A list of a hundred thousand brackets ends the parser by its depth.
    try:
        text = b"".join(_blocks(file, MANIFEST, size))
        manifest = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        _refuse(path, f"its {MANIFEST} is no JSON ({error})")

    if not isinstance(manifest, dict):
        _refuse(path, f"its {MANIFEST} is no object")
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{path} has format {manifest.get('format')!r}, this program reads {FORMAT}; "
            "install the version of adray that wrote it, or make the bundle again"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(map(_are_facts, files.values())):
        _refuse(path, f"its {MANIFEST} lacks the size and sha256 of a member")
    return manifest


def _are_facts(facts: object) -> bool:
    """Tell whether a value has the size and the hash of a file."""
    if not isinstance(facts, dict):
        return False
    size = facts.get("bytes")
    digest = facts.get("sha256")
    is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    return is_size and isinstance(digest, str) and bool(re.fullmatch("[0-9a-f]{64}", digest))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Give an object, each key of which is there once.

    Raises:
        ValueError: with a key that is there twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} is there twice")
        found[key] = value
    return found


def _no_number(name: str) -> NoReturn:
    """Refuse NaN and infinity, which are no JSON.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is no number")


def _refuse(path: Path, reason: str) -> NoReturn:
    """Refuse a bundle.

    Raises:
        BundleError: always.
    """
    raise BundleError(f"bundle {path} is refused: {reason}; {_REMEDY}")
