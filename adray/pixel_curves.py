"""Curves over the pixels of all images: a histogram of the scores, or a sort where it is too coarse.

scikit-learn has no AUPRO, and sorts and checks anew for each metric. Here 7.5 million pixels take
0.2 s for all metrics, with it 5.3 s for AUROC and AUPR (`jobs/bench_metrics.py`). The tests compare
the values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adray.curves import Curve, Floats, count_samples, error_bound, from_origin

MAX_ERROR = 1e-5
"""Above this error bound a histogram is thrown away and the pixels are sorted."""
MAX_TYPE_ERROR = 1e-3
"""The same for figures of a single defect type."""
SORTED_PIXELS = 1 << 18
"""Up to so many pixels are sorted, which is exact and takes about as long as a histogram."""
HISTOGRAM_BINS = 1 << 19
"""Wanted number of histogram bins; rounding to powers of two makes at most twice as many and a
few."""
CHUNK_PIXELS = 1 << 20
"""Pixels worked on at a time, which bounds the temporaries to some tens of MB whatever the data
set."""
_JOINED_BINS = 8
"""Bins that become one for figures of a single defect type."""
EIGHT_CONNECTED = np.ones((3, 3), dtype=np.uint8)

logger = logging.getLogger(__name__)


Inside = NDArray[np.bool_] | None
"""(N, H, W), true for the pixels that count; None where all do. No defect lies outside."""


def pixel_curve(
    anomaly_map: Floats, mask: NDArray, exact: bool = False, inside: Inside = None
) -> Curve:
    """Make one curve over all pixels of all images, with the overlap of regions.

    By default it is a histogram. Up to `SORTED_PIXELS`, when its `error_bound` is above `MAX_ERROR`,
    and with `exact`, the pixels are sorted.

    Args:
        anomaly_map: (N, H, W) float32, finite.
        mask: (N, H, W) bool, with defective and normal pixels among all images.
        exact: sort at once.
        inside: the pixels that count.
    """
    if exact or anomaly_map.size <= SORTED_PIXELS:
        return sorted_curve(anomaly_map, mask, inside)
    binned = binned_curve(anomaly_map, mask, inside)
    return _fine_enough(binned, anomaly_map, mask, MAX_ERROR, inside)


def pixel_curves(
    anomaly_map: Floats, mask: NDArray, defect_type: NDArray, inside: Inside = None
) -> tuple[Curve, dict[str, Curve]]:
    """Make the curve of all pixels, and that of each defect type against all normal images.

    The pixels are counted once, image by image. Types are read off wider bins, which are sorted
    anew where their `error_bound` is above `MAX_TYPE_ERROR`.

    Args:
        anomaly_map: (N, H, W) float32, finite.
        mask: (N, H, W) bool, with defective and normal pixels among all images.
        defect_type: (N,) names, empty for normal images.
        inside: the pixels that count.

    Returns:
        The curve of `pixel_curve`, and one for each type that has defective pixels.
    """
    types = sorted(set(defect_type) - {""})
    if len(types) < 2:
        whole = pixel_curve(anomaly_map, mask, inside=inside)
        return whole, dict.fromkeys(types, whole)

    bins = plan_bins(anomaly_map, mask)
    total = PixelCounts.none(bins)
    counts = {}
    for name in ("", *types):
        rows = defect_type == name
        of_type = count_pixels(anomaly_map[rows], mask[rows], bins, _rows_of(inside, rows))
        total = total + of_type
        counts[name] = of_type.joined(_JOINED_BINS)

    curves = {}
    for name in types:
        if counts[name].positive.any():
            rows = (defect_type == name) | (defect_type == "")
            binned = (counts[name] + counts[""]).curve(bins)
            curves[name] = _fine_enough(
                binned, anomaly_map[rows], mask[rows], MAX_TYPE_ERROR, _rows_of(inside, rows)
            )
    return _fine_enough(total.curve(bins), anomaly_map, mask, MAX_ERROR, inside), curves


def _rows_of(inside: Inside, rows: NDArray) -> Inside:
    """Give what counts of some of the images."""
    return None if inside is None else inside[rows]


def _fine_enough(
    binned: Curve, anomaly_map: Floats, mask: NDArray, allowed: float, inside: Inside
) -> Curve:
    """Give the curve of a histogram, or sort the pixels where its error could be too large."""
    bound = error_bound(binned)
    if bound > allowed or anomaly_map.size <= SORTED_PIXELS:
        logger.debug("pixel metrics by sorting: a histogram's error bound is %.1g", bound)
        return sorted_curve(anomaly_map, mask, inside)
    logger.debug(
        "pixel metrics by a histogram of %d bins, error at most %.1g", binned.tp.size, bound
    )
    return binned


def sorted_curve(anomaly_map: Floats, mask: NDArray, inside: Inside = None) -> Curve:
    """Make the exact curve of pixels, thinned to the corners where it bends.

    It bends only where a defective pixel comes in and where the last normal pixel before one did.
    Leaving out the thresholds in between keeps the curve small where defects are. Arguments as in
    `pixel_curve`.
    """
    normal = ~mask
    if inside is not None:
        normal &= inside
    negatives = anomaly_map[normal]
    negatives.sort()
    defective = anomaly_map[mask]
    order = np.argsort(defective)
    positives = defective[order]

    # The corners: each defective score, the next higher normal one, and the lowest score of all.
    bends = np.unique(positives)
    above = np.searchsorted(negatives, bends, side="right")
    above = above[above < negatives.size]
    lowest = min(positives[0], negatives[0])
    corners = np.unique(np.concatenate((bends, negatives[above], [lowest])))[::-1]
    counts = count_samples(positives, negatives, corners)

    # Summed from the highest score on, the weights of tp pixels are what is covered at a corner.
    covered = from_origin(np.cumsum(_region_weights(mask)[order][::-1]))
    overlap = covered[counts.tp.astype(np.int64)] / covered[-1]
    return Curve(counts.threshold, counts.tp, counts.fp, overlap)


def binned_curve(anomaly_map: Floats, mask: NDArray, inside: Inside = None) -> Curve:
    """Make the curve of pixels by a histogram. Arguments as in `pixel_curve`."""
    bins = plan_bins(anomaly_map, mask)
    return count_pixels(anomaly_map, mask, bins, inside).curve(bins)


@dataclass(frozen=True)
class Bins:
    """A histogram over the bit patterns of float32 scores.

    Read as ordered integers, scores fall into 65,536 coarse bins by their upper half. Each is split
    by leading bits of the lower half.
    """

    first_bin: NDArray[np.int64]
    """(65537,) first fine bin of each coarse bin, of which the last is the number of fine bins."""
    low_bits: NDArray[np.uint32]
    """(65536,) low bits of a score that its fine bin leaves out, for each coarse bin."""

    @property
    def count(self) -> int:
        """Count the fine bins."""
        return int(self.first_bin[-1])

    def index(self, scores: Floats) -> NDArray[np.int64]:
        """Find the fine bin of each of M float32 scores, (M,)."""
        key = _ordered_keys(scores)
        coarse = key >> np.uint32(16)
        return self.first_bin[coarse] + ((key & np.uint32(0xFFFF)) >> self.low_bits[coarse])

    def lowest_scores(self, bins: NDArray) -> Floats:
        """Give the lowest float32 score that falls into each of the fine bins."""
        coarse = np.searchsorted(self.first_bin, bins, side="right") - 1
        low = (bins - self.first_bin[coarse]) << self.low_bits[coarse].astype(np.int64)
        key = ((coarse << 16) + low).astype(np.uint32)
        # Undoes `_ordered_keys`.
        return np.where(key >> np.uint32(31), key ^ np.uint32(1 << 31), ~key).view(np.float32)


def plan_bins(anomaly_map: Floats, mask: NDArray) -> Bins:
    """Choose how finely each coarse bin is split.

    It is the finer the more of the pixels or of the defective pixels it holds. So the resolution
    follows the scores wherever they lie, and outliers take none of it.

    Args:
        anomaly_map: (N, H, W) float32, finite.
        mask: (N, H, W) bool.
    """
    total = np.zeros(1 << 16)
    positive = np.zeros(1 << 16)
    for part in _chunks(anomaly_map.shape):
        coarse = _ordered_keys(anomaly_map[part]) >> np.uint32(16)
        total += np.bincount(coarse, minlength=1 << 16)
        positive += np.bincount(coarse[mask[part].ravel()], minlength=1 << 16)

    wanted = HISTOGRAM_BINS / 2 * (total / total.sum() + positive / max(positive.sum(), 1))
    kept_bits = np.clip(np.ceil(np.log2(np.maximum(wanted, 1))), 0, 16).astype(np.int64)
    first_bin = np.concatenate(([0], np.cumsum(np.left_shift(1, kept_bits))))
    return Bins(first_bin, (16 - kept_bits).astype(np.uint32))


@dataclass(frozen=True)
class PixelCounts:
    """How many pixels of some images fall into each of B bins of scores."""

    positive: NDArray[np.float64]
    """(B,) pixels on a defect."""
    negative: NDArray[np.float64]
    """(B,) pixels on none."""
    weight: NDArray[np.float64]
    """(B,) weights of the defective pixels, of which those of one defect sum to 1."""
    width: int = 1
    """Neighbouring fine bins that were joined into each of these."""

    @classmethod
    def none(cls, bins: Bins) -> PixelCounts:
        """Make the counts of no pixel."""
        return cls(np.zeros(bins.count), np.zeros(bins.count), np.zeros(bins.count))

    def __add__(self, other: PixelCounts) -> PixelCounts:
        """Count the pixels of both."""
        return PixelCounts(
            self.positive + other.positive,
            self.negative + other.negative,
            self.weight + other.weight,
            self.width,
        )

    def joined(self, width: int) -> PixelCounts:
        """Join neighbouring bins, so that the counts of many kinds of defects fit into memory."""
        starts = np.arange(0, self.positive.size, width)
        return PixelCounts(
            np.add.reduceat(self.positive, starts),
            np.add.reduceat(self.negative, starts),
            np.add.reduceat(self.weight, starts),
            width,
        )

    def curve(self, bins: Bins) -> Curve:
        """Make the curve of these pixels, on which there are defective ones."""
        filled = np.flatnonzero((self.positive > 0) | (self.negative > 0))[::-1]
        tp = np.cumsum(self.positive[filled])
        fp = np.cumsum(self.negative[filled])
        covered = np.cumsum(self.weight[filled])
        covered /= covered[-1]
        threshold = bins.lowest_scores(filled * self.width)
        return Curve(threshold, tp, fp, covered, exact=False)


def count_pixels(
    anomaly_map: Floats, mask: NDArray, bins: Bins, inside: Inside = None
) -> PixelCounts:
    """Count the pixels of images, where each defect is an 8-connected region of its mask.

    Arguments as in `pixel_curve`.
    """
    positive = np.zeros(bins.count)
    total = np.zeros(bins.count)
    weight = np.zeros(bins.count)
    # A chunk at a time: the keys of all pixels together would take many times the maps.
    for part in _chunks(anomaly_map.shape):
        index = bins.index(anomaly_map[part])
        counted = index if inside is None else index[inside[part].ravel()]
        total += np.bincount(counted, minlength=bins.count)

        index = index[mask[part].ravel()]  # of the defective pixels
        positive += np.bincount(index, minlength=bins.count)
        weights = _region_weights(mask[part])
        weight += np.bincount(index, weights=weights, minlength=bins.count)
    total -= positive
    return PixelCounts(positive, total, weight)


def _ordered_keys(scores: Floats) -> NDArray[np.uint32]:
    """Turn M float32 scores into unsigned integers of the same order, (M,).

    The bits of positive floats already rise with their value, those of negative ones fall: flip
    these, and set the sign bit of the others.
    """
    bits = (scores.ravel() + np.float32(0)).view(np.uint32)  # adding 0 makes -0.0 equal to 0.0
    flip = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)
    return bits ^ flip


def _region_weights(mask: NDArray) -> NDArray[np.float64]:
    """Give 1 / size of its 8-connected region for each of the P defective pixels, (P,).

    Args:
        mask: (N, H, W) bool, in whose order the pixels are.
    """
    from scipy import ndimage  # a third of a second, which a command without maps does not pay

    weights = [np.empty(0)]
    for image in mask:
        if image.any():
            region, _ = ndimage.label(image, structure=EIGHT_CONNECTED)  # (H, W), 0 is no region
            region = region[image]
            size = np.bincount(region)
            weights.append(1 / size[region])
    return np.concatenate(weights)


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of whole images, about `CHUNK_PIXELS` each."""
    count, height, width = shape
    images = max(1, CHUNK_PIXELS // (height * width))
    for start in range(0, count, images):
        yield slice(start, start + images)
