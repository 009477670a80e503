"""Whole images that are scored by their tiles: one score and one map each, as of images taken whole."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adray.data.base import Sample
from adray.data.decode import decode_defect, decode_file
from adray.data.geometry import Geometry, own_cells
from adray.data.loader import Loader
from adray.scores import Scores
from adray.settings import Settings
from adray.tiling import MapJoiner, image_score
from adray.types import Batch, PixelRule, Prediction

MOST_MAP_PIXELS = 1024
"""Side up to which joined maps are kept for the figures of a trial."""


def map_side(sizes: Sequence[tuple[int, int]], geometry: Geometry) -> int:
    """Give the side of the square on which joined maps of all images are compared.

    It is that of the largest image in pixels of the model's input, up to `MOST_MAP_PIXELS`.

    Args:
        sizes: height and width of the images.
        geometry: with tiles.
    """
    longest = 0.0
    for height, width in sizes:
        grid = geometry.grid(height, width)
        longest = max(longest, max(grid.height, grid.width) * geometry.side / grid.tile)
    return int(min(max(longest, geometry.side), MOST_MAP_PIXELS))


class TiledLoader:
    """Images that come in tiles, and what is said of these laid together again.

    Iterating gives batches of tiles.

    Args:
        samples: the images.
        tiles: their tiles, image by image.
        sizes: height and width of each image, (N, 2).
        geometry: of the tiles.
        side: of the square on which maps are compared, see `map_side`.
        top: see `adray.tiling.image_score`.
        rule: how the numbers in image files become 8 bits.
        settings: what is said of masks.

    Attributes:
        samples: as given.
        tiles: as given.
        has_mask: (N,) bool, True for normal images and for defects with a mask.
        any_mask: whether any image has a mask.
        batch_size: tiles per batch.
        device: where batches are.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tiles: Loader,
        sizes: NDArray[np.int64],
        geometry: Geometry,
        side: int,
        top: float,
        rule: PixelRule,
        settings: Settings,
    ) -> None:
        self.samples = list(samples)
        self.tiles = tiles
        self.has_mask = np.array([s.label == 0 or s.has_mask for s in self.samples], dtype=bool)
        self.any_mask = any(sample.has_mask for sample in self.samples)
        self.batch_size = tiles.batch_size
        self.device = tiles.device
        self.geometry = geometry
        self.top = top
        self._sizes = sizes
        self._side = side
        self._rule = rule
        self._settings = settings

        # Tiles are samples of their image in all but their number.
        number = {(sample.path, sample.key): i for i, sample in enumerate(self.samples)}
        self.image_of = [number[tile.path, tile.key] for tile in tiles.samples]

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.tiles)

    def grid_shapes(self) -> set[tuple[int, int]]:
        """Give the numbers of rows and columns of tiles that its images have."""
        assert self.geometry.tiling is not None, "its images come in tiles"
        found = set()
        for height, width in {tuple(size) for size in self._sizes.tolist()}:
            grid = self.geometry.tiling.grid(height, width)
            found.add((len(grid.rows), len(grid.columns)))
        return found

    def set_epoch(self, epoch: int) -> None:
        """Leave the order as it is."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches of tiles, image by image."""
        return iter(self.tiles)

    def gatherer(self, keep_maps: bool) -> TileGatherer:
        """Make what collects the predictions of the tiles."""
        return TileGatherer(self, keep_maps)

    def size(self, number: int) -> tuple[int, int]:
        """Give height and width of an image."""
        height, width = self._sizes[number].tolist()
        return height, width

    @property
    def whole(self) -> Geometry:
        """Give the geometry of whole images on the square of their maps."""
        return self.geometry.whole(self._side)

    def mask(self, number: int) -> NDArray[np.uint8]:
        """Decode the defects of an image on the square of its map, zeros without a mask."""
        sample = self.samples[number]
        if not sample.mask_paths:
            return np.zeros((self._side, self._side), np.uint8)
        height, width = self.size(number)
        options = self._settings.options_of(sample.dataset)
        defect = decode_defect(sample.mask_paths, (width, height), options, str(sample.path))
        return self.whole.apply_to_defect(defect)

    def images(self, index: int) -> NDArray[np.uint8]:
        """Decode an image on the square of its map, (3, H, W)."""
        return decode_file(self.samples[index].path, self.whole, self._rule).pixels

    def find_copies(self) -> list[str]:
        """Hash the pixels of each image that another one equals, empty for all others."""
        digests = [hashlib.blake2b(digest_size=16) for _ in self.samples]
        for row, image in enumerate(self.image_of):
            digests[image].update(self.tiles.images(row).tobytes())
        hashes = [digest.hexdigest() for digest in digests]
        counts = Counter(hashes)
        return [one if counts[one] > 1 else "" for one in hashes]


class TileGatherer:
    """Collects the predictions of tiles, and lays those of one image together as soon as it is done.

    Args:
        loader: whose tiles are predicted, in its order.
        keep_maps: also join anomaly maps, and read masks.
    """

    def __init__(self, loader: TiledLoader, keep_maps: bool) -> None:
        self._loader = loader
        self._keep_maps = keep_maps
        self._current = -1
        self._tile_scores: list[float] = []
        self._joiner: MapJoiner | None = None
        self._scores: list[float] = []
        self._maps: list[NDArray] = []
        self._peaks: list[float] = []

    def add(self, batch: Batch, prediction: Prediction) -> None:
        """Take what was predicted of a batch of tiles."""
        scores = prediction.pred_score.float().cpu().numpy()
        maps = None
        if self._keep_maps and prediction.anomaly_map is not None:
            maps = prediction.anomaly_map[:, 0].float().cpu().numpy()  # (B, S, S)

        for place, row in enumerate(batch.index.tolist()):
            image = self._loader.image_of[row]
            if image != self._current:
                self._finish()
                self._current = image
            self._tile_scores.append(float(scores[place]))
            if maps is not None:
                self._join(row, maps[place])

    def _join(self, row: int, anomaly_map: NDArray[np.float32]) -> None:
        """Add the map of a tile to that of its image."""
        loader = self._loader
        if self._joiner is None:
            self._joiner = MapJoiner(loader.geometry.grid(*loader.size(self._current)))
        number = loader.tiles.samples[row].tile
        assert number is not None, "it is a tile"
        self._joiner.add(number, anomaly_map)

    def _finish(self) -> None:
        """Close the image whose tiles are all there."""
        if self._current < 0:
            return
        loader = self._loader
        self._scores.append(image_score(np.array(self._tile_scores, np.float32), loader.top))
        self._tile_scores = []
        if self._joiner is None:
            return

        whole = with_lowest_outside_roi(self._joiner.joined(), loader.geometry)
        self._joiner = None
        self._peaks.append(float(whole.max()))
        side = loader.whole.side
        picture = Image.fromarray(whole).resize((side, side), Image.Resampling.BILINEAR)
        self._maps.append(np.array(picture, np.float32))

    def scores(self, has_mask: NDArray[np.bool_]) -> Scores:
        """Put everything together.

        Args:
            has_mask: (N,) bool, see `Scores.has_mask`.
        """
        self._finish()
        self._current = -1
        loader = self._loader
        maps = np.stack(self._maps) if self._maps else None
        mask = None
        inside = None
        if maps is not None and loader.any_mask:
            mask = np.stack([loader.mask(i) for i in range(len(loader.samples))])
        if maps is not None and loader.geometry.roi is not None:
            shown = [loader.whole.inside(*loader.size(i)) for i in range(len(loader.samples))]
            inside = np.stack(shown)
        return Scores(
            np.array(self._scores, np.float32),
            np.array([sample.label for sample in loader.samples], np.int64),
            maps,
            mask,
            np.asarray(has_mask),
            inside=inside,
            highest=np.array(self._peaks, np.float32) if self._peaks else None,
        )


def with_lowest_outside_roi(whole: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Give what lies outside of the region of interest the lowest value of what lies inside.

    Args:
        whole: map of a scaled image, (H, W).
        geometry: of its tiles.
    """
    if geometry.roi is None:
        return whole
    counts = own_cells(geometry.roi, *whole.shape)
    return np.where(counts, whole, whole[counts].min())


def tiles_of(sample: Sample, numbers: Sequence[int]) -> list[Sample]:
    """Make the samples of some tiles of an image."""
    return [replace(sample, tile=number) for number in numbers]
