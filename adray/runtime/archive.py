"""A bundle as a file: a zip whose members are listed, with their hashes, in its manifest.

A bundle may come from anywhere, so nothing of it is believed before it is checked, and nothing is
unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
"""Plain relative paths. No part begins with a dot."""
_BLOCK = 2**20
_START = b"PK\x03\x04"
_ENCRYPTED = 0x1
"""Bit of a member's flags."""
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
        if name not in self.manifest["files"]:
            raise BundleError(f"{self.path}: {name!r} is not in the bundle; {_REMEDY}")

        # The file may have been replaced since it was opened, so the hash is taken again.
        facts = self.manifest["files"][name]
        with _opened(self.path) as file:
            data = b"".join(_blocks(file, name, facts["bytes"]))
        _check_hash(self.path, name, hashlib.sha256(data).hexdigest(), facts["sha256"])
        return data


def open_archive(path: str | Path) -> Archive:
    """Open a bundle, once it is known to be whole and harmless.

    Raises:
        BundleError: for what is no bundle, was changed, or would do more than hold files.
    """
    path = Path(path)
    with _opened(path) as file:
        # The list of members comes first: nothing is unpacked before its size and path are known.
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
    if sum(sizes.values()) > MOST_BYTES:
        total = f"{sum(sizes.values()) / 2**30:.1f} GB"
        _refuse(path, f"unpacked it has {total}, at most {MOST_BYTES / 2**30:.0f} GB are allowed")
    return sizes


def _problem(member: zipfile.ZipInfo) -> str:
    """Say what is wrong with a member, empty for nothing."""
    # The upper half of the attributes is the mode of a file on Unix, 0 from other systems.
    kind = stat.S_IFMT(member.external_attr >> 16)
    if not _NAME.fullmatch(member.orig_filename):
        return "has a path that leads out of the bundle, or no plain name"
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in _PACKINGS:
        return f"is packed in an unknown way ({member.compress_type})"
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
        manifest = json.loads(text, parse_constant=_no_number)
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
