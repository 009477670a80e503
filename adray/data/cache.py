"""Decode once: the images of one category as a memory-mapped Arrow file in a node-local cache.

`<cache_dir>/decoded/<key>.arrow` is named by a hash of the contents of its images and masks and of the geometry, so a
changed image is a new file. Beside it lie `<key>.crc` (CRC-32 and size, written first) and `<key>.lock` (held while
building). Whoever uses a file holds a shared lock on it, which keeps it from eviction; deleting it is harmless all the
same, since Linux keeps a mapped file until the last user is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import pyarrow as pa

from adray.data.base import Sample
from adray.data.decode import Geometry, decode_pair
from adray.data.inspect_files import FileFacts, inspect_files, inspect_masks
from adray.errors import InputError
from adray.files import atomic_path
from adray.settings import Settings

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raised by hand when decoded pixels or the layout of the file change."""
_MAX_THREADS = 16


@dataclass(frozen=True)
class Decoded:
    """Decoded images of one category, read-only.

    Attributes:
        images: (N, 3, S, S) uint8, a view of the map.
        masks: (N, S, S) uint8 with 1 on defects, zero where there is no mask; None where no image has one.
        file: the cache file with its shared lock, open as long as this object lives; None if decoded in memory.
    """

    images: np.ndarray
    masks: np.ndarray | None
    file: IO[bytes] | None = None


class _NotWholeError(Exception):
    """A cache file that is damaged or of which a part is missing."""


def open_decoded(samples: Sequence[Sample], geometry: Geometry, settings: Settings) -> Decoded:
    """Give the decoded images of `samples`, in their order, from the cache; build its file where there is none.

    Where the cache cannot be written or is too small, the images are decoded in memory, with a warning.

    Raises:
        InputError: for an image or a mask that cannot be decoded.
    """
    key = content_key(samples, geometry, settings)
    folder = Path(settings.cache_dir).expanduser() / "decoded"
    path = folder / f"{key}.arrow"
    with contextlib.suppress(OSError, _NotWholeError):
        return _open(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{key}.lock"):
            return _open_or_build(path, samples, geometry, settings)
    except OSError as error:
        logger.warning(
            "%s/%s is decoded in memory, since the cache %s cannot be used (%s); it saves time to make it writable, "
            "free disk space or raise cache_gb",
            samples[0].dataset,
            samples[0].category,
            folder,
            error,
        )
    images, masks = _allocate(samples, geometry, None)
    _decode_into(images, masks, samples, geometry)
    return Decoded(images, masks)


def content_key(samples: Sequence[Sample], geometry: Geometry, settings: Settings) -> str:
    """32 hex digits of all that decides the decoded pixels: contents, order, geometry and Pillow's version.

    Raises:
        InputError: for a file that is damaged or missing.
    """
    images = inspect_files([sample.path for sample in samples], settings.cache_dir)
    masks = inspect_masks([sample.mask_path for sample in samples if sample.mask_path], settings.cache_dir)
    contents = [(_digest(images, s.path), _digest(masks, s.mask_path) if s.mask_path else "") for s in samples]
    names = sorted({(sample.dataset, sample.category) for sample in samples})
    parts = [_FORMAT, PIL.__version__, names, asdict(geometry), contents]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _digest(facts: dict[Path, FileFacts], path: Path) -> str:
    if facts[path].problem is not None:
        raise InputError(f"{path}: {facts[path].problem}; replace the file or take it out of the data set")
    return facts[path].digest


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file; the kernel frees it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(path: Path) -> Decoded:
    """Map a cache file, check its sum and mark it as used.

    Raises:
        FileNotFoundError: where there is none.
        _NotWholeError: for a file that differs from what was written.
    """
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        content = _map_whole(file, path.with_suffix(".crc"))
        with contextlib.suppress(OSError):  # a read-only cache serves as well, only its order of use is not kept
            os.utime(path)
        return _views(content, file)
    except BaseException:
        file.close()
        raise


def _map_whole(file: IO[bytes], sidecar: Path) -> mmap.mmap:
    size = os.fstat(file.fileno()).st_size
    try:
        expected = sidecar.read_text()
    except (OSError, UnicodeDecodeError):
        expected = ""
    if size == 0 or expected.split()[-1:] != [str(size)]:
        raise _NotWholeError(f"{size} bytes, recorded are {expected or 'none'}")
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _seal(content) != expected:
        raise _NotWholeError("its checksum is wrong")
    return content


def _seal(content: mmap.mmap) -> str:
    return f"{zlib.crc32(content):08x} {len(content)}"


def _views(content: mmap.mmap, file: IO[bytes]) -> Decoded:
    """See the columns as arrays without a copy."""
    batch = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(content))).get_batch(0)
    side = int(batch.schema.metadata[b"side"])
    images = _column(batch, "image").reshape(-1, 3, side, side)  # (N * 3 * S * S,) -> (N, 3, S, S)
    if "mask" not in batch.schema.names:
        return Decoded(images, None, file)
    return Decoded(images, _column(batch, "mask").reshape(-1, side, side), file)  # -> (N, S, S)


def _column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    column = batch.column(name)
    return np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * column.type.byte_width)


def _open_or_build(path: Path, samples: Sequence[Sample], geometry: Geometry, settings: Settings) -> Decoded:
    """Under the lock: take what another process has built meanwhile, else build it."""
    try:
        return _open(path)
    except FileNotFoundError:
        pass
    except _NotWholeError as error:
        logger.warning("%s is damaged (%s) and is built again", path, error)
    _build(path, samples, geometry, settings)
    try:
        return _open(path)
    except _NotWholeError as error:
        raise OSError(f"{path} is damaged right after writing: {error}") from error


def _build(path: Path, samples: Sequence[Sample], geometry: Geometry, settings: Settings) -> None:
    """Decode into a nameless scratch file, write the Arrow file from it and give that its name.

    Raises:
        OSError: where the disk does not take it or `cache_gb` is smaller than the file.
    """
    started = time.monotonic()
    limit = int(settings.cache_gb * 1e9)
    needed = len(samples) * geometry.side**2 * (4 if _any_mask(samples) else 3)
    if needed > limit:
        raise OSError(f"{needed / 1e9:.3g} GB exceed cache_gb {settings.cache_gb:g}")
    make_room(path.parent, limit - needed, path)
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        images, masks = _allocate(samples, geometry, scratch)
        _decode_into(images, masks, samples, geometry)
        _write(path, images, masks, samples, geometry)
    make_room(path.parent, limit, path)
    seconds = time.monotonic() - started
    logger.info("decoded %d images of %s/%s in %.1f s", len(samples), samples[0].dataset, samples[0].category, seconds)


def _any_mask(samples: Sequence[Sample]) -> bool:
    return any(sample.mask_path is not None for sample in samples)


def _allocate(
    samples: Sequence[Sample], geometry: Geometry, scratch: IO[bytes] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Zeroed images (N, 3, S, S) and masks (N, S, S) or None: in memory, or in a file that memory need not hold."""
    count, area = len(samples), geometry.side**2
    channels = 4 if _any_mask(samples) else 3
    if scratch is None:
        pixels = np.zeros(count * area * channels, np.uint8)
    else:
        # reserves the blocks: a full disk is an error here, not a bus error while decoding
        os.posix_fallocate(scratch.fileno(), 0, count * area * channels)
        pixels = np.memmap(scratch, np.uint8, mode="r+", shape=(count * area * channels,))
    images = pixels[: count * area * 3].reshape(count, 3, geometry.side, geometry.side)  # (N, 3, S, S)
    if channels == 3:
        return images, None
    return images, pixels[count * area * 3 :].reshape(count, geometry.side, geometry.side)  # (N, S, S)


def _decode_into(images: np.ndarray, masks: np.ndarray | None, samples: Sequence[Sample], geometry: Geometry) -> None:
    """Decode all samples with threads; Pillow's decoders and resize let go of the interpreter's lock."""

    def decode(i: int) -> None:
        images[i], mask = decode_pair(samples[i].path, samples[i].mask_path, geometry)
        if mask is not None and masks is not None:
            masks[i] = mask

    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MAX_THREADS)) as pool:
        for _ in pool.map(decode, range(len(samples))):
            pass


def _write(
    path: Path, images: np.ndarray, masks: np.ndarray | None, samples: Sequence[Sample], geometry: Geometry
) -> None:
    """Write the Arrow file under a temporary name, then its sum; the file gets its name last, once it is synced."""
    batch = _record_batch(images, masks, samples, geometry)
    with atomic_path(path) as temporary:
        with pa.ipc.new_file(str(temporary), batch.schema) as writer:
            writer.write_batch(batch)
        with temporary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            seal = _seal(content)
        with atomic_path(path.with_suffix(".crc")) as sidecar:
            sidecar.write_text(seal)


def _record_batch(
    images: np.ndarray, masks: np.ndarray | None, samples: Sequence[Sample], geometry: Geometry
) -> pa.RecordBatch:
    """One record batch around the arrays: image, mask (null where there is none; left out if all are), path."""
    columns = {"image": _fixed_size(images, None)}
    if masks is not None:
        valid = np.array([sample.mask_path is not None for sample in samples])
        columns["mask"] = _fixed_size(masks, pa.py_buffer(np.packbits(valid, bitorder="little")))
    columns["path"] = pa.array([os.fsencode(sample.path) for sample in samples], pa.binary())
    about = {"format": _FORMAT, "dataset": samples[0].dataset, "category": samples[0].category, "side": geometry.side}
    metadata = {name: str(value) for name, value in {**asdict(geometry), **about}.items()}
    schema = pa.schema([pa.field(name, column.type) for name, column in columns.items()], metadata)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)


def _fixed_size(rows: np.ndarray, valid: pa.Buffer | None) -> pa.Array:
    kind = pa.binary(rows[0].size)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [valid, pa.py_buffer(rows.reshape(-1))])


def make_room(folder: Path, limit: int, building: Path | None = None) -> None:
    """Delete the cache files used longest ago until the rest holds at most `limit` bytes.

    Files in use stay. What killed builders left under temporary names goes first.

    Args:
        folder: the folder of cache files.
        limit: bytes.
        building: the file whose lock the caller holds; it stays.
    """
    for path in folder.glob(".*.tmp.*"):
        key = path.name.split(".")[1]
        if (building is not None and key == building.stem) or not _in_use(folder / f"{key}.lock"):
            path.unlink(missing_ok=True)
    files = sorted(_stats(folder), key=lambda item: item[1].st_mtime_ns)
    total = sum(stat.st_size for _, stat in files)
    for path, stat in files:
        if total <= limit:
            return
        if path != building and not _in_use(path):
            path.unlink(missing_ok=True)
            path.with_suffix(".crc").unlink(missing_ok=True)
            total -= stat.st_size
            logger.info("evicted %s to keep the cache below its limit", path)


def _stats(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob("[!.]*.arrow"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return found


def _in_use(path: Path) -> bool:
    """Whether another open file holds a lock on this one."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
