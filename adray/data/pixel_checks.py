"""What is said of a trial's pixels and masks before it starts, and what of them identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from adray.data.base import Sample
from adray.data.decode import Geometry
from adray.data.file_facts import FileFacts
from adray.data.inspect_files import Inspected, fingerprint, inspect_samples
from adray.data.masks import ABOVE_HALF
from adray.data.pixel_rule import refusal, refused
from adray.language.sentence import Sentence
from adray.settings import DEFAULT_OPTIONS, Settings
from adray.types import PixelRule


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


def pixel_remarks(facts: Inspected, rule: PixelRule) -> list[str]:
    """Remark on what is not plain about images and masks, one sentence each.

    Args:
        facts: of the files of a trial.
        rule: of the trial.
    """
    remarks = [] if rule.is_plain else [rule.sentence]

    soft = sum(found.levels == ABOVE_HALF for found in facts.masks.values())
    if soft:
        remarks.append(
            f"{soft} masks have soft or lossy edges: what lies above half of their maximum is the "
            "defect (mask_threshold under settings.data changes it)"
        )
    return remarks


def mask_remarks(samples: Sequence[Sample], geometry: Geometry, settings: Settings) -> list[str]:
    """Remark on defects that are smaller than a pixel of the map, or lie outside of the crop."""
    _, masks = inspect_samples(samples, settings.cache_dir, settings.data)
    regions = 0
    tiny = 0
    cropped = 0
    for found in _of_defects(samples, masks):
        regions += len(found.regions)
        scale = geometry.img_size / np.array([found.width, found.height])
        for area, left, top, right, bottom in found.regions:
            tiny += area * scale.prod() < 1
            box = np.array([[left, top], [right, bottom]]) * scale
            cropped += _lies_outside(box, geometry)

    remarks = []
    if tiny:
        remarks.append(
            f"{tiny} of {regions} defect regions are smaller than a pixel of the map at img_size "
            f"{geometry.img_size}; each keeps one pixel"
        )
    if cropped:
        remarks.append(
            f"{cropped} of {regions} defect regions lie outside of the centre crop "
            f"({geometry.side} of {geometry.img_size} px), where no model sees them; their images "
            "still count as defective, and pixel metrics leave these regions out"
        )
    return remarks


def _of_defects(samples: Sequence[Sample], masks: dict) -> Iterator[FileFacts]:
    """Give the facts of the masks of defective images that can be read."""
    for sample in samples:
        if sample.label == 1:
            for path in sample.mask_paths:
                if not masks[path].problem:
                    yield masks[path]


def _lies_outside(box: np.ndarray, geometry: Geometry) -> bool:
    """Tell whether a box ((left, top), (right, bottom)) in the square has no part in the crop."""
    first = geometry.margin
    last = geometry.margin + geometry.side
    return bool((box[1] <= first).any() or (box[0] >= last).any())


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
    if rule.is_plain and not of_masks:
        return of_files

    plain_rule = asdict(replace(rule, measured_on=0))
    said_of_pixels = json.dumps([of_files, plain_rule, of_masks])
    return hashlib.blake2b(said_of_pixels.encode(), digest_size=16).hexdigest()
