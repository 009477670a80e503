"""What the files of a data set hold: digests, sizes and damage, each file read once.

A file that has the path, size and time it had before is not read again: its facts stand in a file
of JSON lines in the cache folder. Lines are appended whole, unreadable ones skipped, so writers may
race and the file may be torn or deleted; that costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from adray.data.base import Sample
from adray.data.file_facts import (
    FileFacts,
    decoded_facts,
    image_facts,
    mask_facts,
    picture_digest,
)

logger = logging.getLogger(__name__)

MEMO_NAME = "facts-2.jsonl"
"""Its number is raised with the fields of `FileFacts`."""
_MEMO_LIMIT = 64 * 2**20
"""Bytes above which the memo starts anew."""
_THREADS = 4
_SETTLED_NS = 2_000_000_000
"""Age of a file in ns from which another change would show in its time, whose clock ticks
coarsely."""


def inspect_files(paths: Iterable[Path], cache_dir: str | Path) -> dict[Path, FileFacts]:
    """Give the facts of image files, from the memo in `cache_dir` where a file has not changed.

    Damage is looked for cheaply: the checksums of a PNG, the end mark of a JPEG, a full decode of
    the rest.
    """
    return _inspect(paths, Path(cache_dir), "image", image_facts)


def inspect_masks(paths: Iterable[Path], cache_dir: str | Path) -> dict[Path, FileFacts]:
    """Give the facts of mask files, which are decoded to see whether they are empty."""
    return _inspect(paths, Path(cache_dir), "mask", mask_facts)


def inspect_pictures(paths: Iterable[Path], cache_dir: str | Path) -> dict[Path, str]:
    """Hash what is on images however their files are written, which decodes them.

    Returns:
        By path; empty for a file that cannot be decoded.
    """
    found = _inspect(
        paths, Path(cache_dir), "picture", lambda data: FileFacts(picture_digest(data))
    )
    return {path: facts.digest for path, facts in found.items()}


def inspect_samples(
    samples: Sequence[Sample], cache_dir: str | Path
) -> tuple[dict[Path, FileFacts], dict[Path, FileFacts]]:
    """Give the facts of the images of samples, and those of their masks."""
    image_paths = []
    mask_paths: list[Path] = []
    for sample in samples:
        image_paths.append(sample.path)
        mask_paths += sample.mask_paths
    return inspect_files(image_paths, cache_dir), inspect_masks(mask_paths, cache_dir)


def check_samples(samples: Sequence[Sample], cache_dir: str | Path) -> list[str]:
    """Say all that is wrong with the files of a data set.

    Returns:
        Sentences on files that cannot be read, masks of another size than their image and anomalous
        images whose mask is empty; none where all is well.
    """
    images, masks = inspect_samples(samples, cache_dir)
    problems = _complaints(images) + _complaints(masks)
    for sample in samples:
        image = images[sample.path]
        for path in sample.mask_paths:
            if not image.problem and not masks[path].problem:
                problems += _mask_problems(sample, image, path, masks[path])
    return problems


def check_pixels(samples: Sequence[Sample], cache_dir: str | Path) -> list[str]:
    """Decode every image and mask, and write a sentence for each that fails.

    What was found is remembered as the other facts are.
    """
    paths = []
    for sample in samples:
        paths.append(sample.path)
        paths += sample.mask_paths
    return _complaints(_inspect(paths, Path(cache_dir), "pixels", decoded_facts))


def fingerprint(samples: Sequence[Sample], cache_dir: str | Path) -> str:
    """Hash names, contents, masks, labels and split of samples.

    Their order, the folder's place and file times do not count.

    Returns:
        32 hex digits.
    """
    images, masks = inspect_samples(samples, cache_dir)

    lines = []
    for sample in samples:
        mask = "+".join(masks[path].digest for path in sample.mask_paths)
        image = images[sample.path].digest
        line = [sample.key, sample.category, image, mask, str(sample.label), sample.split]
        # Groups decide which images are held out; data without any keep the hash that they had.
        lines.append([*line, sample.group] if sample.group else line)
    return hashlib.blake2b(json.dumps(sorted(lines)).encode(), digest_size=16).hexdigest()


def _complaints(facts: Mapping[Path, FileFacts]) -> list[str]:
    """Write a sentence for each file that has a problem."""
    return [found.complaint(path) for path, found in facts.items() if found.problem]


def _mask_problems(sample: Sample, image: FileFacts, path: Path, mask: FileFacts) -> list[str]:
    """Say in which way a mask does not suit its image."""
    if (image.width, image.height) != (mask.width, mask.height):
        return [
            f"{path}: the mask is {mask.width}x{mask.height} pixels but its image "
            f"{sample.path} is {image.width}x{image.height}; "
            "make the sizes equal or remove the mask"
        ]
    if sample.label == 1 and mask.empty:
        return [
            f"{path}: the mask of an anomalous image is empty; mark the defect in it, "
            f"remove the mask, or move {sample.path} to the normal images"
        ]
    return []


class _MemoKey(NamedTuple):
    """A file as it was when it was read, and how it was looked at."""

    kind: str
    """``image``, ``mask``, ``pixels`` or ``picture``."""
    path: str
    """Absolute path."""
    size: int
    """In bytes."""
    mtime: int
    """Time of its last change, in ns."""


def _inspect(
    paths: Iterable[Path], cache_dir: Path, kind: str, look: Callable[[bytes], FileFacts]
) -> dict[Path, FileFacts]:
    """Give facts by path: remembered ones where they hold, else those that are read now."""
    # Keys come before contents: a file that changes in between is remembered in vain, not wrongly.
    memo = _load_memo(cache_dir / MEMO_NAME)
    keys = {path: _memo_key(path, kind) for path in paths}
    unread = [path for path, key in keys.items() if key not in memo]
    with ThreadPoolExecutor(_THREADS) as pool:
        fresh = dict(zip(unread, pool.map(functools.partial(_read, look), unread), strict=True))

    settled = {}
    for path, found in fresh.items():
        key = keys[path]
        if found.digest and key is not None and time.time_ns() - key.mtime > _SETTLED_NS:
            settled[key] = found
    _remember(cache_dir / MEMO_NAME, settled)
    return {path: fresh[path] if path in fresh else memo[key] for path, key in keys.items()}


def _read(look: Callable[[bytes], FileFacts], path: Path) -> FileFacts:
    """Look at one file."""
    try:
        # Reading a pipe would wait for ever.
        if path.exists() and not path.is_file():
            return FileFacts("", problem="it is no ordinary file")
        return look(path.read_bytes())
    except OSError as error:
        return FileFacts("", problem=f"the file cannot be read ({error.strerror})")


def _memo_key(path: Path, kind: str) -> _MemoKey | None:
    """Give the key under which a file's facts are remembered, or None for a missing file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _MemoKey(kind, str(path.absolute()), stat.st_size, stat.st_mtime_ns)


def _load_memo(path: Path) -> Mapping[_MemoKey | None, FileFacts]:
    """Give the facts in the memo, none where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return {}
    return _parse_memo(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _parse_memo(path: Path, file_size: int, file_mtime: int) -> Mapping[_MemoKey | None, FileFacts]:
    """Read the memo as it was of this size at this time.

    Lines that are torn or of another form are left out.
    """
    memo: dict[_MemoKey | None, FileFacts] = {}
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                kind, name, size, mtime, facts = json.loads(line)
                memo[_MemoKey(kind, name, size, mtime)] = FileFacts(**facts)
    return memo


def _remember(path: Path, facts: dict[_MemoKey, FileFacts]) -> None:
    """Append facts to the memo in one write, unless its folder cannot be written."""
    if not facts:
        return
    lines = [json.dumps([*key, asdict(value)]) for key, value in facts.items()]
    # The first line end closes a line that a killed writer left torn.
    block = "\n" + "\n".join(lines) + "\n"

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _MEMO_LIMIT:
            path.unlink()
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, block.encode())
        finally:
            os.close(handle)
    except OSError as error:
        logger.info("%s: file facts are not remembered (%s)", path, error)
