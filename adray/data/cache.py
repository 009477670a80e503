"""Decode once: the images of one category as a memory-mapped Arrow file in a node-local cache.

`<cache_dir>/decoded/<key>.arrow` is named by a hash of the contents of its images and masks and of
the geometry, so a changed image is a new file. Beside it lies `<key>.crc` with its CRC-32 and size;
see `adray.data.decoded_file` for the format and `adray.cache_folder` for the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL

from adray.cache_folder import CacheFolder, NotWholeError
from adray.data.base import Sample, categories_of
from adray.data.decode import ScaledImage, decode_defect, decode_pair, scale_file
from adray.data.decoded_file import FORMAT, Decoded, read_decoded, record_batch, write_decoded
from adray.data.file_facts import FileFacts
from adray.data.geometry import Geometry, own_cells
from adray.data.inspect_files import inspect_samples
from adray.data.masks import resize_defect
from adray.errors import InputError
from adray.progress_lines import watched
from adray.settings import DataOptions, Settings
from adray.types import BY_TYPE, PixelRule

logger = logging.getLogger(__name__)

_MAX_THREADS = 16


@dataclass(frozen=True)
class Recipe:
    """How the files of one category become arrays."""

    geometry: Geometry
    """The size."""
    rule: PixelRule
    """How numbers become 8 bits."""
    options: DataOptions
    """What the user has said of masks."""


def open_decoded(
    samples: Sequence[Sample],
    geometry: Geometry,
    settings: Settings,
    rule: PixelRule = BY_TYPE,
) -> Decoded:
    """Give the decoded images of `samples`, in their order, from the cache.

    Its file is built where there is none. Where the cache cannot be written or is too small, the
    images are decoded in memory, with a warning.

    Args:
        samples: of one category.
        geometry: the size.
        settings: where the cache lies, and what is said of the data set.
        rule: how numbers become 8 bits.

    Raises:
        InputError: for an image or a mask that cannot be decoded.
    """
    recipe = Recipe(geometry, rule, settings.options_of(samples[0].dataset))
    key = content_key(samples, recipe, settings)
    folder = decoded_folder(settings)
    # Nobody needs the lock to read a file that is whole.
    with contextlib.suppress(OSError, NotWholeError):
        return read_decoded(folder, key)

    try:
        with folder.lock(key) as waited:
            return _read_or_build(folder, key, waited, samples, recipe)
    except OSError as error:
        logger.warning(
            "%s/%s is decoded in memory, since the cache %s cannot be used (%s); it saves time "
            "to make it writable, free disk space or raise cache_gb",
            samples[0].dataset,
            samples[0].category,
            folder.path,
            error,
        )
    memory = np.zeros(_bytes_needed(samples, geometry), np.uint8)
    return replace(_decode_into(memory, samples, recipe), key=key)


def decoded_folder(settings: Settings) -> CacheFolder:
    """Give the folder of decoded images."""
    path = Path(settings.cache_dir).expanduser() / "decoded"
    return CacheFolder(path, ".arrow", ".crc", int(settings.cache_gb * 1e9))


def content_key(samples: Sequence[Sample], recipe: Recipe, settings: Settings) -> str:
    """Hash all that decides the decoded pixels: contents, order, recipe and Pillow's version.

    Returns:
        32 hex digits.

    Raises:
        InputError: for a file that is damaged or missing.
    """
    images, masks = inspect_samples(samples, settings.cache_dir, settings.data)
    contents = []
    for sample in samples:
        image = _digest(images, sample.path)
        digests = [_digest(masks, path) for path in sample.mask_paths]
        contents.append((image, "+".join(digests)))

    names = sorted(categories_of(samples))
    rule = asdict(replace(recipe.rule, measured_on=0))  # how many were measured changes no pixel
    of_masks = [recipe.options.mask_threshold, recipe.options.mask_fit]
    parts = [FORMAT, PIL.__version__, names, recipe.geometry.stored(), rule, of_masks, contents]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _digest(facts: dict[Path, FileFacts], path: Path) -> str:
    """Give the digest of a file that is whole.

    Raises:
        InputError: for one that is not.
    """
    found = facts[path]
    if found.problem is not None:
        raise InputError(str(found.complaint(path)))
    return found.digest


def _read_or_build(
    folder: CacheFolder, key: str, waited: float, samples: Sequence[Sample], recipe: Recipe
) -> Decoded:
    """Take what another process has built meanwhile, else build it.

    Args:
        folder: of the cache.
        key: of the file, whose lock is held.
        waited: seconds until it was.
        samples: what to decode.
        recipe: how.

    Raises:
        OSError: where the file cannot be built.
    """
    try:
        return _with_costs(read_decoded(folder, key), waited)
    except FileNotFoundError:
        pass
    except NotWholeError as error:
        logger.warning("%s is damaged (%s) and is built again", folder.file(key), error)

    started = time.monotonic()
    _build(folder, key, samples, recipe)
    seconds = time.monotonic() - started
    logger.info(
        "decoded %d images of %s/%s in %.1f s",
        len(samples),
        samples[0].dataset,
        samples[0].category,
        seconds,
    )

    try:
        return _with_costs(read_decoded(folder, key), waited, seconds)
    except NotWholeError as error:
        raise OSError(f"{folder.file(key)} is damaged right after writing: {error}") from error


def _with_costs(decoded: Decoded, waited: float, built_in: float | None = None) -> Decoded:
    """Note what this process spent on decoded images of the cache.

    Args:
        decoded: from the cache.
        waited: seconds until the lock was free.
        built_in: seconds that building took; None where another process has built them.
    """
    assert decoded.work is not None, "it is from the cache"
    work = replace(decoded.work, waited_seconds=waited)
    if built_in is not None:
        work = replace(work, built=True, build_seconds=built_in)
    return replace(decoded, work=work)


def _build(folder: CacheFolder, key: str, samples: Sequence[Sample], recipe: Recipe) -> None:
    """Decode into a nameless scratch file, write the Arrow file from it and give that its name.

    Raises:
        OSError: where the disk does not take it or `cache_gb` is smaller than the file.
    """
    started = time.monotonic()
    needed = _bytes_needed(samples, recipe.geometry)
    if needed > folder.limit:
        raise OSError(f"{needed / 1e9:.3g} GB exceed cache_gb {folder.limit / 1e9:g}")
    folder.make_room(needed, key)

    # A scratch file, since memory need not hold what it holds.
    with tempfile.TemporaryFile(dir=folder.path) as scratch:
        # Reserves the blocks: a full disk is an error here, not a bus error while decoding.
        os.posix_fallocate(scratch.fileno(), 0, needed)
        memory = np.memmap(scratch, np.uint8, mode="r+", shape=(needed,))
        decoded = _decode_into(memory, samples, recipe)

        batch = record_batch(decoded, samples, recipe.geometry, time.monotonic() - started)
        write_decoded(folder.file(key), folder.side(key), batch)
    folder.make_room(0, key)


def _bytes_needed(samples: Sequence[Sample], geometry: Geometry) -> int:
    """Count the bytes of all pixels: three colours, and a mask where any image has one."""
    with_masks = any(sample.mask_paths for sample in samples)
    planes = 4 if with_masks else 3
    return len(samples) * planes * math.prod(geometry.frame)


def _decode_into(memory: np.ndarray, samples: Sequence[Sample], recipe: Recipe) -> Decoded:
    """Decode all samples with threads.

    Args:
        memory: zeros, (`_bytes_needed`,) uint8, which then holds images and masks.
        samples: what to decode.
        recipe: how.

    Returns:
        The arrays, without a key.
    """
    frame = recipe.geometry.frame
    colors = len(samples) * 3 * math.prod(frame)
    images = memory[:colors].reshape(-1, 3, *frame)  # (N, 3, H, W)
    masks = memory[colors:].reshape(-1, *frame)  # (N, H, W), or none
    outside = np.zeros(len(samples), np.float32)
    sizes = np.zeros((len(samples), 2), np.int32)

    def decode(i: int) -> None:
        paths = samples[i].mask_paths
        pair = decode_pair(samples[i].path, paths, recipe.geometry, recipe.rule, recipe.options)
        images[i] = pair.image
        outside[i] = pair.outside
        sizes[i] = pair.size
        if pair.defect is not None:
            masks[i] = pair.defect

    def decode_tiles(rows: list[int]) -> None:
        first = samples[rows[0]]
        scaled = scale_file(first.path, recipe.geometry, recipe.rule)
        defect = _scaled_defect(first, scaled, recipe)
        for i in rows:
            number = samples[i].tile
            assert number is not None, "all samples of a tiled geometry are tiles"
            images[i] = scaled.tile(recipe.geometry, number)
            outside[i] = scaled.outside
            sizes[i] = scaled.size
            if defect is not None:
                masks[i] = recipe.geometry.cut_defect(defect, scaled.grid, number)

    # Threads do, since the decoders and Pillow's resize let go of the interpreter's lock.
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), _MAX_THREADS)) as pool:
        if recipe.geometry.tiling is None:
            total = len(samples)
            work = pool.map(decode, range(total))
        else:
            # Each image is decoded once, whatever the number of its tiles.
            rows_by_image = _rows_by_image(samples)
            total = len(rows_by_image)
            work = pool.map(decode_tiles, rows_by_image)
        # Going through the results raises what a thread has raised.
        for _ in watched(work, "decoding", total):
            pass
    return Decoded(images, masks if len(masks) else None, outside, key="", sizes=sizes)


def _rows_by_image(samples: Sequence[Sample]) -> list[list[int]]:
    """Group the rows of tiles by their image."""
    rows: dict[Path, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(sample.path, []).append(row)
    return list(rows.values())


def _scaled_defect(sample: Sample, scaled: ScaledImage, recipe: Recipe) -> np.ndarray | None:
    """Bring the defects of an image to the size that its tiles are cut from, None without a mask.

    Returns:
        (height, width) uint8.
    """
    if not sample.mask_paths:
        return None
    height, width = scaled.size
    defect = decode_defect(sample.mask_paths, (width, height), recipe.options, str(sample.path))
    if recipe.geometry.roi is not None:
        defect &= own_cells(recipe.geometry.roi, height, width)
    return resize_defect(defect, scaled.grid.height, scaled.grid.width)
