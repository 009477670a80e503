"""sPRO: the overlap of maps with defects of which a part is enough.

P. Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly
Detection and Localization", IJCV 2022, section 4. A missing screw may be marked anywhere in its
compartment: the whole of it is the defect, and an area as large as a screw saturates it. AutoVI
(P. Carvalho et al., 2024) is judged in the same way, by all defects of a category together, as its
published evaluation has it.

A defect's sPRO is min(found pixels / saturation area, 1). It rises by 1 / saturation area for each
of its highest pixels, as many as saturate it. With these weights of pixels its curve is that of
AUPRO, and needs one histogram.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adray.curves import Curve, Floats
from adray.metrics import check_finite
from adray.pixel_curves import Bins, PixelCounts, plan_bins

FPR_LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
"""False positive rates up to which areas of overlap are usually given."""


@dataclass(frozen=True)
class Defect:
    """One defect of an image, which need not be connected."""

    pixels: NDArray[np.bool_]
    """(H, W) true where it may be found, at the full size of the image."""
    saturation: int
    """Pixels from which on it counts as found wholly, at least 1."""


@dataclass(frozen=True)
class ImageDefects:
    """An image at its full size, and all its defects."""

    height: int
    """Of the image in pixels."""
    width: int
    """Of the image in pixels."""
    defects: Sequence[Defect]
    """None for a normal image."""


Kind = tuple[str, str, str]
"""Data set, category and defect type of images; the type is empty for normal ones."""


@dataclass(frozen=True)
class SproCounts:
    """How the pixels of all images of a test set fall into bins, and what they find."""

    bins: Bins
    """Of the scores."""
    by_kind: Mapping[Kind, PixelCounts]
    """Pixels of the images of each kind, at their full size."""

    def curve(self, kinds: Collection[Kind]) -> Curve | None:
        """Make the curve of images of some kinds, None where no defect is among them."""
        total = PixelCounts.none(self.bins)
        for kind in kinds:
            if kind in self.by_kind:
                total = total + self.by_kind[kind]
        return total.curve(self.bins) if total.weight.any() else None


def count_spro(
    anomaly_map: Floats,
    mask: NDArray,
    kinds: Sequence[Kind],
    images: Iterable[ImageDefects | None],
    img_size: int,
) -> SproCounts:
    """Count the pixels of all images, each enlarged to its full size in turn.

    Args:
        anomaly_map: (N, H, W) float32, finite.
        mask: (N, H, W), not zero on defects; it says where scores need fine bins.
        kinds: N kinds of images.
        images: N images with their defects, None for one that shall be left out.
        img_size: as in `enlarge`.

    Raises:
        InputError: a map holds NaN or infinity.
    """
    check_finite("anomaly_map", anomaly_map)
    bins = plan_bins(anomaly_map, np.asarray(mask, dtype=bool))
    lowest = float(anomaly_map.min())
    by_kind: dict[Kind, PixelCounts] = {}
    for small, kind, image in zip(anomaly_map, kinds, images, strict=True):
        if image is not None:
            counts = count_defects(enlarge(small, image, img_size, lowest), image, bins)
            by_kind[kind] = by_kind[kind] + counts if kind in by_kind else counts
    return SproCounts(bins, by_kind)


def count_defects(anomaly_map: Floats, image: ImageDefects, bins: Bins) -> PixelCounts:
    """Count the pixels of one image, where pixels that no defect marks are normal.

    Args:
        anomaly_map: (H, W) float32 at the full size of the image.
        image: its defects.
        bins: of scores.
    """
    weight = np.zeros(bins.count)
    marked = np.zeros(anomaly_map.shape, dtype=bool)
    for defect in image.defects:
        marked |= defect.pixels
        scores = anomaly_map[defect.pixels]
        enough = min(defect.saturation, scores.size)
        highest = np.partition(scores, scores.size - enough)[-enough:]
        weight += np.bincount(bins.index(highest), minlength=bins.count) / enough

    positive = np.bincount(bins.index(anomaly_map[marked]), minlength=bins.count)
    negative = np.bincount(bins.index(anomaly_map[~marked]), minlength=bins.count)
    return PixelCounts(positive.astype(np.float64), negative.astype(np.float64), weight)


def enlarge(anomaly_map: Floats, image: ImageDefects, img_size: int, lowest: float) -> Floats:
    """Bring a map to the full size of its image, bilinear.

    Args:
        anomaly_map: (h, w) float32; smaller than `img_size` where a centre crop was taken.
        image: its size.
        img_size: side in pixels that the image was resized to before the crop, the shorter one of
            a rectangle, which is not cropped.
        lowest: score outside the crop, the lowest of all maps.

    Returns:
        (H, W) float32.
    """
    side = min(anomaly_map.shape)
    if side < img_size:
        before = round((img_size - side) / 2)
        margin = (before, img_size - side - before)
        anomaly_map = np.pad(anomaly_map, (margin, margin), constant_values=lowest)
    resized = Image.fromarray(anomaly_map).resize(
        (image.width, image.height), Image.Resampling.BILINEAR
    )
    return np.array(resized, dtype=np.float32)
