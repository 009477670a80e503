"""Decode once: the images of one category as a memory-mapped Arrow file in a node-local cache.

`<cache_dir>/decoded/<key>.arrow` is named by a hash of the contents of its images and masks and of the geometry, so a
changed image is a new file. Beside it lies `<key>.crc` with its CRC-32 and size; see `adray.cache_folder` for the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
import pyarrow as pa

from adray.cache_folder import CacheFolder, NotWholeError, SharedWork
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
        key: hash of all that decides the pixels.
        file: the cache file with its shared lock, open as long as this object lives; None if decoded in memory.
        work: what decoding cost, and who did it; None where nothing was shared.
    """

    images: np.ndarray
    masks: np.ndarray | None
    key: str
    file: IO[bytes] | None = None
    work: SharedWork | None = None


def open_decoded(samples: Sequence[Sample], geometry: Geometry, settings: Settings) -> Decoded:
    """Give the decoded images of `samples`, in their order, from the cache; build its file where there is none.

    Where the cache cannot be written or is too small, the images are decoded in memory, with a warning.

    Raises:
        InputError: for an image or a mask that cannot be decoded.
    """
    key = content_key(samples, geometry, settings)
    folder = decoded_folder(settings)
    with contextlib.suppress(OSError, NotWholeError):
        return _open(folder, key)
    try:
        with folder.lock(key) as waited:
            return _open_or_build(folder, key, waited, samples, geometry)
    except OSError as error:
        logger.warning(
            "%s/%s is decoded in memory, since the cache %s cannot be used (%s); it saves time to make it writable, "
            "free disk space or raise cache_gb",
            samples[0].dataset,
            samples[0].category,
            folder.path,
            error,
        )
    images, masks = _allocate(samples, geometry, None)
    _decode_into(images, masks, samples, geometry)
    return Decoded(images, masks, key)


def decoded_folder(settings: Settings) -> CacheFolder:
    """Where decoded images lie."""
    return CacheFolder(
        Path(settings.cache_dir).expanduser() / "decoded",
        ".arrow",
        ".crc",
        int(settings.cache_gb * 1e9),
    )


def content_key(samples: Sequence[Sample], geometry: Geometry, settings: Settings) -> str:
    """32 hex digits of all that decides the decoded pixels: contents, order, geometry and Pillow's version.

    Raises:
        InputError: for a file that is damaged or missing.
    """
    images = inspect_files([sample.path for sample in samples], settings.cache_dir)
    masks = inspect_masks(
        [sample.mask_path for sample in samples if sample.mask_path], settings.cache_dir
    )
    contents = [
        (_digest(images, s.path), _digest(masks, s.mask_path) if s.mask_path else "")
        for s in samples
    ]
    names = sorted({(sample.dataset, sample.category) for sample in samples})
    parts = [_FORMAT, PIL.__version__, names, asdict(geometry), contents]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _digest(facts: dict[Path, FileFacts], path: Path) -> str:
    if facts[path].problem is not None:
        raise InputError(
            f"{path}: {facts[path].problem}; replace the file or take it out of the data set"
        )
    return facts[path].digest


def _open(folder: CacheFolder, key: str) -> Decoded:
    """Map a cache file and check its sum.

    Raises:
        FileNotFoundError: where there is none.
        NotWholeError: for a file that differs from what was written.
    """
    file = folder.open(key)
    try:
        content = _map_whole(file, folder.side(key))
        return _views(content, key, file)
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
        raise NotWholeError(f"{size} bytes, recorded are {expected or 'none'}")
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _seal(content) != expected:
        raise NotWholeError("its checksum is wrong")
    return content


def _seal(content: mmap.mmap) -> str:
    return f"{zlib.crc32(content):08x} {len(content)}"


def _views(content: mmap.mmap, key: str, file: IO[bytes]) -> Decoded:
    """See the columns as arrays without a copy."""
    batch = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(content))).get_batch(0)
    side = int(batch.schema.metadata[b"side"])
    seconds = batch.schema.metadata.get(b"seconds")  # files of older versions do not say
    spent = None if seconds is None else float(seconds)
    images = _column(batch, "image").reshape(-1, 3, side, side)  # (N * 3 * S * S,) -> (N, 3, S, S)
    masks = (
        _column(batch, "mask").reshape(-1, side, side) if "mask" in batch.schema.names else None
    )  # -> (N, S, S)
    return Decoded(images, masks, key, file, SharedWork("decoding", key, spent, spent, built=False))


def _column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    column = batch.column(name)
    return np.frombuffer(column.buffers()[1], np.uint8, count=len(column) * column.type.byte_width)


def _open_or_build(
    folder: CacheFolder, key: str, waited: float, samples: Sequence[Sample], geometry: Geometry
) -> Decoded:
    """Under the lock: take what another process has built meanwhile, else build it."""
    try:
        return _booked(_open(folder, key), waited_seconds=waited)
    except FileNotFoundError:
        pass
    except NotWholeError as error:
        logger.warning("%s is damaged (%s) and is built again", folder.file(key), error)
    started = time.monotonic()
    _build(folder, key, samples, geometry)
    seconds = time.monotonic() - started
    logger.info(
        "decoded %d images of %s/%s in %.1f s",
        len(samples),
        samples[0].dataset,
        samples[0].category,
        seconds,
    )
    try:
        return _booked(_open(folder, key), built=True, build_seconds=seconds, waited_seconds=waited)
    except NotWholeError as error:
        raise OSError(f"{folder.file(key)} is damaged right after writing: {error}") from error


def _booked(decoded: Decoded, **figures: Any) -> Decoded:
    assert decoded.work is not None, "it is from the cache"
    return replace(decoded, work=replace(decoded.work, **figures))


def _build(folder: CacheFolder, key: str, samples: Sequence[Sample], geometry: Geometry) -> None:
    """Decode into a nameless scratch file, write the Arrow file from it and give that its name.

    Raises:
        OSError: where the disk does not take it or `cache_gb` is smaller than the file.
    """
    started = time.monotonic()
    needed = len(samples) * geometry.side**2 * (4 if _any_mask(samples) else 3)
    if needed > folder.limit:
        raise OSError(f"{needed / 1e9:.3g} GB exceed cache_gb {folder.limit / 1e9:g}")
    folder.make_room(needed, key)
    with tempfile.TemporaryFile(dir=folder.path) as scratch:
        images, masks = _allocate(samples, geometry, scratch)
        _decode_into(images, masks, samples, geometry)
        batch = _record_batch(images, masks, samples, geometry, time.monotonic() - started)
        _write(folder.file(key), folder.side(key), batch)
    folder.make_room(0, key)


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
    images = pixels[: count * area * 3].reshape(
        count, 3, geometry.side, geometry.side
    )  # (N, 3, S, S)
    if channels == 3:
        return images, None
    return images, pixels[count * area * 3 :].reshape(
        count, geometry.side, geometry.side
    )  # (N, S, S)


def _decode_into(
    images: np.ndarray, masks: np.ndarray | None, samples: Sequence[Sample], geometry: Geometry
) -> None:
    """Decode all samples with threads; Pillow's decoders and resize let go of the interpreter's lock."""

    def decode(i: int) -> None:
        images[i], mask = decode_pair(samples[i].path, samples[i].mask_path, geometry)
        if mask is not None and masks is not None:
            masks[i] = mask

    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MAX_THREADS)) as pool:
        for _ in pool.map(decode, range(len(samples))):
            pass


def _write(path: Path, sidecar: Path, batch: pa.RecordBatch) -> None:
    """Write the Arrow file under a temporary name, then its sum; the file gets its name last, once it is synced."""
    with atomic_path(path) as temporary:
        with pa.ipc.new_file(str(temporary), batch.schema) as writer:
            writer.write_batch(batch)
        with (
            temporary.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            seal = _seal(content)
        with atomic_path(sidecar) as sums:
            sums.write_text(seal)


def _record_batch(
    images: np.ndarray,
    masks: np.ndarray | None,
    samples: Sequence[Sample],
    geometry: Geometry,
    seconds: float,
) -> pa.RecordBatch:
    """One record batch around the arrays: image, mask (null where there is none; left out if all are), path."""
    columns = {"image": _fixed_size(images, None)}
    if masks is not None:
        valid = np.array([sample.mask_path is not None for sample in samples])
        columns["mask"] = _fixed_size(masks, pa.py_buffer(np.packbits(valid, bitorder="little")))
    columns["path"] = pa.array([os.fsencode(sample.path) for sample in samples], pa.binary())
    about = {
        "format": _FORMAT,
        "dataset": samples[0].dataset,
        "category": samples[0].category,
        "side": geometry.side,
    }
    spent = {"seconds": f"{seconds:.3f}"}
    metadata = {name: str(value) for name, value in {**asdict(geometry), **about, **spent}.items()}
    schema = pa.schema([pa.field(name, column.type) for name, column in columns.items()], metadata)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)


def _fixed_size(rows: np.ndarray, valid: pa.Buffer | None) -> pa.Array:
    kind = pa.binary(rows[0].size)
    return pa.FixedSizeBinaryArray.from_buffers(
        kind, len(rows), [valid, pa.py_buffer(rows.reshape(-1))]
    )
