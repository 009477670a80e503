"""A small data set drawn from a seed, to try the program before any real data are there.

MVTec AD's layout with three categories: `weave` and `grain` are textures, `gasket` is an object. Light, position and
noise vary; the defects are scratches, spots and missing parts with exact masks.

    python -m adray.data.synthetic datasets/synthetic --size 256
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from adray.errors import InputError
from adray.files import write_json

MARKER = "synthetic.json"
"""File at the root that says what was drawn; a folder without it is never overwritten."""

Array = np.ndarray


@dataclass(frozen=True)
class Recipe:
    """What is drawn: images per category, their side in pixels, and the seed."""

    train: int = 24
    good: int = 8
    defects: int = 12
    size: int = 128
    seed: int = 0


def write_synthetic(
    root: str | Path,
    *,
    train: int = 24,
    good: int = 8,
    defects: int = 12,
    size: int = 128,
    seed: int = 0,
) -> Path:
    """Draw the data set unless it lies there complete; the same arguments give the same bytes.

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
        InputError: for a number out of range, or where `root` holds something else.
    """
    recipe = Recipe(train, good, defects, size, seed)
    _check_recipe(recipe)
    root = Path(root).expanduser().absolute()
    if is_complete(root, recipe):
        return root
    if (
        root.exists()
        and not (root / MARKER).is_file()
        and (not root.is_dir() or any(root.iterdir()))
    ):
        raise InputError(
            f"{root} holds other files and is not overwritten; name a folder that does not exist yet"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        _write_all(draft, recipe)
        draft.chmod(0o755)  # mkdtemp makes folders only the owner can read
        _move_into_place(draft, root, recipe)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def is_complete(root: Path, recipe: Recipe) -> bool:
    """Whether `root` holds all the files of this recipe."""
    try:
        same = json.loads((root / MARKER).read_text()) == asdict(recipe)
    except (OSError, ValueError):
        return False
    return same and all(
        (root / name).is_file() and (root / name).stat().st_size for name in _file_names(recipe)
    )


def draw_normal(category: str, size: int, rng: np.random.Generator) -> Array:
    """A normal image, (S, S, 3) float in [0, 255]."""
    clean = CATEGORIES[category](size, rng)
    light = (
        1
        + rng.uniform(-0.06, 0.06)
        + rng.uniform(-0.05, 0.05, 2) @ (_grid(size) - 0.5).reshape(2, -1)
    )
    return clean * light.reshape(size, size, 1) + rng.normal(0, 3.5, (size, size, 1))


def add_defect(kind: str, image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Damage a normal image.

    Args:
        kind: one of `DEFECTS`.
        image: (S, S, 3) float.
        rng: places the defect.

    Returns:
        The damaged image, (S, S, 3) float, and the mask, (S, S) bool, outside of which nothing changed.
    """
    mask, paint = DEFECTS[kind](image, rng)
    return np.where(mask[:, :, None], paint, image), mask


def _weave(size: int, rng: np.random.Generator) -> Array:
    """Threads that cross over and under, at a random phase."""
    y, x = (_grid(size) + rng.uniform(0, 1, (2, 1, 1))) * 2 * np.pi * 10
    over = 0.5 + 0.5 * np.tanh(4 * np.sin(x / 2) * np.sin(y / 2))
    threads = over * np.abs(np.sin(x)) + (1 - over) * np.abs(np.sin(y))
    return _tint(0.35 + 0.5 * threads, (190, 175, 150))


def _grain(size: int, rng: np.random.Generator) -> Array:
    """Wood-like rings, bent by slow waves."""
    y, x = _grid(size)
    bend = sum(
        rng.uniform(0.01, 0.03) * np.sin(2 * np.pi * (k * y + rng.uniform())) for k in (1, 2, 3)
    )
    rings = np.sin(2 * np.pi * (9 * (x + bend) + rng.uniform()))
    return _tint(0.7 + 0.16 * rings + 0.05 * np.sin(5.3 * np.pi * rings), (180, 125, 80))


def _gasket(size: int, rng: np.random.Generator) -> Array:
    """A ring with six bolt holes on a dark table, turned and shifted a little."""
    y, x = _grid(size) - 0.5 - rng.uniform(-0.02, 0.02, (2, 1, 1))
    radius, turn = np.hypot(x, y), rng.uniform(0, 2 * np.pi)
    body = _soft(0.4 - radius, size) * _soft(radius - 0.17, size)
    for k in range(6):
        angle = turn + k * np.pi / 3
        body = body * _soft(
            np.hypot(x - 0.285 * np.cos(angle), y - 0.285 * np.sin(angle)) - 0.04, size
        )
    return _tint(0.12 + body * (0.62 + 0.1 * np.cos(60 * radius)), (170, 185, 200))


CATEGORIES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "gasket": _gasket,
    "grain": _grain,
    "weave": _weave,
}
"""(size, rng) -> a clean image, (S, S, 3) float."""


def _scratch(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A thin bent line, lighter or darker than what it crosses."""
    center, angle = _place(image, rng), rng.uniform(0, np.pi)
    y, x = _grid(len(image)) - center.reshape(2, 1, 1)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    across = across - rng.uniform(-2, 2) * along**2
    mask = (np.abs(along) < rng.uniform(0.1, 0.2)) & (
        np.abs(across) < max(rng.uniform(0.008, 0.014), 0.8 / len(image))
    )
    return mask, image + rng.choice([-1, 1]) * rng.uniform(50, 90)


def _spot(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A blot with a wavy edge and a colour of its own."""
    y, x = _grid(len(image)) - _place(image, rng).reshape(2, 1, 1)
    angle = np.arctan2(y, x)
    edge = rng.uniform(0.05, 0.08) * (
        1 + 0.2 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.1 * np.sin(7 * angle)
    )
    color = rng.uniform(20, 200, 3)
    return np.hypot(x, y) < edge, 0.3 * image + 0.7 * color


def _missing(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """A patch without its structure: level in the darkest tone around it."""
    y, x = _grid(len(image)) - _place(image, rng).reshape(2, 1, 1)
    turn = rng.uniform(0, np.pi)
    u, v = np.abs(x * np.cos(turn) + y * np.sin(turn)), np.abs(y * np.cos(turn) - x * np.sin(turn))
    mask = (u < rng.uniform(0.05, 0.1)) & (v < rng.uniform(0.04, 0.08))
    floor = np.percentile(image, 5, axis=(0, 1)) + rng.normal(0, 3.5, (*image.shape[:2], 1))
    return mask, np.broadcast_to(floor, image.shape)


DEFECTS: dict[str, Callable[[Array, np.random.Generator], tuple[Array, Array]]] = {
    "missing": _missing,
    "scratch": _scratch,
    "spot": _spot,
}
"""(image, rng) -> mask (S, S) bool and what shows through it, (S, S, 3) float."""


def _grid(size: int) -> Array:
    """Row and column of each pixel's centre in [0, 1], (2, S, S)."""
    return (np.mgrid[:size, :size] + 0.5) / size


def _soft(distance: Array, size: int) -> Array:
    """1 where the distance is positive, 0 where negative, with an edge about two pixels wide."""
    return np.clip(0.5 + distance * size / 2, 0, 1)


def _tint(gray: Array, color: tuple[int, int, int]) -> Array:
    """(S, S) in [0, 1] -> (S, S, 3)."""
    return gray[:, :, None] * np.array(color, float)


def _place(image: Array, rng: np.random.Generator) -> Array:
    """Row and column in [0, 1] of a point on the product: away from the border, and brighter than an empty table."""
    gray = image.mean(axis=2)
    low = len(gray) // 8
    inner = gray[low:-low, low:-low]
    row, column = np.unravel_index(
        rng.choice(np.flatnonzero(inner > 0.5 * inner.mean())), inner.shape
    )
    return (np.array([row, column]) + low + 0.5) / len(gray)


def _check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot be drawn.

    Raises:
        InputError: names the argument.
    """
    limits = {
        "train": (1, 10_000),
        "good": (0, 10_000),
        "defects": (0, 10_000),
        "size": (32, 2048),
        "seed": (0, 2**63),
    }
    for name, value in asdict(recipe).items():
        low, high = limits[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(
                f"{name}: {value!r} cannot be drawn; give a whole number from {low} to {high}"
            )


def _parts(recipe: Recipe) -> list[tuple[str, str | None, int]]:
    """(folder, kind of defect or None, number of the image in it) of each image of a category."""
    kinds = list(DEFECTS)
    parts: list[tuple[str, str | None, int]] = [
        ("train/good", None, i) for i in range(recipe.train)
    ]
    parts += [("test/good", None, i) for i in range(recipe.good)]
    parts += [(f"test/{kinds[i % 3]}", kinds[i % 3], i // 3) for i in range(recipe.defects)]
    return parts


def _file_names(recipe: Recipe) -> list[str]:
    """All images and masks of the data set, relative to its root."""
    names = []
    for category in CATEGORIES:
        for folder, kind, i in _parts(recipe):
            names.append(f"{category}/{folder}/{i:03d}.png")
            names += [f"{category}/ground_truth/{kind}/{i:03d}_mask.png"] if kind else []
    return names


def _write_all(root: Path, recipe: Recipe) -> None:
    """Draw all images; each has a seed of its own, so that a longer data set begins with the shorter one."""
    for c, category in enumerate(CATEGORIES):
        for p, (folder, kind, i) in enumerate(_parts(recipe)):
            part = ("train/good", "test/good").index(folder) if kind is None else 2
            number = p - (0, recipe.train, recipe.train + recipe.good)[part]
            rng = np.random.default_rng([recipe.seed, c, part, number])
            image = draw_normal(category, recipe.size, rng)
            if kind is not None:
                image, mask = add_defect(kind, image, rng)
                _save(root / category / "ground_truth" / kind / f"{i:03d}_mask.png", mask * 255.0)
            _save(root / category / folder / f"{i:03d}.png", image)
    write_json(root / MARKER, asdict(recipe))


def _save(path: Path, pixels: Array) -> None:
    """Write one PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8)).save(
        data, "png", compress_level=1
    )
    path.write_bytes(data.getvalue())


def _move_into_place(draft: Path, root: Path, recipe: Recipe) -> None:
    """Put the finished draft where `root` shall be; of two that race the first stays."""
    old = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        with contextlib.suppress(FileNotFoundError):
            root.rename(old)
        draft.rename(root)
    except OSError:
        if not is_complete(root, recipe):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m adray.data.synthetic",
        description="Draw a small data set in MVTec AD's layout: two textures, one object, defects with exact masks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", help="folder to write, such as datasets/synthetic")
    parser.add_argument("--train", type=int, default=24, help="normal training images per category")
    parser.add_argument("--good", type=int, default=8, help="normal test images per category")
    parser.add_argument(
        "--defects", type=int, default=12, help="defective test images per category"
    )
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images")
    asked = vars(parser.parse_args(arguments))
    try:
        root = write_synthetic(asked.pop("out"), **asked)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{root}: {', '.join(CATEGORIES)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
