"""What a survey counts of files by their headers: formats, sizes, masks and copies."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adray.data.base import Sample, defects_of
from adray.data.file_facts import FileFacts

IMG_SIZES = (224, 256, 384, 448, 512, 768, 1024)
"""Sides in pixels that models' inputs have."""
SHOWN_SIZE = 256
"""The side at which sizes of defects are given."""

Facts = Mapping[Path, FileFacts]


@dataclass(frozen=True)
class Count:
    """Images of one kind in one split."""

    split: str
    """``train``, ``test`` or another that the layout has."""
    kind: str
    """Type of defect, ``good`` for normal images."""
    images: int
    """Number of images."""
    with_mask: int
    """Those of them that have a mask."""


@dataclass(frozen=True)
class FormatCount:
    """Files that hold their pixels in the same way."""

    format: str
    """``PNG``, ``JPEG``, ``TIFF``, ..."""
    mode: str
    """Pillow's name of what a pixel is, such as ``L`` or ``RGB``."""
    bits: int
    """Bits of one channel of a pixel."""
    images: int
    """Number of files."""

    @property
    def name(self) -> str:
        """Name the kind of pixels, without the format."""
        return f"{self.mode}, {self.bits} bit"


@dataclass(frozen=True)
class SizeCount:
    """Files of one size."""

    width: int
    """In pixels."""
    height: int
    """In pixels."""
    images: int
    """Number of files."""


@dataclass(frozen=True)
class DefectsAtSize:
    """The defects as a model of one input size sees them."""

    img_size: int
    """Side of the input in pixels."""
    smallest: float
    """Area of the smallest defect in pixels of the input."""
    below: int
    """Defects that are smaller than one pixel there."""


@dataclass(frozen=True)
class MaskCounts:
    """What the masks of a category mark."""

    defects: int
    """Images with a defect."""
    with_mask: int
    """Those of them that have a mask."""
    empty: int
    """Masks that mark nothing."""
    regions: int
    """Connected regions in the masks."""
    smallest: float
    """Area of the smallest region in pixels at `SHOWN_SIZE`, as are the next two."""
    median: float
    """Area of the middle one."""
    largest: float
    """Area of the largest one."""
    rules: tuple[tuple[str, int], ...]
    """How a defect was told from the rest, and in how many masks."""
    at_sizes: tuple[DefectsAtSize, ...]
    """The same for each of `IMG_SIZES`."""


@dataclass(frozen=True)
class Pair:
    """A picture of the test that is also, or nearly, one of the training."""

    test: Path
    """The picture of the test."""
    train: Path
    """The picture of the training."""
    distance: float
    """Grey levels between small copies of the two, 0 for the same bytes."""


def count_images(samples: Sequence[Sample]) -> tuple[Count, ...]:
    """Count images by split and kind, in the order in which these come first."""
    images: Counter[tuple[str, str]] = Counter()
    masks: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        images[sample.split, sample.defect_type] += 1
        masks[sample.split, sample.defect_type] += sample.has_mask
    return tuple(Count(*place, images[place], masks[place]) for place in images)


def count_formats(samples: Sequence[Sample], facts: Facts) -> tuple[FormatCount, ...]:
    """Count readable images by format, mode and bits, the commonest first."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for found in _readable(samples, facts):
        counts[found.format, found.mode, found.bits] += 1
    return tuple(FormatCount(*kind, images) for kind, images in counts.most_common())


def count_sizes(samples: Sequence[Sample], facts: Facts) -> tuple[SizeCount, ...]:
    """Count readable images by size, the commonest first."""
    counts: Counter[tuple[int, int]] = Counter()
    for found in _readable(samples, facts):
        counts[found.width, found.height] += 1
    return tuple(SizeCount(*size, images) for size, images in counts.most_common())


def count_masks(samples: Sequence[Sample], facts: Facts) -> MaskCounts | None:
    """Measure the regions that masks mark, None where there is no image with a defect.

    Args:
        samples: of one category.
        facts: of their masks.
    """
    defects = defects_of(samples)
    if not defects:
        return None

    # Shares of the image, since images may differ in size.
    shares: list[float] = []
    rules: Counter[str] = Counter()
    empty = 0
    for path in _masks_of(defects):
        found = facts[path]
        if found.problem is not None:
            continue
        rules[found.levels] += 1
        empty += bool(found.empty)
        pixels = found.width * found.height
        shares += [region[0] / pixels for region in found.regions]

    area = SHOWN_SIZE**2
    return MaskCounts(
        defects=len(defects),
        with_mask=sum(sample.has_mask for sample in defects),
        empty=empty,
        regions=len(shares),
        smallest=area * min(shares, default=0.0),
        median=area * statistics.median(shares or [0.0]),
        largest=area * max(shares, default=0.0),
        rules=tuple(rules.most_common()),
        at_sizes=_at_sizes(shares),
    )


def identical_pairs(samples: Sequence[Sample], facts: Facts) -> list[Pair]:
    """Find the pictures of the test whose bytes are those of one that trains."""
    training: dict[str, Path] = {}
    for sample in samples:
        if sample.split == "train" and facts[sample.path].digest:
            training.setdefault(facts[sample.path].digest, sample.path)

    pairs = []
    for sample in samples:
        twin = training.get(facts[sample.path].digest)
        if sample.split == "test" and twin is not None:
            pairs.append(Pair(sample.path, twin, 0.0))
    return pairs


def _readable(samples: Sequence[Sample], facts: Facts) -> list[FileFacts]:
    """Give the facts of the images that can be opened."""
    found = [facts[sample.path] for sample in samples]
    return [one for one in found if one.problem is None]


def _masks_of(samples: Sequence[Sample]) -> Iterable[Path]:
    """List the mask files of samples, each once."""
    paths: dict[Path, None] = {}
    for sample in samples:
        paths.update(dict.fromkeys(sample.mask_paths))
    return paths


def _at_sizes(shares: Sequence[float]) -> tuple[DefectsAtSize, ...]:
    """Say for each input size how small defects of these shares of the image are."""
    if not shares:
        return ()
    rows = []
    for side in IMG_SIZES:
        below = sum(share * side**2 < 1 for share in shares)
        rows.append(DefectsAtSize(side, min(shares) * side**2, below))
    return tuple(rows)
