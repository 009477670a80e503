"""A small data set drawn from a seed, to try the program before any real data are there.

MVTec AD's layout with three categories: `weave` and `grain` are textures, `gasket` is an object.
Light, position and noise vary; the defects are scratches, spots and missing parts with exact masks.

    python -m adray synthetic datasets/synthetic --size 256
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from adray.data.synthetic_images import CATEGORIES, DEFECTS, add_defect, draw_normal
from adray.errors import InputError
from adray.files import write_json
from adray.language.sentence import Sentence

MARKER = "synthetic.json"
"""File at the root that says what was drawn; a folder without it is never overwritten."""

_LIMITS = {
    "train": (1, 10_000),
    "good": (0, 10_000),
    "defects": (0, 10_000),
    "size": (32, 2048),
    "seed": (0, 2**63),
}
"""Least and greatest value of each field of a `Recipe`."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a data set.

    Raises:
        InputError: for a number that cannot be drawn; names the field.
    """

    train: int = 24
    """Normal training images per category, at least 1."""
    good: int = 8
    """Normal test images per category."""
    defects: int = 12
    """Defective test images per category, of three kinds in turn."""
    size: int = 128
    """Side of the images in pixels, 32 to 2048."""
    seed: int = 0
    """Seed of all that is random."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in asdict(self).items():
            low, high = _LIMITS[name]
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not is_whole or not low <= value <= high:
                raise InputError(
                    Sentence.of(
                        "synthetic number", name=name, value=repr(value), low=low, high=high
                    )
                )


def write_synthetic(
    root: str | Path,
    *,
    train: int = Recipe.train,
    good: int = Recipe.good,
    defects: int = Recipe.defects,
    size: int = Recipe.size,
    seed: int = Recipe.seed,
) -> Path:
    """Draw the data set unless it is there complete.

    The same arguments give the same bytes.

    Args:
        root: folder of the data set; its last part is the name of the data set.
        train: normal training images per category, at least 1.
        good: normal test images per category.
        defects: defective test images per category, of three kinds in turn.
        size: side of the images in pixels, 32 to 2048.
        seed: of all that is random.

    Returns:
        `root`, absolute.

    Raises:
        InputError: for a number out of range, where `root` holds something else, and where it
            cannot be made.
    """
    recipe = Recipe(train, good, defects, size, seed)
    root = Path(root).expanduser().absolute()
    if _is_complete(root, recipe):
        return root
    _check_free(root)

    # Drawn beside its place and moved there whole, so that nobody reads half a data set.
    draft = _draft_of(root)
    try:
        _write_all(draft, recipe)
        draft.chmod(0o755)  # mkdtemp makes folders only the owner can read
        _move_into_place(draft, root, recipe)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def _draft_of(root: Path) -> Path:
    """Make a hidden folder beside a data set's.

    Raises:
        InputError: where nothing can be written there.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    except OSError as error:
        raise InputError(
            Sentence.of("synthetic folder", root=str(root), error=str(error.strerror))
        ) from error


def _is_complete(root: Path, recipe: Recipe) -> bool:
    """Tell whether `root` holds all the files of this recipe."""
    try:
        written = json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        return False
    if written != asdict(recipe):
        return False

    for picture in _pictures(recipe):
        for path in filter(None, (picture.image_path, picture.mask_path)):
            if not (root / path).is_file() or not (root / path).stat().st_size:
                return False
    return True


def _check_free(root: Path) -> None:
    """Refuse a place that holds what was not drawn here.

    Raises:
        InputError: names the folder.
    """
    if not root.exists() or (root / MARKER).is_file():
        return
    if not root.is_dir() or any(root.iterdir()):
        raise InputError(Sentence.of("synthetic other files", root=str(root)))


@dataclass(frozen=True)
class _Picture:
    """One image of the data set that is still to be drawn."""

    category: str
    """One of `CATEGORIES`."""
    kind: str | None
    """One of `DEFECTS`, or None for a normal image."""
    image_path: str
    """From the data set's root."""
    mask_path: str | None
    """From the data set's root; None for a normal image."""
    seed: tuple[int, int, int, int]
    """Its own seed: that of the data set, number of the category, number of the part, and place in
    it."""

    def draw(self, size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Draw the image, (S, S, 3) float, and its mask, (S, S) bool or None."""
        rng = np.random.default_rng(self.seed)
        image = draw_normal(self.category, size, rng)
        if self.kind is None:
            return image, None
        return add_defect(self.kind, image, rng)


def _pictures(recipe: Recipe) -> Iterator[_Picture]:
    """List all images.

    Each has a seed of its own, so that a longer data set begins with the shorter one.
    """
    kinds = list(DEFECTS)
    for number, category in enumerate(CATEGORIES):
        for i in range(recipe.train):
            path = f"{category}/train/good/{i:03d}.png"
            yield _Picture(category, None, path, None, (recipe.seed, number, 0, i))
        for i in range(recipe.good):
            path = f"{category}/test/good/{i:03d}.png"
            yield _Picture(category, None, path, None, (recipe.seed, number, 1, i))

        for i in range(recipe.defects):
            turn, which = divmod(i, len(kinds))
            kind = kinds[which]
            path = f"{category}/test/{kind}/{turn:03d}.png"
            mask_path = f"{category}/ground_truth/{kind}/{turn:03d}_mask.png"
            yield _Picture(category, kind, path, mask_path, (recipe.seed, number, 2, i))


def _write_all(root: Path, recipe: Recipe) -> None:
    """Draw all images into a folder, and say there what was drawn."""
    for picture in _pictures(recipe):
        image, mask = picture.draw(recipe.size)
        _save(root / picture.image_path, image)
        if mask is not None and picture.mask_path is not None:
            _save(root / picture.mask_path, mask * 255.0)
    write_json(root / MARKER, asdict(recipe))


def _save(path: Path, pixels: np.ndarray) -> None:
    """Write one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
    image.save(path, "png", compress_level=1)


def _move_into_place(draft: Path, root: Path, recipe: Recipe) -> None:
    """Put the finished draft where `root` shall be, unless another one came first."""
    old = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        with contextlib.suppress(FileNotFoundError):
            root.rename(old)
        draft.rename(root)
    except OSError:
        if not _is_complete(root, recipe):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
