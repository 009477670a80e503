"""What the files of a data set hold: digests, sizes and damage, each file read once.

A file that has the path, size and time it had before is not read again, see
`adray.data.facts_memo`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adray.data.base import Sample
from adray.data.facts_memo import MEMO_NAME, MemoKey, load_memo, remember
from adray.data.file_facts import (
    FileFacts,
    decoded_facts,
    image_facts,
    mask_facts,
    picture_digest,
)
from adray.data.side_by_side import map_side_by_side
from adray.language.sentence import Sentence
from adray.progress_lines import watched
from adray.settings import DEFAULT_OPTIONS, DataOptions

_SETTLED_NS = 2_000_000_000
"""Age of a file in ns from which another change would show in its time, whose clock ticks
coarsely."""


MOST_COMPARED_PIXELS = 10**8
"""Of all images together, up to which they are decoded to be compared: about two seconds."""


class Inspected(NamedTuple):
    """Facts of the files of samples."""

    images: dict[Path, FileFacts]
    """Of the images."""
    masks: dict[Path, FileFacts]
    """Of the masks."""


def _ignore() -> None:
    """Take no note of a file that is done."""


def inspect_files(
    paths: Iterable[Path], cache_dir: str | Path, advance: Callable[[], object] = _ignore
) -> dict[Path, FileFacts]:
    """Give the facts of image files, from the memo in `cache_dir` where a file has not changed.

    Damage is looked for cheaply: the checksums of a PNG, the end mark of a JPEG, a full decode of
    the rest. Images so small that all together are compared by their pixels are decoded as well,
    so that no file is read twice.

    Args:
        paths: of the files.
        cache_dir: holds the memo.
        advance: is called after each file.
    """
    ordered = list(dict.fromkeys(paths))
    small = MOST_COMPARED_PIXELS // max(len(ordered), 1)
    look = functools.partial(image_facts, small=small)
    return _inspect(ordered, Path(cache_dir), "image", look, advance)


def read_facts(path: Path) -> FileFacts:
    """Give the facts of one image file, read now and not remembered."""
    return _read(image_facts, path)


def inspect_masks(
    paths: Iterable[Path],
    cache_dir: str | Path,
    threshold: float | None = None,
    advance: Callable[[], object] = _ignore,
) -> dict[Path, FileFacts]:
    """Give the facts of mask files, which are decoded to find their defects.

    Args:
        paths: of the files.
        cache_dir: holds the memo.
        threshold: mask values above it are a defect, None to tell by each mask's values.
        advance: is called after each file.
    """
    kind = "mask" if threshold is None else f"mask above {threshold!r}"
    look = functools.partial(mask_facts, threshold=threshold)
    return _inspect(paths, Path(cache_dir), kind, look, advance)


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
    samples: Sequence[Sample],
    cache_dir: str | Path,
    options: Mapping[str, DataOptions] | None = None,
    advance: Callable[[], object] = _ignore,
) -> Inspected:
    """Give the facts of the images of samples, and those of their masks.

    Args:
        samples: of one data set or several.
        cache_dir: holds the memo.
        options: what is said of data sets, by name.
        advance: is called after each file.
    """
    image_paths = []
    mask_paths: dict[float | None, list[Path]] = {}
    for sample in samples:
        image_paths.append(sample.path)
        said = (options or {}).get(sample.dataset, DEFAULT_OPTIONS)
        mask_paths.setdefault(said.mask_threshold, []).extend(sample.mask_paths)

    masks: dict[Path, FileFacts] = {}
    for threshold, paths in mask_paths.items():
        masks |= inspect_masks(paths, cache_dir, threshold, advance)
    return Inspected(inspect_files(image_paths, cache_dir, advance), masks)


def problems_of(
    samples: Sequence[Sample],
    images: Mapping[Path, FileFacts],
    masks: Mapping[Path, FileFacts],
    options: Mapping[str, DataOptions] | None = None,
) -> list[Sentence]:
    """Say all that is wrong with the files of a data set.

    Args:
        samples: of one data set or several.
        images: facts of their images.
        masks: facts of their masks.
        options: what is said of data sets, by name.

    Returns:
        Sentences on files that cannot be read, masks of another size than their image and anomalous
        images whose masks are empty; none where all is well.
    """
    problems = _complaints(images) + _complaints(masks)
    for sample in samples:
        of_masks = [masks[path] for path in sample.mask_paths]
        if images[sample.path].problem or any(found.problem for found in of_masks):
            continue
        said = (options or {}).get(sample.dataset, DEFAULT_OPTIONS)
        if said.mask_fit == "refuse":
            problems += _size_problems(sample, images[sample.path], masks)
        if sample.label == 1 and of_masks and all(found.empty for found in of_masks):
            problems.append(_empty_mask(sample))
    return problems


def check_pixels(samples: Sequence[Sample], cache_dir: str | Path) -> list[str]:
    """Decode every image and mask, and write a sentence for each that fails.

    What was found is remembered as the other facts are.
    """
    paths = []
    for sample in samples:
        paths.append(sample.path)
        paths += sample.mask_paths
    facts = _inspect(paths, Path(cache_dir), "pixels", decoded_facts)
    return list(map(str, _complaints(facts)))


def fingerprint(
    samples: Sequence[Sample],
    cache_dir: str | Path,
    options: Mapping[str, DataOptions] | None = None,
) -> str:
    """Hash names, contents, masks, labels, split and groups of samples.

    Their order, the folder's place and file times do not count. How their numbers are read does
    neither, see `adray.data.pixel_checks.data_fingerprint`.

    Args:
        samples: of one data set or several.
        cache_dir: holds the memo.
        options: what is said of data sets, by name: it saves looking at masks twice.

    Returns:
        32 hex digits.
    """
    images, masks = inspect_samples(samples, cache_dir, options)

    lines = []
    for sample in samples:
        mask = "+".join(masks[path].digest for path in sample.mask_paths)
        image = images[sample.path].digest
        line = [sample.key, sample.category, image, mask, str(sample.label), sample.split]
        # Groups decide which images are held out; data without any keep the hash that they had.
        lines.append([*line, sample.stays_with] if sample.stays_with else line)
    return hashlib.blake2b(json.dumps(sorted(lines)).encode(), digest_size=16).hexdigest()


def _complaints(facts: Mapping[Path, FileFacts]) -> list[Sentence]:
    """Write a sentence for each file that has a problem."""
    return [found.complaint(path) for path, found in facts.items() if found.problem]


def _size_problems(
    sample: Sample, image: FileFacts, masks: Mapping[Path, FileFacts]
) -> list[Sentence]:
    """Say which masks of an image have another size."""
    problems = []
    for path in sample.mask_paths:
        mask = masks[path]
        if (image.width, image.height) != (mask.width, mask.height):
            problem = Sentence.of(
                "found mask_of_other_size",
                mask=str(path),
                mask_size=f"{mask.width}x{mask.height}",
                image=str(sample.path),
                image_size=f"{image.width}x{image.height}",
                setting=f"mask_fit: resize (settings.data.{sample.dataset})",
            )
            problems.append(problem)
    return problems


def _empty_mask(sample: Sample) -> Sentence:
    """Say that no mask of an anomalous image shows a defect."""
    return Sentence.of("found empty_mask", mask=str(sample.mask_paths[0]), image=str(sample.path))


def _inspect(
    paths: Iterable[Path],
    cache_dir: Path,
    kind: str,
    look: Callable[[bytes], FileFacts],
    advance: Callable[[], object] = _ignore,
) -> dict[Path, FileFacts]:
    """Give facts by path: remembered ones where they hold, else those that are read now."""
    # Keys come before contents: a file that changes in between is remembered in vain, not wrongly.
    memo = load_memo(cache_dir / MEMO_NAME)
    facts: dict[Path, FileFacts] = {}
    unread: dict[Path, MemoKey | None] = {}
    ordered = list(dict.fromkeys(paths))
    for path in ordered:
        key = MemoKey.of(path, kind)
        known = memo.get(key)
        if known is None:
            unread[path] = key
        else:
            facts[path] = known
            advance()

    settled: dict[MemoKey, FileFacts] = {}
    read = map_side_by_side(functools.partial(_read, look), list(unread))
    read_now = watched(read, "reading files", len(unread))
    for (path, key), found in zip(unread.items(), read_now, strict=True):
        facts[path] = found
        if found.digest and key is not None and time.time_ns() - key.mtime > _SETTLED_NS:
            settled[key] = found
        advance()
    remember(cache_dir / MEMO_NAME, settled)
    return {path: facts[path] for path in ordered}


def _read(look: Callable[[bytes], FileFacts], path: Path) -> FileFacts:
    """Look at one file."""
    try:
        # Reading a pipe would wait for ever.
        if path.exists() and not path.is_file():
            return FileFacts("", problem="it is no ordinary file")
        return look(path.read_bytes())
    except OSError as error:
        return FileFacts("", problem=f"the file cannot be read ({error.strerror})")
