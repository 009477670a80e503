"""What is said of a trial's pixels and masks before it starts, and what of them identifies it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from adray.config import ASPECTS
from adray.data.base import Sample
from adray.data.file_facts import FileFacts
from adray.data.geometry import Geometry, Placement, own_cells
from adray.data.inspect_files import Inspected, fingerprint, inspect_samples
from adray.data.masks import ABOVE_HALF, Region
from adray.data.pixel_rule import refusal, refused, rule_said
from adray.data.roi import roi_of
from adray.language.sentence import Sentence
from adray.settings import DEFAULT_OPTIONS, Settings
from adray.types import PixelRule, Roi

_FAR_FROM_SQUARE = 1.25
"""Longer over shorter side from which on images are said to be no squares."""


def pixel_problems(images: Mapping[Path, FileFacts], rule: PixelRule) -> list[Sentence]:
    """Say which images do not suit the rule of their trial, one sentence each.

    Args:
        images: facts of the images.
        rule: of the trial.
    """
    problems = []
    for path, found in images.items():
        reason = None if found.problem else refusal(found, rule)
        if reason is not None:
            problems.append(refused(path, reason))
    return problems


def pixel_remarks(facts: Inspected, rule: PixelRule) -> list[Sentence]:
    """Remark on what is not plain about images and masks, one sentence each.

    Args:
        facts: of the files of a trial.
        rule: of the trial.
    """
    remarks = [] if rule.is_plain else [rule_said(rule)]

    soft = sum(found.levels == ABOVE_HALF for found in facts.masks.values())
    if soft:
        remarks.append(Sentence.of("masks soft", number=soft))
    return remarks


def mask_remarks(
    samples: Sequence[Sample], geometry: Geometry, settings: Settings
) -> list[Sentence]:
    """Remark on defects that are smaller than a pixel of the map, or that no model sees."""
    _, masks = inspect_samples(samples, settings.cache_dir, settings.data)
    regions = 0
    tiny = 0
    unseen = 0
    cropped = 0
    for found in _of_defects(samples, masks):
        regions += len(found.regions)
        placed = geometry.place(found.height, found.width)
        scale = _area_scale(found, geometry)
        for region in found.regions:
            tiny += region[0] * scale < 1
            if geometry.tiling is None and _lies_outside(region, placed):
                cropped += 1
            elif geometry.roi is not None:
                unseen += not _has_cell(region, found, geometry.roi)

    remarks = []
    if tiny:
        size = _size_words(geometry)
        remarks.append(Sentence.of("defects tiny", number=tiny, regions=regions, size=size))
    if cropped:
        crop = _crop_words(geometry)
        remarks.append(Sentence.of("defects cropped", number=cropped, regions=regions, crop=crop))
    if unseen:
        remarks.append(Sentence.of("defects outside_roi", number=unseen, regions=regions))
    return remarks


def smallest_remark(
    samples: Sequence[Sample], geometry: Geometry, settings: Settings
) -> list[Sentence]:
    """Say how small the smallest defect becomes, nothing where no mask shows one."""
    _, masks = inspect_samples(samples, settings.cache_dir, settings.data)
    smallest = math.inf
    own = 0
    for found in _of_defects(samples, masks):
        scale = _area_scale(found, geometry)
        for region in found.regions:
            if region[0] * scale < smallest:
                smallest = region[0] * scale
                own = region[0]
    if not own:
        return []
    size = f"{smallest:.3g}" if smallest < 100 else f"{smallest:,.0f}"
    said = Sentence.of("defects smallest", own=f"{own:,}", pixels=size, size=_size_words(geometry))
    return [said]


def _crop_words(geometry: Geometry) -> Sentence:
    """Name what cuts an image."""
    middle = Sentence.of("crop middle")
    if geometry.aspect != 1:
        return Sentence.of("crop rectangle", aspect=f"{geometry.aspect:g}")
    if geometry.crop_size is None:
        return middle
    centre = Sentence.of("crop centre", side=geometry.side, img_size=geometry.img_size)
    if geometry.fit != "crop":
        return centre
    return Sentence.of("crop both", middle=middle, centre=centre)


def _size_words(geometry: Geometry) -> str:
    """Name what makes an image small."""
    words = f"img_size {geometry.img_size}"
    if geometry.aspect != 1:
        words += f", aspect {geometry.aspect:g}"
    if geometry.fit != "squeeze":
        words += f", fit {geometry.fit}"
    if geometry.tiling is not None:
        words += f", tile {geometry.tiling.tile}, scale {geometry.tiling.scale:g}"
    return words


def _area_scale(found: FileFacts, geometry: Geometry) -> float:
    """Give the pixels of the frame that one of a mask's own becomes."""
    if geometry.tiling is not None:
        grid = geometry.grid(found.height, found.width)
        by_tile = (geometry.side / grid.tile) ** 2
        return by_tile * grid.height * grid.width / (found.height * found.width)
    placed = geometry.place(found.height, found.width)
    down = placed.box.height / placed.window.height
    across = placed.box.width / placed.window.width
    return down * across


def _of_defects(samples: Sequence[Sample], masks: dict) -> Iterator[FileFacts]:
    """Give the facts of the masks of defective images that can be read."""
    for sample in samples:
        if sample.label == 1:
            for path in sample.mask_paths:
                if not masks[path].problem:
                    yield masks[path]


def _lies_outside(region: Region, placed: Placement) -> bool:
    """Tell whether the box of a region has no part in what the square shows."""
    down = placed.box.height / placed.window.height
    across = placed.box.width / placed.window.width
    _, left, top, right, bottom = region
    first_row = (top - placed.window.top) * down + placed.box.top
    last_row = (bottom - placed.window.top) * down + placed.box.top
    first_column = (left - placed.window.left) * across + placed.box.left
    last_column = (right - placed.window.left) * across + placed.box.left
    is_above_or_below = last_row <= placed.rows.start or first_row >= placed.rows.stop
    return (
        is_above_or_below
        or last_column <= placed.columns.start
        or first_column >= placed.columns.stop
    )


def _has_cell(region: Region, found: FileFacts, roi: Roi) -> bool:
    """Tell whether a pixel of a region's box counts."""
    _, left, top, right, bottom = region
    counts = own_cells(roi, found.height, found.width)
    return bool(counts[top:bottom, left:right].any())


def usual_aspect(sizes: Iterable[tuple[int, int]]) -> float | None:
    """Give the value of `TrainConfig.aspect` that suits images, None where they are nearly square.

    Args:
        sizes: width and height of each.
    """
    ratios = [width / height for width, height in sizes if width and height]
    if not ratios:
        return None
    middle = float(np.median(ratios))
    if max(middle, 1 / middle) < _FAR_FROM_SQUARE:
        return None
    least, most = ASPECTS
    return round(min(max(middle, least), most), 2)


def aspect_remark(
    samples: Sequence[Sample], configuration: str, settings: Settings
) -> list[Sentence]:
    """Say which shape would suit images that a configuration sees in a square, if that is another.

    Args:
        samples: of a trial.
        configuration: that takes other shapes.
        settings: name the cache, in which facts of files are remembered.
    """
    images, _ = inspect_samples(samples, settings.cache_dir, settings.data)
    aspect = usual_aspect((found.width, found.height) for found in images.values())
    if aspect is None:
        return []
    said = Sentence.of("aspect unlike", aspect=f"{aspect:g}", configuration=configuration)
    return [said]


def clipped_note(outside: np.ndarray, rule: PixelRule) -> list[str]:
    """Say how many test images have pixels outside of the rule's range, nothing where none has.

    Args:
        outside: part of each image's pixels, (N,).
        rule: of the trial.
    """
    count = int((outside > 0).sum())
    if not count:
        return []
    return [
        f"{count} of {len(outside)} test images have pixels outside of the range "
        f"[{rule.low:g}, {rule.high:g}], at most {100 * outside.max():.2g} % of one image's "
        "pixels; they are clipped"
    ]


def data_fingerprint(samples: Sequence[Sample], rule: PixelRule, settings: Settings) -> str:
    """Hash all that decides what a trial sees: its files, and how their numbers are read.

    Ordinary pictures have the hash of their files alone.

    Returns:
        32 hex digits.
    """
    of_files = fingerprint(samples, settings.cache_dir, settings.data)
    of_masks = []
    for name in sorted({sample.dataset for sample in samples}):
        said = settings.options_of(name)
        changes = (said.mask_threshold, said.mask_fit)
        if changes != (DEFAULT_OPTIONS.mask_threshold, DEFAULT_OPTIONS.mask_fit):
            of_masks.append([name, *changes])
    roi = roi_of(samples, settings)
    if rule.is_plain and not of_masks and roi is None:
        return of_files

    plain_rule = asdict(replace(rule, measured_on=0))
    parts = [of_files, plain_rule, of_masks]
    if roi is not None:
        parts.append(roi.packed)
    said_of_pixels = json.dumps(parts)
    return hashlib.blake2b(said_of_pixels.encode(), digest_size=16).hexdigest()
