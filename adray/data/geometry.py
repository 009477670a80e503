"""Where an image lies in the frame that a model sees, which of it counts, and the way back.

The frame is a square, or a rectangle of some aspect ratio. An image is squeezed into it without
regard to its own ratio, as the published figures of the benchmarks are made. Or it keeps its ratio:
with room around it that does not count (`pad`), or without its ends (`crop`). A region of interest
(`roi`) leaves out what lies outside of it.

What does not count is painted in one color before the resize, so that no pixel of it reaches the
model, and is left out of maps, scores and metrics.
"""

from __future__ import annotations

import base64
import functools
import zlib
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adray.config import TrainConfig, check_aspect, input_shape
from adray.data.masks import resize_defect
from adray.errors import InputError
from adray.fields import check_choice
from adray.language.sentence import Sentence, nearest_of, sentence_of
from adray.settings import FITS
from adray.tiling import TileGrid, Tiling
from adray.types import Json, Roi

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
UNSEEN_COLOR = (124, 116, 104)
"""Red, green and blue of what does not count: the mean of ImageNet, which becomes about zero."""
ROI_SIDE = 1024
"""Rows and columns of the grid that a region of interest is kept on."""


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels, which may reach beyond the picture that it lies in."""

    top: int
    """First row."""
    left: int
    """First column."""
    height: int
    """Number of rows."""
    width: int
    """Number of columns."""


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the frame that a model sees."""

    window: Box
    """The part of the image's own pixels that is taken."""
    box: Box
    """Where that part lies in the frame; it reaches beyond it where a centre crop follows."""
    frame: tuple[int, int]
    """Height and width of the frame."""
    size: tuple[int, int]
    """Height and width of the image."""

    @property
    def rows(self) -> slice:
        """Give the rows of the frame on which the image lies."""
        return _inside(self.box.top, self.box.height, self.frame[0])

    @property
    def columns(self) -> slice:
        """Give the columns of the frame on which the image lies."""
        return _inside(self.box.left, self.box.width, self.frame[1])

    @property
    def seen(self) -> Box:
        """Give the part of the image's own pixels that the frame shows."""
        top, height = _shown(self.window.top, self.window.height, self.rows, self.box.height)
        left, width = _shown(self.window.left, self.window.width, self.columns, self.box.width)
        return Box(top, left, height, width)

    @property
    def is_full(self) -> bool:
        """Tell whether the image lies on all of the frame."""
        height, width = self.frame
        return self.rows == slice(0, height) and self.columns == slice(0, width)

    def counted(self, roi: Roi | None) -> NDArray[np.bool_]:
        """Tell which pixels of the frame are of the image and of a region, (H, W)."""
        counts = np.zeros(self.frame, bool)
        if roi is None:
            counts[self.rows, self.columns] = True
            return counts

        window = self.window
        box = self.box
        height, width = self.size
        rows = _cells_at(self.rows, box.top, box.height, window.top, window.height, height)
        columns = _cells_at(self.columns, box.left, box.width, window.left, window.width, width)
        counts[self.rows, self.columns] = roi_cells(roi)[rows][:, columns]
        return counts

    def resized(self, height: int, width: int) -> Placement:
        """Give the same for a picture of the image that has another size."""
        if (height, width) == self.size:
            return self
        down = height / self.size[0]
        across = width / self.size[1]
        window = Box(
            top=round(self.window.top * down),
            left=round(self.window.left * across),
            height=max(1, round(self.window.height * down)),
            width=max(1, round(self.window.width * across)),
        )
        return Placement(window, self.box, self.frame, (height, width))


def _inside(first: int, length: int, side: int) -> slice:
    """Give the pixels of a side that a stretch covers."""
    return slice(max(first, 0), min(first + length, side))


def _shown(first: int, length: int, on_side: slice, scaled: int) -> tuple[int, int]:
    """Give the first pixel and the number of those of a stretch that are shown, in its middle.

    Args:
        first: pixel of the image.
        length: pixels of the image.
        on_side: pixels of the frame that show some of them.
        scaled: pixels that would show all of them.
    """
    part = (on_side.stop - on_side.start) / scaled
    shown = max(1, round(length * part))
    return first + (length - shown) // 2, shown


@dataclass(frozen=True)
class Geometry:
    """What happens to an image between the file and the model.

    Raises:
        InputError: for a size that no model can use, a crop larger than the image, or an unknown
            interpolation.
    """

    img_size: int = 256
    """Side of the square that an image is resized to, in pixels, at least 8; the shorter one of a
    rectangle."""
    crop_size: int | None = None
    """Side of the centre crop taken afterwards, in pixels, or None for no crop."""
    interpolation: str = "bilinear"
    """One of `INTERPOLATIONS`, of images; masks go by area."""
    fit: str = "squeeze"
    """One of `adray.settings.FITS`."""
    roi: Roi | None = None
    """The part of images that counts; None for all of it."""
    tiling: Tiling | None = None
    """How images are cut into tiles, each of which becomes a square without a crop; None takes them
    whole."""
    aspect: float = 1.0
    """Width over height of the frame that an image is resized to, 1 where there is a crop or
    tiles."""

    def __post_init__(self) -> None:
        """Check sizes, and that the crop lies inside of the image."""
        _check_side("img_size", self.img_size)
        if self.crop_size is not None:
            _check_side("crop_size", self.crop_size)
            if self.crop_size > self.img_size:
                raise InputError(
                    Sentence.of(
                        "geometry crop_size", crop_size=self.crop_size, img_size=self.img_size
                    )
                )
        if self.interpolation not in INTERPOLATIONS:
            hint = nearest_of(self.interpolation, INTERPOLATIONS)
            raise InputError(
                Sentence.of(
                    "geometry interpolation", interpolation=repr(self.interpolation), hint=hint
                )
            )
        check_choice("fit", self.fit, FITS)
        tile = None if self.tiling is None else self.tiling.tile
        check_aspect(self.aspect, self.crop_size, tile)

    @classmethod
    def of(cls, config: TrainConfig, roi: Roi | None = None) -> Geometry:
        """Give the geometry of a training."""
        return cls(
            config.img_size,
            config.crop_size,
            fit=config.fit,
            roi=roi,
            tiling=config.tiling,
            aspect=config.aspect,
        )

    @property
    def frame(self) -> tuple[int, int]:
        """Give height and width of the final image in pixels."""
        return input_shape(self._shorter, self.aspect)

    @property
    def uncropped(self) -> tuple[int, int]:
        """Give height and width in pixels of what an image is resized to, before a crop."""
        return input_shape(self.img_size, self.aspect)

    @property
    def side(self) -> int:
        """Give the side of the final image in pixels, where there is a crop or tiles: a square."""
        assert self.aspect == 1, "neither goes with a rectangle"
        return self._shorter

    @property
    def margin(self) -> int:
        """Give the pixels of the square that the crop leaves out at the left and at the top."""
        return round((self.img_size - self._shorter) / 2)

    @property
    def _shorter(self) -> int:
        return self.img_size if self.crop_size is None else self.crop_size

    @property
    def hides(self) -> bool:
        """Tell whether some of the frame may not count."""
        return self.fit == "pad" or self.roi is not None or self.tiling is not None

    def stored(self) -> Json:
        """Give what identifies it. What says nothing is left out, as of before there was more."""
        known: Json = {
            "img_size": self.img_size,
            "crop_size": self.crop_size,
            "interpolation": self.interpolation,
        }
        if self.fit != "squeeze":
            known["fit"] = self.fit
        if self.roi is not None:
            known["roi"] = self.roi.packed
        if self.tiling is not None:
            known["tiling"] = asdict(self.tiling)
        if self.aspect != 1:
            known["aspect"] = self.aspect
        return known

    def whole(self, side: int) -> Geometry:
        """Give the geometry of whole images in a square of another side, with the same region."""
        return Geometry(side, roi=self.roi)

    def place(self, height: int, width: int) -> Placement:
        """Tell where an image of some size lies in the frame."""
        high, wide = self.uncropped
        window = Box(0, 0, height, width)
        box = Box(0, 0, high, wide)
        if self.fit == "crop":
            # In proportion to the frame, as much as the other side lets.
            rows = min(height, _scaled(high, width, wide))
            columns = min(width, _scaled(wide, height, high))
            window = Box((height - rows) // 2, (width - columns) // 2, rows, columns)
        elif self.fit == "pad":
            rows = min(high, _scaled(height, wide, width))
            columns = min(wide, _scaled(width, high, height))
            box = Box((high - rows) // 2, (wide - columns) // 2, rows, columns)
        shifted = Box(box.top - self.margin, box.left - self.margin, box.height, box.width)
        return Placement(window, shifted, self.frame, (height, width))

    def apply(self, image: Image.Image) -> Image.Image:
        """Bring an ``L`` or ``RGB`` image to the frame, and paint what does not count."""
        placed = self.place(image.height, image.width)
        if self.roi is not None:
            image = _painted(image, own_cells(self.roi, image.height, image.width))
        if self.fit == "crop":
            image = image.crop(_corners(placed.window))

        resample = INTERPOLATIONS[self.interpolation]
        image = image.resize((placed.box.width, placed.box.height), resample)
        if self.fit == "pad":
            height, width = self.frame
            canvas = Image.new("RGB", (width, height), UNSEEN_COLOR)
            canvas.paste(image, (placed.box.left, placed.box.top))
            return canvas
        if self.crop_size is None:
            return image
        return image.crop(
            (self.margin, self.margin, self.margin + self.side, self.margin + self.side)
        )

    def apply_to_defect(self, defect: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Bring a defect to the frame by area, (H, W) uint8 with 1 on what counts of it."""
        placed = self.place(*defect.shape)
        if self.roi is not None:
            defect = defect & own_cells(self.roi, *defect.shape)
        window = placed.window
        taken = defect[
            window.top : window.top + window.height, window.left : window.left + window.width
        ]
        small = resize_defect(taken, placed.box.height, placed.box.width)

        framed = np.zeros(self.frame, np.uint8)
        rows = placed.rows
        columns = placed.columns
        framed[rows, columns] = small[
            rows.start - placed.box.top : rows.stop - placed.box.top,
            columns.start - placed.box.left : columns.stop - placed.box.left,
        ]
        if self.roi is not None:
            # A pixel on the border of the region may lie outside by its middle.
            framed &= self.inside(*defect.shape)
        return framed

    def inside(self, height: int, width: int) -> NDArray[np.bool_]:
        """Tell which pixels of the frame count for an image of some size, (H, W).

        Raises:
            InputError: where none does, since a crop shows nothing of the region.
        """
        counts = self.place(height, width).counted(self.roi)
        if not counts.any():
            said = Sentence.of(
                "roi unseen",
                size=f"{width} x {height}",
                img_size=self.img_size,
                crop_size=str(self.crop_size),
                fit=self.fit,
            )
            raise InputError(said)
        return counts

    # Tiles

    def grid(self, height: int, width: int) -> TileGrid:
        """Lay tiles over an image of some size."""
        assert self.tiling is not None, "asked only where there are tiles"
        return self.tiling.grid(height, width)

    def scaled_image(self, image: Image.Image) -> Image.Image:
        """Scale an ``L`` or ``RGB`` image for its tiles, with what does not count painted."""
        grid = self.grid(image.height, image.width)
        if self.roi is not None:
            image = _painted(image, own_cells(self.roi, image.height, image.width))
        if (grid.width, grid.height) == image.size:
            return image
        return image.resize((grid.width, grid.height), INTERPOLATIONS[self.interpolation])

    def cut(self, scaled: Image.Image, grid: TileGrid, number: int) -> Image.Image:
        """Cut a tile out of a scaled image, as the model takes it."""
        top, left = grid.corner(number)
        tile = scaled.crop((left, top, left + grid.tile, top + grid.tile))
        if left + grid.tile > grid.width or top + grid.tile > grid.height:
            canvas = Image.new("RGB", tile.size, UNSEEN_COLOR)
            canvas.paste(scaled.crop((left, top, grid.width, grid.height)))
            tile = canvas
        if grid.tile == self.side:
            return tile
        return tile.resize((self.side, self.side), INTERPOLATIONS[self.interpolation])

    def cut_defect(
        self, scaled: NDArray[np.uint8], grid: TileGrid, number: int
    ) -> NDArray[np.uint8]:
        """Cut a tile out of a defect that has the size of the scaled image, (S, S) uint8."""
        top, left = grid.corner(number)
        tile = np.zeros((grid.tile, grid.tile), bool)
        part = scaled[top : top + grid.tile, left : left + grid.tile]
        tile[: part.shape[0], : part.shape[1]] = part
        return resize_defect(tile, self.side, self.side)

    def tile_inside(self, height: int, width: int, number: int) -> NDArray[np.bool_]:
        """Tell which pixels of a tile's square count, (S, S): those of the image and its region."""
        grid = self.grid(height, width)
        top, left = grid.corner(number)
        middles = (np.arange(self.side) + 0.5) * grid.tile / self.side
        is_row = top + middles < grid.height
        is_column = left + middles < grid.width
        # An image may be thinner than a pixel of the square.
        is_row[0] = True
        is_column[0] = True
        counts = np.outer(is_row, is_column)
        if self.roi is not None:
            rows = ((top + middles) * ROI_SIDE / grid.height).astype(np.int64)
            columns = ((left + middles) * ROI_SIDE / grid.width).astype(np.int64)
            rows = np.minimum(rows, ROI_SIDE - 1)
            columns = np.minimum(columns, ROI_SIDE - 1)
            counts &= roi_cells(self.roi)[rows][:, columns]
        return counts

    def counted_tiles(self, height: int, width: int) -> list[int]:
        """List the tiles of an image of which any pixel counts.

        Raises:
            InputError: where none does.
        """
        count = len(self.grid(height, width))
        if self.roi is None:
            return list(range(count))
        numbers = []
        for number in range(count):
            if self.tile_inside(height, width, number).any():
                numbers.append(number)
        if not numbers:
            raise InputError(Sentence.of("roi in_no_tile", size=f"{width} x {height}"))
        return numbers


def _check_side(name: str, value: int) -> None:
    """Refuse a side in pixels that no model can use.

    Raises:
        InputError: for anything but a whole number from 8 on.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < 8:
        raise InputError(Sentence.of("geometry pixels", name=name, value=repr(value)))


def _scaled(length: int, other: int, own: int) -> int:
    """Give the pixels of a length on a scale where `own` pixels become `other`, at least 1."""
    return max(1, (2 * length * other + own) // (2 * own))


def _corners(box: Box) -> tuple[int, int, int, int]:
    """Give left, top, right and bottom, as Pillow wants them."""
    return box.left, box.top, box.left + box.width, box.top + box.height


# The region of interest


def pack_cells(cells: NDArray[np.bool_]) -> Roi:
    """Keep a grid of cells (`ROI_SIDE`, `ROI_SIDE`), true where they count."""
    packed = zlib.compress(np.packbits(cells).tobytes(), 9)
    return Roi(base64.b85encode(packed).decode("ascii"))


@functools.lru_cache(maxsize=32)
def roi_cells(roi: Roi) -> NDArray[np.bool_]:
    """Give the grid of a region, (`ROI_SIDE`, `ROI_SIDE`), which must not be changed.

    Raises:
        InputError: for what is no such grid.
    """
    wanted = ROI_SIDE * ROI_SIDE // 8
    try:
        # A few bytes may claim to be a great many.
        unpacker = zlib.decompressobj()
        bits = unpacker.decompress(base64.b85decode(roi.packed), wanted + 1)
    except (ValueError, zlib.error) as error:
        raise InputError(Sentence.of("geometry roi damaged", error=sentence_of(error))) from error
    if len(bits) != wanted:
        raise InputError(Sentence.of("geometry roi bytes", number=len(bits), wanted=wanted))
    return np.unpackbits(np.frombuffer(bits, np.uint8)).astype(bool).reshape(ROI_SIDE, ROI_SIDE)


def own_cells(roi: Roi, height: int, width: int) -> NDArray[np.bool_]:
    """Tell which of an image's own pixels count, (height, width): those whose middle is inside."""
    rows = _cells_at(slice(0, height), 0, height, 0, height, height)
    columns = _cells_at(slice(0, width), 0, width, 0, width, width)
    return roi_cells(roi)[rows][:, columns]


def _cells_at(
    pixels: slice, first: int, scaled: int, window: int, taken: int, length: int
) -> NDArray[np.int64]:
    """Find the rows or columns of the grid on which the middles of pixels lie.

    Args:
        pixels: of the frame.
        first: pixel of the frame where the taken part of the image begins.
        scaled: pixels of the frame that the taken part has.
        window: pixel of the image where the taken part begins.
        taken: pixels of the image that it has.
        length: pixels that the image has.

    Returns:
        One per pixel.
    """
    places = np.arange(pixels.start, pixels.stop, dtype=np.int64) - first
    # Counted in parts of a pixel that make all of this whole numbers.
    middle = 2 * scaled * window + (2 * places + 1) * taken
    return middle * ROI_SIDE // (2 * scaled * length)


def _painted(image: Image.Image, counts: NDArray[np.bool_]) -> Image.Image:
    """Paint the pixels of an image that do not count, where `counts` (H, W) is false."""
    if counts.all():
        return image
    plain = Image.new("RGB", image.size, UNSEEN_COLOR)
    plain.paste(image, mask=Image.fromarray(counts))
    return plain
