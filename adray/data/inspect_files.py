"""What the files of a data set hold: content digests, sizes and damage, each file read once and remembered.

A file that has the path, size and time it had before is not read again: its facts stand in a file of JSON lines in
the cache folder. Lines are appended whole, unreadable ones skipped, so writers may race and the file may be torn or
deleted; that costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from adray.data.base import Sample

logger = logging.getLogger(__name__)

MEMO_NAME = "facts.jsonl"
MEMO_LIMIT = 64 * 2**20
"""Bytes above which the memo starts anew."""
THREADS = 4
_SETTLED_NS = 2_000_000_000
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True)
class FileFacts:
    """What one file holds.

    Attributes:
        digest: BLAKE2b of the bytes, 128 bits in hex; empty where the file cannot be read.
        width: pixels, after rotation by EXIF; 0 where the image cannot be opened.
        height: as `width`.
        problem: what is wrong with the file, or None.
        empty: for masks whether no pixel is set, else None.
    """

    digest: str
    width: int = 0
    height: int = 0
    problem: str | None = None
    empty: bool | None = None


def inspect_files(paths: Iterable[Path], cache_dir: str | Path) -> dict[Path, FileFacts]:
    """Facts of image files, from the memo in `cache_dir` where a file has not changed.

    Damage is looked for cheaply: the checksums of a PNG, the end mark of a JPEG, a full decode of the rest.
    """
    return _inspect(paths, Path(cache_dir), "image", image_facts)


def inspect_masks(paths: Iterable[Path], cache_dir: str | Path) -> dict[Path, FileFacts]:
    """Facts of mask files, as `inspect_files`; masks are decoded to see whether they are empty."""
    return _inspect(paths, Path(cache_dir), "mask", mask_facts)


def check_samples(samples: Sequence[Sample], cache_dir: str | Path) -> list[str]:
    """All that is wrong with the files of a data set, one sentence for each.

    Returns:
        Sentences on files that cannot be read, masks of another size than their image and anomalous images whose mask
        is empty; none where all is well.
    """
    images = inspect_files([sample.path for sample in samples], cache_dir)
    masks = inspect_masks([sample.mask_path for sample in samples if sample.mask_path], cache_dir)
    broken = [
        (path, facts.problem) for path, facts in [*images.items(), *masks.items()] if facts.problem
    ]
    problems = [
        f"{path}: {problem}; replace the file or take it out of the data set"
        for path, problem in broken
    ]
    for sample in samples:
        if (
            sample.mask_path
            and not images[sample.path].problem
            and not masks[sample.mask_path].problem
        ):
            problems += _mask_problems(sample, images[sample.path], masks[sample.mask_path])
    return problems


def check_pixels(samples: Sequence[Sample], cache_dir: str | Path) -> list[str]:
    """Decode every image and mask; a sentence for each that fails, remembered as the other facts are."""
    paths = [path for sample in samples for path in (sample.path, sample.mask_path) if path]
    found = _inspect(paths, Path(cache_dir), "pixels", _decoded_facts)
    return [
        f"{path}: {facts.problem}; replace the file or take it out of the data set"
        for path, facts in found.items()
        if facts.problem
    ]


def _decoded_facts(data: bytes) -> FileFacts:
    return _facts(data, _decode)


def fingerprint(samples: Sequence[Sample], cache_dir: str | Path) -> str:
    """One hash of names, contents, masks, labels and split, whatever the order, the folder's place and file times.

    Returns:
        32 hex digits.
    """
    images = inspect_files([sample.path for sample in samples], cache_dir)
    masks = inspect_masks([sample.mask_path for sample in samples if sample.mask_path], cache_dir)
    lines = sorted(
        [
            sample.key,
            sample.category,
            images[sample.path].digest,
            masks[sample.mask_path].digest if sample.mask_path else "",
            str(sample.label),
            sample.split,
        ]
        for sample in samples
    )
    return hashlib.blake2b(json.dumps(lines).encode(), digest_size=16).hexdigest()


def image_facts(data: bytes) -> FileFacts:
    """Facts of an image file's bytes; damage is looked for without decoding where the format allows."""
    return _facts(data, _verify)


def mask_facts(data: bytes) -> FileFacts:
    """Facts of a mask file's bytes, which are decoded."""
    return _facts(data, _is_empty)


def _facts(data: bytes, look: Callable[[Image.Image, bytes], bool | None]) -> FileFacts:
    """Open the image, take its size and let `look` find damage or emptiness."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    if not data:
        return FileFacts(digest, problem="the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            empty = look(image, data)
            width, height = _upright_size(
                image, data
            )  # afterwards, since decoding a TIFF turns it upright
    except Image.UnidentifiedImageError:
        return FileFacts(
            digest, problem="the file is not an image that can be read, or its start is damaged"
        )
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return FileFacts(digest, problem=f"the image claims more than {limit} million pixels")
    except Exception as error:  # PIL's decoders raise nearly anything on damaged bytes
        return FileFacts(digest, problem=f"the image is damaged or cut short ({error})")
    return FileFacts(digest, width, height, empty=empty)


def _upright_size(image: Image.Image, data: bytes) -> tuple[int, int]:
    """(width, height) as the image is seen once EXIF's rotation is applied."""
    # PNG's own getexif decodes all pixels in search of a late eXIf chunk, which is hardly ever there
    late = image.format == "PNG" and b"eXIf" not in data
    exif = Image.Image.getexif(image) if late else image.getexif()
    width, height = image.size
    return (height, width) if exif.get(_ORIENTATION) in _SIDEWAYS else (width, height)


def _verify(image: Image.Image, data: bytes) -> None:
    """Raise if the image is damaged.

    Raises:
        Exception: whatever PIL raises.
    """
    if image.format == "PNG":
        # verify() wants an image that nobody has touched
        with Image.open(io.BytesIO(data)) as fresh:
            fresh.verify()
    # marks are escaped inside compressed data, so an end after the last start of scan ends the image
    elif image.format not in ("JPEG", "MPO") or data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        image.load()


def _decode(image: Image.Image, data: bytes) -> None:
    image.load()


def _is_empty(mask: Image.Image, data: bytes) -> bool:
    """Whether no channel of any pixel is set."""
    plain = mask.mode in ("1", "L", "I", "F") or mask.mode.startswith("I;16")
    return not np.asarray(mask if plain else mask.convert("RGB")).any()


def _mask_problems(sample: Sample, image: FileFacts, mask: FileFacts) -> list[str]:
    """Sentences on a mask that does not suit its image."""
    if (image.width, image.height) != (mask.width, mask.height):
        return [
            f"{sample.mask_path}: the mask is {mask.width}x{mask.height} pixels but its image {sample.path} is "
            f"{image.width}x{image.height}; make the sizes equal or remove the mask"
        ]
    if sample.label == 1 and mask.empty:
        return [
            f"{sample.mask_path}: the mask of an anomalous image is empty; mark the defect in it, remove the mask, or "
            f"move {sample.path} to the normal images"
        ]
    return []


def _inspect(
    paths: Iterable[Path], cache_dir: Path, kind: str, look: Callable[[bytes], FileFacts]
) -> dict[Path, FileFacts]:
    """Facts by path: remembered ones where they hold, else read by a few threads and remembered."""
    wanted = list(dict.fromkeys(paths))
    memo = _load_memo(cache_dir / MEMO_NAME)
    keys = {path: _memo_key(path, kind) for path in wanted}
    known = {path: memo[key] for path, key in keys.items() if key in memo}
    unread = [path for path in wanted if path not in known]
    if not unread:
        return known
    with ThreadPoolExecutor(THREADS) as pool:
        fresh = dict(zip(unread, pool.map(lambda path: _read(path, look), unread), strict=True))
    settled = {
        key: facts
        for path, facts in fresh.items()
        if facts.digest and (key := keys[path]) and _is_settled(key)
    }
    _remember(cache_dir / MEMO_NAME, settled)
    return {path: known.get(path) or fresh[path] for path in wanted}


def _read(path: Path, look: Callable[[bytes], FileFacts]) -> FileFacts:
    """Facts of one file."""
    try:
        return look(path.read_bytes())
    except OSError as error:
        return FileFacts("", problem=f"the file cannot be read ({error.strerror})")


MemoKey = tuple[str, str, int, int]


def _memo_key(path: Path, kind: str) -> MemoKey | None:
    """(kind, absolute path, size, mtime in ns), or None for a file that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return kind, str(path.absolute()), stat.st_size, stat.st_mtime_ns


def _is_settled(key: MemoKey) -> bool:
    """Whether the file is old enough that another change would show in its time, whose clock ticks coarsely."""
    return time.time_ns() - key[3] > _SETTLED_NS


def _load_memo(path: Path) -> Mapping[MemoKey | None, FileFacts]:
    """Facts in the memo, none where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return {}
    return _parse_memo(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)
def _parse_memo(path: Path, size: int, mtime: int) -> Mapping[MemoKey | None, FileFacts]:
    """Facts in the memo as it was of this size at this time; lines that are torn or of another form are left out."""
    memo: dict[MemoKey | None, FileFacts] = {}
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                kind, name, size, mtime, facts = json.loads(line)
                memo[(kind, name, size, mtime)] = FileFacts(**facts)
    return memo


def _remember(path: Path, facts: dict[MemoKey, FileFacts]) -> None:
    """Append facts to the memo in one write; a folder that cannot be written is left as it is."""
    if not facts:
        return
    lines = [json.dumps([*key, asdict(value)]) for key, value in facts.items()]
    block = (
        "\n" + "\n".join(lines) + "\n"
    )  # the first line end closes a line that a killed writer left torn
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MEMO_LIMIT:
            path.unlink()
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, block.encode())
        finally:
            os.close(handle)
    except OSError as error:
        logger.info("%s: file facts are not remembered (%s)", path, error)
